"""Where the parameters come from that training starts with: another model's, as far as they fit.

1. a folder of `transformers`, or a GGUF file,
2. a workdir of ours, its best model where that is kept, else its newest checkpoint,
3. a name on the Hugging Face hub, where `huggingface_hub` is installed and there is a network.

What is said of a folder here goes for a GGUF file, too.
"""

import contextlib
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from transformers_jax import config as configuration
from transformers_jax import models, parameters, tasks
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.files import write_whole
from transformers_jax.finetuning import lora
from transformers_jax.finetuning.adapters import has_adapters
from transformers_jax.finetuning.fingerprint import fingerprint
from transformers_jax.finetuning.quantization import quantized_like
from transformers_jax.finetuning.trainable import HEAD
from transformers_jax.interchange import (
    config_json,
    gguf_model,
    huggingface,
    mapping,
    peft,
    recipe,
    stacking,
    tokenizers,
    weights,
)
from transformers_jax.layers.quantized import is_quantized
from transformers_jax.runs import label_rows
from transformers_jax.training import best
from transformers_jax.training.checkpoint import Checkpoints

CHOOSES = r"^(classifier|choice)(/|$)"
"""Parameters of a head that mean something else under another head, though their shapes may be the same."""

CUT = r"^(embeddings/word|lm_bias|embeddings/position/embedding)$"
"""Tables of which a model may take the first rows: pretrained ones have rows to spare."""

_HUB = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


def initial(
    path: str,
    model,
    tokenizer: Tokenizer | None = None,
    *,
    labels: Sequence[str] = (),
    only: Sequence[int] | None = None,
    complete: bool = False,
) -> dict:
    """The parameters of `model` that a pretrained one has, as nested dicts of arrays or unread leaves; heads may be missing.

    Running statistics are among them, as "batch_stats:…" (see `interchange.mapping`). What is newly initialised and what is
    left out is logged.

    Args:
      path: a folder of `transformers`, a GGUF file, a workdir, or a name on the hub.
      model: a Flax module that takes a batch.
      tokenizer: the model's, to be compared with the pretrained one's.
      labels: of the model's head, in the order of its rows. A pretrained head's rows are taken by their labels' names, and
        where one is missing the head begins anew, with a warning.
      only: numbers of the pretrained layers that are taken; they become layers 0, 1, …
      complete: no head may be missing either.

    Raises:
      UserError: nothing to read there, weights that cannot be read, other shapes, another vocabulary, or parameters missing
        that are not a head's.
    """
    folder = folder_of(path)
    found, theirs, head = read(folder)
    if head != model.protocol().head:
        found = {name: array for name, array in found.items() if not re.match(CHOOSES, name)}
    if tokenizer and theirs and theirs.fingerprint() != tokenizer.fingerprint():
        raise UserError(
            f"--init_from={path}: its vocabulary is not that of this run; set config.tokenizer.path={folder} to take it over"
        )
    if labels:
        found = label_rows.by_label(found, functools.partial(label_rows.names_of, folder), labels, path)
    wanted = mapping.shapes(model)
    found = found if only is None else stacking.chosen(found, only)
    found = stacking.arranged(found, wanted)
    taken, other = {}, []
    fitted = getattr(model, "fitted", lambda name, array, shape: array)  # a model of images interpolates positions
    for name in [name for name in found if name in wanted]:
        taken[name] = fitted(name, _cut(name, found[name], wanted[name]), wanted[name])
        if taken[name].shape != wanted[name]:
            other.append(f"{name} {taken.pop(name).shape} there, {wanted[name]} here")
    new = [name for name in wanted if name not in taken]
    if wrong := [text for text in other if not re.match(HEAD, text.split()[0])]:
        raise UserError(f"--init_from={path} does not fit config.model: {some(wrong)}{_hint(wrong)}")
    if missing := [name for name in new if complete or not re.match(HEAD, name)]:
        raise UserError(f"--init_from={path} lacks parameters of config.model: {some(missing)}")
    size = sum(x.size for x in taken.values())
    logging.info("%s parameters from %s; newly initialised: %s", f"{size:,}", path, some(new) or "none")
    if left := [name for name in found if name not in wanted]:
        logging.info("left out: %s", some(left))
    return parameters.nest(taken)


