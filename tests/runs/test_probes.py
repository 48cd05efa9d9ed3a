"""Nearest neighbours and linear maps of features, against what is known of clouds of points."""

import numpy as np

from transformers_jax.runs.probes import Features, few, linear, nearest


def clouds(count: int, seed: int, width: int = 6) -> Features:
    """Three classes around three directions."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return Features((np.eye(3, width)[labels] * 4 + draw.normal(size=(count, width))).astype(np.float32), labels)


def test_neighbours_vote():
    known, asked = clouds(300, 0), clouds(90, 1)
    assert (nearest(known, asked.vectors, 15, 3) == asked.labels).mean() > 0.95
    assert (nearest(known, known.vectors, 1, 3) == known.labels).all()
    one = Features(np.array([[1, 0], [0.9, 0.5], [0.9, -0.5]], np.float32), np.array([0, 1, 1]))
    assert nearest(one, np.array([[2, 0]], np.float32), 3, 2)[0] == 0  # the nearest one counts for more than two others


def test_a_linear_map_from_a_few_of_each_class():
    known, asked = clouds(300, 0), clouds(300, 1)
    chosen = few(known, 5, seed=0)
    assert np.bincount(chosen.labels).tolist() == [5, 5, 5]
    assert all((known.vectors == vector).all(1).any() for vector in chosen.vectors)
    some, all_of_them = ((linear(k, asked.vectors, 3) == asked.labels).mean() for k in (chosen, known))
    assert some > 0.7 and all_of_them > 0.95
    x, targets = known.vectors - known.vectors.mean(0), np.eye(3)[known.labels] * 2 - 1
    best = (x @ np.linalg.lstsq(x, targets - targets.mean(0), rcond=None)[0] + targets.mean(0)).argmax(1)
    assert (linear(known, known.vectors, 3, penalty=0.0 + 1e-9) == best).all()
