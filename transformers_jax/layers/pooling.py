"""One vector of all positions of a row.

Axes: B batch rows, T length, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError

POOLINGS = ("mean", "first", "max", "mean_sqrt_len", "weighted_mean", "last")
"""The mean, that of the first position ([CLS]), the largest of each column, the sum over the root of the length, the mean
weighted by position, from 1 on, and that of the last position."""

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
"""Of two vectors: the cosine, the product, and the distances, negated."""


class Recipe(NamedTuple):
    """How a text becomes a vector.

    pooling: one of POOLINGS.
    normalise: vectors have length 1.
    max_length: tokens of a text that are read, with its beginning and end; 0 for all that the model takes.
    lowercase: texts are put in lower case first.
    prompts: (name, text) of what may stand before a text: ("query", "query: ").
    prompt: the name of the one that stands there where none is asked for; "" for none.
    pool_prompt: whether the vector is made of the prompt's positions too.
    similarity: one of SIMILARITIES, by which vectors are compared.
    """

    pooling: str = "mean"
    normalise: bool = True
    max_length: int = 0
    lowercase: bool = False
    prompts: tuple[tuple[str, str], ...] = ()
    prompt: str = ""
    pool_prompt: bool = True
    similarity: str = "cosine"

    def before(self, name: str | None = None) -> str:
        """What stands before a text under the prompt of a name; None for the recipe's own, "" for none.

        Raises:
          UserError: there is no such prompt.
        """
        name = self.prompt if name is None else name
        if name and name not in dict(self.prompts):
            known = ", ".join(name for name, _ in self.prompts) or "none"
            raise UserError(f"there is no prompt {name!r}; the recipe has {known}")
        return dict(self.prompts)[name] if name else ""


def pool(hidden: jax.Array, real: jax.Array, kind: str = "mean") -> jax.Array:
    """Hidden states [..., T, D] → [..., D] in float32 (Reimers and Gurevych 2019, section 3).

    Args:
      real: [..., T] bool, false at padding.
      kind: one of POOLINGS. A row without real positions gives zeros.
    """
    hidden, weights = hidden.astype(jnp.float32), real[..., None].astype(jnp.float32)
    count = weights.sum(axis=-2)
    match kind:
        case "first":
            return _at(hidden, jnp.argmax(real, axis=-1))
        case "last":
            return _at(hidden, real.shape[-1] - 1 - jnp.argmax(real[..., ::-1], axis=-1)) * (count > 0)
        case "weighted_mean":
            weights *= jnp.arange(1, hidden.shape[-2] + 1, dtype=jnp.float32)[:, None]
            return (hidden * weights).sum(axis=-2) / jnp.maximum(weights.sum(axis=-2), 1)
        case "max":
            return jnp.where(count > 0, jnp.where(real[..., None], hidden, -jnp.inf).max(axis=-2), 0.0)
        case "mean_sqrt_len":
            return (hidden * weights).sum(axis=-2) / jnp.sqrt(jnp.maximum(count, 1))
        case _:
            return (hidden * weights).sum(axis=-2) / jnp.maximum(count, 1)


def _at(hidden: jax.Array, places: jax.Array) -> jax.Array:
    """[..., T, D] at places [...] → [..., D]."""
    return jnp.take_along_axis(hidden, places[..., None, None], axis=-2)[..., 0, :]


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] of length 1; one of zeros stays, and has a gradient of finite numbers."""
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
