"""Convolutions over images against XLA's own, with their gradients."""

import jax
import numpy as np
import pytest

from transformers_jax.layers.convolution2d import NUMBERS, Conv2d, convolve2d, depthwise2d, patches, shifted_sum, standardised


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def grouped(x, kernel):
    numbers = dict(dimension_numbers=NUMBERS, feature_group_count=x.shape[-1])
    return jax.lax.conv_general_dilated(x, kernel[:, :, None], (1, 1), "SAME", **numbers)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_depthwise_and_its_gradients_are_those_of_a_grouped_convolution(size):
    x, kernel, weight = draw(2, 9, 6, 5), draw(size, size, 5, seed=1), draw(2, 9, 6, 5, seed=2)

    @jax.jit
    def both(x, kernel):
        return [(f(x, kernel), *jax.vjp(f, x, kernel)[1](weight)) for f in (shifted_sum, grouped, depthwise2d)]

    mine, theirs, chosen = both(x, kernel)
    for a, b, c in zip(mine, theirs, chosen, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        np.testing.assert_allclose(c, b, atol=1e-4)


def test_depthwise_in_half_precision_sums_in_single():
    x, kernel = draw(1, 8, 8, 4).astype(jax.numpy.bfloat16), draw(7, 7, 4, seed=1)
    y = shifted_sum(x, kernel)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.astype(np.float32), grouped(x.astype(np.float32), kernel), atol=0.05, rtol=0.01)


@pytest.mark.parametrize(
    "size, stride, padding, shape", [(4, 4, 0, (9, 14)), (2, 2, 0, (8, 8)), (7, 4, 3, (9, 14)), (1, 1, 0, (3, 5))]
)
def test_convolution_is_that_of_xla(size, stride, padding, shape):
    x, layer = draw(2, *shape, 3), Conv2d(5, size, stride, padding)
    params = {"kernel": draw(size, size, 3, 5, seed=1), "bias": draw(5, seed=2)}
    y = layer.apply({"params": params}, x)
    around = [(padding, padding)] * 2
    wanted = jax.lax.conv_general_dilated(x, params["kernel"], (stride, stride), around, dimension_numbers=NUMBERS)
    np.testing.assert_allclose(y, wanted + params["bias"], atol=1e-4)


@pytest.mark.parametrize("size, stride, padding", [(3, 1, 1), (3, 2, 1), (7, 4, 3), (7, 2, "SAME"), (2, 3, 0)])
def test_gradients_of_a_convolution_are_those_of_xla(size, stride, padding):
    x, kernel = draw(2, 9, 14, 3), draw(size, size, 3, 5, seed=1)
    around = padding if isinstance(padding, str) else [(padding, padding)] * 2

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), around, dimension_numbers=NUMBERS)

    weight = draw(*theirs(x, kernel).shape, seed=2)
    found, wanted = (
        (f(x, kernel), *jax.vjp(f, x, kernel)[1](weight)) for f in (lambda *a: convolve2d(*a, stride, padding), theirs)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_patches_stand_in_reading_order():
    x = np.arange(2 * 5 * 6 * 3).reshape(2, 5, 6, 3)
    cut = patches(x, 2)
    assert cut.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(cut[1, 1, 2], x[1, 2:4, 4:6].reshape(-1))


def test_standardised_kernels():
    kernel = standardised(3 + 2 * draw(3, 3, 8, 5), 1e-8)
    np.testing.assert_allclose(kernel.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(kernel.var(axis=(0, 1, 2)), 1, rtol=1e-5)