def pretrained(run, state) -> dict:
    """What an experiment begins with, as `initial` gives it: its task's own, or config.finetuning.init_from's; {} for neither.

    Args:
      state: its abstract state.

    Raises:
      UserError: as `initial` does; or a parameter that does not learn is not there.
    """
    options = run.config.get("finetuning", {})
    load = functools.partial(initial, tokenizer=run.tokenizer, labels=run.task.label_names)
    own = run.task.initial(run.model, load)
    if own is not None:
        return own
    if not options.get("init_from") or options.get("fresh"):
        return {}
    found = load(options.init_from, run.model)
    there = parameters.flat(found)
    if new := [name for name in parameters.flat(state.frozen) if name not in there and not lora.LEAF.search(name)]:
        raise UserError(
            f"--init_from={options.init_from} lacks what does not learn here: {some(new)}; let it learn by "
            "config.finetuning.trainable"
        )
    return found


def frozen(run, state) -> dict:
    """What does not learn of an experiment that reads it elsewhere, on its devices; constants of finetuning stay shapes.

    Args:
      state: its abstract state.
    """
    names = parameters.flat(state.frozen)
    found = parameters.flat(pretrained(run, state))
    given = placed({name: leaf for name, leaf in found.items() if name in names}, {"params": state.frozen})
    return parameters.nest(names | parameters.flat(given["params"]))


def fingerprint_of(path: str, note: Path | None = None) -> str:
    """What tells the model at config.finetuning.init_from from another, see `finetuning.fingerprint`.

    Args:
      note: a file that remembers it: foreign files that have the names, sizes and times that it says are not read again.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    folder = folder_of(path, key="config.finetuning.init_from")
    stamps = _stamps(folder)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no note, or none that can be read
        said = json.loads(note.read_text(encoding="utf-8")) if note and stamps else {}
        if stamps and said["files"] == stamps:
            return str(said["fingerprint"])
    found = fingerprint(read(folder)[0])
    if note and stamps and jax.process_index() == 0:
        with contextlib.suppress(OSError):  # a workdir that cannot be written, or is not there yet
            write_whole(note, json.dumps({"files": stamps, "fingerprint": found}))
    return found


def _stamps(folder: Path) -> list[list]:
    """Path, size and time of the files that make up a foreign model; none of a workdir."""
    if not is_foreign(folder):
        return []
    files = [folder] if gguf_model.is_file(folder) else [folder / huggingface.CONFIG, *sorted(folder.glob("*.safetensors*"))]
    return [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def placed(pretrained: dict, wanted: dict[str, dict]) -> dict[str, dict]:
    """Pretrained parameters as a model's are to be: leaf after leaf is read, quantised if it is to be, and sent to its devices.

    Args:
      pretrained: nested, as `initial` gives it, or by name.
      wanted: {"params": …}, and "batch_stats" where the model has running statistics, as ShapeDtypeStructs with their
        shardings.

    Returns:
      Those of the wanted variables that are pretrained.
    """
    new, found = parameters.flat(pretrained), {}
    for name, like in mapping.named(wanted).items():
        if name in new:
            found[name] = _placed(new.pop(name), like)
    if new:
        raise ValueError(f"not parameters of the model: {', '.join(new)}")
    return mapping.variables(found)


def _placed(leaf, like):
    if not is_quantized(like):
        return mapping.on_devices(leaf, like)
    return jax.tree.map(lambda x, own: jax.device_put(x, own.sharding), quantized_like(leaf, like), like)


def folder_of(path: str, key: str = "--init_from") -> Path:
    """The folder, or the GGUF file, of a path or of a name on the hub, which is fetched.

    Args:
      key: of the command line, for messages.

    Raises:
      UserError: there is no such folder, and no such name can be fetched.
    """
    folder = Path(path)
    if folder.is_file():
        if gguf_model.is_file(folder):
            return folder
        weights.refuse_pickle(folder)
        raise UserError(f"{key}={path} is a file; give the folder that holds config.json, or a .gguf file")
    if folder.is_dir():
        return folder
    if not _HUB.fullmatch(str(path)):
        raise UserError(f"{key}={path}: no such folder")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{key}={path}: no such folder; for a name on the hub install huggingface_hub") from error
    files = ["*.safetensors", "*.safetensors.index.json", huggingface.CONFIG, *tokenizers.FILES, *recipe.FILES]
    files += ["*processor_config.json"]  # of images
    try:
        return Path(huggingface_hub.snapshot_download(str(path), allow_patterns=files))
    except Exception as error:  # of the library, the network or the file system
        reason = str(error).partition("\n")[0]
        raise UserError(f"{key}={path}: no such folder, and the hub does not give it: {reason}") from error


def converted(source: str, step: int | str | None) -> Path:
    """What experiments.convert reads: `folder_of` --from, of which --step may choose a checkpoint.

    Raises:
      UserError: there is none, or a step is given of what is no workdir.
    """
    folder = Path(source) if gguf_model.is_file(source) else folder_of(source, key="--from")
    if step is not None and (is_foreign(folder) or peft.is_adapter(folder)):
        raise UserError(f"--step={step} is for workdirs, and --from={source} is none")
    return folder


def was_converted(workdir: Path) -> bool:
    """Whether a workdir is one that experiments.convert has made: it has a checkpoint, and nothing was measured in it."""
    return (workdir / "checkpoints" / "0").is_dir() and not (workdir / "metrics.jsonl").exists()


def is_foreign(folder: Path) -> bool:
    """Whether the model in a folder is not a workdir's of ours."""
    return gguf_model.is_file(folder) or huggingface.is_folder(folder)


