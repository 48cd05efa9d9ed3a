"""The config of a run that begins with a pretrained model: its architecture and its vocabulary are that model's."""

import dataclasses
import importlib
from collections.abc import Mapping

from absl import logging
from ml_collections import ConfigDict

from transformers_jax import models, tasks
from transformers_jax.errors import UserError
from transformers_jax.models.protocol import TRANSLATES
from transformers_jax.runs import foreign_task, initialise

OWN = ("dtype", "param_dtype", "scan_layers", "remat", "attention", "max_mask_rate", "pooler")
"""Keys of config.model that the run itself decides: how the model is computed."""

DROPOUTS = ("dropout", "attention_dropout", "classifier_dropout", "span_dropout")
"""Keys of config.model that the run decides where the pretrained model is a workdir's, which may have learned without any;
a folder of `transformers` says what its model is finetuned with."""

OF_HEAD = ("decoder_width", "decoder_layers")
"""Keys of config.model that the run decides where the pretrained model does not say them: it has another head."""

OF_TASK = ("head", "labels")
"""Keys of config.model that follow from the task."""


def adopted(config: ConfigDict, path: str, given: Mapping[str, object] = {}) -> ConfigDict:  # noqa: B006
    """The config with the pretrained model's fields for config.model, and its tokenizer.

    Args:
      path: a folder of `transformers`, a GGUF file, a workdir, or a name on the hub; kept as config.finetuning.init_from.
      given: keys of the config that the user has set, "model.dropout" say: they stay as they are.

    Raises:
      UserError: there is no such model, it is not supported, or the config is not of such a model.
    """
    if "finetuning" not in config:
        raise UserError("--config is not of a model that is finetuned: give one that is, as configs/bert.py:sst2")
    folder = initialise.folder_of(path)
    fields = {key: value for key, value in initialise.fields_of(folder).items() if key not in OF_TASK}
    translates = TRANSLATES in models.build(fields, fields.get("vocab_size") or 1).protocol().does
    if translates != (config.task.name == "translation"):
        does = "translates" if translates else "does not translate"
        raise UserError(f"--init_from={path} holds a {fields['name']}, which {does}; config.task.name is {config.task.name}")
    allowed = {f.name for f in dataclasses.fields(importlib.import_module(f"{models.__name__}.{fields['name']}").Config)}
    mine = OWN if initialise.is_foreign(folder) else OWN + DROPOUTS
    mine += tuple(key for key in OF_HEAD if key not in fields)
    own = {key: config.model[key] for key in mine if key in config.model and key in allowed}
    theirs = {key.removeprefix("model."): value for key, value in given.items() if key.startswith("model.")}
    config = config.copy_and_resolve_references()
    if "image_size" in fields and isinstance(config.data.get("size"), int):
        own["image_size"] = config.data.size if "data.size" in given else fields["image_size"]
        config.data.size = own["image_size"]
    with config.unlocked():
        config.model = ConfigDict(fields | own | theirs)
    if "tokenizer.path" not in given and tasks.named(config.task.name).reads == "text":
        config.tokenizer.path = str(folder)
    if config.task.name == "similarity":
        _adopt_recipe(config, foreign_task.recipe_of(folder), given)
    config.finetuning.init_from = str(path)
    if "training.keep_best" not in given and "keep_best" in config.training:
        config.training.keep_best = True
    return config


def _adopt_recipe(config: ConfigDict, found: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Texts become vectors as the pretrained model has learned it, but for what the user has set."""
    own = {key: value for key, value in found.items() if f"task.{key}" not in given}
    with config.task.unlocked():
        config.task.update(own)
    if "max_length" in own and "data.lengths.tokens" not in given:
        config.data.lengths.tokens = own["max_length"]
    if own:
        shown = ", ".join(f"{key}={value!r}" for key, value in own.items())
        logging.info("config.task as the pretrained model has it: %s", shown)
