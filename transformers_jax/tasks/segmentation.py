"""A class for each pixel of an image: semantic segmentation, as SegFormer is trained for it.

Axes: B batch rows, H height and W width of what the model gets, h and w of an image or of the model's map, C channels,
L labels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from transformers_jax.data.images.decode import decode_mask
from transformers_jax.data.images.geometry import resize as squeeze
from transformers_jax.data.images.processing import NO_CLASS
from transformers_jax.data.images.views import Views, window
from transformers_jax.errors import UserError
from transformers_jax.layers.resize import resize
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import scenes
from transformers_jax.tasks.parts.images import channels_of, read_image
from transformers_jax.tasks.parts.labels import Labels
from transformers_jax.tasks.parts.tiles import Tile, Tiled
from transformers_jax.tasks.task import Task as Base


class Task(Base):
    """Examples {"image": path or uint8 [h, w, C], "mask": path or uint8 [h, w]}; those without a mask are predicted only.

    Trained on parts of images (see `data.images.views`), scored on images in their own size: one that is larger than
    config.data.size is seen through several windows (see `parts.tiles`), one that is smaller lies on grey.

    Args:
      data: config.data, whose keys about images are read; "squash" as crop is for new images: all of one is squeezed into the
        model's size, as folders of `transformers` say it, and seen at once.
      labels: names of the classes, in the order of their numbers in masks.
      void: the number of pixels without a class, which are neither trained on nor scored.
      first: the number of the first class in masks: 1 where 0 is void, as in ADE20K.
      overlap: the share of a window that the next one sees too, at least.
    """

    reads = "images"
    learned, counted = "mask", "pixels"
    row_fields = ("image", "mask")
    scored_by, main_metric, bigger_is_better = "sums", "mean_iou", True
    line_means, line_keys = "the path of an image", ("image",)

    def __init__(self, data, *, labels: Sequence[str] = (), void: int = NO_CLASS, first: int = 0, overlap: float = 0.25):
        self.labels, self._views, self._channels = Labels(labels), Views(data), channels_of(data)
        self.void, self.first, self.overlap = void, first, overlap
        self._squeezed, self._interpolation = data.get("crop") == "squash", data.get("interpolation", "bilinear")
        self._sieve = scenes.Sieve(data, lambda example: "mask" in example and self._mask(example["mask"]))
        self.row_shapes = {"image": (*self._views.size, self._channels), "mask": self._views.size}
        _check(self)

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "segmentation", "labels": len(self.labels)}

    # -- Examples ---------------------------------------------------------------------------------------------------------

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The windows of all images; without those whose masks have other classes, where config.data.on_error=skip."""
        return Tiled(self.to_train(source), self._views.size, self.overlap)

    def to_train(self, source: Sequence[dict]) -> Sequence[dict]:
        """Whole images."""
        return self._sieve(source)

    def encode(self, example: dict) -> dict[str, Any]:
        """→ `image` and `mask`, uint8 in their own size, and the window to look through, if there is one."""
        image = read_image(example["image"], self._channels)
        mask = self._mask(example["mask"]) if "mask" in example else np.full(image.shape[:2], NO_CLASS, np.uint8)
        if mask.shape != image.shape[:2]:
            shown = ["×".join(map(str, size)) for size in (mask.shape, image.shape[:2])]
            raise UserError(f"the mask {_named(example['mask'])} has {shown[0]} pixels and its image has {shown[1]}")
        return {"image": image, "mask": mask, "tile": example.get("tile")}

    def _mask(self, mask: Any) -> np.ndarray:
        """uint8 [h, w]: numbers of the head's labels, NO_CLASS elsewhere.

        Raises:
          UserError: it cannot be read, or has a class that is none of config.task.labels; names the file.
        """
        numbers = decode_mask(mask, where=str(mask)) if isinstance(mask, (str, os.PathLike)) else np.asarray(mask)
        there = np.flatnonzero(np.bincount(numbers.ravel()))
        last = self.first + len(self.labels) - 1
        if wrong := [n for n in there if n != self.void and not self.first <= n <= last]:
            raise UserError(
                f"the mask {_named(mask)} has the class {wrong[0]}: config.task.labels are {self.first} to {last}, and "
                f"config.task.void={self.void} is none"
            )
        table = np.full(256, NO_CLASS, np.uint8)
        table[self.first : last + 1] = np.arange(len(self.labels))
        table[self.void] = NO_CLASS
        return table[numbers]

    def augment(self, fields: dict, rng: np.random.Generator) -> dict:
        """A random part of the image and its mask: `image` uint8 [H, W, C], `mask` uint8 [H, W]."""
        view, mask = self._views.draw_varied(fields["mask"], rng)
        return {"image": self._views.coloured(self._views.image(view, fields["image"]), rng), "mask": mask}

    def unaugmented(self, fields: dict) -> dict:
        """What its window shows; pixels of the mask that belong to another window have no class."""
        image, mask, tile = (fields[key] for key in ("image", "mask", "tile"))
        tile = tile or Tile(0, 0, (0, image.shape[0]), (0, image.shape[1]))
        view = window(*image.shape[:2], self._views.size, tile.top, tile.left)
        own = np.full_like(mask, NO_CLASS)
        inside = slice(*tile.rows), slice(*tile.columns)
        own[inside] = mask[inside]
        return {"image": view.image(image), "mask": view.mask(own)}

    # -- Loss and predictions ---------------------------------------------------------------------------------------------

    def loss(self, output: LabelOutput, batch: dict, *, train: bool):
        """Cross entropy summed over pixels that have a class, with their number, and how many of them are right."""
        logits, known = _finest(output, batch), _known(batch)  # [B, H, W, L], [B, H, W]
        truth = jax.nn.one_hot(batch["mask"], len(self.labels))  # zeros where there is no class
        losses = jax.nn.logsumexp(logits, axis=-1) * known - jnp.sum(truth * logits, axis=-1) * known
        correct = jnp.sum((logits.argmax(axis=-1) == batch["mask"]) * known)
        return jnp.sum(losses), jnp.sum(known), {"correct": correct} if train else {}

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`confusion` [B, L, L]: of each row, how many pixels of class i were taken for class j."""
        classes, labels = _finest(output, batch).argmax(axis=-1), len(self.labels)  # [B, H, W]
        rows = jnp.arange(len(classes))[:, None, None]
        pair = (rows * labels + batch["mask"]) * labels + classes
        pair = jnp.where(_known(batch) > 0, pair, len(classes) * labels**2)  # behind the last: not counted
        counts = jnp.zeros(len(classes) * labels**2, jnp.int32).at[pair.ravel()].add(1, mode="drop")
        return {"confusion": counts.reshape(-1, labels, labels)}

    def sums(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`confusion` [L, L] of all rows."""
        return {"confusion": self.predict(output, batch)["confusion"].sum(axis=0)}

    # -- Scores -----------------------------------------------------------------------------------------------------------

    def score_sums(self, totals: dict[str, np.ndarray]) -> dict[str, Any]:
        """mean_iou, pixel_accuracy and mean_class_accuracy, over pixels that have a class; none without such pixels."""
        return scenes.scores_of(totals["confusion"])

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict[str, Any], list[dict]]:
        """As of all tasks, and the intersection over union of each class; samples begin with the worst images."""
        losses, predictions = scorer.predictions(split, **model)
        confusion = predictions["confusion"].sum(axis=0, dtype=np.int64)  # [L, L]
        of_class = zip(self.labels.names, scenes.intersection_over_union(confusion), strict=True)
        scores = {f"iou_{name}": float(iou) for name, iou in of_class if not np.isnan(iou)}
        return losses | scenes.scores_of(confusion) | scores, self.samples(scorer.source(split), predictions)

    def samples(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"image": its file, "mask": its mask's, "mean_iou", "pixel_accuracy", "pixels": {true class: {class that was found:
        pixels}}} of each image, worst first."""
        tiled, samples = self.examples(source), []
        images = np.array([number for number, _ in tiled.windows], np.int64)  # [windows]
        for i in range(len(tiled.source)):
            confusion = predictions["confusion"][images == i].sum(axis=0, dtype=np.int64)  # [L, L]
            example = tiled.source[i]
            files = {key: _named(example[key]) for key in ("image", "mask") if isinstance(example.get(key), str)}
            pixels = scenes.pixels_of(confusion, self.labels.names)
            samples.append(files | scenes.scores_of(confusion) | {"pixels": pixels})
        return sorted(samples, key=lambda sample: sample.get("mean_iou", 2.0))

    # -- Use --------------------------------------------------------------------------------------------------------------

    def answering(self, model, *, top: int) -> tuple[Base, Any]:
        """What gives the classes of all pixels; the model is the same."""
        return (Squeezed if self._squeezed else Drawn)(self), model

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"image": path}."""
        if len(cells) != 1:
            raise ValueError(f"{len(cells)} parts")
        return {"image": cells[0]}


