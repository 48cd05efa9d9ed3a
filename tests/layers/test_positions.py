"""Positions: the papers' formulas, the property they are chosen for, and what is out of range."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.errors import UserError
from transformers_jax.layers.positions import (
    STYLES,
    LearnedPositions,
    RelativePositions,
    Rotary,
    relative_index,
    sinusoidal,
    sinusoidal_at,
)


def interleaved(pos, width):
    """Vaswani et al. 2017, section 3.5, term by term."""
    return [
        math.sin(pos / 10000 ** (j / width)) if j % 2 == 0 else math.cos(pos / 10000 ** ((j - 1) / width))
        for j in range(width)
    ]


def concatenated(pos, width):
    """tensor2tensor's get_timing_signal_1d, term by term: sines of all timescales 1 … 1e4, then cosines."""
    half = width // 2
    increment = math.log(1e4) / (half - 1)
    angles = [pos * math.exp(-i * increment) for i in range(half)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


@pytest.mark.parametrize("style,formula", [("interleaved", interleaved), ("concatenated", concatenated)])
def test_table_is_the_papers_formula(style, formula):
    table = sinusoidal(50, 12, style)
    assert table.shape == (50, 12) and table.dtype == np.float32
    np.testing.assert_allclose(table, [formula(pos, 12) for pos in range(50)], atol=1e-6)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_positions_restart_in_packed_rows_and_odd_widths_fit(style, width):
    positions = jnp.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    table = sinusoidal(6, width, style)
    assert table.shape == (6, width) and np.isfinite(table).all()
    for length in (None, 6):
        found = jax.jit(lambda p, length=length: sinusoidal_at(p, width, style, length=length))(positions)
        assert found.shape == (2, 6, width)
        np.testing.assert_allclose(found, table[np.asarray(positions)], atol=2e-6)


@pytest.mark.parametrize("style", STYLES)
def test_odd_width_is_the_formula_without_its_last_cosine(style):
    odd = sinusoidal(9, 7, style)
    if style == "interleaved":
        np.testing.assert_allclose(odd, [interleaved(pos, 7) for pos in range(9)], atol=1e-6)
    else:  # four sines, three cosines of the first three of the four frequencies
        np.testing.assert_allclose(odd[:, :3] ** 2 + odd[:, 4:] ** 2, 1.0, atol=1e-6)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("offset", [1, 5, 40])
def test_an_offset_is_one_rotation_of_every_position(style, offset):
    """Section 3.5: PE(pos + k) is a linear function of PE(pos), the same for every pos."""
    width = 8
    table = sinusoidal(200, width, style).astype(np.float64)
    now, then = table[:-offset], table[offset:]
    wanted = np.zeros((width, width))  # a 2 × 2 rotation by k times the frequency, for each pair
    for i in range(width // 2):
        sine, cosine = (2 * i, 2 * i + 1) if style == "interleaved" else (i, i + width // 2)
        angle = math.atan2(table[1, sine], table[1, cosine]) * offset
        wanted[sine, sine] = wanted[cosine, cosine] = math.cos(angle)
        wanted[cosine, sine], wanted[sine, cosine] = math.sin(angle), -math.sin(angle)
    np.testing.assert_allclose(now @ wanted, then, atol=2e-5)
    np.testing.assert_allclose(wanted @ wanted.T, np.eye(width), atol=1e-12)
    assert np.abs(now - then).max() > 0.1


def test_a_position_beyond_the_table_is_seen():
    found = sinusoidal_at(jnp.array([3, 4]), 6, length=4)
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_unknown_style():
    with pytest.raises(UserError, match="'spiral' is none of interleaved, concatenated"):
        sinusoidal(4, 4, "spiral")


def test_learned_positions_look_up_and_learn():
    module = LearnedPositions(max_length=5, width=3)
    positions = jnp.array([[0, 1, 2, 0], [0, 1, 4, 2]])
    variables = module.init(jax.random.key(0), positions)
    table = np.asarray(variables["params"]["embedding"].value)
    np.testing.assert_array_equal(module.apply(variables, positions), table[np.asarray(positions)])
    grads = jax.grad(lambda v: jax.jit(module.apply)(v, positions).sum())(variables)
    np.testing.assert_array_equal(grads["params"]["embedding"].value[:, 0], [3, 2, 2, 0, 1])


def test_learned_positions_out_of_range():
    module = LearnedPositions(max_length=5, width=3)
    variables = module.init(jax.random.key(0), jnp.array([0]))
    with pytest.raises(UserError, match="6 positions do not fit into the 5 learned ones"):
        module.apply(variables, np.array([[0, 5]]))
    with pytest.raises(UserError, match="negative"):
        module.apply(variables, np.array([-1]))
    with pytest.raises(UserError, match="7 positions do not fit"):
        jax.eval_shape(lambda p: module.apply(variables, p, longest=7), jnp.array([0]))
    found = jax.jit(module.apply)(variables, jnp.array([4, 5]))  # known only at run time: not clamped silently
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_relative_index_clips():
    wanted = [[2, 3, 4, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]]
    np.testing.assert_array_equal(relative_index(jnp.arange(4), jnp.arange(4), 2), wanted)
    np.testing.assert_array_equal(relative_index(jnp.array([3]), jnp.arange(4), 2), wanted[3:])


def test_relative_positions_pick_vectors_by_offset():
    module = RelativePositions(distance=2)
    variables = module.init(jax.random.key(0), jnp.arange(4), jnp.arange(4), 3)
    table = np.asarray(variables["params"]["embedding"].value)
    assert table.shape == (5, 3)
    found = module.apply(variables, jnp.arange(4), jnp.arange(4), 3)
    assert found.shape == (4, 4, 3)
    for t, s in np.ndindex(4, 4):
        np.testing.assert_array_equal(found[t, s], table[min(max(s - t, -2), 2) + 2])


def rotated(x, position, theta=100.0):
    """One head x [H] turned as Su et al. 2021, equation 34, in the layout whose pairs are (i, i + H/2)."""
    half = len(x) // 2
    turned = np.zeros(len(x))
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        turned[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        turned[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return turned


def test_rotations_follow_their_definition_at_any_position():
    """Positions are read from the array: rows may be packed."""
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 6)).astype(np.float32)
    at = np.array([[0, 1, 2, 0], [7, 0, 1, 30]], np.int32)
    found = Rotary(theta=100.0).rotate(jnp.asarray(x), jnp.asarray(at))
    wanted = [[[rotated(x[b, t, n], at[b, t]) for n in range(3)] for t in range(4)] for b in range(2)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert Rotary().rotate(jnp.asarray(x, jnp.bfloat16), jnp.asarray(at)).dtype == jnp.bfloat16


def test_products_of_rotated_vectors_depend_on_the_distance_alone():
    q, k = (jnp.asarray(np.random.default_rng(s).normal(size=(1, 1, 1, 8)), jnp.float32) for s in (0, 1))

    def product(a, b):
        turn = Rotary(theta=100.0).rotate
        return float(jnp.sum(turn(q, jnp.array([[a]])) * turn(k, jnp.array([[b]]))))

    assert abs(product(9, 4) - product(25, 20)) < 1e-5 < abs(product(9, 4) - product(9, 5))


def test_scaled_frequencies():
    """linear divides all; llama3 divides those of long waves, keeps those of short ones, and blends between."""
    plain = Rotary(theta=1000.0).frequencies(16)
    np.testing.assert_allclose(plain, 1000.0 ** (-np.arange(8) / 8))
    np.testing.assert_allclose(Rotary(theta=1000.0, scaling="linear", factor=4.0).frequencies(16), plain / 4)
    found = Rotary(theta=1000.0, scaling="llama3", factor=8.0, original_length=64).frequencies(16)
    kinds = set()
    for frequency, scaled in zip(plain, found, strict=True):
        wave = 2 * np.pi / frequency
        if wave < 64 / 4:
            kind, wanted = "short", frequency
        elif wave > 64 / 1:
            kind, wanted = "long", frequency / 8
        else:
            smooth = (64 / wave - 1) / (4 - 1)
            kind, wanted = "between", (1 - smooth) * frequency / 8 + smooth * frequency
        kinds.add(kind)
        np.testing.assert_allclose(scaled, wanted)
    assert kinds == {"short", "between", "long"}


def test_rotations_that_cannot_be():
    with pytest.raises(UserError, match="rotary scaling 'yarn' is none of '', 'linear', 'llama3'"):
        Rotary(scaling="yarn")
    with pytest.raises(UserError, match="the head width 5 is odd"):
        Rotary().frequencies(5)
