"""Files a tokenizer is read from, each turned into one that the `tokenizers` library runs:

1. `tokenizer.json`, the library's own file, ours or a pretrained one.
2. `vocab.txt`, BERT's WordPiece. Lower-casing by `do_lower_case` of `tokenizer_config.json`; without it, a vocabulary
   without capitals is taken for a lower-cased one.
3. `vocab.json` and `merges.txt`, the byte-level encoding of GPT-2 and RoBERTa, or where tokens end in `</w>` FlauBERT's:
   see `moses`. A `tokenizer.json` of this kind has "moses" in the `tokenizer_config.json` beside it.
4. `stoken.model`, `tokenizer.model` or the folder's only `.model`, SentencePiece: see `sentencepiece_model`. ALBERT's,
   by `tokenizer_config.json` or the `config.json` beside it, has texts in lower case and without accents, unless
   `do_lower_case` and `keep_accents` say otherwise.

A folder is searched in this order. Special tokens are those that `tokenizer_config.json` or `special_tokens_map.json` names,
else those with a usual name. Tokens that were added to any of these are read by `added_tokens`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tokenizers
from absl import logging
from tokenizers import decoders, models, normalizers, pre_tokenizers

from transformers_jax.data.text import added_tokens, moses, sentencepiece_model
from transformers_jax.errors import UserError


class SpecialIds(NamedTuple):
    """The ids of the special tokens; None where a vocabulary has none."""

    pad: int
    bos: int
    eos: int
    unk: int | None
    mask: int | None


_NAMES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "bos": ("<s>", "[CLS]", "<|begin_of_text|>", "<bos>", "<|startoftext|>"),
    "eos": ("</s>", "[SEP]", "<|end_of_text|>", "<eos>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
}
USUAL_NAMES = frozenset(name for names in _NAMES.values() for name in names)
"""Names that tokens with a role have."""

_CONFIG_KEYS = {
    "pad": ("pad_token",),
    "bos": ("bos_token", "cls_token"),
    "eos": ("eos_token", "sep_token"),
    "unk": ("unk_token",),
    "mask": ("mask_token",),
}
CHAT_TEMPLATE = "chat_template.jinja"
_CAPITAL_TOKEN = re.compile(r"(?!\[).*[A-Z]")


def read(path: Path) -> tuple[tokenizers.Tokenizer, SpecialIds, moses.Words | None]:
    """The tokenizer of a file or folder, its special ids, and how words are split before it, if that is not its own.

    Raises:
      UserError: nothing there to read, a malformed file, or a vocabulary without any token that ends a sequence.
    """
    file = _find(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no such file or folder to read a tokenizer from")
    config = read_config(file.parent)
    config |= added_tokens.read_special_map(file.parent, config)
    if file.suffix == ".model":
        library, ids = sentencepiece_model.read(file, _before_sentencepiece(file, config))
        config = {f"{role}_token": library.id_to_token(i) for role, i in ids.items() if i >= 0} | config
    elif file.suffix == ".txt" and file.name != "merges.txt":
        library = _wordpiece(file, config)
    elif file.name in ("vocab.json", "merges.txt"):
        vocab_file, merges_file = file.with_name("vocab.json"), file.with_name("merges.txt")
        vocabulary = _vocabulary(vocab_file, merges_file)
        if any(token.endswith(moses.SUFFIX) for token in vocabulary):
            library, config = _moses(vocab_file, merges_file, vocabulary, config)
        else:
            library = _byte_level(vocab_file, merges_file, vocabulary, config)
    else:
        library = _library(file)
    added_tokens.add(library, file.parent, config, raw=file.suffix == ".model")
    if (special := special_ids(library, config)) is None:
        raise UserError(f"{file}: no token begins or ends a text; name an eos_token in tokenizer_config.json beside it")
    return library, special, moses.Words(**config["moses"]) if "moses" in config else None


def read_config(folder: Path) -> dict:
    """The content of `tokenizer_config.json` of a folder; empty where there is none."""
    file = folder / "tokenizer_config.json"
    return _json(file) if file.is_file() else {}


def chat_template(path: Path) -> str | None:
    """The chat template beside a tokenizer's file, or in its folder: `chat_template.jinja`, or what `tokenizer_config.json`
    has, of several the one called "default"; None where there is none."""
    folder = path if path.is_dir() else path.parent
    if (file := folder / CHAT_TEMPLATE).is_file():
        return _text(file)
    given = read_config(folder).get("chat_template")
    if isinstance(given, list):
        given = next((t.get("template") for t in given if isinstance(t, dict) and t.get("name") == "default"), None)
    return given if isinstance(given, str) else None


def _model_type(folder: Path) -> str:
    """What `config.json` of a folder says that its model is; empty where it does not."""
    file = folder / "config.json"
    return (_json(file).get("model_type") or "") if file.is_file() else ""


def special_ids(library: tokenizers.Tokenizer, config: dict) -> SpecialIds | None:
    """The special tokens by the names that the config gives, else by their usual names; None without beginning and end.

    What begins is borrowed from what ends, what ends from what begins, what fills from what ends.
    """
    found: dict[str, int | None] = {}
    for role, usual in _NAMES.items():
        given = [config[key] for key in _CONFIG_KEYS[role] if config.get(key)]
        names = [name.get("content", "") if isinstance(name, dict) else name for name in given]
        ids = [i for name in (*names, *usual) if (i := library.token_to_id(name)) is not None]
        found[role] = ids[0] if ids else None
        if names and library.token_to_id(names[0]) is None:
            logging.warning("tokenizer_config.json: %s_token %r is no token; %s serves", role, names[0], found[role])
    if found["bos"] is None and found["eos"] is None:
        return None
    found["bos"] = found["eos"] if found["bos"] is None else found["bos"]
    found["eos"] = found["bos"] if found["eos"] is None else found["eos"]
    found["pad"] = found["eos"] if found["pad"] is None else found["pad"]
    return SpecialIds(**found)


def _find(folder: Path) -> Path:
    """The file of a folder that the tokenizer is read from."""
    for name in ("tokenizer.json", "vocab.txt", "merges.txt", "stoken.model", "tokenizer.model"):
        if (folder / name).is_file():
            return folder / name
    models_there = sorted(folder.glob("*.model"))
    if len(models_there) != 1:
        raise UserError(f"{folder}: no tokenizer.json, vocab.txt, vocab.json with merges.txt or SentencePiece .model")
    if models_there[0].name == "sentencepiece.bpe.model":
        raise UserError(f"{models_there[0]}: its models number their tokens otherwise; get their tokenizer.json")
    return models_there[0]


def _library(file: Path) -> tokenizers.Tokenizer:
    """The library's own file."""
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file}: not a tokenizer.json that can be read: {error}") from error


