"""Several finetunings under one workdir, one after the other: those of GLUE, and the table that they make."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from transformers_jax.errors import UserError
from transformers_jax.files import write_whole
from transformers_jax.runs import glue
from transformers_jax.runs.record import read_record
from transformers_jax.training.best import FOLDER, saved, steps_in
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.metrics import TIMING_KEYS
from transformers_jax.training.processes import any_process

RESULTS, TABLE = "glue.json", "glue.md"


def sweep(
    parts: Sequence[str],
    workdir: str | os.PathLike,
    *,
    config_of: Callable[[str], ConfigDict],
    finetune: Callable[[ConfigDict, Path], None],
    name: str,
) -> dict:
    """Finetunes each part in a folder of its own name in the workdir; given again, goes on where it stopped.

    After each part the workdir has glue.json, all scores so far, and glue.md, the table.

    Args:
      config_of: part → its config. All are read before the first one begins.
      finetune: (config, folder) → None; does nothing where the folder has such a run that is finished.
      name: of the row in the table.

    Returns:
      {"scores": {part: {split: {metric: value}}}, "row": {column: percent}, "average": percent or None}.

    Raises:
      UserError: no parts; or what a finetuning raises.
    """
    if not parts:
        raise UserError("config.sweep names no part")
    found = {}
    for part, config in [(part, config_of(part)) for part in parts]:
        folder = Path(workdir) / part
        finetune(config, folder)
        any_process(False)  # the others wait for what the first has written
        found[part] = last_scores(folder)
        numbers = glue.row(found)
        named = {c.name: round(x, 2) for c, x in zip(glue.COLUMNS, numbers, strict=True) if x is not None}
        summary = {"scores": found, "row": named, "average": glue.average(numbers)}
        if jax.process_index() == 0:
            write_whole(Path(workdir) / RESULTS, json.dumps(summary, indent=2) + "\n")
            write_whole(Path(workdir) / TABLE, glue.table(found, name))
    return summary


def last_scores(workdir: Path) -> dict[str, dict[str, float]]:
    """What a finished run measured of the model that it keeps as the best, else last, by split: numbers by name, no timings."""
    record, last, kept = read_record(workdir), {}, steps_in(workdir)
    for row in record.rows:
        if row["split"] != "train" and not (kept and row["split"] == "validation" and row["step"] not in kept):
            last[row["split"]] = {k: x for k, x in row.items() if k not in ("step", "split") and k not in TIMING_KEYS}
    return last


def best(workdir: str | os.PathLike, metric: str, *, bigger: bool) -> dict:
    """The best value of a metric on the validation split, and where it was: {"metric", "best", "step", "last"}; {} without.

    It is that of the model that is kept as the best, if one is.

    Args:
      bigger: whether the best is the largest one.
    """
    steps, values = read_record(workdir).curve("validation", metric)
    if not values:
        return {}
    at = (max if bigger else min)(range(len(values)), key=values.__getitem__)
    value, step = values[at], steps[at]
    if steps_in(workdir):
        with Checkpoints(Path(workdir) / FOLDER) as checkpoints:
            kept = saved(checkpoints)
        step = kept["step"]
        value = dict(zip(steps, values, strict=True)).get(step, kept["value"])
    return {"metric": metric, "best": value, "step": step, "last": values[-1]}
