"""Documents of a language model, joined and cut into rows of exactly T tokens: none is left out, no token is lost or doubled.

The documents stand one behind the other in an order that is shuffled anew in each epoch, and every T positions make a row;
where one epoch ends, the next goes on in the same row. The rows of a window are shuffled once more, so that neighbours in a
batch are not neighbours in a book. Texts are encoded, and token files read, when a window gets to them.

A document of n tokens has n + 1 positions: its first token is predicted from the token that begins texts, and behind its last
one the token that ends them is predicted.

Keys of config.data that are read here, beside batch_size, lengths, cache and prefetch, see `data.pipeline`:
  across_documents: whether tokens see the documents in front of theirs in the row, and positions count through the row.
  window: rows that are shuffled among each other, an epoch's at most; 0 for as many as have about a million tokens.
  stride: evaluation: tokens from one window of a long document to the next. The tokens that stand in two windows are read again
    there and counted once, so each but the first has at least T - stride tokens in front. 0: windows do not overlap.

Axes: B batch rows, T length of a row.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from transformers_jax.data.collate import BatchLayout, BatchShape, Example, collate, layout_of
from transformers_jax.errors import UserError

WINDOW_TOKENS = 2**20


@dataclasses.dataclass(frozen=True)
class Document:
    """The tokens of a text, and those around it.

    ids: 1-D, of any integer type; may be memory-mapped, and is read only as far as `piece` needs it.
    begin: the token that the first one is predicted from.
    end: the token that is predicted behind the last one.
    """

    ids: np.ndarray
    begin: int
    end: int

    def __len__(self) -> int:
        """Positions: one for each token to be predicted, the end among them."""
        return len(self.ids) + 1

    def piece(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """`tokens` and `targets` of the positions from start to stop, int32 [stop - start]."""
        part = np.asarray(self.ids[max(start - 1, 0) : stop], np.int32)
        begin, end = [self.begin] * (start == 0), [self.end] * (stop == len(self))
        framed = np.concatenate([np.array(begin, np.int32), part, np.array(end, np.int32)])
        return {"tokens": framed[:-1], "targets": framed[1:]}


class Piece(NamedTuple):
    """Positions from start to stop of a document; those from `counted` on carry loss."""

    document: Document
    start: int
    stop: int
    counted: int

    def example(self, names: Sequence[str]) -> np.ndarray:
        """The fields of these names, int32 [fields, stop - start]."""
        fields = self.document.piece(self.start, self.stop)
        fields["weights"] = (np.arange(self.start, self.stop) >= self.counted).astype(np.int32)
        return np.stack([fields[name] for name in names])


class Place(NamedTuple):
    """Where the next row begins: `document` counts in the order of the epoch, `offset` in the positions of the document."""

    epoch: int
    document: int
    offset: int


class Documents:
    """The documents of a source, by number.

    Args:
      source: raw examples.
      task: its `document` makes a `Document` of one.
      cache: whether all that were made are kept; else the last one is.
    """

    def __init__(self, source: Sequence[dict], task: Any, cache: bool):
        self.source, self.task, self.cache = source, task, cache
        self.kept: dict[int, Document] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Document:
        if number not in self.kept:
            if not self.cache:
                self.kept.clear()
            self.kept[number] = self.task.document(self.source[number])
        return self.kept[number]


def train_iterator(
    source: Sequence[dict], task: Any, config, shape: BatchShape, *, seed: int, process_index: int, process_count: int
) -> grain.DatasetIterator:
    """Endless training batches of this process, which has the documents i, i + n, i + 2n ….

    Args:
      source, task, config, seed: as of `data.pipeline.train_iterator`.
      shape: of a batch over all processes.

    Returns:
      An iterator of numpy batches. `get_state()` is a dict of four integers: where the window began, and the row within it.
    """
    check(config, shape)
    if config.get("workers", 0):
        raise UserError("config.data.workers: one thread reads documents; set it to 0, and make token files of large texts")
    shard = range(process_index, len(source), process_count)
    if not shard:
        raise UserError(f"config.data.train: {len(source)} documents are too few for {process_count} processes")
    share, length = BatchShape(shape.rows // process_count, shape.lengths), shape.lengths[0]
    window = config.get("window", 0) or max(1, WINDOW_TOKENS // length)
    documents = Documents(source, task, config.get("cache", False))
    rows = _Rows(documents, layout_of(task), shard, seed % 2**32, length, window, config.get("across_documents", False))
    batches = rows.batch(share.rows, batch_fn=partial(collate, layout=rows.layout, shape=share))
    ahead = config.get("prefetch", 8)
    return iter(ThreadPrefetchIterDataset(batches, prefetch_buffer_size=ahead) if ahead else batches)


class DocumentBatches:
    """Evaluation batches of one process, as many as every other has: every position of every document carries loss once.

    A document that is longer than a row is cut into windows, config.data.stride positions from one to the next; shorter ones
    share rows, in order. With across_documents the windows are those of all documents joined. Made by `eval_batches`.
    """

    def __init__(self, documents: Documents, layout: BatchLayout, shape: BatchShape, config, process_index, process_count):
        self.documents, self.layout, self.across = documents, layout, config.get("across_documents", False)
        length, stride = shape.lengths[0], config.get("stride", 0) or shape.lengths[0]
        sizes = [len(documents[i]) for i in range(len(documents))]
        self.rows = _joined(sizes, length, stride) if self.across else _separate(sizes, length, stride)
        self.total, share = shape.rows, shape.rows // process_count
        self.start, self.shape = process_index * share, BatchShape(share, shape.lengths)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.total)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for first in range(self.start, self.start + len(self) * self.total, self.total):
            rows = self.rows[first : first + self.shape.rows]
            pieces = [[Piece(self.documents[number], *place) for number, *place in row] for row in rows]
            examples = [_examples(row, self.layout, self.across) for row in pieces]
            yield collate(examples, layout=self.layout, shape=self.shape)


def eval_batches(
    source: Sequence[dict], task: Any, config, shape: BatchShape, *, process_index: int, process_count: int
) -> DocumentBatches:
    """Batches that count every token of every document exactly once, to be iterated as often as wanted. Arguments are those of
    `train_iterator`."""
    check(config, shape)
    documents = Documents(source, task, cache=True)
    return DocumentBatches(documents, layout_of(task), shape, config, process_index, process_count)


def check(config, shape: BatchShape) -> None:
    """Raises UserError for keys that do not go with documents."""
    if most := config.get("max_length", 0):
        raise UserError(f"config.data.max_length={most}: documents are cut into rows, none is left out; set it to 0")
    if not 0 <= (stride := config.get("stride", 0)) <= shape.lengths[0]:
        raise UserError(f"config.data.stride={stride} is not between 0 and config.data.lengths.tokens={shape.lengths[0]}")


def _examples(pieces: Sequence[Piece], layout: BatchLayout, across: bool) -> list[Example]:
    """A row's pieces as `collate` takes them: one example each, or all joined to one."""
    (names,) = layout.streams.values()
    examples = [piece.example(names) for piece in pieces]
    return [(np.concatenate(examples, axis=1),)] if across else [(example,) for example in examples]


