"""Folders as Hugging Face's `transformers` writes and reads them: config.json, safetensors, files of the tokenizer.

Which leaf is which is said by the `NAMES` of the model files. A leaf that no row covers is an error that lists it, on
either side.
"""

import dataclasses
import functools
import importlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from transformers_jax import models
from transformers_jax.data.images import processing
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import bitsandbytes, config_json, mapping, preparation, stacking, tokenizers, weights
from transformers_jax.layers.quantized import quantize
from transformers_jax.models.name_map import INERT, NEUTRAL, NameMap, Row, Tie, match
from transformers_jax.models.protocol import CONTINUES, IMAGES, Protocol

CONFIG = "config.json"
_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Pretrained(NamedTuple):
    """What a folder holds.

    fields: of `config.model`: `name`, the model's fields, and `vocab_size`.
    params: nested dicts of numpy arrays in the file's dtype, layers apart.
    tokenizer: None where the folder has none that can be read here.
    """

    fields: dict
    params: dict
    tokenizer: Tokenizer | None


class Opened(NamedTuple):
    """What a folder holds, its arrays unread.

    fields, tokenizer: as of `Pretrained`.
    leaves: all variables by name, see `mapping`; layers apart.
    """

    fields: dict
    leaves: dict[str, mapping.Leaf]
    tokenizer: Tokenizer | None


def is_folder(path: Path) -> bool:
    """Whether a folder is one of `transformers`."""
    try:
        return "model_type" in json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def load(path: Path) -> Pretrained:
    """The parameters of a folder, all of them in memory. Raises as `opened` does.

    Raises:
      ValueError: the model has variables beside its parameters: `opened` has all.
    """
    fields, leaves, tokenizer = opened(path)
    found = mapping.variables(mapping.streamed(leaves))
    if len(found) > 1:
        raise ValueError(f"{path} holds {', '.join(found)}, not params alone")
    return Pretrained(fields, found["params"], tokenizer)


def opened(path: Path) -> Opened:
    """The model of a folder. Its arrays are read one by one, when they are asked for.

    Raises:
      UserError: an architecture that is not supported, or a key of config.json that is not computed; weights that are missing,
        damaged or pickled; leaves that the model lacks or does not know; a vocabulary that does not fit the embedding.
    """
    config = read_config(path)
    kind = bitsandbytes.FourBitWeights if bitsandbytes.is_four_bit(config) else weights.Weights
    fields, leaves = matched(config | {bitsandbytes.KEY: None}, lambda: kind(path), path)
    fields |= normalisation(path) if "mean" in fields_of(fields["name"]) else {}
    tokenizer = tokenizers.read(path)
    if tokenizer and tokenizer.vocab_size > fields["vocab_size"]:
        raise UserError(
            f"{path}: the vocabulary has {tokenizer.vocab_size} tokens and does not fit the embedding of {fields['vocab_size']}"
        )
    return Opened(fields, leaves, tokenizer)


def matched(config: dict, weights_of: Callable[[], Any], where: Path) -> tuple[dict, dict[str, mapping.Leaf]]:
    """(fields, leaves) of the model that a config.json describes, from any file that has `transformers`' names.

    Args:
      weights_of: opens the file, once config.json is found to be of a model that is computed here; what it gives has the
        methods of `weights.Weights`: names, shape, array, part, kernel.
      where: names the file in messages.

    Raises:
      UserError: as `opened` does.
    """
    name, names, wanted = architecture(config)
    refuse_other_values(config, names)
    found = weights_of()
    there = _today(found.names(), names, wanted)
    fields, plan = _choose(config, name, names, wanted, there)
    own = {planned.theirs for planned in plan}
    for tie in names.ties():
        repeated = tie.theirs in there and tie.theirs not in own and tie.of in there
        if repeated and not np.array_equal(found.array(there[tie.theirs]), found.array(there[tie.of])):
            raise UserError(f"{where}: {tie.theirs} is not the same as {tie.of}: models that untie them are not supported")
    leaves = {}
    for planned in plan:
        leaf = there[planned.theirs]
        part, kernel = functools.partial(found.part, leaf), found.kernel(leaf)
        leaves |= mapping.leaves(planned, f"{where}: {planned.theirs}", found.shape(leaf), part, kernel)
    return fields, leaves


