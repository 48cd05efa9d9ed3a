"""Folders as Hugging Face's `transformers` writes and reads them: config.json, safetensors, files of the tokenizer.

Which leaf is which is said by the `NAMES` of the model files. A leaf that no row covers is an error that lists it, on
either side.
"""

import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from flax.core import meta

from transformers_jax import batch as batches
from transformers_jax import models, parameters
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import stacking, tokenizers, weights
from transformers_jax.models import encoder
from transformers_jax.models.name_map import VERBS, Ignore, NameMap, Row, Shape, regex

CONFIG = "config.json"
_LABELLED = ("sequence", "tagging", "multiple_choice")
_LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Pretrained(NamedTuple):
    """What a folder holds.

    fields: of `config.model`: `name`, the model's fields, and `vocab_size`.
    params: nested dicts of float32 numpy arrays, layers apart.
    tokenizer: None where the folder has none that can be read here.
    """

    fields: dict
    params: dict
    tokenizer: Tokenizer | None


def is_folder(path: Path) -> bool:
    """Whether a folder is one of `transformers`."""
    try:
        return "model_type" in json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def load(path: Path) -> Pretrained:
    """The model of a folder.

    Raises:
      UserError: an architecture that is not supported; weights that are missing, damaged or pickled; leaves that the model
        lacks or does not know; a vocabulary that does not fit the embedding.
    """
    config = read_config(path)
    name, names, wanted = architecture(config)
    found = weights.Weights(path)
    there = {_today(leaf, names, wanted): leaf for leaf in found.names()}
    for tie in names.ties():  # whichever of the two was written
        if tie.of not in there and tie.theirs in there:
            there[tie.of] = there[tie.theirs]
    fields, plan = _choose(config, name, names, wanted, there)
    params = {}
    for row, theirs, ours in plan:
        params |= _read(found.array(there[theirs]), f"{path}: {theirs}", row, ours)
    for tie in names.ties():
        if tie.theirs in there and not np.array_equal(found.array(there[tie.theirs]), found.array(there[tie.of])):
            raise UserError(f"{path}: {tie.theirs} is not the same as {tie.of}: models that untie them are not supported")
    tokenizer = tokenizers.read(path)
    if tokenizer and tokenizer.vocab_size > fields["vocab_size"]:
        raise UserError(
            f"{path}: the vocabulary has {tokenizer.vocab_size} tokens and does not fit the embedding of {fields['vocab_size']}"
        )
    return Pretrained(fields, parameters.nest(params), tokenizer)


