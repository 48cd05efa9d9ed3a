"""From examples to batches: shuffle → encode → pack or bucket → batch, on Grain.

Training shuffles all examples anew in each epoch and cuts the endless order into windows of some thousand examples.
What goes together is planned window by window, so a batch is a function of data, config, seed and its number: the
position in the data is two integers, the window and the row within it, whatever the number of workers.

Examples without streams, images say, have no lengths to go by. Each of their batches is planned by its number alone, and its
examples are encoded when it is made, never ahead of it.

Keys of config.data that are read here:
  batching: "packing" puts several examples into a row; "buckets" gives each a row, among examples of like length;
    "rows" gives each a row, all rows of one length, and is what examples without streams need; "documents" joins all and
    cuts them into rows, see `data.documents`.
  batch_size: packing, rows, and buckets without tokens_per_batch: rows of a batch, over all processes.
  lengths: where batch_size holds: tokens in a row by stream, {"source": 64, "target": 64}; of the stream "", {"tokens": 64}.
    With buckets the longest of them is the widest, and boundaries over it do not count.
  tokens_per_batch: buckets: positions of one stream in a batch, over all processes; rows are so many over the width.
    0: batch_size rows of every width.
  boundaries: buckets: widths of the rows, (16, 24, 32, 64) say; each is one shape that the step is compiled for.
  rows_multiple: buckets: rows of a batch are a multiple of this (8), and of the parts that a batch is divided into.
  max_length: longer examples are dropped in training and cut in evaluation; at most, and by default, what a row holds.
  window: examples that are planned together; more fill rows better (4,096; buckets: 16,384).
  cache: keeps encoded examples in memory, about 0.6 kB a sentence pair, in each worker.
  prefetch: batches that a thread makes in advance (8); 0 makes each when it is asked for.
  workers: processes that encode and plan (0: the thread does). They need parsed absl flags and a `__main__` guard. Examples
    without streams are encoded by as many in evaluation, too.
"""

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import logging
from grain.experimental import DatasetOptions, ThreadPrefetchIterDataset, WithOptionsIterDataset

from transformers_jax.batch import Streams
from transformers_jax.data import collate as collating
from transformers_jax.data import documents
from transformers_jax.data.collate import BatchLayout, BatchShape, EncodedExamples, collate, layout_of
from transformers_jax.data.packing import bucket, pack, pack_in_order
from transformers_jax.errors import UserError

WINDOW = {"packing": 4096, "buckets": 16384, "rows": 4096}
PREFETCH = 8
ROWS_MULTIPLE = 8

_ENDLESS = 2**40  # windows
_UNTHREADED = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
_UNSHARED = DatasetOptions(min_shm_size=2**40)  # a window is thousands of small arrays: no shared memory for each


