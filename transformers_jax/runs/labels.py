"""The labels of a run whose config names none: those of its training data."""

from ml_collections import ConfigDict

from transformers_jax import tasks
from transformers_jax.data import sources
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
