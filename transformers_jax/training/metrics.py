"""What a run says: metrics.jsonl, TensorBoard, and progress on the terminal.

metrics.jsonl has one JSON object a line: `step`, `split` ("train", or an evaluator's name), then the metrics by their
usual names. But for TIMING_KEYS a line is a function of the run: one that was killed and resumed leaves the same file
as one that was not.
"""

import contextlib
import json
import math
import os
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import logging

from transformers_jax.files import write_whole

SPEEDS = ("tokens_per_second", "examples_per_second", "pixels_per_second", "positions_per_second")
TIMING_KEYS = (*SPEEDS, "seconds", "first_step_seconds", "evaluation_seconds", "flops", "share_of_peak")
"""Keys that depend on the machine.

tokens_per_second, or of what else the loss is over, examples_per_second say: loss weight a second, without compilation and
  evaluation.
seconds: since the run began, over all its resumptions.
first_step_seconds: until the first step of a process was done, compilation included.
evaluation_seconds: of the line's evaluation.
flops: floating point operations since step 0, as planned.
share_of_peak: of what the devices could do in the same time.
"""

FLUSH_SECONDS = 60
"""TensorBoard's file is brought to the disk so often: that takes long where the disk is far away."""


def means(sums: dict[str, float], weight: str = "weight") -> dict[str, float]:
    """Means of summed metrics: each is divided by its weight; `nll` becomes `perplexity`, `correct` `accuracy`.

    The weight is `weight`, but for `a_x` it is `a_weight` where there is one: {"loss", "weight", "next_correct",
    "next_weight"} gives {"loss", "next_accuracy"}. A mean over no weight is NaN, a perplexity beyond floats infinite.
    """
    result = {}
    for name, value in sums.items():
        head, _, kind = name.rpartition("_")
        divisor = f"{head}_weight"
        if not head or divisor not in sums:
            head, kind, divisor = "", name, weight
        if name == divisor:
            continue
        mean = float(value) / float(sums[divisor]) if sums[divisor] else math.nan
        if kind == "nll":
            kind, mean = "perplexity", math.exp(mean) if mean < 700 else math.inf
        kind = "accuracy" if kind == "correct" else kind
        result[f"{head}_{kind}" if head else kind] = mean
    return {name: result[name] for name in sorted(result, key="loss".__ne__)}  # the loss is first


def _numbers(line: dict) -> set[str]:
    """Names of a line's finite numbers."""
    return {name for name, value in line.items() if isinstance(value, (int, float)) and math.isfinite(value)}


