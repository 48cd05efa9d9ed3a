"""Images of a batch mixed with each other, and their labels with them: mixup and CutMix, on the device.

Axes: B batch rows, H height, W width, C channels, K classes.

Each row is mixed with the row before it, the first with the last, as rows come in random order. Every row has its own
share. Rows that only fill up a batch would be mixed in too: mix full batches, those of training.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

QUANTILES = 4096
"""Steps of the table that shares are drawn by: JAX's own sampler of Beta rejects in loops and takes seconds to compile."""


def mixup(key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Weighted means of two images and of their labels (Zhang et al. 2018, section 2).

    Args:
      key: random key of the step.
      images: [B, H, W, C], float or uint8.
      labels: [B, K] probabilities, each row's sum is 1: one-hot or smoothed.
      alpha: share of a row's own image ~ Beta(alpha, alpha); above 0, the paper has 0.2 for ImageNet.

    Returns:
      images [B, H, W, C], float32 for uint8; labels [B, K], float32 for ints, whose sums are 1.
    """
    share = _shares(key, images.shape[0], alpha)  # [B]
    return _mean(images, share), _mean(labels, share)


def cutmix(key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """A box of each image is that of another, and the labels are mixed by area (Yun et al. 2019, section 3.1).

    The box has the image's proportions and any place of its middle; what lies outside of the image is cut off, and the
    labels have the share of pixels that were really taken.

    Args:
      key: random key of the step.
      images: [B, H, W, C] of any type.
      labels: [B, K] probabilities, each row's sum is 1.
      alpha: share of a row's own pixels ~ Beta(alpha, alpha) before boxes are cut off; above 0, the paper has 1.

    Returns:
      images [B, H, W, C] of the same type; labels [B, K], float32 for ints, whose sums are 1.
    """
    rows, height, width = images.shape[:3]
    of_share, of_y, of_x = jax.random.split(key, 3)
    edge = jnp.sqrt(1 - _shares(of_share, rows, alpha))  # [B], of the box as a share of the image's
    inside = _span(of_y, edge, height)[:, :, None] & _span(of_x, edge, width)[:, None, :]  # [B, H, W]
    mixed = jnp.where(inside[..., None], jnp.roll(images, 1, axis=0), images)
    return mixed, _mean(labels, 1 - inside.mean((1, 2)))


def mixup_or_cutmix(
    key: jax.Array, images: jax.Array, labels: jax.Array, mixup_alpha: float = 0.8, cutmix_alpha: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """One of the two for the whole batch, each with a chance of one half, as DeiT, Swin and ConvNeXt train.

    An alpha of 0 leaves its method out; with both 0 nothing is mixed. Returns as `mixup` does; images are float32 for
    uint8 wherever mixup may be drawn.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, labels
    if not cutmix_alpha:
        return mixup(key, images, labels, mixup_alpha)
    if not mixup_alpha:
        return cutmix(key, images, labels, cutmix_alpha)
    of_choice, key = jax.random.split(key)
    images, labels = _float(images), _float(labels)
    return jax.lax.cond(
        jax.random.bernoulli(of_choice),
        lambda: mixup(key, images, labels, mixup_alpha),
        lambda: cutmix(key, images, labels, cutmix_alpha),
    )


def _shares(key: jax.Array, rows: int, alpha: float) -> jax.Array:
    """[B] float32 in [0, 1] ~ Beta(alpha, alpha)."""
    if alpha <= 0:
        raise ValueError(f"alpha={alpha} is not above 0")
    place = jax.random.uniform(key, (rows,)) * QUANTILES
    below = place.astype(jnp.int32)  # uniform numbers are below 1
    table = jnp.asarray(_quantiles(alpha))
    return table[below] + (place - below) * (table[below + 1] - table[below])


@functools.cache
def _quantiles(alpha: float) -> np.ndarray:
    """[QUANTILES + 1] float32: Beta(alpha, alpha)'s quantiles at equal steps, between which it is drawn linearly."""
    return betaincinv(alpha, alpha, np.linspace(0, 1, QUANTILES + 1)).astype(np.float32)


def _span(key: jax.Array, edge: jax.Array, size: int) -> jax.Array:
    """[B, size] bools: the pixels within an edge of a box whose middle is drawn uniformly from the image."""
    middle = jax.random.uniform(key, edge.shape) * size  # [B]
    half = edge * size / 2
    places = jnp.arange(size) + 0.5
    return jnp.abs(places - middle[:, None]) < half[:, None]


def _mean(x: jax.Array, share: jax.Array) -> jax.Array:
    """Each row times its share, plus the row before it times the rest."""
    x = _float(x)
    share = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)  # [B, 1, …]
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)


def _float(x: jax.Array) -> jax.Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
