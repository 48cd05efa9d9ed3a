"""Metrics against values that scikit-learn and scipy give."""

import numpy as np
import pytest

from transformers_jax.errors import UserError
from transformers_jax.tasks.parts import metrics


def test_accuracy_and_f1():
    truth, found = [1, 1, 0, 0, 1, 0, 1, 1], [1, 0, 0, 1, 1, 0, 1, 0]
    assert metrics.accuracy(truth, found) == 5 / 8
    assert metrics.f1(truth, found) == pytest.approx(2 * 3 / (5 + 4))
    assert metrics.f1([0, 0], [0, 0]) == 0


def test_matthews_is_that_of_the_two_by_two_table():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 2, [2, 200])
    tp, tn = ((truth == found) & (truth == k) for k in (1, 0))
    tp, tn, fp, fn = tp.sum(), tn.sum(), ((truth == 0) & (found == 1)).sum(), ((truth == 1) & (found == 0)).sum()
    wanted = (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert metrics.matthews(truth, found) == pytest.approx(wanted)
    assert metrics.matthews([1, 1, 1, 0], [1, 0, 1, 1]) == pytest.approx(-1 / 3)  # sklearn.metrics.matthews_corrcoef
    assert metrics.matthews([0, 1, 2, 2], [0, 1, 1, 2]) == pytest.approx(0.7)  # the same of three classes
    assert metrics.matthews([0, 1, 0], [1, 1, 1]) == 0


def test_correlations_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    x = rng.normal(size=50).round(1)  # rounding makes ties
    y = (x + rng.normal(size=50)).round(1)
    assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])


def test_ranks_of_ties_are_their_mean():
    assert metrics.ranks([3, 1, 3, 2]).tolist() == [3.5, 1, 3.5, 2]
    assert metrics.spearman([1, 2, 3, 4], [10, 100, 1000, 10000]) == pytest.approx(1)
    assert metrics.pearson([1, 1], [2, 3]) == 0


def test_a_metric_that_does_not_fit_is_named():
    with pytest.raises(UserError, match="config.task.metrics: 'spearman' is not a metric of labels: accuracy, f1, matthews"):
        metrics.of_names(("accuracy", "spearman"), regression=False)
