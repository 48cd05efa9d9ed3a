"""Boxes: overlaps, which position answers for which object, and which of many boxes stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.layers import boxes


def drawn(seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0, 60, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)


def test_overlaps():
    one = np.array([[0, 0, 4, 4], [0, 0, 2, 2], [0, 0, 2, 2]], np.float32)
    other = np.array([[2, 0, 6, 4], [0, 0, 2, 2], [4, 4, 6, 6]], np.float32)
    iou, generalised = boxes.overlaps(one, other)
    np.testing.assert_allclose(iou, [8 / 24, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(generalised, [8 / 24, 1, -(36 - 8) / 36], rtol=1e-6)


def test_places_are_middles_of_what_a_position_stands_for():
    centres, strides = boxes.places([(2, 3), (1, 1)], [8, 16])
    assert centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8]]
    assert strides.tolist() == [8] * 6 + [16]


def slow_targets(corners, labels, centres, strides):
    """The same position by position, as the paper has it."""
    found = []
    for (across, down), stride in zip(centres, strides, strict=True):
        best = (np.inf, -1, None)
        crowded = False
        for box, label in zip(corners, labels, strict=True):
            sides = np.array([across - box[0], down - box[1], box[2] - across, box[3] - down])
            if label == boxes.CROWD and sides.min() > 0:
                crowded = True
            if label < 0 or sides.min() <= 0:
                continue
            if max(abs(across - (box[0] + box[2]) / 2), abs(down - (box[1] + box[3]) / 2)) >= 1.5 * stride:
                continue
            least = 0 if stride == min(strides) else 4 * stride
            most = np.inf if stride == max(strides) else 8 * stride
            size = (box[2] - box[0]) * (box[3] - box[1])
            if least < sides.max() <= most and size < best[0]:
                best = (size, label, sides)
        found.append((best[1] if best[2] is not None else boxes.CROWD if crowded else -1, best[2]))
    return found


def test_targets_are_the_smallest_object_of_the_right_size():
    centres, strides = boxes.places([(15, 15), (8, 8), (4, 4)], [4, 8, 16])
    corners = drawn(0, 12)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, boxes.CROWD, -1, 2, 0], np.int32)
    got, distances = jax.jit(boxes.targets)(corners, labels, centres, strides)
    wanted = slow_targets(corners, labels, centres, strides)
    assert got.tolist() == [label for label, _ in wanted] and len(set(got.tolist())) == 5
    for i, (label, sides) in enumerate(wanted):
        if label >= 0:
            np.testing.assert_allclose(distances[i], sides, rtol=1e-5)
            np.testing.assert_allclose(boxes.from_distances(centres, distances)[i, 0] + sides[0], centres[i, 0], rtol=1e-5)


def test_without_objects_no_position_answers():
    centres, strides = boxes.places([(3, 3)], [8])
    labels, _ = boxes.targets(jnp.zeros([2, 4]), jnp.full(2, -1), centres, strides)
    assert (labels == -1).all()


def test_centerness():
    found = boxes.centerness(jnp.array([[2.0, 3.0, 2.0, 3.0], [1.0, 3.0, 4.0, 3.0], [0.0, 1.0, 4.0, 1.0]]))
    np.testing.assert_allclose(found, [1, 0.5, 0], rtol=1e-6)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, truth = np.array([[2.0, -1.0]]), np.array([[1, 0]])
    plain = np.log1p(np.exp([[-2.0, -1.0]]))
    np.testing.assert_allclose(boxes.focal_losses(logits, truth, 0.5, 0.0), plain / 2, rtol=1e-5)
    chance = 1 / (1 + np.exp([[2.0, 1.0]]))  # of being wrong
    np.testing.assert_allclose(boxes.focal_losses(logits, truth), [[0.25, 0.75]] * chance**2 * plain, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.9))
def test_suppression_is_greedy(seed, threshold):
    random = np.random.default_rng(seed)
    corners = drawn(seed, 10) * 0.3 + 20
    scores = np.sort(random.uniform(0.1, 1, 10))[::-1].astype(np.float32).copy()
    classes = random.integers(0, 2, 10)
    scores[8:] = 0
    kept: list[int] = []
    for i in range(8):
        iou = [float(boxes.overlaps(corners[i], corners[j])[0]) for j in kept if classes[j] == classes[i]]
        if all(value <= np.float32(threshold) for value in iou):
            kept.append(i)
    assert np.flatnonzero(SUPPRESSED(corners, scores, classes, np.float32(threshold))).tolist() == kept


SUPPRESSED = jax.jit(boxes.suppressed)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_gradients_stay_finite_where_boxes_do_not_meet(shift):
    gradient = jax.grad(lambda box: boxes.overlaps(box, jnp.array([0.0, 0.0, 1.0, 1.0]))[1])(jnp.full(4, shift))
    assert np.isfinite(gradient).all()
