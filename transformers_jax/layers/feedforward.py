"""The position-wise feed-forward network."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.projections import Linear


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x), Φ the normal distribution function (Hendrycks and Gimpel 2016), exactly.

    Its derivative is formed beside the value, from the same error function, and is all that is kept for the backward pass.
    """
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    y = x.astype(jnp.float32)
    phi = 0.5 + 0.5 * jax.lax.erf(y * 0.5**0.5)
    derivative = phi + y * jnp.exp(-0.5 * y * y) * (2.0 * jnp.pi) ** -0.5
    return (y * phi).astype(x.dtype), derivative.astype(x.dtype)


gelu.defvjp(_gelu_forward, lambda derivative, cotangent: (cotangent * derivative,))

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": gelu, "gelu_tanh": jax.nn.gelu, "swish": jax.nn.swish}
"""`gelu_tanh` is its authors' quicker approximation, which GPT-2 and ALBERT use."""


class FeedForward(nn.Module):
    """Two dense layers with an activation between: [..., D] → [..., F] → [..., D] (Vaswani et al. 2017, section 3.3)."""

    mlp_width: int
    dropout_rate: float = 0.0
    activation: str = "relu"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    stddev: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype, stddev=self.stddev)
        h = Linear(self.mlp_width, ("embed", "mlp"), name="expand", **types)(x)  # [..., F]
        h = ACTIVATIONS[self.activation](h)
        h = Dropout(self.dropout_rate)(h, deterministic=deterministic)
        return Linear(x.shape[-1], ("mlp", "embed"), name="contract", **types)(h)  # [..., D]
