"""From a folder of `transformers` to a workdir and back: the same model, and its tokenizer."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from transformers_jax import config as configuration
from transformers_jax import models, parameters, tasks
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.finetuning import trainable
from transformers_jax.interchange import (
    gguf_model,
    huggingface,
    mapping,
    peft,
    recipe,
    stacking,
    tokenizers,
    weights,
)
from transformers_jax.models.protocol import IMAGES, TEXT, Protocol
from transformers_jax.runs import foreign_task, initialise, train
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training import best
from transformers_jax.training.checkpoint import Checkpoints


def convert(
    source: str,
    target: str,
    config_of: Callable[[str], ConfigDict],
    *,
    merge: bool = False,
    base: str = "",
    four_bit: bool = False,
    step: int | str | None = None,
) -> str:
    """Writes what the source holds in the other form; returns what was done in a line.

    Args:
      source: a folder of `transformers` or its name on the hub, or a GGUF file: the target becomes a workdir, its checkpoint of
        step 0.
        A workdir: the target becomes a folder of `transformers`, of its best model where that is kept, else of its newest
        checkpoint; one of PEFT where the workdir was trained by parts of low rank beside a base. A folder of PEFT: the target
        becomes such a workdir.
      target: a folder that does not exist or is empty.
      config_of: a name of `Protocol.configs` → that config.
      merge: the parts of low rank become part of their kernels, and quantised kernels plain ones: the target is a plain model,
        a folder of `transformers`, or a workdir where they have no such architecture.
      base: the model that a folder of PEFT is beside, if not the one that it names.
      four_bit: a folder of `transformers` gets the linear maps of layers in NF4, as bitsandbytes has them.
      step: which checkpoint of a workdir, see `training.best.place`.

    Raises:
      UserError: the source cannot be read, something of it has no name on the other side, or the target is not empty.
    """
    made = Path(target)
    if made.is_file() or (made.is_dir() and any(made.iterdir())):
        raise UserError(f"--to={target} is there already: give a new folder")
    if four_bit and (gguf_model.is_file(source) or huggingface.is_folder(Path(source))):
        raise UserError(f"--quantization is for --from=WORKDIR, and {source} is none: convert it to one first")
    folder = initialise.converted(source, step)
    if gguf_model.is_file(folder):
        return _to_workdir(folder, made, config_of, gguf_model.opened(source))
    if peft.is_adapter(folder):
        return _from_peft(folder, made, config_of, base)
    if huggingface.is_folder(folder):
        return _to_workdir(folder, made, config_of, huggingface.opened(folder))
    return _to_folder(folder, made, merge, four_bit, best.settled(folder, step))


def _to_workdir(folder: Path, workdir: Path, config_of: Callable[[str], ConfigDict], opened: tuple) -> str:
    """A workdir of what a folder or a GGUF file holds: fields, leaves, tokenizer."""
    fields, leaves, tokenizer, *_ = opened
    config = _config_for(fields, folder, config_of)
    workdir.mkdir(parents=True, exist_ok=True)
    configuration.save(config, workdir)
    if TEXT in models.build(fields, fields["vocab_size"]).protocol().reads:
        _copy_tokenizer(folder, workdir, tokenizer)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(0, _whole(leaves), config=config.to_dict())
    return f"{count(leaves)} parameters in {workdir}, a workdir"


def _config_for(fields: dict, folder: Path, config_of: Callable[[str], ConfigDict]) -> ConfigDict:
    """The config of a run that such a model could be of."""
    about = models.build(fields, fields["vocab_size"]).protocol()
    if about.head not in about.configs:
        raise UserError(f"--from={folder}: there is no config for a {fields['name']} with head {about.head!r}")
    config = config_of(about.configs[about.head]).copy_and_resolve_references()
    with config.unlocked():
        config.model = ConfigDict(fields)
        _describe_task(config, folder, about)
    return config


def _copy_tokenizer(folder: Path, workdir: Path, tokenizer: Tokenizer | None) -> None:
    for name in tokenizers.FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, workdir / name)
    if tokenizer is None:
        logging.warning("%s has no tokenizer that can be read: put a tokenizer.json into %s", folder, workdir)
    elif not (workdir / "tokenizer.json").exists():
        tokenizer.save(workdir / "tokenizer.json")


def _whole(leaves: dict[str, weights.Leaf]) -> dict:
    """What a checkpoint holds of a model, in float32, as its parameters are kept."""
    found = mapping.variables((name, np.asarray(leaf, np.float32)) for name, leaf in leaves.items())
    params = found.pop("params")
    return {"params": params} | ({"model_state": found} if found else {})


def _describe_task(config: ConfigDict, folder: Path, about: Protocol) -> None:
    """Sets what a folder of `transformers` says about its task: the length of texts, their vectors, the labels."""
    task, head, longest = config.task, about.head, about.longest
    if IMAGES in about.reads and head == "classification":
        config.data.update(foreign_task.image_keys(folder, about))
    elif head == "none" and "pooling" in task:
        found = foreign_task.recipe_of(folder) or {"pooling": "mean", "normalise": True}
        with task.unlocked():
            task.update(found)
        task.max_length = config.data.lengths.tokens = about.within(found.get("max_length", 0)).longest
    elif head in about.labelled and head != "tagging" and "max_length" in task:
        task.max_length = config.data.lengths.tokens = longest
    elif longest and task.get("max_length", 0) > longest:  # others read in windows
        task.max_length = longest
    if longest and config.data.lengths.get("tokens", 0) > longest:
        config.data.lengths.tokens = longest
    task.update(foreign_task.labels_of(folder, about))


def _to_folder(workdir: Path, folder: Path, merge: bool, four_bit: bool, step: int | str | None) -> str:
    config = configuration.read(workdir)
    tokenizer = Tokenizer.load(workdir / "tokenizer.json") if (workdir / "tokenizer.json").exists() else None
    fields = initialise.trained_fields(config, tokenizer)
    if merge and not huggingface.has_names(fields.get("name", "")):
        return _to_plain_workdir(workdir, folder, config, step)
    if not huggingface.has_names(name := fields.get("name", "")):
        known = huggingface.supported()
        raise UserError(f"--from={workdir}: transformers has no architecture for config.model.name={name}; {known}")
    vocab_size = fields["vocab_size"] = fields.get("vocab_size") or (tokenizer.vocab_size if tokenizer else 0)
    model = models.build(fields, vocab_size)
    about = model.protocol()
    if TEXT in about.reads and not (tokenizer or vocab_size and ("head" in fields or len(about.heads) == 1)):
        raise UserError(f"--from={workdir} has no tokenizer.json")
    wanted = stacking.names(mapping.shapes(model))
    if not merge and (learned := initialise.low_rank(workdir, step)):
        if four_bit:
            raise UserError("--quantization is of the whole model, and an adapter is written: give --merge")
        names = huggingface.names_of(fields)
        options, base = trainable.options(config), config.finetuning.init_from
        plan = mapping.plan(names, about.head, wanted)
        head = about.head if TEXT in about.reads else ""
        peft.write(folder, plan, learned, base=base, head=head, rslora=options.rslora, dropout=options.dropout)
        return f"{count(learned)} parameters beside {base} in {folder}, a folder of PEFT; --merge writes the whole model"
    found = stacking.separate(mapping.named(initialise.plain(workdir, step)))
    if own := sorted(set(found) - set(wanted)):
        logging.info("left out, as it is the task's and not the model's: %s", initialise.some(own))
    if missing := sorted(set(wanted) - set(found)):
        raise UserError(f"--from={workdir}: its checkpoint lacks {initialise.some(missing)}")
    variables = mapping.variables((name, found[name]) for name in wanted)
    params, labels = variables.pop("params"), tuple(config.get("task", {}).get("labels", ()))
    of_images = config.task.name in ("image_classification", "image_distillation")
    how = {"data": config.data if of_images else None, "several": of_images and config.task.get("objective") == "sigmoid"}
    how["begun"] = not initialise.was_converted(workdir)
    huggingface.save(folder, fields, params, tokenizer, model_state=variables, labels=labels, four_bit=four_bit, **how)
    if config.get("task", {}).get("name") == "similarity" and tokenizer:
        recipe.write(folder, tasks.build(config.task, tokenizer).recipe, fields["width"])
    drift = f", in four bits: {_drift(folder, found):.4f} of their length away" if four_bit else ""
    return f"{count(params)} parameters in {folder}, a folder of transformers{drift}"


def _drift(folder: Path, leaves: dict[str, np.ndarray]) -> float:
    """How far the numbers of a folder in four bits are from those it was made of: |W' - W| / |W| over all of them."""
    apart = whole = 0.0
    for name, leaf in huggingface.opened(folder).leaves.items():
        if leaf.kernel is not None:
            own = np.asarray(leaves[name], np.float64)
            apart, whole = apart + np.sum((np.asarray(leaf) - own) ** 2), whole + np.sum(own**2)
    return float(np.sqrt(apart / whole)) if whole else 0.0


