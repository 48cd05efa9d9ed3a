"""The tokenizer in a GGUF file's metadata, made into the two files that stand beside weights: `tokenizer.json`, as the
`tokenizers` library reads it, and `tokenizer_config.json`.

`tokenizer.ggml.model` says which it is. Two are read:

    gpt2     byte-level BPE from `tokens` and `merges`. How text is split before it is in no list of the file: `pre` is the
             name of a rule in llama.cpp's source (llama-vocab.cpp), and PRE has the rules that are known here.
    llama    SentencePiece's BPE from `tokens` and `scores`: two neighbours are joined if that makes a token, the one of the
             highest score first (`llm_tokenizer_spm` there). Characters without a token become bytes.

Byte-level BPE is written as well, from the same two files: `metadata`.

A token's type (`token_type`) tells the special ones: each of them is one token wherever it stands in a text. Where begin and
end are put around a text is `add_bos_token` and `add_eos_token`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers_jax.errors import UserError
from transformers_jax.interchange.gguf_values import Value

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of tokens
# Roles of tokens, and the keys of their ids. End of turn and of message end an answer as the end of a text does.
ROLES = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id",
    "sep": "seperator_token_id", "mask": "mask_token_id", "eot": "eot_token_id", "eom": "eom_token_id",
}  # fmt: skip
_CONFIG_ROLES = ("bos", "eos", "unk", "pad", "sep", "mask")
_SPACE = "▁"  # SentencePiece's

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Pre(NamedTuple):
    """How a text is split before byte-level BPE: expressions one after another, each within the parts of those before it."""

    expressions: tuple[str, ...]
    normalizer: str | None = None
    whole_tokens: bool = False  # a part that is a token is not merged from its bytes
    add_bos: bool = False  # where the file does not say


PRE = {
    "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": Pre((_GPT2,)),
    "smollm": Pre((r"\p{N}", _GPT2)),
    "llama-bpe": Pre((_CASELESS % r"\p{N}{1,3}",), whole_tokens=True, add_bos=True),
    "qwen2": Pre((_CASELESS % r"\p{N}",), normalizer="NFC"),
}


class GgufTokenizer(NamedTuple):
    """The tokenizer of a GGUF file."""

    tokenizer: dict  # the content of tokenizer.json
    config: dict  # of tokenizer_config.json: special tokens by role, chat template, longest input
    ids: dict[str, int]  # by role, those that the file names
    chat_template: str | None  # in Jinja


def read(metadata: Mapping[str, Any]) -> GgufTokenizer:
    """The tokenizer in a file's metadata.

    Raises:
      UserError: none there, one of a kind that is not read, or lists that do not fit each other.
    """
    model = metadata.get(PREFIX + "model")
    if model not in ("gpt2", "llama"):
        what = "has no tokenizer" if model in (None, "none", "no_vocab") else f"has a tokenizer of the kind {model}"
        raise UserError(f"the file {what} ({PREFIX}model); read are gpt2 (byte-level BPE) and llama (SentencePiece's BPE)")
    tokens = _strings(metadata, "tokens")
    ids = _ids(metadata, len(tokens))
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(metadata, tokens, ids),
        **(_byte_level(metadata, tokens) if model == "gpt2" else _sentencepiece(metadata, tokens, ids)),
    }
    content["post_processor"] = _around(metadata, tokens, ids, add_bos=model == "llama" or _pre(metadata).add_bos)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{role}_token": tokens[ids[role]] for role in _CONFIG_ROLES if role in ids}
    if isinstance(longest := metadata.get(f"{metadata.get('general.architecture')}.context_length"), int):
        config["model_max_length"] = longest
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return GgufTokenizer(content, config, ids, template)


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> dict:
    """The parts of tokenizer.json that make GPT-2's kind of tokenizer."""
    pre = _pre(metadata)
    if metadata.get(PREFIX + "add_space_prefix", False):
        raise UserError(f"{PREFIX}add_space_prefix: a space before a text is not put there for byte-level BPE")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = []
    for number, merge in enumerate(_strings(metadata, "merges")):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise UserError(f"{PREFIX}merges: merge {number}, {merge!r}, is not of two tokens to a third")
        merges.append([left, right])
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in pre.expressions
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": pre.normalizer} if pre.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
        "model": _bpe(vocabulary, merges, ignore_merges=pre.whole_tokens),
    }


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], ids: dict[str, int]) -> dict:
    """The parts of tokenizer.json that make SentencePiece's BPE; spaces are `▁`, one is put before a text."""
    scores = metadata.get(PREFIX + "scores")
    if not isinstance(scores, Sequence) or len(scores) != len(tokens):
        raise UserError(f"{PREFIX}scores are not one for each of the {len(tokens)} tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    prefix = bool(metadata.get(PREFIX + "add_space_prefix", True))
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix,
    ]
    model = _bpe(vocabulary, _merges_by_score(vocabulary, scores), byte_fallback=True, fuse_unk=True)
    model["unk_token"] = tokens[ids["unk"]] if "unk" in ids else None
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*[{"type": "Prepend", "prepend": _SPACE}] * prefix, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": model,
    }


