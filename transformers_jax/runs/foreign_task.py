"""The task that a folder of `transformers` is for: what its head answers, under the names of its labels, its texts as long as
the model reads them and its images prepared as the folder says."""

from pathlib import Path
from typing import Any

from transformers_jax import config as configuration
from transformers_jax import tasks
from transformers_jax.data.images.processing import NO_CLASS
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface, preparation, recipe
from transformers_jax.layers.pooling import Recipe
from transformers_jax.models.protocol import IMAGES, Protocol
from transformers_jax.tasks.task import Task

OF_HEADS = {
    "sequence": "sequence_classification", "tagging": "tagging", "span": "span_qa", "multiple_choice": "multiple_choice",
    "classification": "image_classification", "segmentation": "segmentation",
}  # fmt: skip
"""Heads that answer for themselves, and the tasks that they have learned. Heads over tokens do what is asked of them."""

RECIPE = ("pooling", "normalise", "max_length", "lowercase", "prompts", "prompt", "similarity")
USUAL = ("pooling", "normalise")
USUALLY = Recipe._field_defaults
"""Keys of the task similarity that say how a text becomes a vector; those of them that a config always has; and what the others
are where it does not."""

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


def recipe_of(path: Path) -> dict[str, Any]:
    """The keys of config.task by which a text becomes a vector as a pretrained model has learned it: a folder by the files of
    sentence-transformers, a workdir by its own; {} where neither says it. "max_length" is among them where it is limited.

    Raises:
      UserError: a file cannot be read, or says what is not computed in training.
    """
    if not huggingface.is_folder(path):
        task = configuration.read(path).task
        return {key: task[key] for key in RECIPE if key in task} if task.name == "similarity" else {}
    if not recipe.is_said(path):
        return {}
    found = recipe.read(path)
    if not found.pool_prompt and any(text for _, text in found.prompts):
        raise UserError(f"{path}: include_prompt is false: a workdir's vectors are of prompts too; embed from it")
    keys = found._asdict() | {"prompts": tuple(f"{name}={text}" for name, text in found.prompts)}
    return {key: value for key, value in keys.items() if key in RECIPE and (key in USUAL or value != USUALLY[key])}


def _lengths(name: str, longest: int) -> dict[str, int]:
    """Keys of config.task by which texts are as long as the model reads them, and longer ones windows."""
    if name == "span_qa":
        window = min(WINDOW, longest or WINDOW)
        return {"max_length": window, "stride": min(STRIDE, window // 3), "max_question": min(QUESTION, window // 3)}
    return {"max_length": longest} if longest and name in ("sequence_classification", "tagging", "multiple_choice") else {}
