"""Reads what a run left in its workdir, also while it still runs: metrics.jsonl, config.json, samples.jsonl."""

import json
import logging
import math
from pathlib import Path
from typing import NamedTuple

from transformers_jax.errors import UserError

Curve = tuple[list[int], list[float]]
"""(steps, values), steps rising."""


class Record(NamedTuple):
    """One run.

    name: the workdir's own name.
    config: the resolved configuration, nested; empty if there is none.
    rows: lines of metrics.jsonl in order, each a dict with an int `step` and a str `split`.
    samples: lines of samples.jsonl, dicts such as {"source": …, "reference": …, "translation": …}; may be empty.
    """

    name: str
    config: dict
    rows: list[dict]
    samples: list[dict]

    def splits(self) -> list[str]:
        """The splits that have rows: train, validation and test first, then others by name."""
        order = {"train": 0, "validation": 1, "test": 2}
        return sorted({row["split"] for row in self.rows}, key=lambda split: (order.get(split, 3), split))

    def metrics(self, split: str) -> list[str]:
        """Names of what this split's rows tell, in order of appearance."""
        names = dict.fromkeys(name for row in self.rows if row["split"] == split for name in row)
        return [name for name in names if name not in ("step", "split") and self.last(split, name)]

    def last(self, split: str, metric: str) -> tuple[int, float | str] | None:
        """(step, value) of the last line that has a finite number or a text for a metric."""
        found = None
        for row in self.rows:
            value = row.get(metric)
            told = math.isfinite(value) if is_number(value) else isinstance(value, str)
            if row["split"] == split and told and (found is None or row["step"] >= found[0]):
                found = row["step"], value
        return found

    def curve(self, split: str, metric: str) -> Curve:
        """The finite values of a metric by step. Where a step came twice, as after resuming, the later line counts."""
        values = {}
        for row in self.rows:
            value = row.get(metric)
            if row["split"] == split and is_number(value) and math.isfinite(value):
                values[row["step"]] = float(value)
        steps = sorted(values)
        return steps, [values[step] for step in steps]

    def last_step(self) -> int:
        return max(row["step"] for row in self.rows)


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_record(workdir) -> Record:
    """The record of a workdir.

    Raises:
      UserError: there is no such folder, it has no metrics yet, or config.json is not JSON.
    """
    workdir = Path(workdir)
    path = workdir / "metrics.jsonl"
    if not workdir.is_dir():
        raise UserError(f"there is no workdir {workdir}: give --workdir of a run")
    if not path.is_file():
        raise UserError(f"{workdir} has no metrics.jsonl: give --workdir of a run that has begun to train")
    rows = []
    for row in read_lines(path):
        if is_number(row.get("step")):
            rows.append({**row, "step": int(row["step"]), "split": str(row.get("split", "train"))})
    if not rows:
        raise UserError(f"{path} has no metrics yet: wait until the run has written some, then report again")
    return Record(
        workdir.resolve().name, _read_config(workdir / "config.json"), rows, read_lines(workdir / "samples.jsonl")
    )


def _read_config(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): restore it, or remove it to report without") from error
    return config if isinstance(config, dict) else {"config": config}


def read_lines(path: Path) -> list[dict]:
    """The JSON objects of a file, one a line; [] if there is no file.

    A last line that is torn is being written right now, or was when the run was killed: it is left out without a word.
    Another line that is not an object is left out with a warning.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # a text may hold other separators
    objects = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if isinstance(found, dict):
            objects.append(found)
        elif number < len(lines):
            logging.getLogger(__name__).warning("%s, line %d is not a JSON object: left out", path, number)
    return objects