def _to_plain_workdir(workdir: Path, made: Path, config: ConfigDict, step: int | str | None) -> str:
    """A workdir of the merged model, its checkpoint of step 0."""
    variables = initialise.plain(workdir, step)
    config = config.copy_and_resolve_references()
    config.finetuning.update(method="full", init_from="", quantization="", trainable=("all",))
    config.training.update({"ema": 0.0} if "ema" in config.training else {})
    made.mkdir(parents=True, exist_ok=True)
    configuration.save(config, made)
    _copy_tokenizer(workdir, made, Tokenizer.load(workdir / "tokenizer.json"))
    params = variables.pop("params")
    with Checkpoints(made / "checkpoints") as checkpoints:
        whole = {"params": params} | ({"model_state": variables} if variables else {})
        checkpoints.save(0, whole, config=config.to_dict())
    return f"{count(params)} parameters in {made}, a workdir"


def _from_peft(folder: Path, workdir: Path, config_of: Callable[[str], ConfigDict], base: str) -> str:
    """A workdir whose checkpoint of step 0 holds an adapter of PEFT, and names the base."""
    base = base or peft.read_config(folder).get("base_model_name_or_path") or ""
    if not base:
        raise UserError(f"--from={folder} does not name the model that it is beside: give --base")
    source = initialise.folder_of(base, key="--base")
    fields = initialise.described(source)
    about = models.build(fields, fields["vocab_size"]).protocol()
    if "head" in fields:
        fields["head"] = peft.head_of(folder, about.heads, fields["head"])
    if fields.get("head") in about.labelled and (labels := peft.labels_of(folder)):
        fields["labels"] = labels
    model = models.build(fields, fields["vocab_size"])
    plan = mapping.plan(huggingface.names_of(fields), model.protocol().head, mapping.shapes(model))
    adapter, tokenizer = peft.read(folder, plan), tokenizers.read(source)
    config = _config_for(fields, source, config_of)
    with config.unlocked():
        config.finetuning.update(adapter.options, init_from=str(base))
        if "labels" in config.task and len(config.task.labels) != fields.get("labels"):
            config.task.labels = tuple(f"LABEL_{i}" for i in range(fields.get("labels", 0)))
    workdir.mkdir(parents=True, exist_ok=True)
    configuration.save(config, workdir)
    if TEXT in about.reads:
        _copy_tokenizer(source, workdir, tokenizer)
    run = Experiment(config, workdir)
    state = train.first_state(run, optax.identity())
    learned = stacking.arranged(adapter.leaves, parameters.flat(state.model_params))
    pretrained = parameters.flat(initialise.pretrained(run, state))
    if missing := [name for name in parameters.flat(state.params) if name not in learned and name not in pretrained]:
        raise UserError(f"--from={folder} and its base both lack {initialise.some(missing)}")
    params = {name: jnp.asarray(learned.get(name, leaf), leaf.dtype) for name, leaf in parameters.flat(state.params).items()}
    with run.checkpoints() as checkpoints:
        saved = {"params": parameters.nest(params), "frozen": state.frozen}
        checkpoints.save(0, saved | ({"model_state": state.model_state} if state.model_state else {}), config=config.to_dict())
    return f"{count(adapter.leaves)} parameters beside {base} in {workdir}, a workdir"


def count(params: dict) -> str:
    """The number of parameters, as people write it."""
    return f"{sum(x.size for x in jax.tree.leaves(params)):,}"
