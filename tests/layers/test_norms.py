"""Norms: against their definitions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.layers.norms import RMSNorm


def test_rms_norm_follows_its_definition():
    """x / sqrt(mean(x²) + ε) · scale (Zhang and Sennrich 2019, equation 4)."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 3, 8))
    scale = np.linspace(0.5, 2.0, 8).astype(np.float32)
    norm = RMSNorm(epsilon=0.1)
    boxed = norm.init(jax.random.key(0), jnp.asarray(x, jnp.float32))["params"]
    assert boxed["scale"].names == ("embed",) and np.all(nn.unbox(boxed)["scale"] == 1)
    wanted = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(norm.apply({"params": {"scale": scale}}, jnp.asarray(x, jnp.float32)), wanted, atol=1e-5)


def test_rms_norm_computes_in_float32():
    """Squares of bfloat16 numbers are summed in float32; the result has the dtype that is asked for, or the input's."""
    x = jnp.full((1, 4096), 1.01, jnp.bfloat16)
    scale = {"params": {"scale": jnp.ones(4096)}}
    out = RMSNorm(dtype=jnp.bfloat16).apply(scale, x)
    assert out.dtype == jnp.bfloat16 and RMSNorm(dtype=None).apply(scale, x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)
