"""Dropout's mask: its rate, its independence, and that it does not depend on how an array is spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.layers.dropout import Dropout, keep_mask


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_rate(rate, impl):
    keep = np.asarray(keep_mask(jax.random.key(3, impl=impl), rate, (200, 500)))
    deviation = (rate * (1 - rate) / keep.size) ** 0.5
    assert abs(keep.mean() - (1 - rate)) <= 4 * deviation


def test_masks_of_two_keys_and_neighbours_are_independent():
    masks = np.stack([keep_mask(jax.random.key(seed), 0.5, (512, 512)) for seed in range(8)]).astype(float) - 0.5
    bound = 4 * 0.25 / 512  # four standard deviations of a mean of 2**18 products
    for i in range(8):
        for j in range(i):
            assert abs((masks[i] * masks[j]).mean()) < bound
    for axis in (1, 2):
        for shift in (1, 2, 64):
            assert abs((masks * np.roll(masks, shift, axis)).mean()) < bound


def test_a_row_of_bits_has_the_spread_of_coin_tosses():
    keep = np.asarray(keep_mask(jax.random.key(0), 0.5, (4096, 256)))
    for axis, n in (0, 4096), (1, 256):
        counts = keep.sum(axis)
        assert 0.85 < counts.var() / (n / 4) < 1.15


def test_survivors_are_scaled_and_the_mean_is_kept():
    x = jnp.ones((300, 300))
    y = Dropout(0.25).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)
    assert abs(float(y.mean()) - 1) < 0.01
    assert Dropout(0.25).apply({}, x, deterministic=True) is x