def fields_of(folder: Path) -> dict:
    """`name` and the other keys of config.model of the model in a folder; no weights are read.

    Raises:
      UserError: it is neither a folder of `transformers` nor a workdir, or of another architecture.
    """
    if gguf_model.is_file(folder):
        return gguf_model.weights(folder)[0]
    if not huggingface.is_folder(folder):
        if not (folder / configuration.FILE).is_file():
            raise UserError(f"--init_from={folder} has no {configuration.FILE}: give a folder of transformers or a workdir")
        return dict(configuration.read(folder).get("model", {}))
    described = huggingface.read_config(folder)
    name, _, _ = huggingface.architecture(described)
    fields = {"name": name} | config_json.fields(described, name)
    return fields | (huggingface.normalisation(folder) if "mean" in huggingface.fields_of(name) else {})


def described(folder: Path) -> dict:
    """`fields_of`, with the head and the size of the vocabulary that the model has."""
    if gguf_model.is_file(folder):
        return gguf_model.weights(folder)[0]
    if huggingface.is_folder(folder):
        return dict(huggingface.opened(folder).fields)
    tokenizer = tokenizers.read(folder)
    fields = trained_fields(configuration.read(folder), tokenizer)
    return fields | {"vocab_size": fields.get("vocab_size") or (tokenizer.vocab_size if tokenizer else 0)}


def trained_fields(config: ConfigDict, tokenizer: Tokenizer | None) -> dict:
    """The keys of a workdir's config.model with what its task asks for, the head: what its checkpoints are of."""
    fields = dict(config.get("model", {}))
    if "head" in fields or tokenizer is None and tasks.named(config.task.name).reads == "text":  # it may say so itself
        return fields
    return fields | tasks.build(config.task, tokenizer, config.data).model_fields()


