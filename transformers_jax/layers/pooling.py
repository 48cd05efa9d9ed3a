"""One vector of all positions of a row.

Axes: B batch rows, T length, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

POOLINGS = ("mean", "first", "max", "mean_sqrt_len")
"""The mean, that of the first position ([CLS]), the largest of each column, the sum over the root of the length."""


class Recipe(NamedTuple):
    """How a text becomes a vector.

    pooling: one of POOLINGS.
    normalise: vectors have length 1.
    max_length: tokens of a text that are read, with its beginning and end; 0 for all that the model takes.
    """

    pooling: str = "mean"
    normalise: bool = True
    max_length: int = 0


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
            return hidden[..., 0, :]
        case "max":
            return jnp.where(count > 0, jnp.where(real[..., None], hidden, -jnp.inf).max(axis=-2), 0.0)
        case "mean_sqrt_len":
            return (hidden * weights).sum(axis=-2) / jnp.sqrt(jnp.maximum(count, 1))
        case _:
            return (hidden * weights).sum(axis=-2) / jnp.maximum(count, 1)


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] of length 1; one of zeros stays, and has a gradient of finite numbers."""
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
