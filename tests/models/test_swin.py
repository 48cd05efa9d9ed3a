"""Swin: who sees whom within windows and shifted windows."""

import jax
import numpy as np
import pytest
from models.images import apply, build, image, variables

from transformers_jax.models.swin import from_windows, offsets, seen, to_windows


def test_windows_are_cut_and_put_together():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    cut = to_windows(x, 2)
    assert cut.shape == (12, 4, 3)
    np.testing.assert_array_equal(cut[4], x[0, 2:4, 2:4].reshape(4, 3))
    np.testing.assert_array_equal(from_windows(cut, 2, 4, 6), x)


def changed(model, at: tuple[int, int], size: int = 32) -> np.ndarray:
    """Which positions of the first stage a pixel changes, [h, w] bool."""
    given, picture = variables(model), image(size, size, rows=1)
    other = picture.copy()
    other[:, at[0], at[1]] ^= 128
    maps = [np.asarray(apply(model, given, x, "pyramid")[0][0]) for x in (picture, other)]
    return np.abs(maps[0] - maps[1]).max(axis=-1) > 1e-6


def test_before_the_shift_windows_do_not_see_each_other():
    model = build("swin", depths=(1, 1))
    inside = np.zeros((16, 16), bool)
    inside[4:8, 8:12] = True  # windows of 4 positions of 2 pixels
    np.testing.assert_array_equal(changed(model, (9, 20)), inside)


def test_shifted_windows_see_neighbours_but_not_the_other_end():
    """From the first window the second block sees the neighbours that half a window brings in; nothing wraps around."""
    model = build("swin", depths=(2, 1))
    inside = np.zeros((16, 16), bool)
    inside[:6, :6] = True
    np.testing.assert_array_equal(changed(model, (0, 0)), inside)
    inside = np.zeros((16, 16), bool)
    inside[2:10, 2:10] = True
    np.testing.assert_array_equal(changed(model, (9, 9)), inside)


@pytest.mark.parametrize("shift", [0, 2])
def test_the_mask_is_nearness_in_the_image(shift):
    height, width, side = 8, 12, 4
    mask = np.asarray(jax.jit(seen, static_argnums=(0, 1, 2))(height, width, side, shift))
    assert mask.shape == (6, 16, 16)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    places = [np.roll(x, (-shift, -shift), (0, 1)) for x in (rows, columns)]  # where each position was
    cut = [np.asarray(to_windows(x[None, :, :, None], side))[..., 0] for x in places]
    near = np.logical_and(*(np.abs(x[:, :, None] - x[:, None, :]) < side for x in cut))
    np.testing.assert_array_equal(mask, near)


def test_equal_offsets_share_a_bias():
    index = offsets(3, 4)
    assert index.shape == (9, 9) and index.min() >= 0 and index.max() < 49
    row, column = np.divmod(np.arange(9), 3)
    apart = np.stack([x[:, None] - x[None, :] for x in (row, column)], axis=-1).reshape(-1, 2)
    for flat, offset in zip(index.reshape(-1), apart, strict=True):
        assert (flat // 7 - 3, flat % 7 - 3) == tuple(offset)


def test_sides_that_windows_do_not_divide_are_filled_up():
    model = build("swin")
    maps = jax.eval_shape(lambda v: model.apply(v, {"image": image(27, 18)}, method="pyramid"), variables(model))
    assert [m.shape for m in maps] == [(2, 14, 9, 4), (2, 7, 5, 8)]
    small = apply(model, variables(model), image(5, 6), "pyramid")  # smaller than a window
    assert [m.shape for m in small] == [(2, 3, 3, 4), (2, 2, 2, 8)] and all(np.isfinite(m).all() for m in small)


def test_absolute_positions_are_interpolated():
    model = build("swin", absolute_positions=True)
    given = variables(model)
    assert given["params"]["positions"].shape == (256, 4)
    assert np.isfinite(apply(model, given, image(24, 40)).logits).all()