class Drawn(Task):
    """The classes of an image's pixels, whose truth need not be known.

    Masks, and images with their mask laid over them, are written into `_folder`, if there is one.
    """

    def __init__(self, task: Task):
        self.__dict__.update(task.__dict__)
        self._folder, self._written = None, set()

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`classes` [B, H, W] uint8."""
        return {"classes": _finest(output, batch).argmax(axis=-1).astype(jnp.uint8)}

    def _classes(self, source: Sequence[dict], predictions: dict) -> list[np.ndarray]:
        """As `classes_of`."""
        return classes_of(self, source, predictions)

    def write_to(self, folder: str) -> None:
        """Masks are written there."""
        self._folder = scenes.made(folder)

    def samples(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"image": its file, "classes": {class: its share of the pixels}} of each image; where they are written, its mask's
        files."""
        samples = []
        for i, classes in enumerate(self._classes(source, predictions)):
            image, counts = source[i]["image"], np.bincount(classes.ravel(), minlength=len(self.labels))
            order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
            shares = {self.labels.names[k]: round(float(counts[k] / classes.size), 4) for k in order}
            sample = {"image": _named(image)} if isinstance(image, (str, os.PathLike)) else {}
            sample |= {"classes": shares}
            if self._folder:
                stem = scenes.free_name(Path(image).stem if sample.get("image") else f"image_{i}", self._written)
                sample |= scenes.write(self._folder, stem, read_image(image, self._channels), classes, self.first)
            samples.append(sample)
        return samples


