"""GLUE's table in the form of "BERT" (Devlin et al. 2019, table 1), with its published rows beside ours."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """A number of the table: where it is found, and the size of the training set."""

    name: str
    part: str
    split: str
    metric: str
    size: str


COLUMNS = (
    Column("MNLI-m", "mnli", "validation", "accuracy", "392k"),
    Column("MNLI-mm", "mnli", "test", "accuracy", "392k"),
    Column("QQP", "qqp", "validation", "f1", "363k"),
    Column("QNLI", "qnli", "validation", "accuracy", "108k"),
    Column("SST-2", "sst2", "validation", "accuracy", "67k"),
    Column("CoLA", "cola", "validation", "matthews", "8.5k"),
    Column("STS-B", "stsb", "validation", "spearman", "5.7k"),
    Column("MRPC", "mrpc", "validation", "f1", "3.5k"),
    Column("RTE", "rte", "validation", "accuracy", "2.5k"),
)

PUBLISHED = {
    "Pre-OpenAI SOTA": (80.6, 80.1, 66.1, 82.3, 93.2, 35.0, 81.0, 86.0, 61.7, 74.0),
    "BiLSTM+ELMo+Attn": (76.4, 76.1, 64.8, 79.8, 90.4, 36.0, 73.3, 84.9, 56.8, 71.0),
    "OpenAI GPT": (82.1, 81.4, 70.3, 87.4, 91.3, 45.4, 80.0, 82.3, 56.0, 75.1),
    "BERT base": (84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4, 79.6),
    "BERT large": (86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1, 82.1),
}
"""The paper's rows and their averages, of the test sets, whose labels are not public; ours are of the validation sets."""


def row(results: Mapping[str, Mapping]) -> list[float | None]:
    """The numbers of our row in percent, None where there is none.

    Args:
      results: scores by part and split, {"mnli": {"validation": {"accuracy": 0.84}, "test": …}, …}.
    """
    found = [results.get(c.part, {}).get(c.split, {}).get(c.metric) for c in COLUMNS]
    return [None if x is None else 100 * x for x in found]


def average(numbers: Sequence[float | None]) -> float | None:
    """The mean of all nine, as the paper takes it; None where one is missing."""
    return None if None in numbers else sum(numbers) / len(numbers)


def table(results: Mapping[str, Mapping], name: str) -> str:
    """The table in markdown: the paper's rows, then ours.

    Args:
      results: as for `row`.
      name: of our row.
    """
    heads = ["System", "MNLI-(m/mm)", *(c.name for c in COLUMNS[2:]), "Average"]
    sizes = ["", *(c.size for c in COLUMNS[1:]), "-"]
    ours = row(results)
    rows = [_cells(system, numbers) for system, numbers in PUBLISHED.items()] + [_cells(name, [*ours, average(ours)])]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], sizes, *rows]
    note = "Rows of the paper are of the test sets (GLUE's server), the last row is of the validation sets."
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", note, ""])


def _cells(system: str, numbers) -> list[str]:
    matched, mismatched, *others = [_shown(x) for x in numbers]
    return [system, f"{matched}/{mismatched}", *others]


def _shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.1f}"
