"""The loop that every run goes through: batches in, steps, and now and then a line, a checkpoint, an evaluation.

It knows neither model nor task nor config: iterator, step and evaluators are arguments, so that an architecture search
trains its candidates by it too.

What stands at a step is a function of the run. In this order, where they are due:
    the step   →   its line in metrics.jsonl   →   its checkpoint   →   its evaluations
so a checkpoint's lines are there, and only evaluations can be missing when a run was killed: a resumed run first makes
those up, and drops the lines of later steps. The open window of metrics goes into the checkpoint. An evaluation's line comes
after its model, if that is the best so far and is kept.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging

from transformers_jax.errors import UserError
from transformers_jax.training import integrity
from transformers_jax.training.best import Best
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.metrics import MetricsWriter, Progress, means
from transformers_jax.training.processes import any_process

AHEAD = 2
"""Steps that are given to the device before the host waits for the first of them."""

_HELD = 100  # steps whose metrics may be on the device


class Evaluator(NamedTuple):
    """A measurement during training.

    split: name of its lines in metrics.jsonl.
    run: (state, step) → metrics; called by all processes alike.
    every: steps between two; None is the loop's `eval_every`. It also runs at the end.
    """

    split: str
    run: Callable[[Any, int], dict]
    every: int | None = None


def train(
    *,
    state: Any,
    step_fn: Callable[[Any, Any], tuple[Any, dict]],
    iterator: Iterator,
    total_steps: int,
    to_device: Callable[[Any], Any] = lambda batch: batch,
    evaluators: Sequence[Evaluator] = (),
    checkpoints: Checkpoints | None = None,
    writer: MetricsWriter | None = None,
    best: Best | None = None,
    log_every: int = 100,
    eval_every: int = 0,
    checkpoint_every: int = 0,
    learning_rate: Callable[[int], Any] | None = None,
    token_metric: str = "weight",
    counted: str = "tokens",
    flops_per_step: float | None = None,
    peak_flops: float | None = None,
    config: dict | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    verbose: bool = True,
) -> Any:
    """Trains up to `total_steps`, from the newest checkpoint if there is one, and returns the last state.

    Given the same arguments again, a run that was killed at any moment goes on and ends with the same state and lines
    as one that was not, and a finished one does nothing.

    Args:
      state: the state of step 0. It is given up: the first step, or the checkpoint that is read, may take its memory.
      step_fn: (state, batch) → (state, metrics). Metrics are scalars on the device: sums over the batch (see
        `metrics.means`), and `grad_norm` if it has one. It should return before the device is done.
      iterator: of batches; with `checkpoints` it has `get_state()`, JSON values, and `set_state()`.
      to_device: puts a batch where `step_fn` wants it, while the device is at the steps before.
      evaluators: they run in this order; their splits differ.
      checkpoints, writer: None keeps or writes nothing.
      best: is given each evaluation of its split, and may end the run before `total_steps`; None keeps none apart.
      log_every, eval_every, checkpoint_every: in steps; 0 is never. At the end all three are due.
      learning_rate: steps made → rate of the next, for the lines.
      token_metric: the sum by which other sums are divided, and which is counted a second.
      counted: what that sum is of: "tokens", "examples", "pixels" …
      flops_per_step, peak_flops: operations of a step; operations a second of all devices together.
      config: JSON values, kept beside the checkpoints.
      should_stop: asked between steps; once true it stays so (see `graceful_stop`). Several processes agree on the
        step, which is then one where something is due.
      verbose: shows progress on stderr.

    Raises:
      UserError: loss or gradient is not finite; the data end; a checkpoint does not fit or cannot be written.
      SystemExit: 143 when `should_stop()`, after saving.
    """
    evaluators = [e if e.every is not None else e._replace(every=eval_every) for e in evaluators]
    step, state, saved = _resume(state, iterator, checkpoints, writer)
    if best is not None:
        best.resume(writer)
    progress = Progress(total_steps, step, shown=verbose)
    window = _Window(saved, progress.note, token_metric, counted, learning_rate, flops_per_step, peak_flops)

    def due(every: int) -> bool:
        return step > 0 and (step >= total_steps or (every > 0 and step % every == 0))

    # The step of a checkpoint that a run which was not stopped would not have: the next takes its place.
    between = None if due(checkpoint_every) else step

    def stopping() -> bool:
        return any_process(should_stop())

    def save() -> None:
        if checkpoints is not None and step > 0:
            extra = {"iterator": iterator.get_state(), "window": window.state()}
            checkpoints.save(step, state, extra, config, instead_of=between)

    def evaluate() -> None:
        for split, run, every in evaluators:
            if due(every) and any_process(writer is None or not writer.has(step, split)) and not stopping():
                with window.paused() as seconds:
                    metrics = run(state, step)
                    if best is not None and split == best.split:
                        if checkpoints is not None:
                            checkpoints.wait()  # processes do not write two at once
                        best.take(step, metrics, state, config)
                _say(writer, progress, step, split, {**metrics, "evaluation_seconds": seconds()})

    def spent() -> bool:
        return best is not None and best.spent

    with progress:
        evaluate()  # what a killed run did not come to
        alone, settled = jax.process_count() == 1, True
        while step < total_steps and not spent() and not ((alone or settled) and stopping()):
            batch = to_device(_next(iterator, step))
            state, metrics = step_fn(state, batch)  # returns before the device is done
            step += 1
            window.add(step, metrics)  # waits for the step two before
            progress.advance(step)

            settled = any(map(due, (log_every, checkpoint_every, *(e.every for e in evaluators))))
            if settled:
                window.fetch()  # raises if a loss was not finite: nothing is kept of that state
            if due(log_every):
                _say(writer, progress, step, "train", window.line(step))
            if due(checkpoint_every):
                save()
            if settled:
                evaluate()

        if (stopped := stopping()) or spent():
            window.fetch()
            save()
    if spent() and not stopped:
        value = f"{best.metric} {best.value:.4g} of step {best.step}"
        logging.info("training ends at step %d: %s stays the best (config.training.patience)", step, value)
    if checkpoints is not None:
        checkpoints.wait()
    if stopped:
        raise SystemExit(128 + signal.SIGTERM)
    return state


@contextlib.contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a flag, in the main thread: `with graceful_stop() as stop: train(…, should_stop=stop)`.

    Enter it after `jax.distributed.initialize`, which sets a handler of its own.
    """
    flag = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: flag.set())
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _Window:
    """Sums of the metrics since the last line. Those of the last steps are on the device until they are fetched."""

    def __init__(self, saved: dict | None, note, token_metric, counted, learning_rate, flops_per_step, peak_flops):
        saved = saved or {"sums": {}, "steps": 0, "seconds": 0.0}
        self._sums, self._steps = dict(saved["sums"]), saved["steps"]
        self._pending: list[tuple[int, dict]] = []
        self._note, self._tokens, self._counted, self._learning_rate = note, token_metric, counted, learning_rate
        self._flops, self._peak = flops_per_step, peak_flops
        self._began = time.monotonic()
        self._before = saved["seconds"]  # of the processes before this
        self._first, self._untold = None, True  # (step, seconds) of the first step in this process
        self._timed_from, self._timed_steps, self._timed_tokens = 0.0, 0, 0.0

    def add(self, step: int, metrics: dict) -> None:
        """Takes a step's metrics, and waits for those of AHEAD steps before: the host runs no further ahead."""
        self._pending.append((step, metrics))
        if self._first is None:
            jax.block_until_ready(metrics)
            self._timed_from = time.monotonic()
            self._first = step, self._timed_from - self._began
            self._note(f"first step after {self._first[1]:.1f} s")
        elif len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending[-1 - AHEAD][1])
        if len(self._pending) > _HELD:
            self._take(len(self._pending) - AHEAD)

    def fetch(self) -> None:
        """Adds up all that is on the device.

        Raises:
          UserError: names the first step whose loss or gradient is not finite.
        """
        self._take(len(self._pending))

    def line(self, step: int) -> dict:
        """The window's metrics, and a new window."""
        sums = dict(self._sums)
        norm = {"grad_norm": sums.pop("grad_norm") / self._steps} if "grad_norm" in sums else {}
        line = means(sums, self._tokens) | norm
        if self._learning_rate is not None:
            line["learning_rate"] = float(self._learning_rate(step - 1))
        line |= self._timings(step)
        self._sums, self._steps = {}, 0
        return line

    def state(self) -> dict:
        """What a checkpoint keeps of it, when all is fetched."""
        return {"sums": dict(self._sums), "steps": self._steps, "seconds": self._seconds()}

    @contextlib.contextmanager
    def paused(self):
        """Time in here is none of the steps'; gives a function that tells how long it was."""
        began, took = time.monotonic(), []
        yield lambda: took[0]
        took.append(time.monotonic() - began)
        self._timed_from += took[0]

    def _take(self, count: int) -> None:
        steps, self._pending = self._pending[:count], self._pending[count:]
        for (step, _), values in zip(steps, jax.device_get([metrics for _, metrics in steps]), strict=True):
            for name in ("loss", "grad_norm"):
                if not math.isfinite(values.get(name, 0.0)):
                    raise UserError(
                        f"{name} is {values[name]} at step {step}: training stops, the checkpoints before it are kept; "
                        "lower the learning rate or clip gradients"
                    )
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
            self._steps += 1
            if self._first is not None and step > self._first[0]:
                self._timed_steps += 1
                self._timed_tokens += float(values.get(self._tokens, 0.0))

    def _timings(self, step: int) -> dict:
        now = time.monotonic()
        seconds, line = now - self._timed_from, {}
        if self._timed_steps:
            line[f"{self._counted}_per_second"] = self._timed_tokens / seconds
            if self._flops and self._peak:
                line["share_of_peak"] = self._flops * self._timed_steps / seconds / self._peak
        if self._flops:
            line["flops"] = self._flops * step
        if self._untold:
            line["first_step_seconds"], self._untold = self._first[1], False
        self._timed_from, self._timed_steps, self._timed_tokens = now, 0, 0.0
        return line | {"seconds": self._seconds()}

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began


def _resume(state, iterator, checkpoints, writer) -> tuple[int, Any, dict | None]:
    """(step, state, window) of the newest checkpoint, with the iterator set to it; (0, state, None) without one."""
    step, window = 0, None
    if checkpoints is not None and checkpoints.all_steps():
        step, state, extra = checkpoints.restore_latest(_abstract(state, checkpoints))
        iterator.set_state(extra["iterator"])
        window = extra["window"]
    if writer is not None:
        writer.truncate_after(step)
    return step, state, window


def _abstract(state, checkpoints):
    """The state without the arrays that checkpoints hold: they are given up to make room for the restored ones."""
    leaves, found = integrity.flatten(state), []
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.Array) and checkpoints.holds(name):
            found.append(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding))
            leaf.delete()
        else:
            found.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _next(iterator: Iterator, step: int):
    try:
        return next(iterator)
    except StopIteration:
        raise UserError(f"the training data end after step {step}; repeat them, or train for fewer steps") from None


def _say(writer, progress, step: int, split: str, metrics: dict) -> None:
    if writer is not None:
        writer.write(step, split, metrics)
    progress.metrics(step, split, metrics)
