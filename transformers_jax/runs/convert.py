"""From a folder of `transformers` to a workdir and back: the same model, and its tokenizer."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from transformers_jax import config as configuration
from transformers_jax import models, parameters, tasks
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface, mapping, recipe, stacking, tokenizers, weights
from transformers_jax.layers.pooling import Recipe
from transformers_jax.models.protocol import TEXT, Protocol
from transformers_jax.runs import initialise
from transformers_jax.training.checkpoint import Checkpoints


def convert(source: str, target: str, config_of: Callable[[str], ConfigDict]) -> str:
    """Writes what the source holds in the other form; returns what was done in a line.

    Args:
      source: a folder of `transformers` or its name on the hub: the target becomes a workdir, its checkpoint of step 0.
        A workdir: the target becomes a folder of `transformers`, of the newest checkpoint.
      target: a folder that does not exist or is empty.
      config_of: a name of `Protocol.configs` → that config.

    Raises:
      UserError: the source cannot be read, something of it has no name on the other side, or the target is not empty.
    """
    folder, made = initialise.folder_of(source, key="--from"), Path(target)
    if made.is_file() or (made.is_dir() and any(made.iterdir())):
        raise UserError(f"--to={target} is there already: give a new folder")
    write = _to_workdir if huggingface.is_folder(folder) else _to_folder
    return write(folder, made, config_of)


def _to_workdir(folder: Path, workdir: Path, config_of: Callable[[str], ConfigDict]) -> str:
    fields, leaves, tokenizer = huggingface.opened(folder)
    about = models.build(fields, fields["vocab_size"]).protocol()
    if about.head not in about.configs:
        raise UserError(f"--from={folder}: there is no config for a {fields['name']} with head {about.head!r}")
    config = config_of(about.configs[about.head]).copy_and_resolve_references()
    with config.unlocked():
        config.model = ConfigDict(fields)
        _describe_task(config, folder, about)
    workdir.mkdir(parents=True, exist_ok=True)
    configuration.save(config, workdir)
    for name in tokenizers.FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, workdir / name)
    if tokenizer is None:
        logging.warning("%s has no tokenizer that can be read: put a tokenizer.json into %s", folder, workdir)
    elif not (workdir / "tokenizer.json").exists():
        tokenizer.save(workdir / "tokenizer.json")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(0, _whole(leaves), config=config.to_dict())
    return f"{count(leaves)} parameters in {workdir}, a workdir"


def _whole(leaves: dict[str, weights.Leaf]) -> dict:
    """What a checkpoint holds of a model, in float32, as its parameters are kept."""
    found = mapping.variables((name, np.asarray(leaf, np.float32)) for name, leaf in leaves.items())
    params = found.pop("params")
    return {"params": params} | ({"model_state": found} if found else {})


def _describe_task(config: ConfigDict, folder: Path, about: Protocol) -> None:
    """Sets what a folder of `transformers` says about its task: the length of texts, their vectors, the labels."""
    described, task, head, longest = huggingface.read_config(folder), config.task, about.head, about.longest
    if head == "none" and "pooling" in task:
        found = recipe.read(folder)
        _describe_recipe(task, found, folder)
        task.max_length = config.data.lengths.tokens = about.within(found.max_length).longest
    elif head in about.labelled and head != "tagging":
        task.max_length = config.data.lengths.tokens = longest
    elif longest and task.get("max_length", 0) > longest:  # others read in windows
        task.max_length = longest
    if head not in about.labelled:
        return
    names = huggingface.label_names(described)
    kind = described.get("problem_type")
    if head == "sequence" and (kind == "multi_label_classification" or kind == "regression" and len(names) > 1):
        raise UserError(f"{folder / huggingface.CONFIG}: problem_type {kind} of {len(names)} labels is not supported")
    if "labels" in task:
        task.labels = () if head == "sequence" and len(names) == 1 else tuple(names)
    if task.name == "sequence_classification" and not task.labels:
        task.metrics = ("spearman", "pearson")


def _describe_recipe(task: ConfigDict, found: Recipe, folder: Path) -> None:
    """Sets what becomes of a text; keys that say nothing new are left out."""
    if not found.pool_prompt and any(text for _, text in found.prompts):
        raise UserError(f"{folder}: include_prompt is false: a workdir's vectors are of prompts too; embed from it")
    prompts = tuple(f"{name}={text}" for name, text in found.prompts)
    given = {"lowercase": found.lowercase, "prompts": prompts, "prompt": found.prompt, "similarity": found.similarity}
    task.pooling, task.normalise = found.pooling, found.normalise
    with task.unlocked():
        task.update({key: value for key, value in given.items() if value != Recipe._field_defaults[key]})


def _to_folder(workdir: Path, folder: Path, config_of: Callable[[str], ConfigDict]) -> str:
    del config_of
    config = configuration.read(workdir)
    tokenizer = Tokenizer.load(workdir / "tokenizer.json") if (workdir / "tokenizer.json").exists() else None
    fields = initialise.trained_fields(config, tokenizer)
    if not huggingface.has_names(name := fields.get("name", "")):
        known = huggingface.supported()
        raise UserError(f"--from={workdir}: transformers has no architecture for config.model.name={name}; {known}")
    vocab_size = fields["vocab_size"] = fields.get("vocab_size") or (tokenizer.vocab_size if tokenizer else 0)
    model = models.build(fields, vocab_size)
    about = model.protocol()
    if TEXT in about.reads and not (tokenizer or vocab_size and ("head" in fields or len(about.heads) == 1)):
        raise UserError(f"--from={workdir} has no tokenizer.json")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore_params()
    params = parameters.merge(state["params"], state["frozen"])
    found = stacking.separate(mapping.named({"params": params, **state["model_state"]}))
    wanted = stacking.names(mapping.shapes(model))
    if own := sorted(set(found) - set(wanted)):
        logging.info("left out, as it is the task's and not the model's: %s", initialise.some(own))
    if missing := sorted(set(wanted) - set(found)):
        raise UserError(f"--from={workdir}: its checkpoint lacks {initialise.some(missing)}")
    variables = mapping.variables((name, found[name]) for name in wanted)
    params, labels = variables.pop("params"), tuple(config.get("task", {}).get("labels", ()))
    huggingface.save(folder, fields, params, tokenizer, model_state=variables, labels=labels)
    if config.get("task", {}).get("name") == "similarity" and tokenizer:
        recipe.write(folder, tasks.build(config.task, tokenizer).recipe, fields["width"])
    return f"{count(params)} parameters in {folder}, a folder of transformers"


def count(params: dict) -> str:
    """The number of parameters, as people write it."""
    return f"{sum(x.size for x in jax.tree.leaves(params)):,}"