def train_iterator(
    source: Sequence,
    task: Any,
    config,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    parts: int = 1,
) -> grain.DatasetIterator:
    """Endless training batches of this process.

    Packing and rows: process i takes examples i, i + n, i + 2n …. Buckets: all processes plan alike, for their batches
    must have the same shape, and process i takes the i-th equal share of the rows of each.

    Args:
      source: raw examples, by number.
      task: its `encode` gives the fields of a raw example, 1-D int32 arrays, of one length within a stream; for its
        other attributes see `data.collate`.
      config: config.data, see above.
      seed: of the shuffling, and of what the task augments.
      parts: that the rows of a batch are divided into, over devices and microbatches; those of each bucket's are a multiple.

    Returns:
      An iterator of numpy batches, with static shapes; `get_state()` is a dict of two integers, from which `set_state`
      of any iterator with the same arguments goes on with the same batches; `close()` ends thread and workers.

    Raises:
      UserError: a key that does not fit; no example is left. In `next`: none is short enough.
    """
    layout = layout_of(task)
    shapes, limits = shapes_of(config, layout, process_count, parts)
    if config.batching == "documents":
        place = {"process_index": process_index, "process_count": process_count}
        return documents.train_iterator(source, task, config, shapes[0], seed=seed, **place)
    buckets, workers = config.batching == "buckets", config.get("workers", 0)
    shard = range(len(source)) if buckets else range(process_index, len(source), process_count)
    if not shard:
        raise UserError(f"config.data.train: {len(source)} examples are too few for {process_count} processes")
    examples = EncodedExamples(source, task, config.get("cache", False))
    shape = BatchShape(shapes[0].rows // process_count, shapes[0].lengths)
    if not layout.streams:
        batches = _Planned(grain.MapDataset.range(_ENDLESS).map(_Unplanned(examples, shape, _Order(seed, shard))), workers)
    else:
        window = min(config.get("window", 0) or WINDOW[config.batching], len(shard))
        plan = _Plan(examples, shapes, limits, config.batching, _Order(seed, shard), window)
        planned = _Planned(grain.MapDataset.range(_ENDLESS).map(plan), workers)
        if buckets:
            batches = planned.map(partial(_share, layout, shapes, process_index, process_count))
        else:
            batches = planned.batch(shape.rows, batch_fn=partial(collate, layout=layout, shape=shape))
    ahead = config.get("prefetch", PREFETCH)
    batches = ThreadPrefetchIterDataset(batches, prefetch_buffer_size=ahead) if ahead else batches
    return iter(batches)


class EvalBatches:
    """Evaluation batches of one process: every example once, in order, packed or one a row; as many on every process.

    The rows of all processes, one process behind the other, are the batches of a single process. Those that nothing is
    left for are empty: all segments and row_weights 0. Longer examples than a row are cut, with one warning. Made by
    `eval_batches`.
    """

    def __init__(self, examples: EncodedExamples, shapes: Sequence[BatchShape], limits, index, count, workers=0):
        self.examples, self.layout, self.limits, self.workers = examples, examples.layout, limits, workers
        shape = shapes[-1]
        if not self.layout.streams:
            self.rows: Sequence[Sequence[int]] = _OneARow(len(examples))
        else:
            lengths = self._lengths()
            if self.layout.one_a_row:
                self.rows = _OneARow(len(examples))
                shape = next(s for s in shapes if (lengths <= s.lengths).all())
            else:
                self.rows = pack_in_order(lengths, shape.lengths)
        self.total, share = shape.rows, shape.rows // count
        self.start, self.shape = index * share, BatchShape(share, shape.lengths)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.total)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        if self.layout.streams or not self.workers:
            return map(self.batch, range(len(self)))
        return iter(_by_workers(grain.MapDataset.range(len(self)).map(self.batch), self.workers))

    def batch(self, number: int) -> dict[str, np.ndarray]:
        """One of them."""
        first = self.start + number * self.total
        numbers = self.rows[first : first + self.shape.rows]
        rows = [[collating.cut(self.examples[i], self.limits) for i in row] for row in numbers]
        return collate(rows, layout=self.layout, shape=self.shape)

    def _lengths(self) -> np.ndarray:
        """[examples, streams] tokens that are left of each example; all are encoded for it."""
        lengths = np.array([collating.lengths(self.examples[i]) for i in range(len(self.examples))])
        if longer := (lengths > self.limits).any(axis=1).sum():
            most = _named(self.layout.streams, self.limits)
            logging.warning("evaluation cuts %d of %d examples to %s tokens", longer, len(lengths), most)
        return np.minimum(lengths, self.limits)


class _OneARow(Sequence[list[int]]):
    """The examples of each row, where each row has one."""

    def __init__(self, count: int):
        self.numbers = range(count)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, at):
        return [[i] for i in self.numbers[at]] if isinstance(at, slice) else [self.numbers[at]]


def eval_batches(
    source: Sequence,
    task: Any,
    config,
    *,
    process_index: int = 0,
    process_count: int = 1,
    parts: int = 1,
) -> EvalBatches | documents.DocumentBatches:
    """Batches that cover every example exactly once, to be iterated as often as wanted. All have one shape: that of a
    training batch, with buckets that of the widest; or, one example a row, of the narrowest that holds all.

    Args and errors are those of `train_iterator`.
    """
    if not len(source):
        raise UserError("there are no examples to evaluate: see config.data.validation and config.data.test")
    shapes, limits = shapes_of(config, layout_of(task), process_count, parts)
    if config.batching == "documents":
        place = {"process_index": process_index, "process_count": process_count}
        return documents.eval_batches(source, task, config, shapes[0], **place)
    examples = EncodedExamples(source, task, config.get("cache", False))
    return EvalBatches(examples, shapes, limits, process_index, process_count, config.get("workers", 0))


