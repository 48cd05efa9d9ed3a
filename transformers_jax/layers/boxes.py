"""Boxes of objects: how much they overlap, which positions of a pyramid answer for which (FCOS, Tian et al. 2019), and which of
many boxes of the same object is kept.

Axes: N objects, P positions of all maps of a pyramid, K boxes that were found, L labels.

A box is (left, top, right, bottom) in pixels. Distances of a position from a box's sides come in the same order.
"""

import jax
import jax.numpy as jnp
import numpy as np

RADIUS = 1.5
"""Strides from an object's centre within which positions answer for it (FCOS's "center sampling")."""
NARROW = 8
"""A position answers for objects whose farthest side is up to so many strides away, and half as many or more."""
CROWD = -2
"""The label of a box around many objects: positions within are neither right nor wrong."""


def area(boxes: jax.Array) -> jax.Array:
    """[..., 4] → [...]."""
    return jnp.maximum(boxes[..., 2] - boxes[..., 0], 0) * jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)


def overlaps(one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(intersection over union, the same less the share of the smallest box around both that neither fills) of boxes [..., 4].

    The second is the generalised IoU (Rezatofighi et al. 2019), from -1 to 1.
    """
    top_left, bottom_right = jnp.maximum(one[..., :2], other[..., :2]), jnp.minimum(one[..., 2:], other[..., 2:])
    both = area(jnp.concatenate([top_left, bottom_right], axis=-1))
    either = area(one) + area(other) - both
    top_left, bottom_right = jnp.minimum(one[..., :2], other[..., :2]), jnp.maximum(one[..., 2:], other[..., 2:])
    around = area(jnp.concatenate([top_left, bottom_right], axis=-1))
    iou = both / jnp.maximum(either, 1e-6)
    return iou, iou - (around - either) / jnp.maximum(around, 1e-6)


def places(sizes: list[tuple[int, int]], strides: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(centres [P, 2] across and down, in pixels, strides [P]) of the positions of maps, row by row, map after map."""
    centres, of = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        down, across = np.indices((height, width)).reshape(2, -1)
        centres.append(stride * (np.stack([across, down], axis=1) + 0.5))
        of.append(np.full(height * width, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(of).astype(np.float32)


def targets(boxes: jax.Array, labels: jax.Array, centres: jax.Array, strides: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which object each position of an image answers for (section 3.1): one that it lies in, near whose centre it is, and whose
    size is that of its map; of several the smallest.

    Args:
      boxes: [N, 4].  labels: [N], -1 where there is no object, CROWD for many.
      centres: [P, 2].  strides: [P].

    Returns:
      ([P] labels, -1 for none, CROWD within many; [P, 4] distances from the sides of the object's box.)
    """
    position = jnp.concatenate([centres, centres], axis=1)[:, None]  # [P, 1, 4]
    distances = (position - boxes) * jnp.array([1.0, 1.0, -1.0, -1.0])  # [P, N, 4]
    inside, farthest = distances.min(axis=-1) > 0, distances.max(axis=-1)  # [P, N]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = jnp.abs(centres[:, None] - middle).max(axis=-1) < RADIUS * strides[:, None]
    least = jnp.where(strides == strides.min(), 0, NARROW / 2 * strides)
    most = jnp.where(strides == strides.max(), jnp.inf, NARROW * strides)
    sized = (farthest > least[:, None]) & (farthest <= most[:, None])
    size = jnp.where(inside & near & sized & (labels >= 0), area(boxes), jnp.inf)  # [P, N]
    chosen = size.argmin(axis=1)  # [P]
    there = jnp.isfinite(size.min(axis=1))
    crowded = (inside & (labels == CROWD)).any(axis=1)
    label = jnp.where(there, labels[chosen], jnp.where(crowded, CROWD, -1))
    return label, jnp.take_along_axis(distances, chosen[:, None, None], axis=1)[:, 0]


def centerness(distances: jax.Array) -> jax.Array:
    """[..., 4] distances → [...], 1 in the middle of a box and 0 at its border (equation 3)."""
    across, down = distances[..., 0::2], distances[..., 1::2]
    shares = [side.min(axis=-1) / jnp.maximum(side.max(axis=-1), 1e-6) for side in (across, down)]
    return jnp.sqrt(jnp.maximum(shares[0] * shares[1], 0))


def from_distances(centres: jax.Array, distances: jax.Array) -> jax.Array:
    """Boxes [..., P, 4] of positions [P, 2] by their distances [..., P, 4] from its sides."""
    return jnp.concatenate([centres - distances[..., :2], centres + distances[..., 2:]], axis=-1)


def focal_losses(logits: jax.Array, truth: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """The cross entropy of each label for itself, less where it is sure and right (Lin et al. 2017, "Focal Loss").

    Args:
      logits, truth: [..., L] float32; truth is 0 or 1.
    """
    right = jnp.where(truth > 0, logits, -logits)
    weight = jnp.where(truth > 0, alpha, 1 - alpha) * jax.nn.sigmoid(-right) ** gamma
    return -weight * jax.nn.log_sigmoid(right)


def suppressed(boxes: jax.Array, scores: jax.Array, classes: jax.Array, threshold: float) -> jax.Array:
    """Non-maximum suppression: [K] bool, which boxes stay: from the best on, each that overlaps no better one of its class that
    stays by more than the threshold. Its shapes do not depend on what is found.

    Args:
      boxes: [K, 4], best first.  scores: [K], 0 where there is no box.  classes: [K].
    """
    iou, _ = overlaps(boxes[:, None], boxes[None])  # [K, K]
    rivals = (iou > threshold) & (classes[:, None] == classes[None])

    def decide(i, stays):
        return stays.at[i].set(stays[i] & ~(stays & rivals[i] & (jnp.arange(len(scores)) < i)).any())

    return jax.lax.fori_loop(0, len(scores), decide, scores > 0)
