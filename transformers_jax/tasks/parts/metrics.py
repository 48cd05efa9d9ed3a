"""Metrics of classification and regression, as the benchmarks compute them. All are fractions: 0.88 is 88 %."""

import math
from collections.abc import Sequence

import numpy as np

from transformers_jax.errors import UserError


def accuracy(truth, found) -> float:
    """The share of examples whose label is found."""
    return float(np.mean(np.asarray(truth) == np.asarray(found)))


def f1(truth, found, positive: int = 1) -> float:
    """The harmonic mean of precision and recall of one class; 0 where it is neither there nor found."""
    truth, found = np.asarray(truth) == positive, np.asarray(found) == positive
    total = truth.sum() + found.sum()
    return float(2 * (truth & found).sum() / total) if total else 0.0


def matthews(truth, found) -> float:
    """Matthews' correlation of two labellings, for any number of classes (Gorodkin 2004); 0 where one is constant."""
    truth, found = np.asarray(truth), np.asarray(found)
    classes = np.union1d(truth, found)
    of_truth = (truth[:, None] == classes).astype(np.float64)  # [examples, classes]
    of_found = (found[:, None] == classes).astype(np.float64)
    of_truth, of_found = of_truth - of_truth.mean(axis=0), of_found - of_found.mean(axis=0)
    scale = math.sqrt((of_truth**2).sum() * (of_found**2).sum())
    return float((of_truth * of_found).sum() / scale) if scale else 0.0


def pearson(truth, found) -> float:
    """The linear correlation of two series; 0 where one is constant."""
    truth, found = (np.asarray(x, np.float64) - np.mean(x) for x in (truth, found))
    scale = math.sqrt((truth**2).sum() * (found**2).sum())
    return float((truth * found).sum() / scale) if scale else 0.0


def spearman(truth, found) -> float:
    """The linear correlation of the ranks, equal values sharing their mean rank."""
    return pearson(ranks(truth), ranks(found))


def ranks(values: Sequence[float]) -> np.ndarray:
    """The rank of each value from 1; equal values have the mean of theirs."""
    _, group, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group.ravel()]


def confusion(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """[classes, classes] how many examples of class i were found to be j; truth and found are numbers of classes."""
    return np.bincount(np.asarray(truth) * classes + found, minlength=classes**2).reshape(classes, classes)


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """The area under the steps of precision over recall of one class, examples of one score being found together.

    Args:
      truth: [examples] bool, one at least.
      scores: [examples], higher for what is likelier.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])  # of the likeliest 1, 2, …
    last = np.append(np.diff(scores[order]) != 0, True)  # the last of each score
    found, hits = np.flatnonzero(last) + 1, hits[last]
    return float(np.sum(np.diff(hits, prepend=0) * hits / found) / hits[-1])


def mean_average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """The mean of `average_precision` over the classes that some example has; 0 where there are none.

    Args:
      truth: [examples, classes] bool; scores: [examples, classes].
    """
    classes = np.flatnonzero(truth.any(axis=0))
    return float(np.mean([average_precision(truth[:, k], scores[:, k]) for k in classes])) if len(classes) else 0.0


CLASSIFICATION = {"accuracy": accuracy, "f1": f1, "matthews": matthews}
REGRESSION = {"pearson": pearson, "spearman": spearman}


def of_names(names: Sequence[str], *, regression: bool) -> dict:
    """The metrics by name.

    Raises:
      UserError: names one that is unknown, or does not go with the task.
    """
    known = REGRESSION if regression else CLASSIFICATION
    for name in names:
        if name not in known:
            what = "numbers" if regression else "labels"
            raise UserError(f"config.task.metrics: {name!r} is not a metric of {what}: {', '.join(known)}")
    return {name: known[name] for name in names}