def save(
    path: Path,
    fields: dict,
    params: dict,
    tokenizer: Tokenizer | None = None,
    *,
    model_state: dict | None = None,
    labels: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    several: bool = False,
    shard_bytes: int = weights.SHARD_BYTES,
    four_bit: bool = False,
    begun: bool = True,
) -> None:
    """Writes a folder that `transformers` loads with nothing missing and nothing unexpected.

    Args:
      fields: of `config.model`, with `name` and `vocab_size`.
      params: the model's, nested; layers stacked or apart. They are written in their own dtype.
      model_state: other collections by name: running statistics.
      labels: names of the head's labels.
      data: config.data of a run that gives images labels: how they are prepared.
      several: whether each label is right or wrong for itself.
      four_bit: the linear maps of layers are written in NF4 with double quantisation, as bitsandbytes has them.
      begun: every text that a decoder learned from had the begin token, as in a run of ours; otherwise the tokenizer says it.

    Raises:
      UserError: a model, head or parameter that `transformers` has no name for.
    """
    module = _module(fields["name"])
    if not has_names(fields["name"]):
        raise UserError(f"config.model.name is {fields['name']!r}, which has no names in transformers: {supported()}")
    model = models.build(fields, fields["vocab_size"])
    about, described = model.protocol(), module.to_hf(model.config)
    names = next(n for n in module.NAMES if n.model_type == described["model_type"])
    if about.head not in names.heads:
        raise UserError(f"transformers has no {names.model_type} with head {about.head!r}; with {', '.join(names.heads)}")
    leaves = stacking.separate(mapping.named({"params": params, **(model_state or {})}))
    plan = mapping.plan(names, about.head, {name: x.shape for name, x in leaves.items()})
    types = {np.dtype(x.dtype).name for x in leaves.values()}
    described |= _described(about, names, labels) | {"dtype": types.pop() if len(types) == 1 else "float32"}
    if several:
        described["problem_type"] = "multi_label_classification"
    if tokenizer:
        described |= _special(tokenizer, described, names)
    path.mkdir(parents=True, exist_ok=True)
    if four_bit:
        described[bitsandbytes.KEY] = bitsandbytes.config_of(_kept_linear(plan))
    arrays = itertools.chain.from_iterable(_written(p, leaves, four_bit and _in_layers(p)) for p in plan)
    weights.write(path, itertools.chain(arrays, mapping.constants(names, about.head, plan).items()), shard_bytes)
    (path / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if IMAGES in about.reads and model.config.channels == len(processing.HALF):
        preparation.of_run(model.config, names, data).write(path)
    if tokenizer:
        prompts = CONTINUES in about.does
        how = {"longest": about.longest, "pair_types": about.token_types, "prompts": prompts, "begun": begun}
        tokenizers.write(path, tokenizer, **how)


def _written(planned: mapping.Planned, leaves: Mapping[str, Any], four_bit: bool) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a file that hold one leaf."""
    if not four_bit:
        yield planned.theirs, mapping.written(planned, [leaves[name] for name in planned.ours])
        return
    [(name, shape)] = planned.ours.items()
    inputs = len(shape) - 1 if planned.row.verb == "from_heads" else 1
    yield from bitsandbytes.to_bitsandbytes(quantize(np.asarray(leaves[name]), inputs=inputs), planned.theirs).items()


def _in_layers(planned: mapping.Planned) -> bool:
    """Whether a leaf is the matrix of a linear map in one of the layers."""
    return _linear(planned) and re.search(r"\.\d+\.", planned.theirs) is not None


def _linear(planned: mapping.Planned) -> bool:
    own = [name for name, shape in planned.ours.items() if name.endswith("kernel") and len(shape) > 1]
    return len(own) == len(planned.ours) == 1 and planned.row.verb in mapping.TURNED[1:]


def _kept_linear(plan: Iterable[mapping.Planned]) -> list[str]:
    """The modules that are linear maps outside of layers, and the softmax."""
    return sorted({p.theirs.removesuffix(".weight") for p in plan if _linear(p) and not _in_layers(p)} | {"lm_head"})


# config.json

def end_ids(path: Path, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """The tokens that end what a folder's model writes, by generation_config.json, config.json and the tokenizer."""
    found = {tokenizer.eos_id} if tokenizer else set()
    for file in (CONFIG, "generation_config.json"):
        if (path / file).is_file():
            try:
                given = json.loads((path / file).read_text(encoding="utf-8")).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise UserError(f"{path / file} is no JSON object") from error
            found |= set(given) if isinstance(given, list) else {given}
    return tuple(sorted(i for i in found if isinstance(i, int)))


def read_config(path: Path) -> dict:
    """config.json of a folder.

    Raises:
      UserError: it is missing or no JSON object.
    """
    file = path / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: {path} is no folder of transformers") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file}: a JSON object was expected")
    config_json.check(config, file)
    return config