def _merges_by_score(vocabulary: dict[str, int], scores: Sequence[float]) -> list[list[str]]:
    """All pairs of tokens that make a third, those that make the highest score first."""
    found = []
    for token, i in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[i], vocabulary[left], vocabulary[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def _bpe(vocabulary: dict[str, int], merges: list[list[str]], **options: bool) -> dict:
    """The model of tokenizer.json."""
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    switches = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False} | options
    return {"type": "BPE", **plain, **switches, "vocab": vocabulary, "merges": merges}


def _pre(metadata: Mapping[str, Any]) -> Pre:
    """How the file's text is split; one that does not say is split by llama.cpp's own default."""
    name = metadata.get(PREFIX + "pre", "default")
    if name not in PRE:
        raise UserError(f"{PREFIX}pre is {name}: this way of splitting texts is not known here; known are {', '.join(PRE)}")
    return PRE[name]


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    """A list of the tokenizer: tokens, or merges."""
    found = metadata.get(PREFIX + key)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UserError(f"{PREFIX}{key} is missing or no list of strings")
    try:
        "".join(found).encode("utf-8")
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 9) : error.end]
        raise UserError(f"{PREFIX}{key} has a text that is not UTF-8: {near!r}") from None
    if key == "tokens" and len(set(found)) < len(found):
        twice = next(text for number, text in enumerate(found) if text in found[:number])
        raise UserError(f"{PREFIX}tokens has {twice!r} twice")
    return found


def _ids(metadata: Mapping[str, Any], count: int) -> dict[str, int]:
    """The ids of tokens by role, where the file names them."""
    found = {role: metadata[PREFIX + key] for role, key in ROLES.items() if PREFIX + key in metadata}
    for role, i in found.items():
        if not isinstance(i, int) or not 0 <= i < count:
            raise UserError(f"{PREFIX}{ROLES[role]} is {i}, and ids run from 0 to {count - 1}")
    return found


def _added(metadata: Mapping[str, Any], tokens: list[str], ids: dict[str, int]) -> list[dict]:
    """Tokens that are one wherever they stand in a text; special ones are no text themselves."""
    types = metadata.get(PREFIX + "token_type", [NORMAL] * len(tokens))
    if not isinstance(types, Sequence) or len(types) != len(tokens):
        raise UserError(f"{PREFIX}token_type has not one type for each of the {len(tokens)} tokens")
    named = set(ids.values())
    special = {i for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)} | {i for i in named if types[i] == NORMAL}
    wanted = sorted(special | {i for i, kind in enumerate(types) if kind == USER_DEFINED})
    options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": i, "content": tokens[i], **options, "special": i in special} for i in wanted]


def _around(metadata: Mapping[str, Any], tokens: list[str], ids: dict[str, int], *, add_bos: bool) -> dict | None:
    """What is put before and behind a text, None for nothing."""
    roles = []
    for role, usual in (("bos", add_bos), ("eos", False)):
        if metadata.get(f"{PREFIX}add_{role}_token", usual):
            if role not in ids:
                raise UserError(f"{PREFIX}add_{role}_token asks for a token without an id ({PREFIX}{ROLES[role]})")
            roles.append(role)
    if not roles:
        return None
    parts = {}
    for sequence, kind in (("A", 0), ("B", 1)):
        special = {role: [{"SpecialToken": {"id": tokens[ids[role]], "type_id": kind}}] for role in roles}
        text = [{"Sequence": {"id": sequence, "type_id": kind}}]
        parts[sequence] = [*special.get("bos", []), *text, *special.get("eos", [])]
    names = {tokens[ids[role]]: ids[role] for role in roles}
    return {
        "type": "TemplateProcessing",
        "single": parts["A"],
        "pair": parts["A"] + parts["B"],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in names.items()},
    }


