"""Images that are larger than what a model reads, seen through several windows.

Axes: H height and W width of a window, h and w of an image.

Windows lie evenly over an image and overlap. Each pixel belongs to one of them, to that in which it is farthest from the
border (Ronneberger et al. 2015, "overlap-tile strategy"): so an image is scored in its own size, each pixel once.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers_jax.data.images.decode import size_of
from transformers_jax.errors import UserError


class Tile(NamedTuple):
    """A window, by its upper left corner, and the rows and columns of the image that belong to it: from the first to before
    the last."""

    top: int
    left: int
    rows: tuple[int, int]
    columns: tuple[int, int]


def tiles(height: int, width: int, canvas: tuple[int, int], overlap: float) -> list[Tile]:
    """The windows of an image, row by row.

    Args:
      canvas: (H, W) of a window.
      overlap: the share of a window that the next one sees too, at least.
    """
    down, across = (_spans(had, side, overlap) for had, side in zip((height, width), canvas, strict=True))
    return [Tile(top, left, rows, columns) for top, rows in down for left, columns in across]


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, tuple[int, int]]]:
    """(start, (first, end of what belongs to it)) of each window along one axis."""
    if length <= side:
        return [(0, (0, length))]
    step = max(1, int(side * (1 - overlap)))
    count = math.ceil((length - side) / step) + 1
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    borders = [0, *((a + side + b) // 2 for a, b in zip(starts, starts[1:], strict=False)), length]
    return [(start, (borders[i], borders[i + 1])) for i, start in enumerate(starts)]


class Tiled(Sequence[dict]):
    """The windows of all images of a source: each is its example, with "example", its number there, and "tile".

    An image that cannot be opened has one window: what is wrong with it is said when it is read.
    """

    def __init__(self, source: Sequence[dict], canvas: tuple[int, int], overlap: float):
        self.source, self.windows = source, []
        for i in range(len(source)):
            try:
                height, width = _size(source[i])
            except UserError:
                height, width = canvas
            self.windows += [(i, tile) for tile in tiles(height, width, canvas, overlap)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, at: int) -> dict:
        i, tile = self.windows[at]
        return {**self.source[i], "example": i, "tile": tile}


def _size(example: dict[str, Any]) -> tuple[int, int]:
    if "size" in example:
        return example["size"]
    image = example["image"]
    shape = getattr(image, "shape", None)
    return shape[:2] if shape else size_of(image, where=str(image))