class MetricsWriter:
    """Writes metrics.jsonl and tensorboard/ of a workdir, in the first process; in the others it does nothing."""

    def __init__(self, workdir: str | os.PathLike, tensorboard: bool = True):
        self.path = Path(workdir) / "metrics.jsonl"
        self._lines: dict[tuple[int, str], set[str]] = {}  # (step, split) → the numbers that the line has
        self._file = self._events = None
        self._flushed = -math.inf  # when the events were last on the disk
        self._first = jax.process_index() == 0
        self._tensorboard = tensorboard
        self._purge = None
        if self._first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._keep(lambda step: True)

    def write(self, step: int, split: str, metrics: dict) -> None:
        """Appends a line and flushes it. Values are numbers, or arrays of one; one that is not finite is null."""
        if not self._first:
            return
        values = {name: _plain(value) for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        self._lines[step, split] = _numbers(values)
        if numbers := {f"{split}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}:
            self._on_board(lambda: self._show(step, numbers))

    def has(self, step: int, split: str) -> bool:
        """Whether there is a line of this step and split; True in all processes but the first."""
        return not self._first or (step, split) in self._lines

    def steps(self, split: str, metric: str) -> list[int]:
        """Steps whose line of a split has a finite number of this name; none in all processes but the first."""
        return [step for (step, name), numbers in self._lines.items() if name == split and metric in numbers]

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps, before a run goes on from `step`."""
        if self._first:
            self._keep(lambda line_step: line_step <= step)
            self._purge = step + 1

    def close(self) -> None:
        """Closes the files."""
        if self._file:
            self._file.close()
        self._on_board(lambda: self._events and self._events.close())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _keep(self, wanted) -> None:
        """Opens the file for appending, without the lines of unwanted steps, and without one that a kill has torn."""
        if self._file:
            self._file.close()
        old = self.path.read_text(errors="replace") if self.path.exists() else ""
        kept, self._lines = [], {}
        for number, text in enumerate(old.splitlines(keepends=True), 1):
            try:
                line = json.loads(text)
                step, split = line["step"], line["split"]
            except (ValueError, TypeError, KeyError):
                logging.warning("%s line %d is not a line of metrics: dropped", self.path, number)
                continue
            if wanted(step) and text.endswith("\n"):
                kept.append(text)
                self._lines[step, split] = _numbers(line)
        if "".join(kept) != old:
            write_whole(self.path, "".join(kept))
        self._file = open(self.path, "a")

    def _on_board(self, write) -> None:
        """Calls write(), which adds to TensorBoard's file. The first failure is a warning and the end of that."""
        if not self._tensorboard:
            return
        try:
            write()
        except OSError as error:
            self._tensorboard = False
            logging.warning("%s cannot be written (%s): the run goes on without", self.path.parent / "tensorboard", error)
            if self._events:
                with contextlib.suppress(OSError):
                    self._events.close()

    def _show(self, step: int, numbers: dict) -> None:
        """Numbers by tag, for TensorBoard. They are written here and now: the thread of tensorboardX's SummaryWriter ends with
        the first error, and the run would wait for it."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        events = [Event(step=step, summary=scalar(tag, value)) for tag, value in numbers.items()]
        if self._events is None:
            self._events = _event_file(self.path.parent / "tensorboard")
            if self._purge is not None:  # what an earlier process wrote of later steps is hidden
                events.insert(0, Event(step=self._purge, session_log=SessionLog(status=SessionLog.START)))
            events.insert(0, Event(file_version="brain.Event:2"))
        for event in events:
            event.wall_time = time.time()
            self._events.write(event.SerializeToString())
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._events.flush()
            self._flushed = time.monotonic()


def _event_file(folder: Path):
    """A file of TensorBoard's of its own, though an earlier process may have begun one in the same second."""
    from tensorboardX.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    return RecordWriter(str(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"))


def _plain(value):
    """A number as JSON has it: floats with the digits of float32, None for what is not finite."""
    if isinstance(value, (str, bool, int, type(None))):
        return value
    value = np.asarray(value).reshape(()).item()
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        short = np.float32(value)
    return float(str(short)) if np.isfinite(short) else None


class Progress:
    """Progress of a long token of work on stderr: a moving line on a terminal, plain lines elsewhere.

    Only the first process says anything.
    """

    def __init__(self, total: int, start: int = 0, unit: str = "step", stream=None, shown: bool = True):
        """total, start: of units; the work begins at `start`. shown: False says nothing at all."""
        self._stream = stream or sys.stderr
        self._total, self._unit = total, unit
        self._said = shown and jax.process_index() == 0
        self._bar = None
        self._begun = None  # (unit, time) of the first advance: what compiles before is not counted
        if self._said and self._stream.isatty():
            import tqdm

            self._bar = tqdm.tqdm(total=total, initial=start, unit=unit, file=self._stream, dynamic_ncols=True)

    def advance(self, done: int) -> None:
        """`done` units of the total are finished."""
        if self._begun is None:
            self._begun = done, time.monotonic()
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def metrics(self, done: int, split: str, metrics: dict) -> None:
        """Says how the work stands after `done` units; `split` is "train" for the work itself."""
        wanted = {k: _plain(v) for k, v in metrics.items() if k not in TIMING_KEYS or k in SPEEDS}
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in wanted.items())
        if split != "train":
            self.note(f"{self._unit} {done}  {split}: {shown}")
        elif self._bar is not None:
            self._bar.set_postfix_str(shown)
        else:
            self.note(f"{self._unit} {done}/{self._total}  {shown}  {self._left(done)}".rstrip())

    def note(self, text: str) -> None:
        """A line of its own, above the moving one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._said:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _left(self, done: int) -> str:
        if self._begun is None or done <= self._begun[0]:
            return ""
        seconds = (time.monotonic() - self._begun[1]) / (done - self._begun[0]) * (self._total - done)
        return f"left {int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"
