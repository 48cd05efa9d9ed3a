"""Convolutions against loops, XLA's own, and themselves: packed or alone, whole or step by step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.errors import UserError
from transformers_jax.layers.convolution import Conv, LightweightConv, SeparableConv, depthwise

B, T, C = 2, 12, 6
LAYERS = {
    "separable 5": (SeparableConv, dict(features=5, width=5)),
    "separable 11": (SeparableConv, dict(features=5, width=11)),
    "full 1": (Conv, dict(features=5, width=1)),
    "full 3": (Conv, dict(features=5, width=3)),
    "lightweight 3, reduction 1": (LightweightConv, dict(features=6, width=3, reduction=1)),
    "lightweight 7, reduction 4": (LightweightConv, dict(features=12, width=7, reduction=4)),
}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def loop(x, kernel, segments, causal):
    """The definition, tap by tap."""
    width, y = len(kernel), np.zeros_like(x, np.float64)
    first = width - 1 if causal else (width - 1) // 2
    for b, t, j in np.ndindex(*x.shape[:2], width):
        read = t + j - first
        if 0 <= read < x.shape[1] and segments[b, t] == segments[b, read] > 0:
            y[b, t] += x[b, read].astype(np.float64) * kernel[j]
    return y


@st.composite
def packings(draw):
    """Segments [B, T]: every row a few examples one after the other, then perhaps padding."""
    rows = []
    for _ in range(B):
        sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
        row = np.repeat(np.arange(1, len(sizes) + 1), sizes)[:T]
        rows.append(np.pad(row, (0, T - len(row))))
    return np.array(rows, np.int32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 11])
def test_depthwise_is_its_definition(width, causal):
    x, kernel = draw(B, T, C), draw(width, C, seed=1)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * T], np.int32)
    run = jax.jit(functools.partial(depthwise, causal=causal))
    np.testing.assert_allclose(run(x, kernel, segments), loop(x, kernel, segments, causal), atol=1e-5)
    whole = loop(x, kernel, np.ones_like(segments), causal)
    np.testing.assert_allclose(run(x, kernel), whole, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_depthwise_and_its_gradients_are_those_of_a_grouped_convolution(causal):
    x, kernel, weight = draw(B, T, C), draw(7, C, seed=1), draw(B, T, C, seed=2)
    padding = [(6, 0)] if causal else "SAME"

    def grouped(x, kernel):
        numbers = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(x, kernel[:, None], (1,), padding, dimension_numbers=numbers, feature_group_count=C)

    ours = functools.partial(depthwise, segments=None, causal=causal)
    mine, theirs = (jax.jit(lambda x, k, f=f: jax.vjp(f, x, k)[1](weight))(x, kernel) for f in (ours, grouped))
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(packings(), st.booleans())
def test_gradients_agree_with_differences_over_any_packing(segments, causal):
    """The map is linear in each argument: its gradient times a direction is the map along this direction."""
    x, kernel, weight = draw(B, T, C), draw(5, C, seed=1), draw(B, T, C, seed=2)
    toward_x, toward_kernel = draw(B, T, C, seed=3), draw(5, C, seed=4)
    of_x, of_kernel = gradients(x, kernel, segments, weight, causal)
    along_x = np.sum(loop(toward_x, kernel, segments, causal) * weight)
    along_kernel = np.sum(loop(x, toward_kernel, segments, causal) * weight)
    np.testing.assert_allclose(np.sum(of_x * toward_x), along_x, atol=1e-3)
    np.testing.assert_allclose(np.sum(of_kernel * toward_kernel), along_kernel, atol=1e-3)


@functools.partial(jax.jit, static_argnums=4)
def gradients(x, kernel, segments, weight, causal):
    return jax.grad(lambda x, k: jnp.sum(depthwise(x, k, segments, causal=causal) * weight), (0, 1))(x, kernel)


def make(name, *, causal=True, **more):
    kind, fields = LAYERS[name]
    layer = kind(causal=causal, **fields, **more)
    return layer, nn.unbox(jax.jit(layer.init)(jax.random.key(1), draw(B, T, C)))


@functools.cache
def compiled(name, causal):
    layer, variables = make(name, causal=causal)
    return jax.jit(lambda x, segments: layer.apply(variables, x, segments))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=15, deadline=None)
@given(packings(), st.integers(0, 2**16))
def test_nothing_leaks_between_examples_nor_from_padding(name, causal, segments, seed):
    """What stands in other examples and in padding, not-a-number even, changes nothing; in a causal layer, what comes later."""
    x = draw(1, T, C, seed=seed)
    alone, owners = [x[0]], segments[:1].repeat(T + 1, axis=0)  # then one row for each position, with what it may see
    for t in range(T):
        seen = owners[0] == owners[0, t]
        if causal:
            seen = seen & (np.arange(T) <= t)
        alone.append(np.where(seen[:, None], x[0], np.nan))
    y = np.asarray(compiled(name, causal)(np.stack(alone), owners))
    for t in np.flatnonzero(owners[0]):
        np.testing.assert_array_equal(y[t + 1, t], y[0, t])


@pytest.mark.parametrize("name", LAYERS)
def test_packed_examples_equal_separate_ones(name):
    layer, variables = make(name, causal=False)
    x, sizes = draw(1, 12, C), (5, 7)
    run = jax.jit(lambda x, segments=None: layer.apply(variables, x, segments))
    packed = run(x, np.repeat([1, 2], sizes)[None].astype(np.int32))
    apart = [run(part) for part in (x[:, :5], x[:, 5:])]
    np.testing.assert_allclose(packed, np.concatenate(apart, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_step_by_step_equals_the_whole_row(name):
    layer, variables = make(name)
    x = draw(B, T, C, seed=5)
    wanted = jax.jit(layer.apply)(variables, x)
    state = layer.apply(variables, B, C, method="start", mutable=["cache"])[1]
    step = jax.jit(lambda state, x, t: layer.apply({**variables, **state}, x, t, method="step", mutable=["cache"]))
    for t in range(T):
        got, changed = step(state, x[:, t : t + 1], t)
        assert jax.tree.map(jnp.shape, changed) == jax.tree.map(jnp.shape, state)
        np.testing.assert_allclose(got[:, 0], wanted[:, t], atol=1e-5)
        state = changed


def test_a_step_needs_a_causal_layer_and_a_start():
    layer, variables = make("separable 5", causal=False)
    with pytest.raises(ValueError, match="causal"):
        layer.apply(variables, B, C, method="start", mutable=["cache"])
    layer, variables = make("separable 5")
    with pytest.raises(ValueError, match="start"):
        layer.apply(variables, draw(B, 1, C), 0, method="step", mutable=["cache"])


@pytest.mark.parametrize("causal", [False, True])
def test_a_full_convolution_is_xla_s(causal):
    layer, variables = make("full 3", causal=causal)
    product = variables["params"]["product"]
    kernel = product["kernel"].reshape(3, C, 5)
    padding = [(2, 0)] if causal else "SAME"
    x = draw(B, T, C)
    wanted = jax.lax.conv_general_dilated(x, kernel, (1,), padding, dimension_numbers=("NWC", "WIO", "NWC")) + product["bias"]
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), wanted, atol=1e-5)


def test_a_separable_convolution_is_taps_then_a_map():
    layer, variables = make("separable 5")
    p = variables["params"]
    x, ones = draw(B, T, C), np.ones((B, T), np.int32)
    wanted = loop(x, p["taps"]["kernel"], ones, True) @ p["pointwise"]["kernel"] + p["pointwise"]["bias"]
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), wanted, atol=1e-5)
    assert jax.tree.map(jnp.shape, p) == {"taps": {"kernel": (5, 6)}, "pointwise": {"kernel": (6, 5), "bias": (5,)}}


def test_lightweight_taps_are_a_softmax_that_channels_share():
    layer, variables = make("lightweight 7, reduction 4", causal=False)
    kernel = np.asarray(variables["params"]["taps"]["kernel"])
    assert kernel.shape == (7, 6 // 4 + 6 % 4, 2)
    shared, own = kernel[:, :1], kernel[:, 1:]
    taps = np.exp(np.concatenate([shared] * 4 + [own], axis=1))  # [K, C, m]
    taps = (taps / taps.sum(axis=0)).reshape(7, 12)
    x = draw(B, T, C)
    wanted = loop(np.repeat(x, 2, axis=-1), taps, np.ones((B, T), np.int32), False)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), wanted, atol=1e-5)
    ones = layer.apply(variables, np.ones((B, T, C), np.float32))
    np.testing.assert_allclose(ones[:, 3:-3], 1.0, atol=1e-5)


def test_a_lightweight_convolution_gives_a_multiple_of_its_channels():
    for features in (3, 9):
        with pytest.raises(UserError, match=f"6 channels gives a multiple of them, not {features}"):
            LightweightConv(features, 3).init(jax.random.key(0), draw(B, T, C))


def test_taps_keep_the_variance_of_a_channel():
    layer = SeparableConv(8, 11)
    taps = nn.unbox(layer.init(jax.random.key(0), draw(1, 3, 2000)))["params"]["taps"]["kernel"]
    assert np.sum(np.square(taps), axis=0).mean() == pytest.approx(1.0, rel=0.05)


def test_bfloat16_computes_so_and_sums_in_float32():
    layer, variables = make("separable 11", dtype="bfloat16")
    x = draw(B, T, C)
    y = jax.jit(layer.apply)(variables, x)
    assert y.dtype == jnp.bfloat16 and {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(np.asarray(y, np.float32), jax.jit(make("separable 11")[0].apply)(variables, x), atol=0.05)
    x = np.array([256.0] + [1.0] * 10)[None, :, None]
    run = jax.jit(functools.partial(depthwise, causal=True))
    total = run(jnp.asarray(x, jnp.bfloat16), np.ones((11, 1), np.float32))[0, -1, 0]
    assert float(total) == 266.0  # a bfloat16 sum stays at 256
