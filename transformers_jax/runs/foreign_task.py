"""The task that a folder of `transformers` is for: what its head answers, under the names of its labels, its texts as long as
the model reads them and its images prepared as the folder says."""

from pathlib import Path
from typing import Any

from transformers_jax import tasks
from transformers_jax.data.images.processing import NO_CLASS
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface, preparation
from transformers_jax.models.protocol import IMAGES, Protocol
from transformers_jax.tasks.task import Task

OF_HEADS = {
    "sequence": "sequence_classification", "tagging": "tagging", "span": "span_qa", "multiple_choice": "multiple_choice",
    "classification": "image_classification", "segmentation": "segmentation",
}  # fmt: skip
"""Heads that answer for themselves, and the tasks that they have learned. Heads over tokens do what is asked of them."""

WINDOW, STRIDE, QUESTION = 384, 128, 64
"""Tokens of a window over a passage, from a window to the next, and of a question, at most: those of SQuAD."""


def of_folder(folder: Path, about: Protocol, tokenizer: Tokenizer | None) -> Task | None:
    """The task of a folder of `transformers`; None where its head alone does not say one.

    Args:
      about: its model.

    Raises:
      UserError: it was trained in a way that is not computed here; names the key of its files.
    """
    if about.head not in OF_HEADS:
        return None
    name = OF_HEADS[about.head]
    reads = image_keys(folder, about) if IMAGES in about.reads else None
    return tasks.build({"name": name} | _lengths(name, about.longest) | labels_of(folder, about), tokenizer, reads)


def labels_of(folder: Path, about: Protocol) -> dict[str, Any]:
    """The keys of config.task that follow from what a folder says about its labels; {} for a head without names of its own.

    Raises:
      UserError: several labels of a text are right at once, or several numbers are asked for.
    """
    if about.head not in about.labelled or about.head == "multiple_choice":
        return {}
    described = huggingface.read_config(folder)
    names, kind = tuple(huggingface.label_names(described)), described.get("problem_type")
    if about.head == "sequence":
        if kind == "multi_label_classification" or kind == "regression" and len(names) > 1:
            raise UserError(f"{folder / huggingface.CONFIG}: problem_type {kind} of {len(names)} labels is not supported")
        return {"labels": names} if len(names) > 1 else {"labels": (), "metrics": ("spearman", "pearson")}
    if about.head == "segmentation":
        first = preparation.first_class(folder)
        return {"labels": names, "first": first, "void": 0 if first else NO_CLASS}
    if about.head == "classification" and kind == "multi_label_classification":
        return {"labels": names, "objective": "sigmoid"}
    return {"labels": names}


def image_keys(folder: Path, about: Protocol) -> dict[str, Any]:
    """The keys of config.data with which an image becomes what the model reads."""
    height, width, channels = (about.sizes[axis] for axis in "HWC")
    if about.head == "segmentation":
        return {"size": (height, width), "channels": channels} | preparation.squeezed(folder)
    return {"size": height, "channels": channels} | preparation.keys(folder)


def _lengths(name: str, longest: int) -> dict[str, int]:
    """Keys of config.task by which texts are as long as the model reads them, and longer ones windows."""
    if name == "span_qa":
        window = min(WINDOW, longest or WINDOW)
        return {"max_length": window, "stride": min(STRIDE, window // 3), "max_question": min(QUESTION, window // 3)}
    return {"max_length": longest} if longest and name in ("sequence_classification", "tagging", "multiple_choice") else {}
