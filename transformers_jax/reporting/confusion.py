"""Which classes are taken for which: a picture of the samples of a run that gives one label to each example."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from transformers_jax.reporting.style import figure

MOST_CLASSES = 20
"""Classes that are drawn: of more, those with the most mistakes."""


def table_of(samples: Sequence[Mapping]) -> tuple[np.ndarray, list[str]] | None:
    """([true class, predicted class] counts, the names of both), of samples that have "label" and "prediction".

    None where no sample has both, as where an example has several labels.
    """
    pairs = Counter()
    for sample in samples:
        if isinstance(sample.get("label"), str) and isinstance(sample.get("prediction"), str):
            pairs[sample["label"], sample["prediction"]] += 1
    mistakes = Counter()
    for (label, prediction), count in pairs.items():
        for name in (label, prediction):
            mistakes[name] += count * (label != prediction)
    names = sorted(name for name, _ in mistakes.most_common(MOST_CLASSES))
    table = np.array([[pairs[label, prediction] for prediction in names] for label in names])
    return (table, names) if names else None


def draw_confusion(table: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A square of colour for each pair of classes, by its share of the true class, with the count written in it.

    Args:
      table: [true class, predicted class] counts.
      names: of the classes.
    """
    shares = table / table.sum(axis=1, keepdims=True).clip(1)
    edge = max(3.0, 0.42 * len(names)) + 1.6
    with figure(path, edge, edge) as drawn:
        axes = drawn.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for (i, j), count in np.ndenumerate(table):
            if count:
                ink = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, f"{count}", ha="center", va="center", fontsize=7, color=ink)
