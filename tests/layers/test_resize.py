"""Maps in another size, and positions of rows and columns."""

import jax
import numpy as np
import pytest

from transformers_jax.errors import UserError
from transformers_jax.layers.positions2d import sinusoidal_2d
from transformers_jax.layers.resize import resize, weights

METHODS = ("bilinear", "bicubic")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_size_is_the_same_map(method):
    np.testing.assert_array_equal(weights(7, 7, method), np.eye(7))
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 3)).astype(np.float32)
    assert resize(x, (5, 6), method) is x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("new", [3, 8, 14, 20])
def test_constants_stay_and_ramps_are_straight_inside(method, new):
    shares = weights(8, new, method)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    place = (np.arange(new) + 0.5) * 8 / new - 0.5
    inside = (place >= 1) & (place <= 6) & (method == "bilinear")  # this cubic does not keep ramps
    np.testing.assert_allclose((shares @ np.arange(8))[inside], place[inside], atol=1e-5)


def test_bicubic_by_hand():
    """Half way between two values the cubic with -0.75 gives them 0.59375 each, and their neighbours -0.09375."""
    np.testing.assert_allclose(weights(4, 2, "bicubic")[0], [-0.09375 + 0.59375, 0.59375, -0.09375, 0], atol=1e-6)
    np.testing.assert_allclose(weights(8, 4, "bicubic")[1], [0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0], atol=1e-6)


def test_bilinear_is_that_of_jax_where_it_grows():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(resize(x, (7, 9), "bilinear"), jax.image.resize(x, (2, 7, 9, 5), "linear"), atol=1e-5)


def test_sines_tell_rows_from_columns():
    table = sinusoidal_2d(3, 4, 8)
    assert table.shape == (3, 4, 8)
    assert (table[:, :, :4] == table[:1, :, :4]).all() and (table[:, :, 4:] == table[:, :1, 4:]).all()
    wanted = [f([place, place * 1e-4]) for place in (3, 2) for f in (np.sin, np.cos)]  # column 3, row 2
    np.testing.assert_allclose(table[2, 3], np.concatenate(wanted), atol=1e-6)
    with pytest.raises(UserError, match="multiple of 4"):
        sinusoidal_2d(2, 2, 6)