def maps() -> dict[str, tuple[str, NameMap]]:
    """(name of the model file, its names) by model_type."""
    modules = {name: _module(name) for name in models.known()}
    return {names.model_type: (name, names) for name, module in modules.items() for names in getattr(module, "NAMES", ())}


def hf_config(fields: dict) -> dict:
    """config.json of the architecture that `config.model` with these fields is, without what says its head."""
    return _module(fields["name"]).to_hf(models.build(fields, fields["vocab_size"]).config)


def names_of(fields: dict) -> NameMap:
    """The names of the architecture that `config.model` with these fields is."""
    kind = hf_config(fields)["model_type"]
    return next(names for names in _module(fields["name"]).NAMES if names.model_type == kind)


def has_names(name: str) -> bool:
    """Whether `transformers` has an architecture for that of a model file."""
    return name in models.known() and hasattr(_module(name), "NAMES")


def supported() -> str:
    """All architectures, for a message."""
    every = [head.architecture for _, names in maps().values() for head in names.heads.values()]
    return f"supported are {', '.join(every)}"


def architecture(config: dict) -> tuple[str, NameMap, str]:
    """(name of the model file, its names, head) of a config.json.

    Raises:
      UserError: it is not supported; names it and lists what is.
    """
    kind, classes = config.get("model_type"), config.get("architectures") or []
    name, names = maps().get(kind, ("", None))
    if names is None:
        named = f"{kind!r} ({', '.join(classes) or 'no class'})"
        raise UserError(f"config.json: model_type {named} is not supported; {supported()}")
    heads = {head.architecture: key for key, head in names.heads.items()}
    if classes and classes[0] not in heads:
        raise UserError(f"config.json: the architecture {classes[0]!r} is not supported; of {kind}, {', '.join(heads)} are")
    return name, names, heads[classes[0]] if classes else "none"


def refuse_other_values(config: dict, names: NameMap) -> None:
    """Looks through config.json for keys that change numbers; one that is not known here gives a warning.

    Raises:
      UserError: a key has a value that is not computed; names both.
    """
    neutral = NEUTRAL | dict(names.neutral)
    for key, value in neutral.items():
        if config.get(key) is not None and config[key] != value:
            raise UserError(
                f"config.json: {key} is {config[key]!r}, which is not computed here; of {names.model_type} only {value!r} is"
            )
    unknown = sorted(key for key in set(config) - INERT - set(neutral) - set(names.keys) if config[key] is not None)
    if unknown:
        shown = ", ".join(f"{key}={config[key]!r}" for key in unknown)
        logging.warning("config.json: not known here and not looked at: %s", shown)


def normalisation(path: Path) -> dict:
    """The fields `mean` and `std` of a model of images, where the folder says how its images are prepared.

    Raises:
      UserError: it says so in a way that is not computed here.
    """
    if not preparation.is_said(path):
        return {}
    said = processing.ImageProcessing.read(path)
    scale = 255 * said.rescale_factor if said.do_rescale else 255  # ours are numbers of pixels divided by 255
    mean, std = (said.image_mean, said.image_std) if said.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return {"mean": [x / scale for x in mean], "std": [x / scale for x in std]}


def label_names(config: dict) -> list[str]:
    """The names of the labels in the order of the head's rows."""
    given = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels") or 2)}
    return [given[key] for key in sorted(given, key=int)]


def _described(about: Protocol, names: NameMap, labels: Sequence[str]) -> dict:
    """The keys of config.json that all models have."""
    found = {"architectures": [names.heads[about.head].architecture], "tie_word_embeddings": about.tied}
    if about.head in about.labelled:
        given = list(labels) if len(labels) == about.labels else [f"LABEL_{i}" for i in range(about.labels)]
        found |= {"id2label": {str(i): x for i, x in enumerate(given)}, "label2id": {x: i for i, x in enumerate(given)}}
    if about.head == "sequence" and about.labels == 1:
        found["problem_type"] = "regression"
    return found


