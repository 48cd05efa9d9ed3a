"""The labels of a run whose config names none, or those of other data: those of its training data."""

from collections.abc import Mapping

from absl import logging
from ml_collections import ConfigDict

from transformers_jax import tasks
from transformers_jax.data import forms, sources
from transformers_jax.errors import UserError

FILES = ("tsv", "jsonl", "conll", "brackets")
"""Sources of files whose examples have labels or tags."""

TEXTS = ("sequence_classification", "tagging", "similarity")
"""Tasks of text that have a label for each row of their head."""


def of_training(config: ConfigDict) -> tuple[str, ...]:
    """The labels of the training data: of images their classes, of texts in files the labels or tags, sorted; () for a task
    that learns numbers, or a prepared data set of texts.

    Raises:
      UserError: a source of images does not tell its classes, or a file cannot be read.
    """
    task, data = config.task, config.data
    if tasks.named(task.name).reads == "images":
        classes = getattr(sources.open_source(data, "train"), "classes", ())
        if not classes:
            raise UserError(f"config.task.labels is empty, and config.data.source={data.source} does not tell them")
        return tuple(classes)
    if task.name not in TEXTS or data.source not in FILES or data.get("tfds_name"):
        return ()
    if task.name == "similarity" and task.get("objective") != "classification":
        return ()
    if data.source == "tsv" and not any(column.partition("=")[0] == "label" for column in data.columns):
        return ()
    source, found = sources.open_source(data, "train"), set()
    for i in range(len(source)):
        example = source[i]
        found.update(example.get("tags", ()) if task.name == "tagging" else [example["label"]] if "label" in example else ())
    return tuple(sorted(found))


def settle_files(config: ConfigDict, given: Mapping[str, object]) -> None:
    """Changes the config to what the files say that the command line names: their source, see `data.forms`, and their labels.

    The config's own labels stay where they are given, too, or have all of the training files'.

    Raises:
      UserError: the training files cannot be read.
    """
    named, ours = forms.settle(config, given), config.task.get("labels", ())
    if "train" not in named or "task.labels" in given or not ours or config.task.name == "segmentation":
        return
    if (found := of_training(config)) and not set(found) <= set(map(str, ours)):
        config.task.labels = found
        shown = ", ".join(found)
        logging.warning("the labels are those of config.data.train: %s; --config.task.labels=A,B names others", shown)