def metadata(tokenizer: Mapping[str, Any], config: Mapping[str, Any], size: int | None = None) -> dict[str, Value]:
    """The metadata of a byte-level BPE, from the content of its tokenizer.json and tokenizer_config.json.

    Args:
      size: rows of the model's embedding; ids without a token are filled with unused ones.

    Raises:
      UserError: another kind of tokenizer, or one whose way of splitting texts has no name in GGUF.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("end_of_word_suffix"):
        raise UserError("tokenizer.json: only byte-level BPE is written to GGUF")
    tokens, types = _numbered(tokenizer, size)
    ids = {token: i for i, token in enumerate(tokens)}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    found = {
        "model": Value("string", "gpt2"),
        "pre": Value("string", _pre_name(tokenizer)),
        "tokens": Value("array", tokens, "string"),
        "token_type": Value("array", types, "int32"),
        "merges": Value("array", merges, "string"),
    }
    for role in _CONFIG_ROLES:
        token = config.get(f"{role}_token")
        if isinstance(token := token.get("content") if isinstance(token, Mapping) else token, str):
            if token not in ids:
                raise UserError(f"tokenizer_config.json: the {role}_token {token} is no token of tokenizer.json")
            found[ROLES[role]] = Value("uint32", ids[token])
    first, last = _ends(tokenizer.get("post_processor") or {})
    for role, end in (("bos", first), ("eos", last)):
        if end is not None and ids.get(end) != getattr(found.get(ROLES[role]), "value", None):
            raise UserError(f"tokenizer.json puts {end} around texts, which is not the {role}_token: GGUF has no way to say so")
        found[f"add_{role}_token"] = Value("bool", end is not None)
    found = {PREFIX + key: value for key, value in found.items()}
    if isinstance(template := config.get("chat_template"), str):
        found["tokenizer.chat_template"] = Value("string", template)
    return found


def _numbered(tokenizer: Mapping[str, Any], size: int | None) -> tuple[list[str], list[int]]:
    """All tokens in the order of their ids, and their types."""
    numbered = {i: (token, NORMAL) for token, i in tokenizer["model"]["vocab"].items()}
    for added in tokenizer.get("added_tokens") or ():
        numbered[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    count = max(numbered) + 1
    if size is not None and size < count:
        raise UserError(f"tokenizer.json has {count} tokens, the model's embedding only {size} rows")
    rows = [numbered.get(i, (f"[PAD{i}]", UNUSED)) for i in range(size or count)]
    return [token for token, _ in rows], [kind for _, kind in rows]


def _pre_name(tokenizer: Mapping[str, Any]) -> str:
    """The rule in PRE that splits texts as this tokenizer does."""
    before = tokenizer.get("pre_tokenizer") or {}
    expressions: list[str] = []
    for step in before.get("pretokenizers", [before]):
        expressions += _expressions(step)
    found = tuple(expression.removesuffix(r"|\s+") for expression in expressions)
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    for name, pre in PRE.items():
        if (tuple(known.removesuffix(r"|\s+") for known in pre.expressions), pre.normalizer) == (found, normalizer):
            return name
    raise UserError(f"tokenizer.json splits texts in a way that has no name in GGUF here; known are {', '.join(PRE)}")


def _expressions(step: Mapping[str, Any]) -> list[str]:
    """What one pre-tokenizer splits by; a name that no rule has for one that is not known."""
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [_GPT2] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return [r"\p{N}"]
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return [step["pattern"].get("Regex", "")]
    return [str(kind)]


def _ends(processor: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What tokenizer.json puts before and behind a text."""
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            names = [part.get("SpecialToken", {}).get("id") for part in step["single"]]
            text = names.index(None)
            if max(text, len(names) - 1 - text) > 1:
                raise UserError("tokenizer.json puts several tokens around a text: GGUF has no way to say so")
            return names[0], names[-1]
    return None, None