def _special(tokenizer: Tokenizer, described: dict, names: NameMap) -> dict:
    """The special ids; RoBERTa's positions count from the padding's."""
    found = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    before = described.get("pad_token_id")
    if names.padded_positions and before != tokenizer.pad_id:
        raise UserError(
            f"config.model.position_offset is {before + 1}, but transformers puts position 0 of {names.model_type} at the "
            f"padding's id + 1, which is {tokenizer.pad_id + 1} with this tokenizer"
        )
    return found


# Leaves

def _today(leaves: Iterable[str], names: NameMap, head: str) -> dict[str, str]:
    """Each leaf's name as `transformers` writes it now with this head, and its name in the file.

    Older files have gamma and beta. Files without a head may have the prefix of one that has, and the other way round.
    """
    rows, found = names.rows(head), {}
    for leaf in leaves:
        now = leaf
        for old, new in _LEGACY.items():
            now = now.removesuffix(old) + new if now.endswith(old) else now
        if head == "none":
            now = now.removeprefix(names.prefix)
        elif not any(match(row, now) for row in rows) and any(match(row, names.prefix + now) for row in rows):
            now = names.prefix + now
        found[now] = leaf
    return found


def _choose(config: dict, name: str, names: NameMap, wanted: str, there: dict[str, str]) -> tuple[dict, list[mapping.Planned]]:
    """(fields, plan) of the head that config.json names; where a file has both heads of pretraining, of these.

    Of two tied leaves the file may have either: `there` has both afterwards.
    """
    own = fields_of(name)
    fields = {"name": name} | config_json.fields(config, name)
    fields |= {"labels": len(label_names(config))} if "labels" in own else {}
    heads = [wanted, "pretraining"] if wanted == "masked_lm" and "pretraining" in names.heads else [wanted]
    tried = []
    for head in heads:
        fields |= {"head": head} if "head" in own else {}
        if head == "none":
            fields |= {field: any(leaf.startswith(begin) for leaf in there) for field, begin in names.optional.items()}
        model = models.build(fields, fields["vocab_size"])
        if model.protocol().tied:
            there |= {tie.of: there[tie.theirs] for tie in names.ties() if tie.of not in there and tie.theirs in there}
        plan = mapping.plan(names, head, mapping.shapes(model))
        leaves = {planned.theirs for planned in plan}
        tried.append((dict(fields), plan, sorted(leaves - set(there)), _unused(names, head, set(there) - leaves)))
    best = next((t for t in tried[::-1] if not t[2] and not t[3]), tried[0])
    fields, plan, missing, unused = best
    _refuse_untied(config, names, models.build(fields, fields["vocab_size"]).protocol())
    if missing:
        raise UserError(f"the weights lack {len(missing)} leaves of {names.heads[wanted].architecture}: {', '.join(missing)}")
    if unknown := [leaf for leaf in unused if not names.knows(leaf)]:
        raise UserError(f"{len(unknown)} leaves of the weights have no name here: {', '.join(unknown)}")
    if layers := [leaf for leaf in unused if any(match(row, leaf) for row in names.rows(fields.get("head", wanted)))]:
        raise UserError(
            f"config.json says fewer layers than the weights have, which hold {layers[0]} and {len(layers) - 1} more leaves "
            "that the model does not: set its number of layers to theirs"
        )
    if unused:
        logging.info("leaves of other heads are left out: %s", ", ".join(unused))
    return fields, plan


def _refuse_untied(config: dict, names: NameMap, about: Protocol) -> None:
    """Raises UserError where config.json unties an output embedding that the model ties."""
    repeats = any(isinstance(row, Tie) for row in names.rows(about.head))
    if about.tied and repeats and config.get("tie_word_embeddings") is False:
        raise UserError(
            f"config.json: tie_word_embeddings is False, which is not computed here: {names.model_type} has one embedding "
            "for its input and its output"
        )


def _unused(names: NameMap, head: str, leaves: Iterable[str]) -> list[str]:
    """The leaves that are neither tied to others nor to be ignored."""
    rows = [row for row in names.rows(head) if not isinstance(row, Row)]
    return sorted(leaf for leaf in leaves if not any(match(row, leaf) for row in rows))


def fields_of(name: str) -> set[str]:
    """The fields of an architecture's `Config`."""
    return {field.name for field in dataclasses.fields(_module(name).Config)}


def _module(name: str):
    """The file of an architecture."""
    return importlib.import_module(f"{models.__name__}.{name}")
