"""How a text becomes a vector, as the files of sentence-transformers beside an encoder's weights say."""

import json
from pathlib import Path
from typing import Any

from transformers_jax.errors import UserError
from transformers_jax.layers.pooling import Recipe

MODULES, POOLING, WINDOW = "modules.json", "config.json", "sentence_bert_config.json"
FILES = (MODULES, f"*_Pooling/{POOLING}", WINDOW)
"""Patterns of the files."""

_MODES = {
    "pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}  # fmt: skip


def read(folder: Path) -> Recipe:
    """What the files in a folder say; the mean, normalised, where there are none.

    Raises:
      UserError: a file that is damaged, or a kind of pooling or module that is not supported.
    """
    if not (folder / MODULES).is_file():
        return Recipe()
    kinds = {str(module.get("type", "")).rpartition(".")[2]: module for module in _json(folder / MODULES)}
    if unknown := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise UserError(f"{folder / MODULES}: a module {unknown[0]} is not supported; Transformer, Pooling and Normalize are")
    recipe = Recipe(normalise="Normalize" in kinds)
    if "Pooling" in kinds:
        file = folder / kinds["Pooling"].get("path", "1_Pooling") / POOLING
        chosen = [key for key, on in _json(file).items() if key.startswith("pooling_mode_") and on]
        if len(chosen) != 1 or chosen[0] not in _MODES:
            raise UserError(f"{file}: {' and '.join(chosen) or 'no pooling'} is not supported; one of {', '.join(_MODES)} is")
        recipe = recipe._replace(pooling=_MODES[chosen[0]])
    window = folder / WINDOW
    return recipe._replace(max_length=_json(window).get("max_seq_length") or 0) if window.is_file() else recipe


def write(folder: Path, recipe: Recipe, width: int) -> None:
    """Writes the files into a folder of `transformers`, of an encoder with vectors of this width."""
    kinds = ["Transformer", "Pooling", *["Normalize"] * recipe.normalise]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    pooling = {"word_embedding_dimension": width} | {mode: name == recipe.pooling for mode, name in _MODES.items()}
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    _write(folder / MODULES, modules)
    _write(folder / paths[1] / POOLING, pooling)
    _write(folder / WINDOW, {"max_seq_length": recipe.max_length or None, "do_lower_case": False})


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing, though {MODULES} names it") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
