"""From a folder of `transformers` to a workdir and back: the same model, and its tokenizer."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from transformers_jax import config as configuration
from transformers_jax import models, parameters, tasks
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface, recipe, stacking, tokenizers
from transformers_jax.models import encoder
from transformers_jax.runs import initialise
from transformers_jax.training.checkpoint import Checkpoints

VARIANTS = {
    "none": "sentence_bert.py:sts",
    "masked_lm": "bert.py:quickstart",
    "pretraining": "bert.py:base",
    "next_sentence": "bert.py:base",
    "sequence": "bert.py:sentences",
    "tagging": "bert.py:ner",
    "span": "bert.py:squad",
    "multiple_choice": "bert.py:swag",
}
"""Where a workdir's config comes from, by the model's head: model, labels and tokenizer are replaced."""


def convert(source: str, target: str, config_of: Callable[[str], ConfigDict]) -> str:
    """Writes what the source holds in the other form; returns what was done in a line.

    Args:
      source: a folder of `transformers` or its name on the hub: the target becomes a workdir, its checkpoint of step 0.
        A workdir: the target becomes a folder of `transformers`, of the newest checkpoint.
      target: a folder that does not exist or is empty.
      config_of: of a name in VARIANTS.

    Raises:
      UserError: the source cannot be read, something of it has no name on the other side, or the target is not empty.
    """
    folder, made = initialise.folder_of(source, key="--from"), Path(target)
    if made.is_file() or (made.is_dir() and any(made.iterdir())):
        raise UserError(f"--to={target} is there already: give a new folder")
    write = _to_workdir if huggingface.is_folder(folder) else _to_folder
    return write(folder, made, config_of)


def _to_workdir(folder: Path, workdir: Path, config_of: Callable[[str], ConfigDict]) -> str:
    fields, params, tokenizer = huggingface.load(folder)
    config = config_of(VARIANTS[fields["head"]]).copy_and_resolve_references()
    with config.unlocked():
        config.model = ConfigDict(fields)
        _describe_task(config, folder)
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
        checkpoints.save(0, {"params": params}, config=config.to_dict())
    return f"{count(params)} parameters in {workdir}, a workdir"


def _describe_task(config: ConfigDict, folder: Path) -> None:
    """Sets what a folder of `transformers` says about its task: the length of texts, their vectors, the labels."""
    described, task, head = huggingface.read_config(folder), config.task, config.model.head
    longest = encoder.longest(config.model)
    if head == "none":
        task.pooling, task.normalise, read = recipe.read(folder)
        task.max_length = config.data.lengths.tokens = min(read or longest, longest)
    elif head in ("sequence", "multiple_choice"):
        task.max_length = config.data.lengths.tokens = longest
    elif task.get("max_length", 0) > longest:  # others read in windows
        task.max_length = longest
    names = huggingface.label_names(described)
    kind = described.get("problem_type")
    if head == "sequence" and (kind == "multi_label_classification" or kind == "regression" and len(names) > 1):
        raise UserError(f"{folder / huggingface.CONFIG}: problem_type {kind} of {len(names)} labels is not supported")
    if "labels" in task:
        task.labels = () if head == "sequence" and len(names) == 1 else tuple(names)
    if task.name == "sequence_classification" and not task.labels:
        task.metrics = ("spearman", "pearson")


def _to_folder(workdir: Path, folder: Path, config_of: Callable[[str], ConfigDict]) -> str:
    del config_of
    config = configuration.read(workdir)
    tokenizer = Tokenizer.load(workdir / "tokenizer.json") if (workdir / "tokenizer.json").exists() else None
    fields = initialise.trained_fields(config, tokenizer)
    if "head" not in fields:
        raise UserError(f"--from={workdir} has no tokenizer.json")
    if not fields.get("vocab_size"):
        fields["vocab_size"] = tokenizer.vocab_size if tokenizer else 0
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore_params()
    found = parameters.flat(parameters.merge(state["params"], state["frozen"]))
    wanted = stacking.names(huggingface.shapes(models.build(fields, fields["vocab_size"])))
    found = stacking.separate(found)
    if own := sorted(set(found) - set(wanted)):
        logging.info("left out, as it is the task's and not the model's: %s", initialise.some(own))
    if missing := sorted(set(wanted) - set(found)):
        raise UserError(f"--from={workdir}: its checkpoint lacks {initialise.some(missing)}")
    params = parameters.nest({name: found[name] for name in wanted})
    labels = tuple(config.get("task", {}).get("labels", ()))
    huggingface.save(folder, fields, params, tokenizer, labels=labels)
    if config.get("task", {}).get("name") == "similarity" and tokenizer:
        recipe.write(folder, tasks.build(config.task, tokenizer).recipe, fields["width"])
    return f"{count(params)} parameters in {folder}, a folder of transformers"


def count(params: dict) -> str:
    """The number of parameters, as people write it."""
    return f"{sum(x.size for x in jax.tree.leaves(params)):,}"
