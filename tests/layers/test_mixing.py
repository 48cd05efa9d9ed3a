"""Mixup and CutMix: labels have the shares that the pixels have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.layers.mixing import cutmix, mixup, mixup_or_cutmix

KEY = jax.random.key(0)
ROWS = 16


def batch(height: int = 12, width: int = 20, kind=np.float32):
    """Images that tell their row, by the same value in all pixels, and one-hot labels of it."""
    values = np.arange(ROWS).reshape(-1, 1, 1, 1)
    return jnp.asarray(np.broadcast_to(values, (ROWS, height, width, 3)).astype(kind)), jnp.eye(ROWS)


def by_hand(labels) -> np.ndarray:
    """The share of each row's own label; the rest is that of the row before."""
    labels = np.asarray(labels)
    own, other = labels.diagonal(), labels[np.arange(ROWS), np.arange(ROWS) - 1]
    np.testing.assert_allclose(own + other, 1, atol=1e-6)
    assert (labels > 0).sum(1).max() <= 2
    return own


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_labels_have_the_images_shares(mix, alpha):
    images, labels = jax.jit(mix, static_argnums=3)(KEY, *batch(), alpha)
    own = by_hand(labels)
    before = np.arange(ROWS) - 1
    before[0] = ROWS - 1
    expected = own * np.arange(ROWS) + (1 - own) * before
    np.testing.assert_allclose(images.mean((1, 2, 3)), expected, atol=1e-4)
    assert images.shape == (ROWS, 12, 20, 3)
    assert own.std() > 0.05  # each row has its own


def test_mixup_is_even_and_cutmix_is_one_box():
    assert np.ptp(mixup(KEY, *batch(), 1.0)[0], axis=(1, 2, 3)).max() < 1e-5
    images = np.asarray(cutmix(KEY, *batch(), 1.0)[0])
    taken = images[..., 0] != np.arange(ROWS)[:, None, None]  # [B, H, W]
    assert taken.any()
    for row in taken:
        np.testing.assert_array_equal(row, row.any(1)[:, None] & row.any(0)[None, :])  # a rectangle
        for span in row.any(1), row.any(0):
            assert (np.diff(span.astype(int)) == 1).sum() <= 1  # without gaps


def test_shares_follow_beta():
    images, labels = jnp.zeros((4000, 1, 1, 1)), jax.nn.one_hot(jnp.arange(4000) % 2, 2)
    own = np.asarray(mixup(KEY, images, labels, 0.5)[1])[np.arange(4000), np.arange(4000) % 2]
    assert abs(own.mean() - 0.5) < 0.02 and abs(own.var() - 1 / 8) < 0.01  # 1 / (4 (2 alpha + 1))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_have_betas_quantiles(alpha):
    from scipy.stats import beta, kstest

    from transformers_jax.layers.mixing import _shares

    drawn = np.asarray(_shares(KEY, 5000, alpha))
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert kstest(drawn, beta(alpha, alpha).cdf).pvalue > 1e-3


def test_kinds():
    images, labels = cutmix(KEY, *batch(kind=np.uint8), 1.0)
    assert images.dtype == jnp.uint8
    images, _ = mixup(KEY, *batch(kind=np.uint8), 1.0)
    assert images.dtype == jnp.float32
    assert mixup(KEY, batch()[0].astype(jnp.bfloat16), labels, 1.0)[0].dtype == jnp.bfloat16


def test_one_of_both():
    images, labels = batch()
    mix = jax.jit(lambda key, images, labels: mixup_or_cutmix(key, images, labels))
    found = [mix(jax.random.key(seed), images, labels) for seed in range(40)]
    even = [bool(np.ptp(mixed, axis=(1, 2, 3)).max() < 1e-5) for mixed, _ in found]
    assert 10 < sum(even) < 30
    for _, mixed in found:
        by_hand(mixed)
    assert mixup_or_cutmix(KEY, images, labels, 0, 0)[0] is images
    np.testing.assert_array_equal(mixup_or_cutmix(KEY, images, labels, 0, 1.0)[0], cutmix(KEY, images, labels, 1.0)[0])
    np.testing.assert_array_equal(mixup_or_cutmix(KEY, images, labels, 0.8, 0)[0], mixup(KEY, images, labels, 0.8)[0])


def test_smoothed_labels_stay_probabilities_and_alpha_is_checked():
    smooth = 0.9 * jnp.eye(ROWS) + 0.1 / ROWS
    for mix in mixup, cutmix:
        np.testing.assert_allclose(mix(KEY, batch()[0], smooth, 1.0)[1].sum(1), 1, atol=1e-6)
        with pytest.raises(ValueError, match="alpha=0 is not above 0"):
            mix(KEY, *batch(), 0)
