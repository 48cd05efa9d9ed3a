"""How a text becomes a vector, as the files of sentence-transformers beside an encoder's weights say: those of today and the
older ones.

  modules.json                            the modules: Transformer, Pooling, maybe Normalize
  sentence_bert_config.json               max_seq_length, do_lower_case
  1_Pooling/config.json                   the pooling, and whether it is of the prompt too
  config_sentence_transformers.json       prompts, and by what vectors are compared
  tokenizer_config.json                   model_max_length, the length where max_seq_length is not said

What is not computed here is refused by name.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers_jax.errors import UserError
from transformers_jax.layers.pooling import SIMILARITIES, Recipe

MODULES, POOLING, PROMPTS = "modules.json", "config.json", "config_sentence_transformers.json"
WINDOWS = tuple(f"sentence_{k}_config.json" for k in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta"))
FILES = (MODULES, f"*_Pooling/{POOLING}", f"*_Normalize/{POOLING}", *WINDOWS, PROMPTS)
"""Patterns of the files."""

ORDER = ("Transformer", "Pooling", "Normalize")
ENDLESS = 10**9
"""A longest input of so many tokens is none."""

_MODES = {
    "cls": "first", "mean": "mean", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt_len", "weightedmean": "weighted_mean",
    "lasttoken": "last",
}  # fmt: skip
_OLDER = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_OUTPUT = "last_hidden_state"


def is_said(folder: Path) -> bool:
    """Whether a folder has such files."""
    return (folder / MODULES).is_file()


def read(folder: Path) -> Recipe:
    """What the files in a folder say; the mean, normalised, where there are none.

    Raises:
      UserError: a file that is damaged, or a kind of pooling or module that is not supported.
    """
    if not is_said(folder):
        return Recipe()
    modules = _json(folder / MODULES, list)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
    if unknown := [kind for kind in kinds if kind not in ORDER]:
        raise UserError(f"{folder / MODULES}: a module {unknown[0]} is not supported; {', '.join(ORDER)} are")
    if tuple(kinds) not in (ORDER, ORDER[:2]):
        raise UserError(f"{folder / MODULES}: the modules are {', '.join(kinds) or 'none'}; supported are {', '.join(ORDER)}")
    places = {kind: module.get("path") or "" for kind, module in zip(kinds, modules, strict=True)}
    if places["Transformer"]:
        raise UserError(f"{folder / MODULES}: the weights are in {places['Transformer']}: give that folder's files beside it")
    recipe = _pooling(folder / places["Pooling"] / POOLING)
    if "Normalize" in kinds:
        _check_normalize(folder / places["Normalize"] / POOLING)
    recipe = _window(folder, recipe)._replace(normalise="Normalize" in kinds)
    file = folder / PROMPTS
    return _prompts(file, recipe) if file.is_file() else recipe


def write(folder: Path, recipe: Recipe, width: int) -> None:
    """Writes the files into a folder of `transformers`, of an encoder with vectors of this width, in the form that all
    versions of sentence-transformers read."""
    kinds = ORDER if recipe.normalise else ORDER[:2]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    pooling = {"word_embedding_dimension": width} | {key: _MODES[mode] == recipe.pooling for key, mode in _OLDER.items()}
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    _write(folder / MODULES, modules)
    _write(folder / paths[1] / POOLING, pooling | {"include_prompt": recipe.pool_prompt})
    _write(folder / WINDOWS[0], {"max_seq_length": recipe.max_length or None, "do_lower_case": recipe.lowercase})
    prompts = {"prompts": dict(recipe.prompts), "default_prompt_name": recipe.prompt or None}
    _write(folder / PROMPTS, prompts | {"similarity_fn_name": recipe.similarity})


def _pooling(file: Path) -> Recipe:
    """The pooling that a file says."""
    given = _json(file, dict)
    older = [mode for key, mode in _OLDER.items() if given.get(key)]
    chosen = given.get("pooling_mode", older)
    chosen = [chosen] if isinstance(chosen, str) else chosen
    known = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *_OLDER}
    _refuse_others(file, given, known)
    if not isinstance(chosen, list) or len(chosen) != 1 or chosen[0] not in _MODES:
        shown = " and ".join(map(str, chosen)) if isinstance(chosen, list) else repr(chosen)
        raise UserError(f"{file}: the pooling {shown or 'none'} is not supported; one of {', '.join(_MODES)} is")
    return Recipe(pooling=_MODES[chosen[0]], pool_prompt=_flag(file, given, "include_prompt", True))


def _check_normalize(file: Path) -> None:
    """Refuses what another Normalize than that of the vector is."""
    given = _json(file, dict) if file.is_file() else {}
    for key in ("module_input_name", "module_output_name"):
        if given.get(key, "sentence_embedding") != "sentence_embedding":
            raise UserError(f"{file}: {key} is {given[key]!r}; only sentence_embedding is supported")


def _window(folder: Path, recipe: Recipe) -> Recipe:
    """Length and case of texts."""
    file = next((folder / name for name in WINDOWS if (folder / name).is_file()), None)
    given = _json(file, dict) if file else {}
    modality = {"text": {"method": "forward", "method_output_name": _OUTPUT}}
    wanted = {"transformer_task": "feature-extraction", "modality_config": modality, "module_output_name": "token_embeddings"}
    for key, value in wanted.items():
        if given.get(key, value) not in (value, None):
            raise UserError(f"{file}: {key} is {given[key]!r}; only {value!r} is supported")
    if file:
        _refuse_others(file, given, {*wanted, "max_seq_length", "do_lower_case"})
    longest = _length(file, given, "max_seq_length")
    beside = folder / "tokenizer_config.json"
    if not longest and beside.is_file():
        longest = _length(beside, _json(beside, dict), "model_max_length")
    return recipe._replace(max_length=longest, lowercase=_flag(file, given, "do_lower_case", False))


def _prompts(file: Path, recipe: Recipe) -> Recipe:
    """Prompts, and how vectors are compared."""
    given = _json(file, dict)
    kind = given.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise UserError(f"{file}: model_type is {kind!r}; only SentenceTransformer is supported")
    prompts, name = given.get("prompts") or {}, given.get("default_prompt_name") or ""
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise UserError(f"{file}: prompts is {prompts!r}, no object of texts by name")
    pairs = tuple((key, text or "") for key, text in prompts.items())
    if name and name not in prompts:
        raise UserError(f"{file}: default_prompt_name {name!r} is not one of its prompts: {', '.join(prompts) or 'none'}")
    similarity = given.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise UserError(f"{file}: similarity_fn_name {similarity!r} is not one of {', '.join(SIMILARITIES)}")
    return recipe._replace(prompts=pairs, prompt=name, similarity=similarity)


def _refuse_others(file: Path, given: dict, known: Iterable[str]) -> None:
    """Refuses keys that are set and not known here."""
    if other := sorted(key for key in set(given) - set(known) if given[key] not in (None, {}, [], False)):
        raise UserError(f"{file}: {other[0]} is {given[other[0]]!r}, which is not computed here")


def _flag(file: Path | None, given: dict, key: str, usual: bool) -> bool:
    value = usual if given.get(key) is None else given[key]
    if not isinstance(value, bool):
        raise UserError(f"{file}: {key} is {value!r}, neither true nor false")
    return value


def _length(file: Path | None, given: dict, key: str) -> int:
    """A number of tokens; 0 for none, or one beyond all texts."""
    value = given.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        raise UserError(f"{file}: {key} is {value!r}, no number of tokens")
    return int(value) if value < ENDLESS else 0


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing, though {MODULES} names it") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, kind):
        raise UserError(f"{file}: a JSON {'object' if kind is dict else 'list'} was expected")
    return found
