"""Classes of pixels: their scores, their colours, and their files.

Axes: L labels, h height, w width of an image.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from transformers_jax.data.images.geometry import to_pillow
from transformers_jax.data.placed import Placed
from transformers_jax.errors import UserError

SURE = 0.4
"""Objects with a lower score are not drawn."""


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """[L] of each class, pixels that are and were found to be it over those that are or were; NaN of a class without any.

    Args:
      confusion: [L, L] pixels of class i that were taken for class j.
    """
    both = confusion.diagonal().astype(np.float64)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return np.where(either > 0, both / np.where(either > 0, either, 1), np.nan)


def scores_of(confusion: np.ndarray) -> dict[str, float]:
    """mean_iou over the classes that are there or were found, pixel_accuracy, and mean_class_accuracy over those that are
    there; none where no pixel has a class."""
    if not confusion.any():
        return {}
    there = confusion.sum(axis=1)
    accuracies = confusion.diagonal()[there > 0] / there[there > 0]
    return {
        "mean_iou": float(np.nanmean(intersection_over_union(confusion))),
        "pixel_accuracy": float(confusion.trace() / confusion.sum()),
        "mean_class_accuracy": float(accuracies.mean()),
    }


def pixels_of(confusion: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """{true class: {class that was found: pixels}}, without zeros."""
    rows = {names[i]: {names[j]: int(row[j]) for j in np.flatnonzero(row)} for i, row in enumerate(confusion)}
    return {name: row for name, row in rows.items() if row}


class Sieve:
    """Sources without the examples that a check refuses, where config.data.on_error=skip; each source is looked at once.

    check: raises UserError of an example that is left out.
    """

    def __init__(self, data, check: Callable[[dict], Any]):
        self.skip, self.check = data.get("on_error", "fatal") == "skip", check
        self._kept: dict[int, tuple] = {}

    def __call__(self, source: Sequence[dict]) -> Sequence[dict]:
        """What is left of a source; all of one that cannot say where its examples stand."""
        if not self.skip or not isinstance(source, Placed) or isinstance(source, Chosen):
            return source
        if id(source) not in self._kept:  # the source is kept so that its id stays its own
            self._kept[id(source)] = source, without_mistakes(source, self.check)
        return self._kept[id(source)][1]


def without_mistakes(source: Placed, check: Callable[[dict], Any]) -> Placed:
    """The examples of which `check` raises no UserError; the others are counted in one warning."""
    kept, first = [], ""
    for i in range(len(source)):
        try:
            check(source[i])
            kept.append(i)
        except UserError as error:
            first = first or str(error)
    if not kept:
        raise UserError(f"no example is left; the first mistake: {first}")
    if first:
        count = len(source) - len(kept)
        what = "1 mistake is" if count == 1 else f"{count} mistakes are"
        logging.warning("%s left out (config.data.on_error=skip); the first: %s", what, first)
    return Chosen(source, kept)


class Chosen(Placed):
    """Some examples of a source."""

    def __init__(self, source: Placed, numbers: Sequence[int]):
        self.source, self.numbers = source, numbers

    def where(self, i: int) -> str:
        return self.source.where(self.numbers[i])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> dict:
        return self.source[self.numbers[i]]


def colours(count: int) -> np.ndarray:
    """uint8 [count, 3], no two alike: the bits of a number, dealt out to red, green and blue from the highest on, as the
    masks of Pascal VOC have it (Everingham et al. 2010)."""
    numbers = np.arange(count)
    found = np.zeros([count, 3], np.int64)
    for bit in range(8):
        for channel in range(3):
            found[:, channel] |= (numbers >> (3 * bit + channel) & 1) << (7 - bit)
    return found.astype(np.uint8)


def blended(image: np.ndarray, classes: np.ndarray, first: int = 0) -> np.ndarray:
    """uint8 [h, w, 3]: an image with the colours of its pixels' classes laid over it, half of each.

    Args:
      image: uint8 [h, w, 1 or 3].
      classes: uint8 [h, w].
      first: the number of class 0 among the colours.
    """
    shown = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.uint16)
    return ((shown + colours(256)[classes + np.uint8(first)]) // 2).astype(np.uint8)


def free_name(stem: str, taken: set[str]) -> str:
    """The name, or the first of stem_2, stem_3, … that is not taken; it is taken then."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


def made(folder: str) -> Path:
    """The folder of --out.

    Raises:
      UserError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={folder} cannot be made: {error.strerror}") from error
    return Path(folder)


def write_boxes(folder: Path, stem: str, image: np.ndarray, objects: Sequence[dict], labels: Sequence[str]) -> dict[str, str]:
    """Writes an image, uint8 [h, w, 1 or 3], with the boxes of those of its objects {"label", "score", "box"} that are sure, a
    colour for each label.

    Returns:
      {"drawn": path}.
    """
    from PIL import ImageDraw

    shown = to_pillow(image).convert("RGB")
    pencil, palette = ImageDraw.Draw(shown), colours(len(labels) + 1)[1:]  # the first is black
    for thing in reversed([thing for thing in objects if thing["score"] >= SURE]):  # the surest on top
        ink = tuple(int(x) for x in palette[labels.index(thing["label"])])
        pencil.rectangle(thing["box"], outline=ink, width=2)
        pencil.text((thing["box"][0] + 3, thing["box"][1] + 1), f"{thing['label']} {thing['score']:.2f}", fill=ink)
    path = folder / f"{stem}_boxes.png"
    try:
        shown.save(path)
    except OSError as error:
        raise UserError(f"--out={folder} cannot be written: {error.strerror or error}") from error
    return {"drawn": str(path)}


def write(folder: Path, stem: str, image: np.ndarray, classes: np.ndarray, first: int) -> dict[str, str]:
    """Writes a mask with a palette, its numbers those of the training masks, and the image with it laid over.

    Returns:
      {"mask": path, "blended": path}.
    """
    mask = to_pillow(classes + np.uint8(first))
    mask.putpalette(colours(256).tobytes())
    paths = {"mask": folder / f"{stem}.png", "blended": folder / f"{stem}_blended.png"}
    try:
        mask.save(paths["mask"])
        to_pillow(blended(image, classes, first)).save(paths["blended"])
    except OSError as error:
        raise UserError(f"--out={folder} cannot be written: {error.strerror or error}") from error
    return {name: str(path) for name, path in paths.items()}
