"""SQuAD's own measure of answers (Rajpurkar et al. 2016, evaluate-v1.1.py and evaluate-v2.0.py), as fractions.

Answers are compared without capitals, punctuation, articles and more than one blank. Of several right answers the nearest
counts. Where there is none, "" is right.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """The text as answers are compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(truth: str, found: str) -> float:
    """1 if the answers are the same."""
    return float(normalised(truth) == normalised(found))


def f1(truth: str, found: str) -> float:
    """The harmonic mean of precision and recall of words; of empty answers whether both are."""
    wanted, got = normalised(truth).split(), normalised(found).split()
    if not wanted or not got:
        return float(wanted == got)
    same = sum((Counter(wanted) & Counter(got)).values())
    return 2 * same / (len(wanted) + len(got))


def best_of(measure, truth: Sequence[str], found: str) -> float:
    """The measure against the nearest of the right answers."""
    return max(measure(answer, found) for answer in _right(truth))


def score(truth: Sequence[Sequence[str]], found: Sequence[str]) -> dict:
    """exact_match and f1 over all questions, and over those with and without an answer where there are both kinds.

    Args:
      truth: the right answers to each question, none where it has no answer.
      found: an answer to each.
    """
    exact = np.array([best_of(exact_match, right, answer) for right, answer in zip(truth, found, strict=True)])
    near = np.array([best_of(f1, right, answer) for right, answer in zip(truth, found, strict=True)])
    answered = np.array([bool(right) for right in truth])
    result = {"exact_match": float(exact.mean()), "f1": float(near.mean()), "questions": len(truth)}
    if answered.any() and not answered.all():
        for name, which in ("answered", answered), ("unanswerable", ~answered):
            result |= {f"exact_match_{name}": float(exact[which].mean()), f"f1_{name}": float(near[which].mean())}
    return result


def at_best_threshold(truth: Sequence[Sequence[str]], found: Sequence[str], nothing: Sequence[float]) -> dict:
    """best_f1 and best_exact_match over all thresholds above which "" is the answer, and the threshold of best_f1.

    Args:
      found: the best answer to each question, never "" for want of certainty.
      nothing: by how much "" is better.
    """
    order = np.argsort(nothing, kind="stable")  # the surest answers first
    result = {}
    for name, measure in ("best_exact_match", exact_match), ("best_f1", f1):
        with_answer = np.array([best_of(measure, right, answer) for right, answer in zip(truth, found, strict=True)])
        without = np.array([float(not right) for right in truth])
        totals = without.sum() + np.concatenate([[0], np.cumsum((with_answer - without)[order])])
        best = int(totals.argmax())
        result[name] = float(totals[best] / len(truth))
    ranked = np.asarray(nothing, np.float64)[order]
    return result | {"best_threshold": float(ranked[best - 1]) if best else float(ranked[0]) - 1}


def _right(truth: Sequence[str]) -> list[str]:
    return [answer for answer in truth if normalised(answer)] or [""]
