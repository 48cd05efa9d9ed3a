"""Files of tokenizers beside the weights, in the form that AutoTokenizer of `transformers` reads."""

import json
from pathlib import Path

from absl import logging

from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "stoken.model", "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip


def read(path: Path) -> Tokenizer | None:
    """The tokenizer of a folder, None where there is none that can be read; a warning says why."""
    if not any((path / name).exists() for name in FILES):
        return None
    try:
        return Tokenizer.load(path)
    except UserError as error:
        logging.warning("%s: the tokenizer is left out: %s", path, error)
        return None


def write(
    path: Path, tokenizer: Tokenizer, *, longest: int, pair_types: bool, prompts: bool = False, begun: bool = True
) -> None:
    """Writes tokenizer.json and tokenizer_config.json, so that AutoTokenizer puts the same tokens around texts as we do.

    A tokenizer whose words Moses' rules split is written as FlauBERT's files.

    Args:
      longest: tokens that the model reads.
      pair_types: the model tells the two texts of a pair apart, so it is to be given their types.
      prompts: the model continues its texts, so no end is put behind them.
      begun: and has learned with the begin token in front of them; otherwise the tokenizer's file says what is there.
    """
    tokenizer.save(path / "tokenizer.json")
    content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    config = _object(path / "tokenizer_config.json")
    given = ["input_ids", *["token_type_ids"] * pair_types, "attention_mask"]
    config |= {"model_max_length": longest, "model_input_names": given}
    if "moses" in config:
        return _write_flaubert(path, content["model"], config)
    if not content.get("post_processor") and (begun or not prompts):
        content["post_processor"] = _template(tokenizer, prompts)
        (path / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    ids = {"pad": tokenizer.pad_id, "unk": tokenizer.unk_id, "mask": tokenizer.mask_id}
    ids |= dict.fromkeys(("bos", "cls"), tokenizer.bos_id) | dict.fromkeys(("eos", "sep"), tokenizer.eos_id)
    config |= {f"{role}_token": tokenizer.token(i) for role, i in ids.items() if i is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_flaubert(path: Path, model: dict, config: dict) -> None:
    """vocab.json and merges.txt in place of the tokenizer.json with this model, as `FlaubertTokenizer` reads them."""
    moses = config.pop("moses")
    tokens = {token: i for token, i in model["vocab"].items() if i < moses["size"]}
    (path / "vocab.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (path / "merges.txt").write_text("".join(f"{merge}\n" for merge in merges), encoding="utf-8")
    config |= {"tokenizer_class": "FlaubertTokenizer", "do_lowercase": moses["lowercase"]}
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (path / "tokenizer.json").unlink()


def _object(file: Path) -> dict:
    """A file's JSON object, empty where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _template(tokenizer: Tokenizer, prompts: bool) -> dict:
    """What the library puts around one text and around two, as `Tokenizer.joined` does; around prompts without the end."""
    ids = {tokenizer.token(i): i for i in (tokenizer.bos_id, tokenizer.eos_id)}
    begin, end = ({"id": tokenizer.token(i), "type_id": 0} for i in (tokenizer.bos_id, tokenizer.eos_id))
    kind = int(tokenizer.separators == 1)
    single = [{"SpecialToken": begin}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": end}]
    second = [{"Sequence": {"id": "B", "type_id": kind}}, {"SpecialToken": end | {"type_id": kind}}]
    if prompts:
        single, second = single[:-1], second[:-1]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, *[{"SpecialToken": end}] * (tokenizer.separators - 1), *second],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()},
    }