class Squeezed(Drawn):
    """The same of images that are brought whole to the model's size; the logits are brought to the images' own."""

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The images."""
        return source

    def unaugmented(self, fields: dict) -> dict:
        """All of the image in the model's size."""
        image = squeeze(fields["image"], *self._views.size, self._interpolation)
        return {"image": image, "mask": np.full(image.shape[:2], NO_CLASS, np.uint8)}

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`logits` [B, h, w, L] as the model gives them."""
        return {"logits": output.logits.astype(jnp.float32)}

    def _classes(self, source: Sequence[dict], predictions: dict) -> list[np.ndarray]:
        """Of each image in its own size, uint8 [h, w]."""
        sizes = (read_image(example["image"], self._channels).shape[:2] for example in source)
        pairs = zip(predictions["logits"], sizes, strict=True)
        return [np.asarray(resize(logits[None], size, "bilinear")[0].argmax(axis=-1), np.uint8) for logits, size in pairs]


def classes_of(task: Task, source: Sequence[dict], predictions: dict) -> list[np.ndarray]:
    """The classes of each image in its own size, uint8 [h, w], of what was predicted of its windows."""
    tiled = task.examples(source)
    found: dict[int, np.ndarray] = {}
    for (number, tile), seen in zip(tiled.windows, predictions["classes"], strict=True):
        ends = tile.rows[1], tile.columns[1]  # of the last window those of the image
        there = found.get(number, np.zeros((0, 0), np.uint8))
        grown = np.zeros([max(had, end) for had, end in zip(there.shape, ends, strict=True)], np.uint8)
        grown[: there.shape[0], : there.shape[1]] = there
        own = seen[tile.rows[0] - tile.top : tile.rows[1] - tile.top, tile.columns[0] - tile.left :]
        grown[slice(*tile.rows), slice(*tile.columns)] = own[:, : tile.columns[1] - tile.columns[0]]
        found[number] = grown
    return [found[i] for i in range(len(found))]


def _finest(output: LabelOutput, batch: dict) -> jax.Array:
    """Logits of all pixels, [B, H, W, L] float32."""
    return resize(output.logits.astype(jnp.float32), batch["mask"].shape[1:], "bilinear")


def _known(batch: dict) -> jax.Array:
    """[B, H, W] float32: 1 for pixels of examples that have a class, else 0."""
    return ((batch["mask"] != NO_CLASS) & (batch["row_weights"][:, None, None] > 0)).astype(jnp.float32)


def _named(file: Any) -> str:
    return str(file) if isinstance(file, (str, os.PathLike)) else "of the example"


def _check(task: Task) -> None:
    """Raises UserError where keys of config.task make no sense."""
    if not 2 <= len(task.labels) <= NO_CLASS - task.first:
        raise UserError(f"config.task.labels has {len(task.labels)} names: give from 2 to {NO_CLASS - task.first}")
    for key in "void", "first":
        if not 0 <= getattr(task, key) <= NO_CLASS:
            raise UserError(f"config.task.{key}={getattr(task, key)} is not from 0 to {NO_CLASS}")
    if not 0 <= task.overlap < 1:
        raise UserError(f"config.task.overlap={task.overlap} is not from 0 to below 1")
    if task.first <= task.void < task.first + len(task.labels):
        logging.warning("config.task.void=%d is one of config.task.labels: it is not learned", task.void)
