"""Attention as the lecture builds it: a compatibility of query and key, a distribution over keys, a mean of values.

Axes: T queries, S keys, D width of queries, E width of keys, A width of the concat score's hidden layer.
Leading axes `...` (batch, heads) are the same for all.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def attention(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    compatibility: Callable[[jax.Array, jax.Array], jax.Array],
    distribution: Callable[[jax.Array, jax.Array | None], jax.Array],
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """distribution(compatibility(query, keys)) @ values: attention in general (Luong et al. 2015, section 3).

    Args:
      query: [..., T, D].
      keys: [..., S, E].
      values: [..., S, V], of any width V.
      compatibility: (query, keys) → scores [..., T, S]: `dot`, `scaled_dot`, a `General` or a `Concat`.
      distribution: (scores, mask) → weights [..., T, S] that add up to 1: `softmax`, or `hardmax`.
      mask: bool broadcastable to [..., T, S], true where a query may see a key.

    Returns:
      (context vectors [..., T, V], weights [..., T, S]); zeros for a query that sees no key.
    """
    weights = distribution(compatibility(query, keys), mask)
    return weights @ values, weights


def softmax(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """exp(score) / sum of exp(scores) over the keys that are seen, in float32; zeros in a row that sees none."""
    if mask is None:
        return jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(scores.dtype)
    seen = jnp.broadcast_to(mask, scores.shape)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, where=seen, initial=-jnp.inf))
    powers = jnp.where(seen, jnp.exp(jnp.where(seen, scores - peak, 0.0).astype(jnp.float32)), 0.0)
    total = jnp.sum(powers, axis=-1, keepdims=True)
    return (powers / jnp.where(total > 0, total, 1.0)).astype(scores.dtype)


def hardmax(scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """All weight on the best key that is seen (the first of equals); zeros in a row that sees none. No gradient."""
    seen = jnp.ones(scores.shape, bool) if mask is None else jnp.broadcast_to(mask, scores.shape)
    best = jnp.argmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jax.nn.one_hot(best, scores.shape[-1], dtype=scores.dtype) * jnp.any(seen, axis=-1, keepdims=True)


def dot(query: jax.Array, keys: jax.Array) -> jax.Array:
    """q · k (Luong et al. 2015, section 3.1, "dot"): [..., T, D], [..., S, D] → [..., T, S]."""
    return query @ jnp.swapaxes(keys, -1, -2)


def scaled_dot(query: jax.Array, keys: jax.Array) -> jax.Array:
    """q · k / sqrt(D) (Vaswani et al. 2017, section 3.2.1): [..., T, D], [..., S, D] → [..., T, S]."""
    return dot(query * query.shape[-1] ** -0.5, keys)


class General(nn.Module):
    """q^T W k (Luong et al. 2015, section 3.1, "general"); parameter kernel [D, E]."""

    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array, keys: jax.Array) -> jax.Array:
        """[..., T, D], [..., S, E] → [..., T, S]."""
        init = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), ("embed", "kv"))
        kernel = self.param("kernel", init, (query.shape[-1], keys.shape[-1]), self.param_dtype)
        return dot(query @ kernel, keys)


class Concat(nn.Module):
    """v^T tanh(W [q; k]) (Luong et al. 2015, section 3.1, "concat"; Bahdanau et al. 2015, appendix A.1.2).

    Parameters: kernel W [D + E, A], vector v [A]. W is applied to queries and keys apart and the sums are added:
    the same, without a [T, S, D + E] array.
    """

    width: int
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array, keys: jax.Array) -> jax.Array:
        """[..., T, D], [..., S, E] → [..., T, S]."""
        init = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), ("embed", "kv"))
        kernel = self.param("kernel", init, (query.shape[-1] + keys.shape[-1], self.width), self.param_dtype)
        normal = nn.with_logical_partitioning(nn.initializers.normal(self.width**-0.5), ("kv",))
        vector = self.param("vector", normal, (self.width,), self.param_dtype)
        of_query, of_keys = query @ kernel[: query.shape[-1]], keys @ kernel[query.shape[-1] :]
        return jnp.tanh(of_query[..., :, None, :] + of_keys[..., None, :, :]) @ vector
