"""What a model gets to see of an image, with everything that lies on it: masks and boxes move as their image does.

Axes: H height and W width of the canvas, h and w of the image, C channels, N boxes. A box is (left, top, right, bottom) in
pixels, the first pixel reaching from 0 to 1.

Keys of config.data that `Views` reads, each with its default:
  size=(512, 512): height and width of what a model gets, in pixels.
  scale=(0.5, 2.0): training: how large the image becomes, drawn from this range; then a part of it is cut out.
  most_of_one=1.0: training: of ten parts the first is taken in which no class has a larger share of the pixels.
  flip=0.5: probability of a horizontal flip.
  colour=0.0: strength of the colour jitter, see `augment`; of the image alone.
  interpolation="bilinear": of images; masks take the nearest pixel, so that classes never blend.
"""

from dataclasses import dataclass

import numpy as np

from transformers_jax.data.images.augment import Augmentation, colour_jitter
from transformers_jax.data.images.geometry import INTERPOLATIONS, from_pillow, to_pillow
from transformers_jax.data.images.processing import NO_CLASS
from transformers_jax.errors import UserError

GREY = 128
"""What stands where there is no image."""
TRIES = 10
LEAST_VISIBLE = 0.25
"""A box of which less than this share of its area is seen is dropped; of others the part that is seen remains."""


@dataclass(frozen=True)
class View:
    """A part of an image, brought to a size, and where it lies on a canvas.

    canvas: (H, W).
    part: (left, top, right, bottom) in the image's pixels, fractions too.
    size: height and width that the part is brought to, at most the canvas's.
    place: row and column of the canvas where its upper left corner lies.
    flipped: left becomes right, of the whole canvas.
    """

    canvas: tuple[int, int]
    part: tuple[float, float, float, float]
    size: tuple[int, int]
    place: tuple[int, int] = (0, 0)
    flipped: bool = False

    def image(self, image: np.ndarray, interpolation: str = "bilinear") -> np.ndarray:
        """uint8 [h, w, C] → [H, W, C], grey around it."""
        return self._laid(image, interpolation, GREY)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 [h, w] → [H, W], without a class around it; each pixel has the class of the nearest one."""
        return self._laid(mask, "nearest", NO_CLASS)

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([n, 4] boxes on the canvas, clipped to what is seen of the image, the [n] numbers of those that are left of N).

        Args:
          boxes: [N, 4].
        """
        left, top, right, bottom = self.part
        (high, wide), (down, across) = self.size, self.place
        scale = np.array([wide / (right - left), high / (bottom - top)] * 2)
        moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - [left, top, left, top]) * scale + [across, down, across, down]
        seen = np.clip(moved, [across, down] * 2, [across + wide, down + high] * 2)
        areas, shown = area(moved), area(seen)
        kept = np.flatnonzero((shown > 0) & (shown >= LEAST_VISIBLE * areas))
        seen = seen[kept]
        if self.flipped:
            seen = np.stack([self.canvas[1] - seen[:, 2], seen[:, 1], self.canvas[1] - seen[:, 0], seen[:, 3]], axis=1)
        return seen.astype(np.float32), kept

    def _laid(self, array: np.ndarray, interpolation: str, around: int) -> np.ndarray:
        (high, wide), (down, across) = self.size, self.place
        left, top, right, bottom = self.part
        if (right - left, bottom - top) == (wide, high) and left == int(left) and top == int(top):
            cut = array[int(top) : int(top) + high, int(left) : int(left) + wide]
        else:
            resized = to_pillow(array).resize((wide, high), INTERPOLATIONS[interpolation], box=self.part)
            cut = from_pillow(resized, array)
        laid = np.full((*self.canvas, *array.shape[2:]), around, array.dtype)
        laid[down : down + high, across : across + wide] = cut
        return np.ascontiguousarray(laid[:, ::-1]) if self.flipped else laid


def area(boxes: np.ndarray) -> np.ndarray:
    """[N] of boxes [N, 4]; 0 where a side is none."""
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def whole(height: int, width: int, canvas: tuple[int, int]) -> View:
    """All of an image, as large as fits onto the canvas in its proportions, in the upper left corner."""
    factor = min(canvas[0] / height, canvas[1] / width)
    size = tuple(min(side, max(1, round(factor * had))) for side, had in zip(canvas, (height, width), strict=True))
    return View(canvas, (0, 0, width, height), size)


def window(height: int, width: int, canvas: tuple[int, int], top: int, left: int) -> View:
    """A part of an image in its own size, from a row and a column on; all of a side that is no longer than the canvas's."""
    high, wide = min(canvas[0], height - top), min(canvas[1], width - left)
    return View(canvas, (left, top, left + wide, top + high), (high, wide))


def random_view(
    height: int, width: int, canvas: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float], flip: float
) -> View:
    """A random part of an image that is made larger or smaller by a factor; where all of it is smaller than the canvas, it lies
    somewhere on it."""
    factor = rng.uniform(*scale)
    sides, starts, places, ends = [], [], [], []
    for had, side in zip((height, width), canvas, strict=True):
        scaled = max(1, round(factor * had))
        size = min(side, scaled)
        start = int(rng.integers(0, scaled - size + 1))
        sides.append(size)
        starts.append(start * had / scaled)
        ends.append(min(had, (start + size) * had / scaled))
        places.append(int(rng.integers(0, side - size + 1)))
    part = (starts[1], starts[0], ends[1], ends[0])
    return View(canvas, part, tuple(sides), tuple(places), bool(rng.random() < flip))


class Views:
    """How images are seen in training, as config.data says; the keys are those at the top of this file.

    Raises:
      UserError: a value is out of range; names the key of config.data.
    """

    def __init__(self, data):
        self.size, self.scale = tuple(data.get("size", (512, 512))), tuple(data.get("scale", (0.5, 2.0)))
        self.most_of_one = data.get("most_of_one", 1.0)
        given = {key: data[key] for key in ("flip", "colour") if key in data}
        self.plain = Augmentation(interpolation=data.get("interpolation", "bilinear"), **given)
        whole = all(isinstance(side, (int, np.integer)) and side > 0 for side in self.size)
        if len(self.size) != 2 or not whole:
            raise UserError(f"config.data.size={self.size!r}: give height and width in pixels, as in (512, 512)")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"config.data.scale={self.scale!r}: give the least and the largest factor, as in (0.5, 2.0)")
        if not 0 < self.most_of_one <= 1:
            raise UserError(f"config.data.most_of_one={self.most_of_one!r} is not above 0 and up to 1")

    def draw(self, height: int, width: int, rng: np.random.Generator) -> View:
        """A random view of an image of this size."""
        return random_view(height, width, self.size, rng, self.scale, self.plain.flip)

    def draw_varied(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[View, np.ndarray]:
        """(a random view, its mask) in which no class has more than `most_of_one` of the pixels, where ten tries find one."""
        for _ in range(TRIES):
            view = self.draw(*mask.shape, rng)
            seen = view.mask(mask)
            counts = np.bincount(seen[seen != NO_CLASS], minlength=2)
            if counts.max() <= self.most_of_one * counts.sum() and counts.any():
                break
        return view, seen

    def image(self, view: View, image: np.ndarray) -> np.ndarray:
        """What is seen of an image, without chance."""
        return view.image(image, self.plain.interpolation)

    def coloured(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image in other colours."""
        return colour_jitter(image, rng, *self.plain.strengths) if any(self.plain.strengths) else image
