"""The position-wise feed-forward network, plain and gated.

Axes: D model width, F width inside.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.projections import Linear, Stddev


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
    """Two dense layers with an activation between: [..., D] → [..., F] → [..., D] (Vaswani et al. 2017, section 3.3).

    stddev: how the kernels start (`projections.kernel_init`); out_stddev, the second one's if it starts otherwise.
    """

    mlp_width: int
    dropout_rate: float = 0.0
    activation: str = "relu"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    stddev: Stddev = 0.0
    out_stddev: Stddev | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        types = dict(use_bias=self.use_bias, dtype=self.dtype, param_dtype=self.param_dtype)
        h = Linear(self.mlp_width, ("embed", "mlp"), name="expand", stddev=self.stddev, **types)(x)  # [..., F]
        h = ACTIVATIONS[self.activation](h)
        h = Dropout(self.dropout_rate)(h, deterministic=deterministic)
        last = self.stddev if self.out_stddev is None else self.out_stddev
        return Linear(x.shape[-1], ("mlp", "embed"), name="contract", stddev=last, **types)(h)  # [..., D]


class GatedFeedForward(nn.Module):
    """W₂(activation(x W) ⊙ x V): [..., D] → [..., D] (Shazeer 2020, section 2; with "swish" its SwiGLU).

    Parameters: gate (W) and expand (V) kernels [D, F], contract (W₂) kernel [F, D], with `use_bias` their biases.
    """

    mlp_width: int
    dropout_rate: float = 0.0
    activation: str = "swish"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    stddev: Stddev = 0.0
    out_stddev: Stddev | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        types = dict(use_bias=self.use_bias, dtype=self.dtype, param_dtype=self.param_dtype)
        gate = Linear(self.mlp_width, ("embed", "mlp"), name="gate", stddev=self.stddev, **types)(x)  # [..., F]
        h = Linear(self.mlp_width, ("embed", "mlp"), name="expand", stddev=self.stddev, **types)(x)  # [..., F]
        h = ACTIVATIONS[self.activation](gate) * h
        h = Dropout(self.dropout_rate)(h, deterministic=deterministic)
        last = self.stddev if self.out_stddev is None else self.out_stddev
        return Linear(x.shape[-1], ("mlp", "embed"), name="contract", stddev=last, **types)(h)  # [..., D]
