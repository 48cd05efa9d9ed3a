"""Encoded examples, and how their tokens lie in a batch.

A task says so by its attributes streams, row_fields, row_shapes, one_a_row, groups, augment and unaugmented, see
`tasks.task.Task`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformers_jax.batch import FIELDS, Streams, positions_name, segments_name
from transformers_jax.errors import UserError

Example = tuple[np.ndarray, ...]
"""An encoded example: one int32 array [fields, length] a stream."""


class Single(NamedTuple):
    """An example that has a row to itself: its members, one if it is no group, and the values of its row_fields."""

    members: tuple[Example, ...]
    values: tuple


class BatchShape(NamedTuple):
    """The shape of a batch: its rows over all processes, and the positions of a row by stream."""

    rows: int
    lengths: tuple[int, ...]


class BatchLayout(NamedTuple):
    """A task's attributes, as above."""

    streams: Streams
    row_fields: tuple[str, ...]
    one_a_row: bool
    groups: int
    row_shapes: Mapping[str, tuple[int, ...]] = {}


def layout_of(task: Any) -> BatchLayout:
    one_a_row = task.one_a_row or bool(task.row_fields) or task.groups > 0
    return BatchLayout(task.streams, tuple(task.row_fields), one_a_row, task.groups, task.row_shapes)


class EncodedExamples:
    """A source of encoded examples, each encoded when first asked for, and kept if `cache`."""

    def __init__(self, source: Sequence, task: Any, cache: bool):
        self.source, self.task, self.layout = source, task, layout_of(task)
        self.augment, self.unaugmented = task.augment, task.unaugmented
        self.kept: dict[int, Any] | None = {} if cache else None  # what `draw` starts from

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Example | Single:
        kept = self._kept(i)
        if not self.augment:
            return kept
        return self._arranged(self.unaugmented(kept) if self.unaugmented else kept)

    def draw(self, i: int, rng: np.random.Generator) -> Example | Single:
        """Example i for training, augmented with the generator if the task does that."""
        kept = self._kept(i)
        return self._arranged(self.augment(kept, rng)) if self.augment else kept

    def _kept(self, i: int):
        """The fields of an example that is augmented, the arranged example otherwise."""
        if self.kept is not None and i in self.kept:
            return self.kept[i]
        fields = self.task.encode(self.source[i])
        kept = fields if self.augment else self._arranged(fields)
        if self.kept is not None:
            self.kept[i] = kept
        return kept

    def _arranged(self, fields: dict) -> Example | Single:
        streams, row_fields, one_a_row, groups, _ = self.layout
        if not groups:
            members = (tuple(np.array([fields[name] for name in names], np.int32) for names in streams.values()),)
        else:
            found = {len(fields[name]) for names in streams.values() for name in names}
            if found != {groups}:
                raise UserError(f"an example has {min(found)} members where the task reads {groups}")
            members = tuple(
                tuple(np.array([fields[name][c] for name in names], np.int32) for names in streams.values())
                for c in range(groups)
            )
        return Single(members, tuple(fields[name] for name in row_fields)) if one_a_row else members[0]


def lengths(example: Example | Single) -> list[int]:
    """Tokens of an example by stream; of a group, those of its longest member."""
    if isinstance(example, Single):
        return [max(sizes) for sizes in zip(*map(lengths, example.members), strict=True)]
    return [part.shape[1] for part in example]


def cut(example: Example | Single, limits: Sequence[int]) -> Example | Single:
    """The example with at most so many tokens by stream."""
    if isinstance(example, Single):
        return example._replace(members=tuple(cut(member, limits) for member in example.members))
    return tuple(part[:, :limit] for part, limit in zip(example, limits, strict=True))


def collate(rows: Sequence[Sequence[Example | Single]], *, layout: BatchLayout, shape: BatchShape) -> dict[str, np.ndarray]:
    """The batch of these rows: what `assemble` gives; one_a_row adds the row fields, [shape.rows, …], and row_weights.

    Args:
      rows: examples of each row, at most shape.rows; the rest of the batch is empty.
    """
    if not layout.one_a_row:
        return assemble(rows, streams=layout.streams, shape=shape)
    examples, members = [row[0] for row in rows], layout.groups or 1
    flat = [[member] for example in examples for member in example.members]
    batch = assemble(flat, streams=layout.streams, shape=shape._replace(rows=shape.rows * members))
    if layout.groups:
        batch = {name: value.reshape(shape.rows, members, -1) for name, value in batch.items()}
    for i, name in enumerate(layout.row_fields):
        batch[name] = np.zeros((shape.rows, *layout.row_shapes.get(name, ())), FIELDS[name].dtype)
        for row, example in enumerate(examples):
            batch[name][row] = _fitting(name, example.values[i], batch[name].shape[1:])
    batch["row_weights"] = (np.arange(shape.rows) < len(examples)).astype(FIELDS["row_weights"].dtype)
    return batch


def shapes_of_fields(layout: BatchLayout, shape: BatchShape) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, dtype) of every field of a batch that `collate` makes, by name."""
    shapes = {}
    for (stream, names), length in zip(layout.streams.items(), shape.lengths, strict=True):
        axes = (shape.rows, layout.groups, length) if layout.groups else (shape.rows, length)
        shapes |= {n: (axes, FIELDS[n].dtype) for n in (*names, positions_name(stream), segments_name(stream))}
    if layout.one_a_row:
        for name in (*layout.row_fields, "row_weights"):
            shapes[name] = ((shape.rows, *layout.row_shapes.get(name, ())), FIELDS[name].dtype)
    return shapes


def _fitting(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """The value of a row field, which has the shape that the task says: NumPy would spread out a smaller one."""
    if np.shape(value) != shape:
        raise ValueError(f"row field {name!r} of an example has the shape {np.shape(value)}, and the task says {shape}")
    return value


def assemble(rows: Sequence[Sequence[Example]], *, streams: Streams, shape: BatchShape) -> dict[str, np.ndarray]:
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
        sizes = np.array([part.shape[1] for part in parts], np.int64)  # [examples]
        ends = np.cumsum(sizes)
        before_row = np.concatenate([[0], ends])[np.cumsum(counts) - counts]  # [rows] tokens in the rows before
        positions = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)  # [tokens]
        starts = row_of * shape.lengths[i] + ends - sizes - before_row[row_of]  # [examples]
        places = np.repeat(starts, sizes) + positions  # [tokens]
        out = np.zeros([len(names) + 2, shape.rows * shape.lengths[i]], np.int32)
        if parts:
            out[:-2, places] = np.concatenate(parts, axis=1)
        out[-2, places] = positions
        out[-1, places] = np.repeat(segments, sizes)
        all_names = (*names, positions_name(stream), segments_name(stream))
        batch |= zip(all_names, out.reshape(len(all_names), shape.rows, shape.lengths[i]), strict=True)
    return batch
