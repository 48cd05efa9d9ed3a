"""Kernels in blocks of 32: the blocks' formulas and layout, and both ways of multiplying by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.errors import UserError
from transformers_jax.layers import affine
from transformers_jax.layers.affine import KINDS, LayerOfStack, from_blocks, quantize_affine
from transformers_jax.layers.quantized import bytes_per_parameter, dequantize, product


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def blocks(kind, lines, count, seed=0):
    """Random blocks as a GGUF file has them, and the numbers they stand for by llama.cpp's formulas, [C, A]."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.01, 0.02, (lines, count)).astype(np.float16)
    minimum = rng.uniform(-0.2, 0, (lines, count)).astype(np.float16) if kind == "q4_1" else None
    if kind == "q8_0":
        codes = rng.integers(-127, 128, (lines, count, 32)).astype(np.int8)
        numbers = codes.astype(np.float32)
    else:
        codes = rng.integers(0, 256, (lines, count, 16)).astype(np.uint8)
        numbers = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.float32) - 8 * (kind == "q4_0")
    weights = numbers * scale[..., None].astype(np.float32)
    if minimum is not None:
        weights = weights + minimum[..., None].astype(np.float32)
    return (codes, scale, minimum), weights.reshape(lines, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_read_as_they_are(kind):
    given, weights = blocks(kind, 24, 3)
    kernel = from_blocks(kind, *given)
    assert kernel.shape == (96, 24)
    np.testing.assert_allclose(dequantize(kernel), weights.T, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(kernel.columns(np.array([[3, 1]])), weights[[[3, 1]]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_products(kind, rows, monkeypatch):
    """Both ways, single kernels and layers of a stack, equal the product with the dequantised kernel."""
    monkeypatch.setattr(affine, "TILE", 96 * 16)  # three tiles
    stack = [blocks(kind, 48, 3, seed) for seed in range(2)]
    given = [None if parts[0] is None else np.stack(parts) for parts in zip(*(given for given, _ in stack), strict=True)]
    stacked, x = from_blocks(kind, *given), normal(rows, 96)
    ways = [jax.jit(way) for way in (affine._by_terms, affine._by_tiles, product)]
    for layer, (given, weights) in enumerate(stack):
        kernel = from_blocks(kind, *given)
        wanted = x @ weights.T
        for way in ways:
            args = (x, kernel, None) if way is not ways[2] else (x[None], kernel)
            np.testing.assert_allclose(way(*args).reshape(rows, 48), wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ways[2](x, LayerOfStack(stacked, jnp.int32(layer))), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dequantize(stacked)[1], stack[1][1].T, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient(kind):
    given, weights = blocks(kind, 48, 2)
    kernel, x, gradient = from_blocks(kind, *given), normal(3, 64), normal(3, 48)
    of_x, of_kernel = jax.jit(lambda x, kernel: jax.vjp(product, x, kernel)[1](gradient))(x, kernel)
    np.testing.assert_allclose(of_x, gradient @ weights, rtol=1e-5, atol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_kernel) if leaf.dtype != jax.dtypes.float0)


@pytest.mark.parametrize("kind,error,size", [("q8_0", 0.0054, 1.0625), ("q4_0", 0.0860, 0.5625), ("q4_1", 0.0783, 0.625)])
def test_rounding(kind, error, size):
    """Relative errors on normal numbers; every number within a step of its block; a folded stack; the bytes."""
    kernel = normal(2, 256, 4, 32)
    made = quantize_affine(kernel, kind, stacked=True)
    off = dequantize(made) - kernel
    assert np.linalg.norm(off) / np.linalg.norm(kernel) == pytest.approx(error, rel=0.02)
    step = np.abs(np.float32(made.scale))[:, :, None]  # [L, K, 1, C]
    assert (np.abs(off).reshape(2, 8, 32, 128) <= step * 1.01).all()
    assert bytes_per_parameter(made) == size


def test_outliers_of_q4_0():
    """The largest number of a block comes back exactly, whatever its sign, and zeros stay zeros."""
    kernel = np.zeros((64, 2), np.float32)
    kernel[5, 0], kernel[40, 1] = 4.0, -2.0
    np.testing.assert_array_equal(dequantize(quantize_affine(kernel, "q4_0")), kernel)


def test_tiles():
    assert affine._tiles(576, 12288) == 12 and affine._tiles(96, 48) == 1 and affine._tiles(4096, 4099) == 1


def test_axes_and_mistakes():
    kernel = quantize_affine(normal(64, 4, 8), "q4_1")
    axes = kernel.logical_axes(("embed", "heads", "kv"))
    assert axes == {"codes": ("embed", None, "heads"), "scale": ("embed", "heads"), "minimum": ("embed", "heads")}
    for name, found in axes.items():
        assert len(found) == getattr(kernel, name).ndim
    with pytest.raises(UserError, match="q5_1"):
        quantize_affine(normal(64, 4), "q5_1")
    with pytest.raises(UserError, match="40 inputs"):
        quantize_affine(normal(40, 4))
    with pytest.raises(ValueError, match="layer"):
        product(normal(1, 64), quantize_affine(normal(2, 64, 4), stacked=True))
