"""Entities in tagged sentences, counted as the CoNLL shared tasks do (conlleval, Tjong Kim Sang and De Meulder 2003).

An entity is a run of words of one type. All schemes are read by the same rules, so that a tag out of place, I- behind O say,
still counts as conlleval counts it:

  IO: all of an entity's words have I-, so two neighbours of a type are one.
  IOB1: I-, and B- where an entity begins right behind another one of its type.
  BIO (IOB2): B-, then I-.
  BIOES: B-, I-, then E- at the last word; S- at a single one. BMES has M- for I-.
  BILOU: B-, I-, then L- at the last word; U- at a single one.

B and I alone are of one type, "entity"; so are the other marks alone, where B is among the tags. Any other tag, "NOUN" or
"PRON-poss", is a type by itself. An entity is right if its type and all of its words are.
"""

from collections.abc import Sequence

import numpy as np

ALONE, BEGINS, ENDS, WITHIN = ("S", "U"), ("B",), ("E", "L"), ("I", "M")
"""Marks of an entity's only word, its first, its last, and the others."""

_MARKS = (*ALONE, *BEGINS, *ENDS, *WITHIN)


def spans(tags: Sequence[str], *, marks: Sequence[str] = ("B", "I")) -> set[tuple[int, int, str]]:
    """(first word, behind the last, type) of each entity of a sentence.

    Args:
      marks: those that are marks also where they stand alone, without a type.
    """
    found, start, kind, ended = set(), 0, "", False
    for i, tag in enumerate([*tags, "O"]):
        mark, new = _read(tag, marks)
        if kind and (ended or mark in BEGINS + ALONE or new != kind):
            found.add((start, i, kind))
            kind = ""
        if new and not kind:
            start, kind = i, new
        ended = mark in ENDS + ALONE
    return found


def _read(tag: str, marks: Sequence[str]) -> tuple[str, str]:
    """(mark, type) of a tag; ("", type) of one without a mark, ("", "") outside of entities."""
    mark, hyphen, kind = tag.partition("-")
    if tag in ("O", ""):
        return "", ""
    if hyphen and kind and mark in _MARKS:
        return mark, kind
    return (mark, "entity") if mark in marks and not kind else ("", tag)


def alone(truth: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The marks that may stand without a type, in sentences with these tags."""
    return _MARKS if any(tag == "B" for tags in truth for tag in tags) else ("B", "I")


def score(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict:
    """f1, precision and recall over all entities, f1 of each type, and accuracy over words; fractions.

    Args:
      truth, found: the tags of each sentence.
    """
    counts: dict[str, np.ndarray] = {}  # type → (right, there, found)
    marks = alone(truth)
    for tags, others in zip(truth, found, strict=True):
        wanted, got = spans(tags, marks=marks), spans(others, marks=marks)
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