def save(
    path: Path,
    fields: dict,
    params: dict,
    tokenizer: Tokenizer | None = None,
    *,
    labels: Sequence[str] = (),
    shard_bytes: int = weights.SHARD_BYTES,
) -> None:
    """Writes a folder that `transformers` loads with nothing missing and nothing unexpected.

    Args:
      fields: of `config.model`, with `name` and `vocab_size`.
      params: the model's, nested; layers stacked or apart.
      labels: names of the head's labels.

    Raises:
      UserError: a model, head or parameter that `transformers` has no name for.
    """
    module = importlib.import_module(f"{models.__name__}.{fields['name']}")
    if not hasattr(module, "NAMES"):
        raise UserError(f"config.model.name is {fields['name']!r}, which has no names in transformers: {supported()}")
    config = module.Config(**{key: value for key, value in fields.items() if key != "name"})
    described = module.to_hf(config)
    names = next(n for n in module.NAMES if n.model_type == described["model_type"])
    if config.head not in names.heads:
        raise UserError(f"transformers has no {names.model_type} with head {config.head!r}; with {', '.join(names.heads)}")
    leaves = stacking.separate(parameters.flat(params))
    plan = _plan(names, config.head, {name: x.shape for name, x in leaves.items()})
    described |= _described(config, names, labels)
    if tokenizer:
        described |= _special(tokenizer, described, names)
    path.mkdir(parents=True, exist_ok=True)
    weights.write(path, ((theirs, _write(row, [leaves[n] for n in ours])) for row, theirs, ours in plan), shard_bytes)
    (path / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if tokenizer:
        tokenizers.write(path, tokenizer, longest=encoder.longest(config), pair_types=config.token_types > 1)


# config.json

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
    return config


def maps() -> dict[str, tuple[str, NameMap]]:
    """(name of the model file, its names) by model_type."""
    modules = {name: importlib.import_module(f"{models.__name__}.{name}") for name in models.known()}
    return {names.model_type: (name, names) for name, module in modules.items() for names in getattr(module, "NAMES", ())}


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


def label_names(config: dict) -> list[str]:
    """The names of the labels in the order of the head's rows."""
    given = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    return [given[key] for key in sorted(given, key=int)]


def _described(config, names: NameMap, labels: Sequence[str]) -> dict:
    """The keys of config.json that all models have."""
    head = config.head
    found = {"architectures": [names.heads[head].architecture], "dtype": "float32", "tie_word_embeddings": True}
    if head in _LABELLED:
        given = list(labels) if len(labels) == config.labels else [f"LABEL_{i}" for i in range(config.labels)]
        found |= {"id2label": {str(i): x for i, x in enumerate(given)}, "label2id": {x: i for i, x in enumerate(given)}}
    if head == "sequence" and config.labels == 1:
        found["problem_type"] = "regression"
    return found


def _special(tokenizer: Tokenizer, described: dict, names: NameMap) -> dict:
    """The special ids; RoBERTa's positions count from the padding's."""
    found = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    before = described.get("pad_token_id")
    if names.prefix == "roberta." and before != tokenizer.pad_id:
        raise UserError(
            f"config.model.position_offset is {before + 1}, but transformers puts position 0 of {names.model_type} at the "
            f"padding's id + 1, which is {tokenizer.pad_id + 1} with this tokenizer"
        )
    return found


# Leaves

def shapes(model) -> dict[str, Shape]:
    """The shapes of all parameters of a model by name; nothing is computed."""
    fields = {name: np.zeros((2,) * len(field.axes), field.dtype) for name, field in batches.FIELDS.items()}
    found = jax.eval_shape(lambda: model.init(jax.random.key(0), fields))["params"]
    return {name: x.shape for name, x in parameters.flat(meta.unbox(found)).items()}


def _today(leaf: str, names: NameMap, head: str) -> str:
    """A leaf's name as `transformers` writes it now: older files have gamma and beta, or a prefix where there is no head."""
    for old, new in _LEGACY.items():
        leaf = leaf.removesuffix(old) + new if leaf.endswith(old) else leaf
    return leaf.removeprefix(names.prefix) if head == "none" else leaf


def _choose(config: dict, name: str, names: NameMap, wanted: str, there: Iterable[str]) -> tuple[dict, list]:
    """(fields, plan) of the head that config.json names; where a file has both heads of pretraining, of these."""
    module = importlib.import_module(f"{models.__name__}.{name}")
    fields = {"name": name} | module.from_hf(config) | {"labels": len(label_names(config))}
    heads = [wanted, "pretraining"] if wanted == "masked_lm" and "pretraining" in names.heads else [wanted]
    there, tried = set(there), []
    for head in heads:
        fields |= {"head": head}
        if head == "none":
            fields["pooler"] = any(leaf.startswith("pooler") for leaf in there)
        model = models.build(fields, fields["vocab_size"])
        plan = _plan(names, head, shapes(model))
        leaves = {theirs for _, theirs, _ in plan}
        tried.append((dict(fields), plan, sorted(leaves - there), _unused(names, head, there - leaves)))
    best = next((t for t in tried[::-1] if not t[2] and not t[3]), tried[0])
    fields, plan, missing, unused = best
    if missing:
        raise UserError(f"the weights lack {len(missing)} leaves of {names.heads[wanted].architecture}: {', '.join(missing)}")
    if unknown := [leaf for leaf in unused if not names.knows(leaf)]:
        raise UserError(f"{len(unknown)} leaves of the weights have no name here: {', '.join(unknown)}")
    if unused:
        logging.info("leaves of other heads are left out: %s", ", ".join(unused))
    return fields, plan


def _unused(names: NameMap, head: str, leaves: Iterable[str]) -> list[str]:
    """The leaves that are neither tied to others nor to be ignored."""
    rows = [row for row in names.rows(head) if not isinstance(row, Row)]
    covered = [regex(row.pattern if isinstance(row, Ignore) else row.theirs, row).fullmatch for row in rows]
    return sorted(leaf for leaf in leaves if not any(match(leaf) for match in covered))


def _plan(names: NameMap, head: str, ours: dict[str, Shape]) -> list[tuple[Row, str, dict[str, Shape]]]:
    """(row, their name, our shapes by name) of every parameter, layers apart.

    Raises:
      UserError: parameters that no row covers.
    """
    ours = {name: tuple(shape) for name, shape in stacking.names(ours).items()}
    rows = [(row, [regex(pattern) for pattern in row.names()]) for row in names.rows(head) if isinstance(row, Row)]
    plan, covered = [], set()
    for name in ours:
        for row, patterns in rows:
            if match := patterns[0].fullmatch(name):
                parts = [pattern.format(**match.groupdict()) for pattern in row.names()]
                plan.append((row, row.theirs.format(**match.groupdict()), {part: ours[part] for part in parts}))
                covered.update(parts)
    if left := sorted(set(ours) - covered):
        raise UserError(f"{len(left)} parameters have no name in {names.heads[head].architecture}: {', '.join(left)}")
    return plan


def _read(array: np.ndarray, where: str, row: Row, ours: dict[str, Shape]) -> dict[str, np.ndarray]:
    """Our arrays of one leaf."""
    verb = VERBS[row.verb]
    first = verb.theirs(next(iter(ours.values())))
    wanted = (first[0] * len(ours), *first[1:])
    if array.shape != wanted:
        raise UserError(f"{where} has shape {array.shape}; by config.json it should have {wanted}")
    parts = np.split(array, len(ours)) if len(ours) > 1 else [array]
    return {
        name: np.ascontiguousarray(verb.read(part, shape), np.float32)
        for part, (name, shape) in zip(parts, ours.items(), strict=True)
    }


def _write(row: Row, ours: Sequence[np.ndarray]) -> np.ndarray:
    """One leaf from our arrays."""
    parts = [VERBS[row.verb].write(np.asarray(array, np.float32)) for array in ours]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
