"""The position-wise feed-forward network."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.projections import Linear

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "swish": jax.nn.swish}


class FeedForward(nn.Module):
    """Two dense layers with an activation between: [..., D] → [..., F] → [..., D] (Vaswani et al. 2017, section 3.3)."""

    hidden: int
    dropout_rate: float = 0.0
    activation: str = "relu"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = Linear(self.hidden, ("embed", "mlp"), name="expand", **types)(x)  # [..., F]
        h = ACTIVATIONS[self.activation](h)
        h = Dropout(self.dropout_rate)(h, deterministic=deterministic)
        return Linear(x.shape[-1], ("mlp", "embed"), name="contract", **types)(h)  # [..., D]
