"""A label for an image, or several: ImageNet and its like, as ViT, DeiT, Swin and ConvNeXt are trained for it.

Axes: B batch rows, H height, W width, C channels, K classes, N the likeliest of them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.data.placed import Placed
from transformers_jax.errors import UserError
from transformers_jax.layers.losses import label_sums
from transformers_jax.layers.mixing import mixup_or_cutmix
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import metrics as measures
from transformers_jax.tasks.parts.images import ImageReader
from transformers_jax.tasks.parts.labels import Labels
from transformers_jax.tasks.task import Task as Base

OBJECTIVES = ("softmax", "sigmoid")
LIKELIEST = 5
"""How many labels of an image are told, and how many may be wrong before its label counts as not among them."""


class Task(Base):
    """Examples {"image": path or uint8 [H, W, C], "label": str, or "labels": [str]}; unlabelled ones are predicted only.

    Args:
      data: config.data, whose keys about images are read, see `data.images.augment` and `parts.images`.
      labels: of the data, in the order of the head's rows. A run takes those of its training data where none are given.
      objective: "softmax": one label is right, or any of several. "sigmoid": each label is right or wrong for itself; the loss
        of an image is the sum of its labels' cross entropies.
      real: whether an image may have several right labels, or none, and any of them will do, as in ImageNet's reassessed
        labels (Beyer et al. 2020): `real_accuracy` counts images that have one. Of several each is trained as equally right.
      label_smoothing: probability mass spread evenly over the labels in training; of softmax alone.
      mixup, cutmix: alpha of either; where both are above 0 one of them is drawn for each batch (see `layers.mixing`).
    """

    reads = "images"
    learned = "label"
    scored_by, bigger_is_better = "predictions", True
    line_means, line_keys = "the path of an image", ("image",)

    def __init__(
        self, data, *, labels: Sequence[str] = (), objective: str = "softmax", real: bool = False,
        label_smoothing: float = 0.0, mixup: float = 0.0, cutmix: float = 0.0,
    ):  # fmt: skip
        self._reader, self.labels = ImageReader(data), Labels(labels)
        self.objective, self.real, self.label_smoothing = objective, real, label_smoothing
        self.mixup, self.cutmix = mixup, cutmix
        _check(self)
        truth = "labels" if real or objective == "sigmoid" else "label"
        self.row_fields = ("image", truth)
        self.row_shapes = {"image": self._reader.shape} | ({"labels": (len(self.labels),)} if truth == "labels" else {})
        self.main_metric = "mean_average_precision" if objective == "sigmoid" else "real_accuracy" if real else "accuracy"

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "classification", "labels": len(self.labels)}

    # -- Examples ---------------------------------------------------------------------------------------------------------

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The same examples, all labels known, and one each where one is wanted."""
        self.labels.check(source, lambda example: _labels_of(example) or ())
        if isinstance(source, Placed) and "label" in self.row_fields:
            for i in range(len(source)):
                names = _labels_of(source[i])
                if names is not None and (count := len(names)) != 1:
                    raise UserError(
                        f"{source.where(i)} has {count} labels: give config.task.objective=sigmoid where each is right for "
                        "itself, or config.task.real=True where any of them is right"
                    )
        return source

    def encode(self, example: dict) -> dict[str, Any]:
        """→ `image`, uint8 in its own size, and `label`, -1 where the example has none, or `labels` [K], NaN then."""
        fields, names = {"image": self._reader.read(example["image"])}, _labels_of(example)
        if "label" in self.row_fields:
            return fields | {"label": -1 if names is None else self.labels.number(*names)}
        labels = np.full(len(self.labels), np.nan if names is None else 0, np.float32)  # [K]
        for name in names or ():
            labels[self.labels.number(name)] = 1
        return fields | {"labels": labels}

    def augment(self, fields: dict, rng: np.random.Generator) -> dict:
        """The image cut out and changed at random, uint8 [H, W, C]."""
        return {**fields, "image": self._reader.train(fields["image"], rng)}

    def unaugmented(self, fields: dict) -> dict:
        """Its middle, uint8 [H, W, C]."""
        return {**fields, "image": self._reader.evaluate(fields["image"])}

    # -- Loss and predictions ---------------------------------------------------------------------------------------------

    def mix(self, batch: dict, key: jax.Array) -> dict:
        """Images mixed with each other, [B, H, W, C], and `labels` [B, K] with them, if config.task says so."""
        if not self.mixup and not self.cutmix:
            return batch
        image, labels = mixup_or_cutmix(key, batch["image"], self._right(batch), self.mixup, self.cutmix)
        return {**batch, "image": image, "labels": labels}

    def loss(self, output: LabelOutput, batch: dict, *, train: bool):
        """Cross entropy summed over rows, with the summed weight, and how many rows' likeliest label is right."""
        weights, smoothing = batch["row_weights"], self.label_smoothing if train else 0.0  # [B]
        if "labels" not in batch:
            sums = label_sums(output.logits, batch["label"], weights, smoothing)
            return sums.loss, sums.weight, {"correct": sums.correct}
        logits, labels = output.logits.astype(jnp.float32), self._right(batch)  # [B, K]
        if self.objective == "sigmoid":
            losses = -labels * jax.nn.log_sigmoid(logits) - (1 - labels) * jax.nn.log_sigmoid(-logits)
            weights = weights * self._known(batch)
            return jnp.sum(weights * losses.sum(axis=-1)), jnp.sum(weights), {}
        total = jnp.sum(labels, axis=-1, keepdims=True)  # [B, 1], several where several are right, 0 where none is known
        labels = labels / jnp.where(total == 0, 1, total)
        labels = (1 - smoothing) * labels + smoothing / labels.shape[-1]
        losses = -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)  # [B]
        weights = weights * (total[:, 0] > 0)
        correct = jnp.take_along_axis(labels, logits.argmax(axis=-1)[:, None], axis=-1)[:, 0] >= labels.max(axis=-1)
        return jnp.sum(weights * losses), jnp.sum(weights), {"correct": jnp.sum(weights * correct)}

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """Of softmax `classes` [B, N], the likeliest, with their `probabilities` [B, N] and whether each is right, `hits`
        [B, N]; `truth` [B], -1 where none is known, and its probability `of_truth` [B]. Of sigmoid `probabilities` and
        `labels`, both [B, K].
        """
        logits = output.logits.astype(jnp.float32)
        if self.objective == "sigmoid":
            return {"probabilities": jax.nn.sigmoid(logits), "labels": batch["labels"]}
        right, probabilities = self._right(batch), jax.nn.softmax(logits)  # [B, K]
        top, classes = jax.lax.top_k(probabilities, min(LIKELIEST, len(self.labels)))  # [B, N]
        return {
            "classes": classes,
            "probabilities": top,
            "hits": jnp.take_along_axis(right, classes, axis=-1) > 0,
            "truth": jnp.where(right.any(axis=-1), right.argmax(axis=-1), -1),
            "of_truth": jnp.max(probabilities * right, axis=-1),
        }

    def _right(self, batch: dict) -> jax.Array:
        """[B, K] float32: 1 for each right label, or its share where rows are mixed; zeros where none is known."""
        if "labels" in batch:
            return jnp.nan_to_num(batch["labels"])
        return jax.nn.one_hot(batch["label"], len(self.labels))

    @staticmethod
    def _known(batch: dict) -> jax.Array:
        """[B] whether the labels are known: of several it may be that none is right."""
        return ~jnp.isnan(batch["labels"]).any(axis=-1)

    # -- Scores -----------------------------------------------------------------------------------------------------------

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """Of softmax: accuracy and the mean of the classes' accuracies, or with several right labels real_accuracy; and
        top5_accuracy where there are more than five classes. Of sigmoid: mean_average_precision and f1. All are over images
        whose labels are known.
        """
        if self.objective == "sigmoid":
            known = ~np.isnan(predictions["labels"]).any(axis=-1)
            truth, found = predictions["labels"][known] > 0, predictions["probabilities"][known]
            if not len(truth):
                return {}
            mean = measures.mean_average_precision(truth, found)
            return {"mean_average_precision": mean, "f1": measures.f1(truth, found > 0.5), "examples": len(truth)}
        known = predictions["truth"] >= 0
        truth, hits = predictions["truth"][known], predictions["hits"][known]  # [examples], [examples, N]
        if not len(truth):
            return {}
        scores = {self.main_metric: float(hits[:, 0].mean())}
        if len(self.labels) > LIKELIEST:
            scores["top5_accuracy"] = float(hits.any(axis=1).mean())
        if not self.real:
            table = measures.confusion(truth, predictions["classes"][known, 0], len(self.labels))
            scores["mean_class_accuracy"] = float(np.mean((table.diagonal() / table.sum(axis=1).clip(1))[table.any(axis=1)]))
        return scores | {"examples": len(truth)}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"prediction": label, or of sigmoid labels, "probabilities": {label: probability}} of each image, likeliest first."""
        found = predictions["probabilities"]
        classes = predictions.get("classes")
        if classes is None:
            classes = np.argsort(-found, axis=-1, kind="stable")  # [examples, K]
            found = np.take_along_axis(found, classes, axis=-1)
        answers = []
        for numbers, row in zip(classes, found, strict=True):
            shown = {self.labels.names[i]: float(p) for i, p in zip(numbers, row, strict=True)}
            names = list(shown)
            prediction = names[0] if self.objective == "softmax" else [name for name in names if shown[name] > 0.5]
            likeliest = {name: round(shown[name], 4) for name in names[:LIKELIEST]}
            answers.append({"prediction": prediction, "probabilities": likeliest})
        return answers

    def samples(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"image": its file, "label" or "labels": the truth where it is known, and its answer}; no image is read for it."""
        samples = []
        for i, answer in enumerate(self.answers(source, predictions)):
            samples.append({"image": _place(source, i)} | self._truth(predictions, i) | answer)
        return samples

    def _truth(self, predictions: dict, i: int) -> dict:
        if self.objective == "softmax":
            number = int(predictions["truth"][i])
            return {"label": self.labels.names[number]} if number >= 0 else {}
        row = predictions["labels"][i]  # [K]
        return {} if np.isnan(row).any() else {"labels": [self.labels.names[k] for k in np.flatnonzero(row)]}

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict[str, Any], list[dict]]:
        """As of all tasks; samples begin with the worst mistakes."""
        scores, predictions = self._measured(scorer, split, model)
        samples = self.samples(scorer.source(split), predictions)
        return scores, [samples[i] for i in np.argsort(self._margins(predictions), kind="stable")]

    def _margins(self, predictions: dict) -> np.ndarray:
        """[examples] how far the truth is ahead: below 0 where another label is likelier, more so the surer that was."""
        if self.objective == "softmax":
            margins = predictions["of_truth"] - predictions["probabilities"][:, 0]
            return np.where(predictions["truth"] < 0, np.inf, np.where(predictions["hits"][:, 0], 0.0, margins))
        ahead = np.where(predictions["labels"] > 0, 1, -1) * (predictions["probabilities"] - 0.5)  # [examples, K]
        return np.where(np.isnan(predictions["labels"]).any(axis=-1), np.inf, ahead.min(axis=-1))

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"image": path}."""
        if len(cells) != 1:
            raise ValueError(f"{len(cells)} parts")
        return {"image": cells[0]}


def _labels_of(example: dict) -> list[str] | None:
    """The names of an example's labels; None where they are not known."""
    if "labels" in example:
        return list(example["labels"])
    return [example["label"]] if "label" in example else None


def _place(source: Sequence[dict], i: int) -> str:
    """Where image i is. It is looked at only in sources where that is cheap."""
    if isinstance(source, Placed):
        return source.where(i)
    image = source[i].get("image") if isinstance(source, list) else None
    return str(image) if isinstance(image, str) else f"example {i}"


def _check(task: Task) -> None:
    """Raises UserError where keys of config.task make no sense, or do not go together."""
    if task.objective not in OBJECTIVES:
        raise UserError(f"config.task.objective={task.objective!r} is not one of {', '.join(OBJECTIVES)}")
    if len(task.labels) < 2 and task.objective == "softmax":
        raise UserError(f"config.task.labels={task.labels.names}: a classifier needs two or more")
    if task.objective == "sigmoid" and (task.real or task.label_smoothing):
        key = "real" if task.real else "label_smoothing"
        raise UserError(f"config.task.{key}={getattr(task, key)} does not go with config.task.objective=sigmoid")
    if not 0 <= task.label_smoothing < 1:
        raise UserError(f"config.task.label_smoothing={task.label_smoothing} is not from 0 to below 1")
    for key in "mixup", "cutmix":
        if getattr(task, key) < 0:
            raise UserError(f"config.task.{key}={getattr(task, key)} is below 0; 0 is none")
