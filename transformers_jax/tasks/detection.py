"""Objects in images: their boxes and labels, found as FCOS finds them (Tian et al. 2019).

Axes: B batch rows, H height and W width of what the model gets, C channels, N objects of an image, P positions, K boxes found,
L labels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.data.images.decode import size_of
from transformers_jax.data.images.views import View, Views, whole
from transformers_jax.errors import UserError
from transformers_jax.layers import boxes as geometry
from transformers_jax.outputs import DetectionOutput
from transformers_jax.tasks.parts import average_precision, scenes
from transformers_jax.tasks.parts.images import channels_of, read_image
from transformers_jax.tasks.parts.labels import Labels
from transformers_jax.tasks.task import Task as Base

CANDIDATES = 1000
"""Boxes of an image that are looked at, the likeliest."""
MOST = 100
"""Boxes of an image that are given, as COCO counts them."""
OVERLAP = 0.6
"""Of two boxes of one class, beyond which the worse is dropped."""


class Task(Base):
    """Examples {"image": path or uint8 [h, w, C], "objects": […]}, see `data.images.objects`; those without "objects" are
    predicted only.

    Trained on parts of images (see `data.images.views`, which says what becomes of a box that is cut), scored on whole ones,
    brought onto a canvas of config.data.size in their proportions.

    Args:
      data: config.data, whose keys about images are read.
      labels: of the data, in the order of the head's rows. A run takes those of its training data where none are given.
      most_objects: N: further objects of an image are not learned.
      least: probability below which nothing is found.
    """

    reads = "images"
    learned, counted = "objects", "positions"
    row_fields = ("image", "boxes", "box_labels")
    scored_by, main_metric, bigger_is_better = "predictions", "ap", True
    line_means, line_keys = "the path of an image", ("image",)

    def __init__(self, data, *, labels: Sequence[str] = (), most_objects: int = 100, least: float = 0.05):
        self.labels, self._views, self._channels = Labels(labels), Views(data), channels_of(data)
        self.most_objects, self.least = most_objects, least
        self._sieve = scenes.Sieve(data, lambda example: [self.labels.number(name) for name in _labels_of(example)])
        self._folder, self._written = None, set()  # of pictures of what is found
        shapes = {"boxes": (most_objects, 4), "box_labels": (most_objects,)}
        self.row_shapes = {"image": (*self._views.size, self._channels)} | shapes
        if most_objects < 1:
            raise UserError(f"config.task.most_objects={most_objects} is below 1")
        if not 0 < least < 1:
            raise UserError(f"config.task.least={least} is not between 0 and 1")

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "detection", "labels": len(self.labels)}

    # -- Examples ---------------------------------------------------------------------------------------------------------

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The same examples, all labels known; without those with others, where config.data.on_error=skip."""
        source = self._sieve(source)
        self.labels.check(source, _labels_of)
        return source

    def encode(self, example: dict) -> dict[str, Any]:
        """→ `image`, uint8 in its own size, and all its `boxes` [n, 4] and `box_labels` [n]."""
        image, objects = read_image(example["image"], self._channels), example.get("objects", ())
        if "size" in example and tuple(example["size"]) != image.shape[:2]:
            shown = ["×".join(map(str, size)) for size in (image.shape[:2], example["size"])]
            raise UserError(f"{example['image']} has {shown[0]} pixels, and {shown[1]} by its annotations")
        labels = [geometry.CROWD if thing.get("crowd") else self.labels.number(thing["label"]) for thing in objects]
        corners = np.array([thing["box"] for thing in objects], np.float32).reshape(-1, 4)
        return {"image": image, "boxes": corners, "box_labels": np.array(labels, np.int32)}

    def augment(self, fields: dict, rng: np.random.Generator) -> dict:
        """A random part of the image with what is seen of its objects; `image` uint8 [H, W, C]."""
        seen = self._seen(self._views.draw(*fields["image"].shape[:2], rng), fields)
        return seen | {"image": self._views.coloured(seen["image"], rng)}

    def unaugmented(self, fields: dict) -> dict:
        """All of it."""
        return self._seen(whole(*fields["image"].shape[:2], self._views.size), fields)

    def _seen(self, view: View, fields: dict) -> dict:
        found, kept = view.boxes(fields["boxes"])
        corners = np.zeros([self.most_objects, 4], np.float32)
        labels = np.full(self.most_objects, -1, np.int32)
        count = min(len(kept), self.most_objects)
        corners[:count], labels[:count] = found[:count], fields["box_labels"][kept[:count]]
        return {"image": self._views.image(view, fields["image"]), "boxes": corners, "box_labels": labels}

    # -- Loss and predictions ---------------------------------------------------------------------------------------------

    def loss(self, output: DetectionOutput, batch: dict, *, train: bool):
        """The sum of three losses, with the number of positions that answer for an object (equation 2): the focal loss of
        labels, 1 less the generalised IoU of boxes, weighted by how near a position is to the middle, and the cross entropy of
        that.
        """
        rows = jnp.broadcast_to(batch["row_weights"][:, None] > 0, output.middle.shape)  # [B, P]
        answers = jax.vmap(geometry.targets, (0, 0, None, None))
        labels, distances = answers(batch["boxes"], batch["box_labels"], output.centres, output.strides)  # [B, P], [B, P, 4]
        there = (labels >= 0) & rows
        of_labels = geometry.focal_losses(output.logits, jax.nn.one_hot(labels, len(self.labels))).sum(axis=-1)
        of_labels = jnp.sum(of_labels * (rows & (labels != geometry.CROWD)))
        middle = jnp.where(there, geometry.centerness(distances), 0.0)
        found, wanted = (geometry.from_distances(output.centres, d) for d in (output.distances, distances))
        _, overlap = geometry.overlaps(found, wanted)
        count, weight = jnp.sum(there), jnp.sum(middle)
        of_boxes = jnp.sum(middle * (1 - overlap)) * count / jnp.maximum(weight, 1e-6)
        log_right, log_wrong = jax.nn.log_sigmoid(output.middle), jax.nn.log_sigmoid(-output.middle)
        of_middle = -jnp.sum(there * (middle * log_right + (1 - middle) * log_wrong))
        parts = {"label_loss": of_labels, "box_loss": of_boxes, "middle_loss": of_middle}
        return of_labels + of_boxes + of_middle, count.astype(jnp.float32), parts

    def predict(self, output: DetectionOutput, batch: dict) -> dict[str, jax.Array]:
        """`boxes` [B, K, 4] in pixels of what the model got, `scores` [B, K], 0 where there is none, `classes` [B, K]; best
        first."""
        height, width = batch["image"].shape[1:3]
        sides, labels = jnp.array([width, height, width, height], jnp.float32), len(self.labels)

        def of_image(logits, distances, middle):
            scores = jnp.sqrt(jax.nn.sigmoid(logits) * jax.nn.sigmoid(middle)[:, None]).ravel()  # [P · L]
            scores, at = jax.lax.top_k(scores, min(CANDIDATES, len(scores)))
            scores, classes = jnp.where(scores >= self.least, scores, 0.0), at % labels
            corners = jnp.clip(geometry.from_distances(output.centres, distances)[at // labels], 0, sides)
            stays = geometry.suppressed(corners, scores, classes, OVERLAP)
            scores, order = jax.lax.top_k(jnp.where(stays, scores, 0.0), min(MOST, len(scores)))
            return {"boxes": corners[order], "scores": scores, "classes": classes[order]}

        return jax.vmap(of_image)(output.logits, output.distances, output.middle)

    # -- Scores -----------------------------------------------------------------------------------------------------------

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """COCO's average precisions of images whose objects are known, see `average_precision`; none without such images."""
        known, evaluation = self._compared(self._sieve(source), predictions)
        return average_precision.scores(evaluation) | {"examples": len(known)} if evaluation else {}

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict[str, Any], list[dict]]:
        """As of all tasks, and the average precision of each label; samples begin with the worst images."""
        scores, predictions = self._measured(scorer, split, model)
        source = self._sieve(scorer.source(split))
        samples, (known, evaluation) = self.samples(source, predictions), self._compared(source, predictions)
        if not evaluation:
            return scores, samples
        for i, value in zip(known, average_precision.of_images(evaluation), strict=True):
            samples[i] |= {} if np.isnan(value) else {"ap50": round(value, 4)}
        scores |= average_precision.of_labels(evaluation, self.labels.names)
        return scores, sorted(samples, key=lambda sample: sample.get("ap50", 2.0))

    def _compared(self, source: Sequence[dict], predictions: dict):
        """(numbers of the images whose objects are known, `average_precision.measured` of them)."""
        known = [i for i in range(len(source)) if "objects" in source[i]]
        found = self.answers(source, predictions)
        truth = [(_size(source[i]), source[i]["objects"]) for i in known]
        return known, average_precision.measured(truth, [found[i]["objects"] for i in known], self.labels.names)

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"objects": [{"label", "score", "box"}]} of each image, in its own pixels, best first."""
        answers = []
        for i in range(len(source)):
            height, width = _size(source[i])
            view = whole(height, width, self._views.size)
            scale = np.array([width / view.size[1], height / view.size[0]] * 2)
            sides, objects = np.array([width, height] * 2), []
            for box, score, number in zip(*(predictions[key][i] for key in ("boxes", "scores", "classes")), strict=True):
                if score > 0:
                    corners = [round(float(x), 2) for x in np.clip(box * scale, 0, sides)]
                    objects.append({"label": self.labels.names[number], "score": round(float(score), 4), "box": corners})
            answers.append({"objects": objects})
        return answers

    def samples(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"image": its file, "truth": its objects where they are known, "objects": those that are found}."""
        samples = []
        for i, answer in enumerate(self.answers(source, predictions)):
            image, things = source[i]["image"], source[i].get("objects")
            sample = {"image": str(image)} if isinstance(image, (str, os.PathLike)) else {}
            keys = ("label", "box", "crowd")
            if self._folder:
                stem = scenes.free_name(Path(image).stem if sample else f"image_{i}", self._written)
                drawn = read_image(image, self._channels), answer["objects"], self.labels.names
                sample |= scenes.write_boxes(self._folder, stem, *drawn)
            truth = {} if things is None else {"truth": [{k: thing[k] for k in keys if k in thing} for thing in things]}
            samples.append(sample | truth | answer)
        return samples

    def write_to(self, folder: str) -> None:
        """Images are written there, with the boxes that are found."""
        self._folder = scenes.made(folder)

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"image": path}."""
        if len(cells) != 1:
            raise ValueError(f"{len(cells)} parts")
        return {"image": cells[0]}


def _labels_of(example: dict) -> list[str]:
    return [thing["label"] for thing in example.get("objects", ())]


def _size(example: dict) -> tuple[int, int]:
    """Height and width of an example's image."""
    if "size" in example:
        return tuple(example["size"])
    image = example["image"]
    return size_of(image, where=str(image)) if isinstance(image, (str, os.PathLike)) else image.shape[:2]