def _windows(size: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first position that counts) of windows that count each of `size` positions once."""
    counted = 0
    for start in itertools.count(0, stride):
        stop = min(start + length, size)
        yield start, stop, counted
        if stop == size:
            return
        counted = stop


def _separate(sizes: Sequence[int], length: int, stride: int) -> list[list[tuple[int, int, int, int]]]:
    """Rows of (number of a document, start, stop, counted), packed in order."""
    rows, room = [], 0
    for number, size in enumerate(sizes):
        for window in _windows(size, length, stride):
            used = window[1] - window[0]
            if used > room:
                rows.append([])
                room = length
            rows[-1].append((number, *window))
            room -= used
    return rows


def _joined(sizes: Sequence[int], length: int, stride: int) -> list[list[tuple[int, int, int, int]]]:
    """The same of all documents joined: a row is a window, and may have parts of several."""
    ends = np.cumsum(sizes)
    rows = []
    for start, stop, counted in _windows(int(ends[-1]), length, stride):
        numbers = range(np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop - 1, side="right") + 1)
        before = [int(ends[n]) - sizes[n] for n in numbers]
        rows.append(
            [(n, max(start - b, 0), min(stop - b, sizes[n]), max(counted - b, 0)) for n, b in zip(numbers, before, strict=True)]
        )
    return rows


class _Rows(grain.IterDataset):
    """The rows of one process, each a list of examples."""

    def __init__(self, documents: Documents, layout: BatchLayout, shard: range, seed: int, length: int, window: int, across):
        super().__init__()
        self.documents, self.layout, self.shard, self.seed = documents, layout, shard, seed
        self.length, self.window, self.across = length, window, across

    def __iter__(self) -> grain.DatasetIterator:
        return _RowsIterator(self)

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of this process's documents in the order of an epoch."""
        return np.random.default_rng([self.seed, 1, epoch]).permutation(self.shard)

    def plan(self, begin: Place) -> tuple[list[list[Piece]], Place]:
        """The shuffled rows of the window that begins at a place, and where the next one begins.

        A window also ends where an epoch does: with the row that the next epoch begins in.
        """
        (epoch, document, offset), order = begin, self.order(begin.epoch)
        rows, row, room = [], [], self.length
        while len(rows) < self.window:
            text = self.documents[int(order[document])]
            stop = min(offset + room, len(text))
            row.append(Piece(text, offset, stop, offset))
            room -= stop - offset
            document, offset = (document + 1, 0) if stop == len(text) else (document, stop)
            if document == len(order):
                epoch, document, order = epoch + 1, 0, self.order(epoch + 1)
            if not room:
                rows.append(row)
                row, room = [], self.length
                if epoch > begin.epoch:
                    break
        shuffled = np.random.default_rng([self.seed, 3, self.shard.start, *begin]).permutation(len(rows))
        return [rows[i] for i in shuffled], Place(epoch, document, offset)


class _RowsIterator(grain.DatasetIterator):
    """Its state names the window and the row in it that comes next; on restoring, that window is planned again."""

    def __init__(self, rows: _Rows):
        super().__init__()
        self.rows, self.begin, self.row = rows, Place(0, 0, 0), 0
        self.planned: list | None = None
        self.next: Place | None = None

    def __next__(self) -> list[Example]:
        if self.planned is None:
            self.planned, self.next = self.rows.plan(self.begin)
        if self.row == len(self.planned):
            self.begin, self.row = self.next, 0
            self.planned, self.next = self.rows.plan(self.begin)
        self.row += 1
        return _examples(self.planned[self.row - 1], self.rows.layout, self.rows.across)

    def get_state(self) -> dict[str, int]:
        return {**self.begin._asdict(), "row": self.row}

    def set_state(self, state: dict[str, int]) -> None:
        self.begin = Place(state["epoch"], state["document"], state["offset"])
        self.row, self.planned = state["row"], None
