"""Dropout whose mask is arithmetic on the position's number, so that it fuses with what it is applied to.

The random bits of an element are a keyed integer hash of its index. Drawing them costs a few multiplications inside the
surrounding fusion instead of a pass through memory, and because an element's bits depend on its global index alone, a
sharded program drops the same elements as one on a single device.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def _mix(h: jax.Array) -> jax.Array:
    """A 32-bit finaliser (`lowbias32`, Wellons 2018): every input bit flips each output bit about half the time."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


def keep_mask(rng: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Which elements survive dropout.

    Args:
      rng: a jax PRNG key of any implementation.
      rate: probability of dropping, in [0, 1).
      shape: shape of the mask; fewer than 2**32 elements.

    Returns:
      bool array of `shape`, True with probability 1 - rate (exact to 2**-32).
    """
    key = jax.random.bits(rng, (2,), jnp.uint32)
    index = jnp.uint32(0)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return _mix(_mix(index ^ key[0]) + key[1]) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Draws from the rng stream "dropout".
    """

    rate: float

    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return x
        keep = keep_mask(self.make_rng("dropout"), self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))
