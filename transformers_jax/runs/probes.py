"""What a model's features of images are worth without training: nearest neighbours, and a linear map from a few examples.

Axes: n images of one split, m images that are known, D width of the features, K classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax import models
from transformers_jax.data import pipeline
from transformers_jax.errors import UserError
from transformers_jax.mesh import data_shard, global_batch
from transformers_jax.models.protocol import ENCODES, IMAGES
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.step import compile_eval_step

TEMPERATURE = 0.07
"""Of the neighbours' votes (Wu et al. 2018)."""


class Features(NamedTuple):
    """vectors: float32 [n, D].  labels: int [n]."""

    vectors: np.ndarray
    labels: np.ndarray


def probe(
    run: Experiment,
    split: str,
    *,
    knn: int = 0,
    few_shot: int = 0,
    average: int | None = None,
    step: int | str | None = None,
) -> dict:
    """Scores on a split of what is known from the training split's features, none of which is changed at random.

    Args:
      knn: neighbours that vote; 0 leaves it out.
      few_shot: examples of each class that a linear map is found from; 0 leaves it out.
      average, step: see `Experiment.trained`.

    Returns:
      "knn_accuracy" and "few_shot_accuracy", as far as they are asked for, and how many examples there were.

    Raises:
      UserError: it is no run that gives images one label, or has no such split.
    """
    if run.reads_text or getattr(run.task, "row_fields", ()) != ("image", "label"):
        raise UserError(f"--knn and --few_shot are for runs that give each image one label; {run.workdir} is none")
    model = run.trained(average=average, step=step)
    features = _encoder(run, model)
    known, asked = _features(run, "train", features), _features(run, split, features)
    classes, found = len(run.task.label_names), {"split": split, "examples": len(asked.labels), "known": len(known.labels)}
    if knn:
        right = nearest(known, asked.vectors, min(knn, len(known.labels)), classes) == asked.labels
        found |= {"knn": knn, "knn_accuracy": float(right.mean())}
    if few_shot:
        right = linear(few(known, few_shot, run.config.seed), asked.vectors, classes) == asked.labels
        found |= {"few_shot": few_shot, "few_shot_accuracy": float(right.mean())}
    return found


def nearest(known: Features, vectors: np.ndarray, neighbours: int, classes: int) -> np.ndarray:
    """[n] the class that most of the nearest known vectors have, nearest by cosine c, each of which votes by exp(c / 0.07)."""
    there, found = _unit(known.vectors), []
    for first in range(0, len(vectors), 512):
        near = _unit(vectors[first : first + 512]) @ there.T  # [512, m]
        best = np.argpartition(-near, neighbours - 1, axis=1)[:, :neighbours]  # [512, neighbours]
        weights = np.exp((np.take_along_axis(near, best, axis=1) - 1) / TEMPERATURE)
        votes = np.zeros((len(near), classes))
        np.add.at(votes, (np.arange(len(near))[:, None], known.labels[best]), weights)
        found.append(votes.argmax(axis=1))
    return np.concatenate(found)


def linear(known: Features, vectors: np.ndarray, classes: int, penalty: float = 1e-2) -> np.ndarray:
    """[n] classes by least squares from features to targets of -1 and 1 (Dosovitskiy et al. 2021, section 4.1, "few-shot").

    Features are standardised by the known ones'; `penalty` on the squared weights is in shares of their mean eigenvalue.
    """
    mean, scale = known.vectors.mean(axis=0), known.vectors.std(axis=0) + 1e-6
    x = np.float64((known.vectors - mean) / scale)  # [m, D]
    y = np.where(known.labels[:, None] == np.arange(classes), 1.0, -1.0)  # [m, K]
    gram = x @ x.T  # [m, m], as small as examples are few
    weights = x.T @ np.linalg.solve(gram + penalty * np.trace(gram) / len(x) * np.eye(len(x)), y - y.mean(axis=0))  # [D, K]
    return ((vectors - mean) / scale @ weights + y.mean(axis=0)).argmax(axis=1)


def few(known: Features, count: int, seed: int) -> Features:
    """So many examples of each class, drawn at random; all where there are fewer."""
    order = np.random.default_rng(seed).permutation(len(known.labels))
    chosen = np.concatenate([order[known.labels[order] == label][:count] for label in np.unique(known.labels)])
    return Features(known.vectors[chosen], known.labels[chosen])


def _encoder(run: Experiment, model: dict):
    """A batch's images → features [B, D]: what the head reads."""
    about = run.model.protocol()
    if IMAGES not in about.reads or ENCODES not in about.does or "none" not in about.heads:
        raise UserError(f"--knn and --few_shot: config.model.name={run.config.model.name} gives no features of images")
    bare = models.build(dict(run.config.model) | {"head": "none"}, 0)
    params = {name: leaf for name, leaf in model["params"].items() if name != "classifier"}

    def features(params, model_state, batch):
        return bare.apply({"params": params, **model_state}, batch, deterministic=True).pooled.astype(jnp.float32)

    step = compile_eval_step(features, run.mesh)
    return lambda batch: step(params, model["model_state"], batch)


def _features(run: Experiment, split: str, features) -> Features:
    """Of all images of a split whose label is known."""
    if not run.has(split):
        raise UserError(f"config.data.{split} is empty: give the images of that split")
    index, count = data_shard(run.mesh)
    if count > 1:
        raise UserError("--knn and --few_shot run in one process")
    place = {"process_index": index, "process_count": count, "parts": run.parts}
    vectors, labels = [], []
    for batch in pipeline.eval_batches(run.examples(split), run.task, run.config.data, **place):
        rows = (batch["row_weights"] > 0) & (batch["label"] >= 0)  # [B]
        vectors.append(np.asarray(jax.device_get(features(global_batch(batch, run.mesh))))[rows])
        labels.append(batch["label"][rows])
    return Features(np.concatenate(vectors), np.concatenate(labels))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
