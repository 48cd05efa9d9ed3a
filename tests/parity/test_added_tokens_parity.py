"""Added tokens beside `transformers`: the same ids of texts without names of roles, from every form, read and exported."""

import json

import pytest
import tokenizers

from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.interchange import tokenizers as files

pytestmark = pytest.mark.slow

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a wo ##man plays [ ] e ##1 1 e1 / covid - 19 ##s .".split()
TEXTS = ["a [E1]woman [/E1] plays", "covid-19s Covid-19 a-covid-19.", "[E1][E1]  [/E1]", "a <left>  woman  <left> .", ""]
ADDED = {
    "[E1]": {"special": True}, "[/E1]": {"special": True}, "covid-19": {"special": False, "normalized": True},
    "<left>": {"special": True, "lstrip": True, "rstrip": True}, "wo1": {"special": False, "single_word": True},
}  # fmt: skip


def decoder(first: int) -> dict:
    return {str(first + k): {"content": name} | options for k, (name, options) in enumerate(ADDED.items())}


def folder_of(folder, form: str):
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    config |= {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    if form == "byte_level":
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "Ġa", "<mask>"]
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\nĠ a\n", encoding="utf-8")
        names = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        config = {"tokenizer_class": "RobertaTokenizer", "added_tokens_decoder": decoder(len(tokens))}
        config |= {f"{role}_token": name for role, name in names.items()}
    else:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        if form == "added_tokens.json":
            (folder / form).write_text(json.dumps({name: len(WORDS) + k for k, name in enumerate(ADDED)}))
            special = [name for name, options in ADDED.items() if options["special"]]
            (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": special}))
        else:
            config |= {"added_tokens_decoder": decoder(len(WORDS))}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder", "tokenizer.json", "byte_level"])
def test_same_ids_as_transformers(tmp_path, form):
    transformers = pytest.importorskip("transformers")
    there = folder_of(tmp_path, form)
    theirs = transformers.AutoTokenizer.from_pretrained(there)
    if form == "tokenizer.json":
        there = tmp_path / "fast"
        theirs.save_pretrained(there)
    ours = Tokenizer.load(there)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    (tmp_path / "out").mkdir()
    files.write(tmp_path / "out", ours, longest=64, pair_types=True)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert again.encode(text) == ours.joined(ours.encode(text)).ids, text
    assert again.decode(ours.encode("a [E1] a"), skip_special_tokens=True).split() == ["a", "a"]
