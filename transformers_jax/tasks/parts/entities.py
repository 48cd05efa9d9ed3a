"""Entities in tagged sentences, counted as the CoNLL shared tasks do (conlleval, Tjong Kim Sang and De Meulder 2003).

An entity is a run of words of one type. BIO: it begins with B-, or with I- where no entity of that type goes on. IO: all
of its words have I-, so two neighbours of a type are one. Both are read by the same rules. B and I alone are of one type,
"entity"; any other tag is a type by itself. An entity is right if its type and all of its words are.
"""

from collections.abc import Sequence

import numpy as np


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first word, behind the last, type) of each entity of a sentence."""
    found, start, kind = set(), 0, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, new = tag.partition("-")
        inside = mark not in ("O", "")
        new = (new or ("entity" if mark in ("B", "I") else mark)) if inside else ""
        if kind and (not inside or mark == "B" or new != kind):
            found.add((start, i, kind))
            kind = ""
        if inside and not kind:
            start, kind = i, new
    return found


def score(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict:
    """f1, precision and recall over all entities, f1 of each type, and accuracy over words; fractions.

    Args:
      truth, found: the tags of each sentence.
    """
    counts: dict[str, np.ndarray] = {}  # type → (right, there, found)
    for wanted, got in zip(map(spans, truth), map(spans, found), strict=True):
        for place, names in enumerate((wanted & got, wanted, got)):
            for _, _, kind in names:
                counts.setdefault(kind, np.zeros(3, np.int64))[place] += 1
    right, there, given = sum(counts.values(), np.zeros(3, np.int64)).tolist()
    words = [a == b for wanted, got in zip(truth, found, strict=True) for a, b in zip(wanted, got, strict=True)]
    result = {"f1": _f1(right, there, given), "precision": right / given if given else 0.0}
    result |= {"recall": right / there if there else 0.0, "tag_accuracy": sum(words) / len(words) if words else 0.0}
    result |= {f"f1_{kind}": _f1(*counts[kind].tolist()) for kind in sorted(counts)}
    return result | {"entities": there}


def _f1(right: int, there: int, given: int) -> float:
    return 2 * right / (there + given) if there + given else 0.0
