"""From examples to batches: shuffle → encode → pack or bucket → batch, on Grain.

Training shuffles all examples anew in each epoch and cuts the endless order into windows of some thousand examples.
What goes together is planned window by window, so a batch is a function of data, config, seed and its number: the
position in the data is two integers, the window and the row within it, whatever the number of workers.

Keys of config.data that are read here:
  batching: "packing" puts several examples into a row; "buckets" gives each a row, among examples of like length.
  batch_size: packing: rows of a batch, over all processes.
  lengths: packing: pieces in a row by stream, {"source": 64, "target": 64}.
  tokens_per_batch: buckets: positions of one stream in a batch, over all processes; rows are so many over the width.
  boundaries: buckets: widths of the rows, (16, 24, 32, 64) say; each is one shape that the step is compiled for.
  rows_multiple: buckets: rows of a batch are a multiple of this (8).
  max_length: longer examples are dropped in training and cut in evaluation; at most, and by default, what a row holds.
  window: examples that are planned together; more fill rows better (4,096; buckets: 16,384).
  cache: keeps encoded examples in memory, about 0.6 kB a sentence pair, in each worker.
  prefetch: batches that a thread makes in advance (8); 0 makes each when it is asked for.
  workers: processes that encode and plan (0: the thread does). They need parsed absl flags and a `__main__` guard.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import grain
import numpy as np
from absl import logging
from grain.experimental import DatasetOptions, ThreadPrefetchIterDataset, WithOptionsIterDataset

from transformers_jax.batch import Streams, positions_name, segments_name
from transformers_jax.data.packing import bucket, pack, pack_in_order
from transformers_jax.errors import UserError

WINDOW = {"packing": 4096, "buckets": 16384}
PREFETCH = 8
ROWS_MULTIPLE = 8

Example = tuple[np.ndarray, ...]
"""An encoded example: one int32 array [fields, length] a stream."""

_ENDLESS = 2**40  # windows
_UNTHREADED = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
_UNSHARED = DatasetOptions(min_shm_size=2**40)  # a window is thousands of small arrays: no shared memory for each


class Shape(NamedTuple):
    """The shape of a batch: its rows over all processes, and the positions of a row by stream."""

    rows: int
    lengths: tuple[int, ...]


def train_iterator(
    source: Sequence,
    encode: Callable[[dict], dict[str, np.ndarray]],
    streams: Streams,
    config,
    *,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless training batches of this process.

    Packing: process i takes examples i, i + n, i + 2n …. Buckets: all processes plan alike, for their batches must have
    the same shape, and process i takes the i-th equal share of the rows of each.

    Args:
      source: raw examples, by number.
      encode: a raw example → its fields, 1-D int32 arrays, of one length within a stream.
      streams: fields by stream, see batch.Streams.
      config: config.data, see above.
      seed: of the shuffling.

    Returns:
      An iterator of numpy batches, with static shapes; `get_state()` is a dict of two integers, from which `set_state`
      of any iterator with the same arguments goes on with the same batches; `close()` ends thread and workers.

    Raises:
      UserError: a key that does not fit; no example is left. In `next`: none is short enough.
    """
    shapes, limits = shapes_of(config, streams, process_count)
    packing = config.batching == "packing"
    shard = range(process_index, len(source), process_count) if packing else range(len(source))
    if not shard:
        raise UserError(f"config.data.train: {len(source)} examples are too few for {process_count} processes")
    window = min(config.get("window", 0) or WINDOW[config.batching], len(shard))
    examples = Encoded(source, encode, streams, config.get("cache", False))
    plan = _Plan(examples, shapes, limits, packing, seed, shard, window)
    planned = _Planned(grain.MapDataset.range(_ENDLESS).map(plan), config.get("workers", 0))
    if packing:
        shape = Shape(shapes[0].rows // process_count, shapes[0].lengths)
        batches = planned.batch(shape.rows, batch_fn=partial(assemble, streams=streams, shape=shape))
    else:
        batches = planned.map(partial(_share, streams, shapes, process_index, process_count))
    ahead = config.get("prefetch", PREFETCH)
    batches = ThreadPrefetchIterDataset(batches, prefetch_buffer_size=ahead) if ahead else batches
    return iter(batches)


class EvalBatches:
    """Evaluation batches of one process: every example once, in order, packed; as many on every process.

    The rows of all processes, one process behind the other, are the batches of a single process. Those that nothing is
    left for are empty: all segments 0. Longer examples than a row are cut, with one warning. Made by `eval_batches`.
    """

    def __init__(self, examples: "Encoded", streams: Streams, shape: Shape, limits, process_index, process_count):
        self.examples, self.streams, self.limits = examples, streams, limits
        self.total, share = shape.rows, shape.rows // process_count
        self.start, self.shape = process_index * share, Shape(share, shape.lengths)
        lengths = np.array([_lengths(examples[i]) for i in range(len(examples))])
        if cut := (lengths > limits).any(axis=1).sum():
            most = _named(streams, limits)
            logging.warning("evaluation cuts %d of %d examples to %s pieces", cut, len(lengths), most)
        self.rows = pack_in_order(np.minimum(lengths, limits), shape.lengths)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.total)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for first in range(self.start, self.start + len(self) * self.total, self.total):
            rows = [[self._cut(i) for i in row] for row in self.rows[first : first + self.shape.rows]]
            yield assemble(rows, streams=self.streams, shape=self.shape)

    def _cut(self, i: int) -> Example:
        return tuple(part[:, :limit] for part, limit in zip(self.examples[i], self.limits, strict=True))


