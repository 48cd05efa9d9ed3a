"""What is done to the branch of a residual connection before it is added: stochastic depth, and a scale for each channel."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class DropPath(nn.Module):
    """Leaves out a branch for whole examples and scales up the others' (Huang et al. 2016, "Deep Networks with Stochastic
    Depth"; per example as Larsson et al. 2017).

    Draws from the rng stream "dropout".

    rate: of the last layer of `layers`; from the first one, which is always kept, it grows in equal steps.
    """

    rate: float
    layers: int = 2

    def __call__(self, x: jax.Array, layer: int | jax.Array, *, deterministic: bool) -> jax.Array:
        """x [B, ...], the branch of layer 0, 1, …, `layers` - 1, a number or, in scanned layers, an array."""
        if deterministic or self.rate == 0.0:
            return x
        dropped = self.rate * layer / max(self.layers - 1, 1)
        shape = (x.shape[0], *[1] * (x.ndim - 1))
        keep = jax.random.uniform(self.make_rng("dropout"), shape) >= dropped
        return jnp.where(keep, x * jnp.asarray(1.0 / jnp.maximum(1.0 - dropped, 1e-6), x.dtype), jnp.zeros((), x.dtype))


class LayerScale(nn.Module):
    """x [..., D] times a learned scale [D] that begins small (Touvron et al. 2021, "Going deeper with Image Transformers",
    section 2).

    initial: value of the scale at the beginning.
    """

    initial: float
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.constant(self.initial), ("embed",))
        return x * self.param("scale", init, (x.shape[-1],), self.param_dtype).astype(self.dtype)