def module_of(path: str, fields: dict) -> nn.Module:
    """The module of a pretrained model, without its parameters.

    Args:
      path: a folder of `transformers`, a workdir, or a name on the hub.
      fields: of its config that are to be others: the head.

    Raises:
      UserError: nothing to read there, or an architecture that is not supported.
    """
    folder = folder_of(path)
    found = fields_of(folder)
    if not found.get("vocab_size") and (folder / "tokenizer.json").exists():  # a model of images has none
        found |= {"vocab_size": Tokenizer.load(folder / "tokenizer.json").vocab_size}
    return models.build(found | fields, found.get("vocab_size", 0))


def read(folder: Path) -> tuple[dict[str, np.ndarray | weights.Leaf], Tokenizer | None, str]:
    """(leaves by name, layers apart; tokenizer; the model's head) of a folder of `transformers` or a workdir.

    What lies in files of `transformers` or of GGUF is read when it is asked for.

    Raises:
      UserError: it is neither, or cannot be read.
    """
    if is_foreign(folder):
        opened = gguf_model.opened if gguf_model.is_file(folder) else huggingface.opened
        fields, leaves, tokenizer = opened(folder)[:3]
        return leaves, tokenizer, models.build(fields, fields["vocab_size"]).protocol().head
    if not (folder / configuration.FILE).is_file():
        raise UserError(f"{folder}: no {configuration.FILE}: neither a folder of transformers nor a workdir")
    config, tokenizer = configuration.read(folder), tokenizers.read(folder)
    variables = plain(folder)
    model = models.build(trained_fields(config, tokenizer), tokenizer.vocab_size if tokenizer else 0)
    return stacking.separate(mapping.named(variables)), tokenizer, model.protocol().head


def plain(folder: Path, step: int | str | None = None) -> dict[str, dict]:
    """The variables of a workdir's model as numpy arrays: {"params": …, and "batch_stats" where there are any}.

    Parts of low rank are in their kernels, and what was quantised is an array.

    Args:
      step: which of its checkpoints, see `training.best.place`.

    Raises:
      UserError: the checkpoint cannot be read, or has Houlsby's layers, which are no part of a plain model.
    """
    from transformers_jax.runs.experiment import Experiment

    chosen, number = best.place(folder, step)
    with Checkpoints(chosen) as checkpoints:
        if checkpoints.saved_base(number) is None:
            state = checkpoints.restore_params(number)
            variables = {"params": parameters.merge(state["params"], state["frozen"]), "model_state": state["model_state"]}
        else:
            step = "best" if chosen.name == best.FOLDER else step
            variables = Experiment(configuration.read(folder), folder).trained(step=step)
    if has_adapters(variables["params"]):
        raise UserError(f"{folder} has Houlsby's adapters, which cannot be merged into a plain model")
    return jax.tree.map(np.asarray, {"params": lora.merged(variables["params"]), **variables["model_state"]})


def low_rank(workdir: Path, step: int | str | None = None) -> dict[str, np.ndarray] | None:
    """What a workdir learned beside its base, layers apart, with the scales of its parts of low rank; None without such parts.

    Raises:
      UserError: it has such parts, and no base that they could be apart from.
    """
    chosen, number = best.place(workdir, step)
    with Checkpoints(chosen) as checkpoints:
        state, base = checkpoints.restore_params(number), checkpoints.saved_base(number)
    if not lora.has_parts(state["params"]):
        return None
    if base is None:
        raise UserError(f"--from={workdir} holds its base and parts of low rank in one: give --merge")
    return stacking.separate(parameters.flat(parameters.merge(state["params"], state["frozen"])))


def _cut(name: str, array: np.ndarray | weights.Leaf, shape: tuple[int, ...]) -> np.ndarray | weights.Leaf:
    return array[: shape[0]] if re.match(CUT, name) and len(shape) == array.ndim else array


def _hint(wrong: Sequence[str]) -> str:
    """What to do about the first wrong shape."""
    if wrong[0].startswith("embeddings/word"):
        return ": the vocabulary does not fit the embedding"
    if wrong[0].startswith("embeddings/position"):
        return ": lower config.model.max_length"
    return ""


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
