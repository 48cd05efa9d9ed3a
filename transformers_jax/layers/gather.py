"""Some positions of a row: those that a masked language model predicts, a fixed number of them, so that shapes are known.

Axes: B batch rows, T length, M positions that are predicted.
"""

import math

import jax
import jax.numpy as jnp


def predicted(share: float, length: int) -> int:
    """M: how many positions of a row of `length` are predicted at most."""
    return min(length, math.ceil(share * length))


def masked_positions(weights: jax.Array, count: int) -> jax.Array:
    """The positions of weight, in their order; where a row has fewer than `count`, its first others behind them.

    Args:
      weights: [B, T] ints, 1 where a token is to be predicted. Beyond `count` a row's last ones are left out.
      count: M.

    Returns:
      [B, M] int32, each position once.
    """
    return jax.lax.top_k(weights.astype(jnp.int32), count)[1]


def aligned(count: int, weights: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Targets and weights [B, T] at the positions that an output of `count` has: all T, or the masked ones, [B, M]."""
    if count == targets.shape[1]:
        return targets, weights
    positions = masked_positions(weights, count)  # [B, M]
    return gather(targets, positions), gather(weights, positions)


def gather(x: jax.Array, positions: jax.Array | None) -> jax.Array:
    """The entries of x [B, T, …] at positions [B, M]: [B, M, …]. All of x for None."""
    if positions is None:
        return x
    return jnp.take_along_axis(x, positions.reshape(*positions.shape, *(1,) * (x.ndim - 2)), axis=1)