def batch_shapes(config, task: Any, process_count: int = 1, parts: int = 1) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, dtype) of each field of a global training batch by name; with buckets those of the widest."""
    layout = layout_of(task)
    shapes, _ = shapes_of(config, layout, process_count, parts)
    return collating.shapes_of_fields(layout, shapes[-1])


def fill(batch: dict[str, np.ndarray]) -> float:
    """The share of positions that hold a token, over all streams."""
    segments = [value for name, value in batch.items() if name.endswith("segments")]
    return sum(np.count_nonzero(s) for s in segments) / sum(s.size for s in segments)


def _named(streams: Streams, limits: Sequence[int]) -> str:
    return ", ".join(f"{stream or 'tokens'} {limit}" for stream, limit in zip(streams, limits, strict=True))


def _share(layout: BatchLayout, shapes: Sequence[BatchShape], index: int, count: int, batch: tuple) -> dict[str, np.ndarray]:
    """This process's rows of a bucket's batch (bucket, examples)."""
    rows, lengths = shapes[batch[0]]
    share = rows // count
    mine = batch[1][index * share : (index + 1) * share]
    return collate([[example] for example in mine], layout=layout, shape=BatchShape(share, lengths))


class _Order:
    """The endless order of a process's examples in training: a permutation of them for each epoch.

    A permutation is 8 bytes an example. (Grain's shuffle takes no memory, but 10 µs an example where examples are many,
    and milliseconds where they are few.)
    """

    def __init__(self, seed: int, shard: range):
        self.seed, self.shard = seed % 2**32, shard
        self.epoch, self.order = None, None

    def __call__(self, start: int, count: int) -> list[int]:
        """The numbers of the examples at the places start … start + count - 1."""
        size, numbers = len(self.shard), []
        for epoch in range(start // size, (start + count - 1) // size + 1):
            if self.epoch != epoch:
                self.epoch, self.order = epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(self.shard)
            numbers += self.order[max(0, start - epoch * size) : start + count - epoch * size].tolist()
        return numbers


class _Unplanned:
    """The number of a batch → [that batch], of examples without streams, which are encoded now.

    What an example is augmented with depends on its place in the order alone.
    """

    def __init__(self, examples: EncodedExamples, shape: BatchShape, order: _Order):
        self.examples, self.shape, self.order = examples, shape, order

    def __call__(self, number: int) -> list[dict[str, np.ndarray]]:
        start, process = number * self.shape.rows, self.order.shard.start
        rows = []
        for place, i in enumerate(self.order(start, self.shape.rows), start):
            rows.append([self.examples.draw(i, np.random.default_rng([self.order.seed, 2, process, place]))])
        return [collate(rows, layout=self.examples.layout, shape=self.shape)]


class _Plan:
    """The number of a window → its rows, or its bucket batches, in shuffled order."""

    def __init__(self, examples: EncodedExamples, shapes: Sequence[BatchShape], limits, batching, order: _Order, size: int):
        self.examples, self.shapes, self.limits, self.batching = examples, shapes, limits, batching
        self.order, self.size = order, size
        self.seen, self.dropped = 0, 0

    def __call__(self, window: int) -> list:
        seed, shard = self.order.seed, self.order.shard
        rng = np.random.default_rng([seed, 2, shard.start, window])
        examples = [self.examples.draw(i, rng) for i in self.order(window * self.size, self.size)]
        lengths = np.array([collating.lengths(example) for example in examples])
        fits = (lengths <= self.limits).all(axis=1)  # [examples]
        self._count(fits)
        examples, lengths = [examples[i] for i in np.flatnonzero(fits)], lengths[fits]
        rng = np.random.default_rng([seed, 0, window])
        if self.batching == "rows":
            planned = [[example] for example in examples]
        elif self.batching == "packing":
            planned = [[examples[i] for i in row] for row in pack(lengths, self.shapes[0].lengths, rng)]
        else:
            batches = bucket(lengths, [s.lengths[0] for s in self.shapes], [s.rows for s in self.shapes])
            planned = [(i, [examples[j] for j in batch]) for i, batch in batches]
        return [planned[i] for i in rng.permutation(len(planned))]

    def _count(self, fits: np.ndarray) -> None:
        """Says how many examples are dropped, when the first is and after one pass of the data."""
        first, before = not self.dropped, self.seen
        self.seen, self.dropped = self.seen + len(fits), self.dropped + int((~fits).sum())
        over = f"over {_named(self.examples.layout.streams, self.limits)} tokens"
        passed = before < len(self.order.shard) <= self.seen
        if passed and self.dropped == self.seen:
            raise UserError(f"all training examples are {over}: raise config.data.max_length and the row lengths")
        if self.dropped and (first or passed):
            logging.warning("training drops examples %s: %d of %d so far", over, self.dropped, self.seen)


class _Planned(grain.IterDataset):
    """What is planned for each window, one after the other."""

    def __init__(self, windows: grain.MapDataset, workers: int):
        super().__init__()
        self.windows, self.workers = windows, workers

    def __iter__(self) -> grain.DatasetIterator:
        return _PlannedIterator(self.windows, self.workers)


class _PlannedIterator(grain.DatasetIterator):
    """Its state, {"window", "row"}, names what comes next; on restoring, that window is planned again."""

    def __init__(self, windows: grain.MapDataset, workers: int):
        super().__init__()
        self.windows, self.workers = windows, workers
        self.window, self.row, self.planned, self.upcoming = 0, 0, None, None
        self.processes: set[multiprocessing.process.BaseProcess] = set()

    def __next__(self):
        if self.upcoming is None:
            before = set(multiprocessing.active_children())
            self.upcoming = iter(_by_workers(self.windows[self.window :], self.workers))
            self.planned = next(self.upcoming)
            self.processes = set(multiprocessing.active_children()) - before
        while self.row >= len(self.planned):
            self.window, self.row, self.planned = self.window + 1, 0, next(self.upcoming)
        self.row += 1
        return self.planned[self.row - 1]

    def get_state(self) -> dict[str, int]:
        if self.planned is not None and self.row >= len(self.planned):  # nothing of it is needed again
            return {"window": self.window + 1, "row": 0}
        return {"window": self.window, "row": self.row}

    def set_state(self, state: dict[str, int]) -> None:
        self._stop()
        self.window, self.row = state["window"], state["row"]

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        """Ends the workers at once: each waits to hand over what it has made, and Grain waits for that 25 seconds."""
        for process in self.processes:
            process.join = lambda timeout=None: None
        if self.upcoming is not None:
            self.upcoming.close()  # kills those that are still there
        for process in self.processes:
            del process.join
            process.join()
        self.upcoming, self.planned, self.processes = None, None, set()


def _by_workers(windows: grain.MapDataset, workers: int) -> grain.IterDataset:
    """What is there by number, one after the other, made by so many processes; 0 for none."""
    upcoming = windows.to_iter_dataset(_UNTHREADED)
    if not workers:
        return upcoming
    upcoming = WithOptionsIterDataset(upcoming, _UNSHARED)
    return upcoming.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=1))


def shapes_of(config, layout: BatchLayout, process_count: int, parts: int = 1) -> tuple[list[BatchShape], tuple[int, ...]]:
    """The shapes of batches, narrowest first, and the longest examples that are let through, by stream."""
    streams = layout.streams
    if config.batching in ("packing", "documents") and layout.one_a_row:
        raise UserError(
            f"config.data.batching={config.batching}: each example of this task needs a row; give rows or buckets"
        )
    if config.batching not in (*WINDOW, "documents"):
        raise UserError(f"config.data.batching={config.batching!r} is not one of {', '.join(WINDOW)}, documents")
    if config.batching != "rows" and not streams:
        raise UserError(f"config.data.batching={config.batching}: the examples of this task have no length; give rows")
    tokens = config.get("tokens_per_batch", 0) if config.batching == "buckets" else 0
    if not tokens and (config.get("batch_size", 0) < 1 or config.batch_size % process_count):
        raise UserError(f"config.data.batch_size={config.get('batch_size', 0)} does not divide by {process_count} processes")
    if config.batching == "buckets":
        widths = _widths(config, streams, tokens)
        multiple = math.lcm(config.get("rows_multiple", ROWS_MULTIPLE), process_count, parts)
        rows = [tokens // width // multiple * multiple if tokens else config.batch_size for width in widths]
        shapes = [BatchShape(count, (width,) * len(streams)) for count, width in zip(rows, widths, strict=True)]
        if not rows[-1]:
            least = widths[-1] * multiple
            raise UserError(f"config.data.tokens_per_batch={tokens}: {multiple} rows of {widths[-1]} need {least}")
    else:
        shapes = [BatchShape(config.batch_size, tuple(_length(config, stream) for stream in streams))]
    most = config.get("max_length", 0) or math.inf
    return shapes, tuple(int(min(length, most)) for length in shapes[-1].lengths)


def _widths(config, streams: Streams, tokens: int) -> tuple[int, ...]:
    """Those of the buckets, ascending."""
    widths = tuple(config.get("boundaries", ()))
    if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
        raise UserError(f"config.data.boundaries={widths}: give widths in ascending order, as in (16, 32, 64)")
    if tokens:
        return widths
    widest = max(_length(config, stream) for stream in streams)
    return (*(width for width in widths if width < widest), widest)


def _length(config, stream: str) -> int:
    stream = stream or "tokens"
    length = config.get("lengths", {}).get(stream, 0)
    if length < 1:
        raise UserError(f"config.data.lengths.{stream}={length}: give the tokens that a row holds")
    return length
