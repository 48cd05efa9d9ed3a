"""The best of a run's evaluations: its model stays on the disk, and a run ends where none has been better for long.

A folder beside the checkpoints holds that one model, without what only training needs. It is whole before the evaluation has
its line in metrics.jsonl: whenever a run is killed, what a line calls the best is there, and a resumed run goes on with it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging

from transformers_jax.errors import UserError
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.metrics import MetricsWriter
from transformers_jax.training.processes import any_process

FOLDER, NEWEST = "best", "checkpoints"
"""Folders of a workdir: of the best model, and of the checkpoints that a run is resumed from."""


class Best:
    """What the loop asks after each evaluation. All processes call every method alike; the first one's numbers decide.

    Attributes:
      value, step: the best value so far and where it was; None and 0 before there is one.
      spent: whether so many evaluations as `patience` says have not been better.
    """

    def __init__(
        self, checkpoints: Checkpoints, metric: str, *, bigger: bool, model: Callable[[Any], dict] = lambda state: state,
        split: str = "validation", patience: int = 0,
    ):  # fmt: skip
        """checkpoints: of the best alone. metric: of the evaluations of `split` that have it. bigger: whether the best is the
        largest one. model: a run's state → what is kept of it. patience: 0 never ends a run."""
        self.split, self.metric, self.spent = split, metric, False
        self._checkpoints, self._bigger, self._model, self._patience = checkpoints, bigger, model, patience
        kept = saved(checkpoints)
        self.value, self.step = (kept["value"], kept["step"]) if kept else (None, 0)
        self._since = 0  # evaluations after it

    def resume(self, writer: MetricsWriter | None) -> None:
        """Counts the evaluations that a run made after its best, from its lines."""
        steps = writer.steps(self.split, self.metric) if writer and self.value is not None else []
        self._since = sum(step > self.step for step in steps)
        self._settle()

    def take(self, step: int, metrics: dict, state: Any, config: dict | None) -> None:
        """Keeps the model of an evaluation if that is the best so far.

        Raises:
          DiskError: it cannot be written; the one before stays.
        """
        value = float(metrics.get(self.metric, math.nan))
        if any_process(jax.process_index() == 0 and self._better(step, value)):
            self._checkpoints.save(step, self._model(state), {"metric": self.metric, "value": value, "step": step}, config)
            self._checkpoints.wait()
            self.value, self.step, self._since = value, step, 0
        elif step > self.step and math.isfinite(value):
            self._since += 1
        self._settle()

    def _better(self, step: int, value: float) -> bool:
        """Whether a value is the best; in a resumed run the kept one may be of a step that is still to come again."""
        if not math.isfinite(value) or step <= self.step:
            return False
        return self.value is None or (value > self.value if self._bigger else value < self.value)

    def _settle(self) -> None:
        self.spent = bool(self._patience) and any_process(jax.process_index() == 0 and self._since >= self._patience)


def saved(checkpoints: Checkpoints) -> dict | None:
    """{"metric", "value", "step"} of the best model that is kept; None where there is none, or it is damaged."""
    return checkpoints.saved_extra() if checkpoints.all_steps() else None


def steps_in(workdir: Path) -> set[int]:
    """The step of the best model that a workdir keeps; none where there is no such model."""
    folder = Path(workdir) / FOLDER
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()} if folder.is_dir() else set()


def place(workdir: Path, step: int | str | None = None) -> tuple[Path, int | None]:
    """(folder of checkpoints, which of them or None for the newest) that a workdir's model is read from.

    Args:
      step: "best", "last", or the number of a step; None is the best where one is kept, else the last.

    Raises:
      UserError: "best", and none is kept.
    """
    best, newest, kept = Path(workdir) / FOLDER, Path(workdir) / NEWEST, steps_in(workdir)
    if step == "best" and not kept:
        raise UserError(f"{workdir} keeps no best model: it is kept where config.training.keep_best is True; give --step=last")
    if step in (None, "best") and kept:
        return best, max(kept)
    if step in kept and not (newest / str(step)).is_dir():
        return best, step
    return newest, None if step in (None, "last") else step


def chosen(workdir: Path, step: int | str | None = None) -> tuple[Path, int | None]:
    """`place`, with a line of the log as `settled` has it."""
    return place(workdir, settled(workdir, step))


def settled(workdir: Path, step: int | str | None = None) -> int | str | None:
    """The step as it is given; "best", and a line of the log, where that is taken though nobody has asked for it."""
    folder, number = place(workdir, step)
    if step is None and folder.name == FOLDER:
        logging.info("the best model of %s, that of step %d; --step=last takes the last", workdir, number)
        return "best"
    return step