def eval_batches(
    source: Sequence,
    encode: Callable[[dict], dict[str, np.ndarray]],
    streams: Streams,
    config,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Batches that cover every example exactly once, to be iterated as often as wanted. All have one shape: that of a
    training batch, with buckets that of the widest.

    Args and errors are those of `train_iterator`.
    """
    if not len(source):
        raise UserError("there are no examples to evaluate: see config.data.validation and config.data.test")
    shapes, limits = shapes_of(config, streams, process_count)
    examples = Encoded(source, encode, streams, config.get("cache", False))
    return EvalBatches(examples, streams, shapes[-1], limits, process_index, process_count)


def fill(batch: dict[str, np.ndarray]) -> float:
    """The share of positions that hold a piece, over all streams."""
    segments = [value for name, value in batch.items() if name.endswith("segments")]
    return sum(np.count_nonzero(s) for s in segments) / sum(s.size for s in segments)


class Encoded:
    """A source of encoded examples, each encoded when first asked for, and kept if `cache`."""

    def __init__(self, source: Sequence, encode: Callable, streams: Streams, cache: bool):
        self.source, self.encode, self.streams = source, encode, streams
        self.cache: dict[int, Example] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example:
        if self.cache is not None and i in self.cache:
            return self.cache[i]
        fields = self.encode(self.source[i])
        example = tuple(np.array([fields[name] for name in names], np.int32) for names in self.streams.values())
        if self.cache is not None:
            self.cache[i] = example
        return example


def assemble(rows: Sequence[Sequence[Example]], *, streams: Streams, shape: Shape) -> dict[str, np.ndarray]:
    """The batch of these rows: fields, positions and segments of each stream, int32 [shape.rows, length of the stream].

    Args:
      rows: examples of each row, at most shape.rows; the rest of the batch is empty.
    """
    counts = np.array([len(row) for row in rows], np.int64)  # [rows]
    segments = np.concatenate([np.arange(1, n + 1) for n in [0, *counts]])  # [examples]
    row_of = np.repeat(np.arange(len(rows)), counts)  # [examples]
    batch = {}
    for i, (stream, names) in enumerate(streams.items()):
        parts = [example[i] for row in rows for example in row]
        lengths = np.array([part.shape[1] for part in parts], np.int64)  # [examples]
        ends = np.cumsum(lengths)
        before_row = np.concatenate([[0], ends])[np.cumsum(counts) - counts]  # [rows] pieces in the rows before
        positions = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)  # [pieces]
        starts = row_of * shape.lengths[i] + ends - lengths - before_row[row_of]  # [examples]
        places = np.repeat(starts, lengths) + positions  # [pieces]
        out = np.zeros([len(names) + 2, shape.rows * shape.lengths[i]], np.int32)
        if parts:
            out[:-2, places] = np.concatenate(parts, axis=1)
        out[-2, places] = positions
        out[-1, places] = np.repeat(segments, lengths)
        all_names = (*names, positions_name(stream), segments_name(stream))
        batch |= zip(all_names, out.reshape(len(all_names), shape.rows, shape.lengths[i]), strict=True)
    return batch


def _lengths(example: Example) -> list[int]:
    return [part.shape[1] for part in example]


def _named(streams: Streams, limits: Sequence[int]) -> str:
    return ", ".join(f"{stream or 'tokens'} {limit}" for stream, limit in zip(streams, limits, strict=True))


def _share(streams: Streams, shapes: Sequence[Shape], index: int, count: int, batch: tuple) -> dict[str, np.ndarray]:
    """This process's rows of a bucket's batch (bucket, examples)."""
    rows, lengths = shapes[batch[0]]
    share = rows // count
    mine = batch[1][index * share : (index + 1) * share]
    return assemble([[example] for example in mine], streams=streams, shape=Shape(share, lengths))


class _Plan:
    """The number of a window → its rows, or its bucket batches, in shuffled order."""

    def __init__(self, examples: Encoded, shapes: Sequence[Shape], limits, packing, seed: int, shard: range, size: int):
        self.examples, self.shapes, self.limits, self.packing = examples, shapes, limits, packing
        self.seed, self.shard, self.size = seed % 2**32, shard, size
        self.epoch, self.order, self.seen, self.dropped = None, None, 0, 0

    def __call__(self, window: int) -> list:
        examples = [self.examples[i] for i in self._draw(window)]
        lengths = np.array([_lengths(example) for example in examples])
        fits = (lengths <= self.limits).all(axis=1)  # [examples]
        self._count(fits)
        examples, lengths = [examples[i] for i in np.flatnonzero(fits)], lengths[fits]
        rng = np.random.default_rng([self.seed, 0, window])
        if self.packing:
            planned = [[examples[i] for i in row] for row in pack(lengths, self.shapes[0].lengths, rng)]
        else:
            batches = bucket(lengths, [s.lengths[0] for s in self.shapes], [s.rows for s in self.shapes])
            planned = [(i, [examples[j] for j in batch]) for i, batch in batches]
        return [planned[i] for i in rng.permutation(len(planned))]

    def _draw(self, window: int) -> list[int]:
        """The numbers of a window's examples, out of the permutations of one epoch after the other.

        A permutation is 8 bytes an example. (Grain's shuffle takes no memory, but 10 µs an example where examples are
        many, and milliseconds where they are few.)
        """
        count, start = len(self.shard), window * self.size
        numbers = []
        for epoch in range(start // count, (start + self.size - 1) // count + 1):
            if self.epoch != epoch:
                self.epoch, self.order = epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(self.shard)
            numbers += self.order[max(0, start - epoch * count) : start + self.size - epoch * count].tolist()
        return numbers

    def _count(self, fits: np.ndarray) -> None:
        """Says how many examples are dropped, when the first is and after one pass of the data."""
        first, before = not self.dropped, self.seen
        self.seen, self.dropped = self.seen + len(fits), self.dropped + int((~fits).sum())
        over = f"over {_named(self.examples.streams, self.limits)} pieces"
        passed = before < len(self.shard) <= self.seen
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

    def __next__(self):
        if self.upcoming is None:
            upcoming = self.windows[self.window :].to_iter_dataset(_UNTHREADED)
            if self.workers:
                upcoming = WithOptionsIterDataset(upcoming, _UNSHARED)
                upcoming = upcoming.mp_prefetch(grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=1))
            self.upcoming = iter(upcoming)
            self.planned = next(self.upcoming)
        while self.row >= len(self.planned):
            self.window, self.row, self.planned = self.window + 1, 0, next(self.upcoming)
        self.row += 1
        return self.planned[self.row - 1]

    def get_state(self) -> dict[str, int]:
        return {"window": self.window, "row": self.row}

    def set_state(self, state: dict[str, int]) -> None:
        self._stop()
        self.window, self.row = state["window"], state["row"]

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self.upcoming is not None:
            self.upcoming.close()
        self.upcoming = self.planned = None


def shapes_of(config, streams: Streams, process_count: int) -> tuple[list[Shape], tuple[int, ...]]:
    """The shapes of batches, narrowest first, and the longest examples that are let through, by stream."""
    if config.batching == "packing":
        shapes = [Shape(config.batch_size, tuple(_length(config, stream or "tokens") for stream in streams))]
        if config.batch_size < 1 or config.batch_size % process_count:
            raise UserError(f"config.data.batch_size={config.batch_size} does not divide by {process_count} processes")
    elif config.batching == "buckets":
        widths, tokens = tuple(config.get("boundaries", ())), config.get("tokens_per_batch", 0)
        if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
            raise UserError(f"config.data.boundaries={widths}: give widths in ascending order, as in (16, 32, 64)")
        multiple = math.lcm(config.get("rows_multiple", ROWS_MULTIPLE), process_count)
        shapes = [Shape(tokens // width // multiple * multiple, (width,) * len(streams)) for width in widths]
        if not shapes[-1].rows:
            least = widths[-1] * multiple
            raise UserError(f"config.data.tokens_per_batch={tokens}: {multiple} rows of {widths[-1]} need {least}")
    else:
        raise UserError(f"config.data.batching={config.batching!r} is not one of packing, buckets")
    most = config.get("max_length", 0) or math.inf
    return shapes, tuple(int(min(length, most)) for length in shapes[-1].lengths)


def _length(config, stream: str) -> int:
    length = config.get("lengths", {}).get(stream, 0)
    if length < 1:
        raise UserError(f"config.data.lengths.{stream}={length}: give the pieces that a row holds")
    return length
