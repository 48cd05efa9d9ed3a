"""The contract between data and models: every field of a batch by name, shape and dtype. A leaf of the import graph.

A batch is a plain dict of numpy (or jax) arrays. Data rooms fill it, models and tasks read it, and nothing else passes
between them.

Axes: B batch rows, S source length, T target length (of a text that is only read, its length), H height, W width, C channels
of an image, K classes, N objects, S4 the four sides of a box.

A task whose examples are groups, the choices of a question or two sentences to compare, has one more axis: its fields of
[B, T] are [B, C, T], C being the members of a group there.

Segments say which example of a packed row a position belongs to: 1, 2, … and 0 for padding. Positions count from 0 within
each segment. A position carries loss where its target segment is not 0.
"""

from typing import NamedTuple

import numpy as np


class Field(NamedTuple):
    """One field of a batch: its axes, its dtype and what it means."""

    axes: tuple[str, ...]
    dtype: type
    meaning: str


FIELDS: dict[str, Field] = {
    "source": Field(("B", "S"), np.int32, "tokens of the text that is read"),
    "source_positions": Field(("B", "S"), np.int32, "position of each source token within its segment"),
    "source_segments": Field(("B", "S"), np.int32, "packed example each source token belongs to; 0 is padding"),
    "target_inputs": Field(("B", "T"), np.int32, "tokens the decoder reads: the target shifted right by one"),
    "targets": Field(("B", "T"), np.int32, "tokens the decoder must predict"),
    "target_positions": Field(("B", "T"), np.int32, "position of each target token within its segment"),
    "target_segments": Field(("B", "T"), np.int32, "packed example each target token belongs to; 0 is padding"),
    "tokens": Field(("B", "T"), np.int32, "tokens that an encoder reads"),
    "token_types": Field(("B", "T"), np.int32, "0 in the first text of a pair, 1 in the second"),
    "weights": Field(("B", "T"), np.int32, "1 where `targets` is to be predicted, else 0"),
    "positions": Field(("B", "T"), np.int32, "position of each token within its segment"),
    "segments": Field(("B", "T"), np.int32, "packed example each token belongs to; 0 is padding"),
    "label": Field(("B",), np.int32, "class of the example; of a group, which member is right"),
    "score": Field(("B",), np.float32, "number to be predicted of the example"),
    "image": Field(("B", "H", "W", "C"), np.uint8, "pixels of an image: the model normalises them, on the device"),
    "mask": Field(("B", "H", "W"), np.int32, "class of each pixel of an image; 255 where it has none"),
    "boxes": Field(("B", "N", "S4"), np.float32, "left, top, right, bottom of each object of an image, in pixels"),
    "box_labels": Field(("B", "N"), np.int32, "class of each object; -1 where there is none, -2 for many in one box"),
    "labels": Field(("B", "K"), np.float32, "1 for each class that the example has, else 0; or a share of it"),
    "starts": Field(("B",), np.int32, "position of the first token of the answer"),
    "ends": Field(("B",), np.int32, "position of the last token of the answer"),
    "row_weights": Field(("B",), np.int32, "1 in a row that holds an example, 0 in an empty one"),
}

Streams = dict[str, tuple[str, ...]]
"""Fields that run in step, by stream: those of "target" share `target_positions` and `target_segments`."""


def positions_name(stream: str) -> str:
    """The name of the positions field of a stream; the stream "" owns plain `positions`."""
    return f"{stream}_positions" if stream else "positions"


def segments_name(stream: str) -> str:
    """The name of the segments field of a stream; the stream "" owns plain `segments`."""
    return f"{stream}_segments" if stream else "segments"


def check(batch: dict) -> dict:
    """Returns the batch if every field keeps the contract.

    Raises:
      ValueError: names the first field whose name, dtype, rank or axis size differs.
    """
    sizes: dict[str, int] = {}
    for name, value in batch.items():
        if name not in FIELDS:
            raise ValueError(f"batch field {name!r} is not in batch.FIELDS: {', '.join(FIELDS)}")
        axes, dtype, _ = FIELDS[name]
        if axes == ("B", "T") and value.ndim == 3:
            axes = ("B", "C", "T")
        if value.dtype != dtype or value.ndim != len(axes):
            raise ValueError(f"batch field {name!r} is {value.dtype}{value.shape}, wanted {np.dtype(dtype)} with axes {axes}")
        for axis, size in zip(axes, value.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"batch field {name!r} has {axis}={size} where another field has {sizes[axis]}")
    return batch