def _wordpiece(file: Path, config: dict) -> tokenizers.Tokenizer:
    """BERT's WordPiece (Devlin et al. 2019): one token a line, `##` before those that continue a word."""
    tokens = [line.rstrip("\r") for line in _text(file).removesuffix("\n").split("\n")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        number = next(i for i, token in enumerate(tokens, start=1) if tokens.index(token) < i - 1)
        raise UserError(f"{file}, line {number}: the token {tokens[number - 1]!r} stands in the vocabulary twice")
    if "[UNK]" not in vocabulary:
        raise UserError(f"{file}: no token [UNK]; a WordPiece vocabulary holds one token a line, [UNK] among them")
    library = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    library.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", not any(map(_CAPITAL_TOKEN.match, tokens))),
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    library.add_special_tokens([p for p in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if p in vocabulary])
    return library


def _before_sentencepiece(file: Path, config: dict) -> list[normalizers.Normalizer]:
    """What the config says, or ALBERT (Lan et al. 2020) takes for granted, that happens to a text before SentencePiece."""
    kind = f"{config.get('tokenizer_class') or ''}{_model_type(file.parent)}".lower()
    albert = "albert" in kind or not kind and bool({"do_lower_case", "keep_accents"}.intersection(config))
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')] if albert else []
    if not config.get("keep_accents", not albert):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    return steps + ([normalizers.Lowercase()] if config.get("do_lower_case", albert) else [])


def _vocabulary(vocab_file: Path, merges_file: Path) -> dict[str, int]:
    for file in (vocab_file, merges_file):
        if not file.is_file():
            raise UserError(f"{file}: missing; vocab.json and merges.txt belong together")
    return _json(vocab_file)


def _merges(file: Path) -> Iterator[tuple[str, list[str]]]:
    """What to call each line in an error, and its parts: the two symbols of a merge, and maybe its count behind them."""
    for number, line in enumerate(_text(file).split("\n"), start=1):
        line = line.rstrip("\r")
        if line and not (number == 1 and line.startswith("#version")):
            yield f"{file}, line {number}: {line!r}", line.split(" ")


def _byte_level(vocab_file: Path, merges_file: Path, vocabulary: dict, config: dict) -> tokenizers.Tokenizer:
    """Byte pair encoding over bytes (Radford et al. 2019), words split as GPT-2 splits them."""
    if missing := sorted(set(pre_tokenizers.ByteLevel.alphabet()).difference(vocabulary)):
        raise UserError(f"{vocab_file}: not a byte-level vocabulary: the symbol {missing[0]!r} of a byte is missing")
    merges = []
    for where, pair in _merges(merges_file):
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise UserError(f"{where} is no merge of two tokens of {vocab_file.name}")
        merges.append(tuple(pair))
    library = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(sorted(USUAL_NAMES.intersection(vocabulary), key=vocabulary.get))
    return library


def _moses(vocab_file: Path, merges_file: Path, vocabulary: dict, config: dict) -> tuple[tokenizers.Tokenizer, dict]:
    """FlauBERT's (Le et al. 2020), whose merges may make what is no token; and the config with what it leaves unsaid."""
    kind = config.get("tokenizer_class") or _model_type(vocab_file.parent)
    if kind and "flaubert" not in kind.lower():
        raise UserError(f"{vocab_file}: tokens end in {moses.SUFFIX}: FlauBERT's are read, not those of {kind}")
    if missing := [name for name in ("<s>", "</s>", "<pad>", "<unk>", "<special1>") if name not in vocabulary]:
        raise UserError(f"{vocab_file}: tokens end in {moses.SUFFIX}, as FlauBERT's do, but there is no token {missing[0]}")
    merges = []
    for where, parts in _merges(merges_file):
        if len(parts) not in (2, 3):
            raise UserError(f"{where} is no merge of two symbols")
        merges.append(tuple(parts[:2]))
    words = moses.Words(config.get("do_lowercase", False), max(vocabulary.values()) + 1, vocabulary["<unk>"])
    unsaid = {"bos_token": "<s>", "mask_token": "<special1>", "moses": words._asdict()}
    return moses.library(vocabulary, merges), unsaid | config


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text: {error}") from error


def _json(file: Path) -> dict:
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: a JSON object was expected")
    return content
