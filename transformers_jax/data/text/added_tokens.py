"""Tokens that were added to a vocabulary, `[E1]` or `covid-19`: each is one token wherever a text spells it.

They stand in `added_tokens` of a tokenizer.json, in `added_tokens_decoder` of a tokenizer_config.json, in an
`added_tokens.json`, or are named as `additional_special_tokens`, and are read as `transformers` reads them: with the white
space around them that `lstrip` and `rstrip` take, not inside of words where `single_word` says so, in the text as it is or,
`normalized`, as the vocabulary changes it.

A special token without a role is one of them. One with a role, which fills, begins, ends, stands for what is unknown or
masks, is never found in a text.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, pre_tokenizers

from transformers_jax.data.text import words
from transformers_jax.errors import UserError

FILE, SPECIAL_MAP = "added_tokens.json", "special_tokens_map.json"
_OPTIONS = ("lstrip", "rstrip", "normalized", "single_word", "special")
_EXTRA = ("additional_special_tokens", "extra_special_tokens")


def add(library: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any], *, raw: bool = False) -> None:
    """Adds the tokens that the files of a folder name beside the vocabulary's own file.

    Args:
      config: the content of tokenizer_config.json, with that of special_tokens_map.json.
      raw: they are looked for in the text as it is, as in SentencePiece's vocabularies.

    Raises:
      UserError: a token whose id is not the one that it gets; a file that is malformed.
    """
    there = {token.content: i for i, token in library.get_added_tokens_decoder().items()}
    for i, token in sorted(_listed(folder, config, there), key=lambda pair: pair[0]):
        library.add_tokens([_of_raw_text(token) if raw else token])
        if (found := library.token_to_id(token.content)) != i:
            raise UserError(
                f"{folder}: the added token {token.content!r} has the id {i}, but {found} is the one that it gets behind "
                "those before it: ids of added tokens follow the vocabulary's without gaps"
            )
    known = library.get_added_tokens_decoder().values()
    names = [name for name in _extra(config) if name not in {token.content for token in known}]
    library.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def read_special_map(folder: Path, config: Mapping[str, Any]) -> dict:
    """What `special_tokens_map.json` says, where `added_tokens_decoder` does not say all.

    Raises:
      UserError: the file is malformed.
    """
    file = folder / SPECIAL_MAP
    return _object(file) if file.is_file() and "added_tokens_decoder" not in config else {}


def without_role(library: tokenizers.Tokenizer, roles: Collection[str]) -> tuple[tokenizers.Tokenizer, tuple[str, ...]]:
    """(the library so that it finds special tokens without a role in texts, and none that has one; the names of the former).

    Args:
      library: with `encode_special_tokens`.
      roles: names of tokens with a role.
    """
    special = [token.content for _, token in sorted(library.get_added_tokens_decoder().items()) if token.special]
    names = tuple(name for name in special if name not in roles)
    if names:
        library = _with_flags(library, {name: False for name in names})
        library.encode_special_tokens = True
    return _guarded(library, [name for name in special if name in roles]), names


def content(library: tokenizers.Tokenizer, names: Collection[str]) -> str:
    """The library's tokenizer.json, in which tokens of these names are special."""
    return (_with_flags(library, {name: True for name in names}) if names else library).to_str(pretty=True)


def _with_flags(library: tokenizers.Tokenizer, flags: Mapping[str, bool]) -> tokenizers.Tokenizer:
    """The same with other `special` flags, which the library itself does not change once they are set."""
    described = json.loads(library.to_str())
    for token in described["added_tokens"]:
        token["special"] = flags.get(token["content"], token["special"])
    return tokenizers.Tokenizer.from_str(json.dumps(described, ensure_ascii=False))


def _guarded(library: tokenizers.Tokenizer, names: list[str]) -> tokenizers.Tokenizer:
    """The same, changed so that a text never becomes one of these tokens, though the model itself knows their names."""
    ids = {name: library.token_to_id(name) for name in names}
    if found := [name for name, i in ids.items() if i in library.encode(name, add_special_tokens=False).ids]:
        own = [library.pre_tokenizer] if library.pre_tokenizer else []
        library.pre_tokenizer = pre_tokenizers.Sequence([words.names_apart(found), *own])
    return library


def _listed(folder: Path, config: Mapping[str, Any], there: Mapping[str, int]) -> list[tuple[int, AddedToken]]:
    """(id, token) of the tokens that have an id in the files; `there` are those that the vocabulary's own file has."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        file = folder / "tokenizer_config.json"
        if not isinstance(decoder, dict):
            raise UserError(f"{file}: added_tokens_decoder is no object, {{id: token}}")
        return [(_id(key, file), _token(value, file)) for key, value in decoder.items()]
    file = folder / FILE
    if not file.is_file():
        return []
    special = {_name(config[key]) for key in config if key.endswith("_token") and config[key]} | set(_extra(config))
    found = []
    for name, i in _object(file).items():
        if name not in there:
            found.append((_id(i, file), AddedToken(name, special=name in special, normalized=name not in special)))
    return found


def _extra(config: Mapping[str, Any]) -> list[str]:
    """The names of the special tokens that the config lists without ids."""
    found: list[str] = []
    for key in _EXTRA:
        given = config.get(key) or ()
        found += [_name(token) for token in (given.values() if isinstance(given, dict) else given)]
    return [name for name in dict.fromkeys(found) if name]


def _name(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _token(described: Any, file: Path) -> AddedToken:
    if not isinstance(described, dict) or not isinstance(described.get("content"), str):
        raise UserError(f"{file}: added_tokens_decoder has {described!r} where a token with its content belongs")
    options = {key: described[key] for key in _OPTIONS if isinstance(described.get(key), bool)}
    options.setdefault("normalized", not options.get("special", False))
    return AddedToken(described["content"], **options)


def _of_raw_text(token: AddedToken) -> AddedToken:
    options = {key: getattr(token, key) for key in _OPTIONS} | {"normalized": False}
    return AddedToken(token.content, **options)


def _id(value: Any, file: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: the id of an added token is {value!r}, no whole number") from error


def _object(file: Path) -> dict:
    try:
        found = json.loads(file.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: a JSON object was expected")
    return found
