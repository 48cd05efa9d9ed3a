"""A foreign config.json's values: those that every architecture has, and the fields of a model that it gives, each looked at
before anything is computed with it, so that an odd one ends in one line that names its key."""

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers_jax import config_values, models
from transformers_jax.errors import UserError

_ODD = (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError, OverflowError)
"""Errors of arithmetic with what is no number, or no list."""


def check(config: Mapping[str, Any], file: Path) -> None:
    """Checks the keys that are read of every architecture.

    Raises:
      UserError: one has a value that it cannot have; names the file, the key and the value.
    """
    kind, classes, count = config.get("model_type"), config.get("architectures"), config.get("num_labels")
    if kind is not None and not isinstance(kind, str):
        raise UserError(f"{file}: model_type is {kind!r}, no text")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise UserError(f"{file}: architectures is {classes!r}, no list of names")
    if count is not None and not _is_whole(count, 1):
        raise UserError(f"{file}: num_labels is {count!r}: give 1 or more")
    for key in ("pad_token_id", "bos_token_id"):
        if config.get(key) is not None and not _is_whole(config[key], -1):
            raise UserError(f"{file}: {key} is {config[key]!r}, no id of a token")
    labels = config.get("id2label")
    if labels is None:
        return
    wanted = f"{file}: id2label is {_shown(labels)}; it has a name for each number, {{'0': 'neg', '1': 'pos'}}"
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
        raise UserError(wanted)
    try:
        numbers = sorted(int(key) for key in labels)
    except (TypeError, ValueError) as error:
        raise UserError(wanted) from error
    if numbers != list(range(len(labels))):
        raise UserError(wanted)


def fields(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of a model's `Config` from a config.json, as its `from_hf` reads them, each of its own type and range.

    Args:
      name: of the model file.

    Raises:
      UserError: a value that cannot be; names its key.
    """
    module = importlib.import_module(f"{models.__name__}.{name}")
    kinds = typing.get_type_hints(module.Config)
    theirs = _keys(module)
    for ours, key in theirs.items():
        _check_one(key, config.get(key), ours, kinds, name)
    try:
        found = module.from_hf(dict(config))
    except _ODD as error:
        null = sorted(key for key, value in config.items() if value is None and key in {*theirs.values(), "pad_token_id"})
        hint = f"; null is {', '.join(null)}" if null else ""
        raise UserError(f"config.json: a value is not of its key's kind ({error}){hint}") from error
    for ours, value in found.items():
        _check_one(theirs.get(ours, f"what gives {ours}"), value, ours, kinds, name)
    return found


def _check_one(key: str, value: Any, ours: str, kinds: Mapping[str, Any], name: str) -> None:
    """Raises UserError for the value of a key that gives our field `ours`; null is another's business."""
    kind = kinds.get(ours)
    if value is None or kind not in (int, float, bool):
        return
    rule = config_values.rule_of(f"model.{ours}", value, model=name)
    right = {int: _is_whole(value, None), float: _is_number(value), bool: isinstance(value, bool)}[kind]
    if not right:
        wanted = {int: "whole number", float: "number", bool: "true or false"}[kind]
        raise UserError(f"config.json: {key} is {_shown(value)}, no {wanted}")
    if rule is not None and not rule.allows(value):
        raise UserError(f"config.json: {key} is {_shown(value)}: {rule.says()}")


def _keys(module: ModuleType) -> dict[str, str]:
    """Our fields with their keys in config.json, as far as a model file lists them."""
    known = {field.name for field in dataclasses.fields(module.Config)}
    return {ours: key for key, ours in getattr(module, "_FIELDS", {}).items() if ours in known}


def _is_whole(value: Any, least: int | None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:80] + "…"
