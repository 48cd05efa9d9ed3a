"""Tokenizers out of GGUF metadata: small ones written here, run by the `tokenizers` library, tokens written down by hand."""

import json

import pytest
import tokenizers
from tiny_llama import TEMPLATE, byte_level

from transformers_jax.errors import UserError
from transformers_jax.interchange import gguf, gguf_tokenizer
from transformers_jax.interchange.gguf import GgufFile
from transformers_jax.interchange.gguf_values import Value


def sentencepiece(**changes) -> dict:
    """Metadata of a SentencePiece BPE in which `ab` is worth more than `bc`, and `▁a` more than either."""
    pieces = ["▁", "a", "b", "c", "▁a", "ab", "bc", "abc"]
    scores = [-10.0, -11.0, -12.0, -13.0, -1.0, -2.0, -3.0, -4.0]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + pieces,
        "tokenizer.ggml.scores": Value("array", [0.0] * 259 + scores, "float32"),
        "tokenizer.ggml.token_type": Value("array", [2, 3, 3] + [6] * 256 + [1] * len(pieces), "int32"),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return {key: value for key, value in (metadata | changes).items() if value is not None}


def read(tmp_path, metadata: dict) -> tuple[gguf_tokenizer.GgufTokenizer, tokenizers.Tokenizer]:
    """What a file of this metadata gives, and the library's tokenizer of it."""
    gguf.write(tmp_path / "tokenizer.gguf", metadata, {})
    found = gguf_tokenizer.read(GgufFile(tmp_path / "tokenizer.gguf").metadata)
    return found, tokenizers.Tokenizer.from_str(json.dumps(found.tokenizer))


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("gpt-2", "abc 1234", "abc Ġ 123 4"),
        ("gpt-2", "ab\n\nab", "ab Ċ Ċ ab"),  # the last of several spaces goes with what follows
        ("llama-bpe", "ab\n\nab", "ab ĊĊ ab"),
        ("smollm", "abc1234", "abc 1 2 3 4"),
        ("llama-bpe", "1231234", "123 123 4"),
        ("qwen2", "abc123", "abc 1 2 3"),
        ("default", "12341", "123 4 1"),
        ("gpt-2", "a'S", "a ' S"),
        ("llama-bpe", "a'S", "a 'S"),
        ("gpt-2", "!!\n", "!! Ċ"),
        ("llama-bpe", "  ab", "Ġ Ġab"),
        ("gpt-2", "ä日", "Ã ¤ æ Ĺ ¥"),
    ],
)
def test_texts_are_split_by_the_rule_that_the_file_names(tmp_path, pre, text, tokens):
    _, library = read(tmp_path, byte_level(tokenizer__ggml__pre=pre, tokenizer__ggml__add_bos_token=False))
    encoding = library.encode(text)
    assert " ".join(encoding.tokens) == tokens
    assert library.decode(encoding.ids) == text


def test_special_tokens_are_one_token_each(tmp_path):
    found, library = read(tmp_path, byte_level())
    assert library.encode("abc<|user|>ab<tool><|end|>").tokens == ["abc", "<|user|>", "ab", "<tool>", "<|end|>"]
    assert library.decode([0, 1, 2]) == "<tool>"  # what a user defined is text, what controls is not
    assert found.ids == {"bos": 1, "eos": 0, "pad": 0}
    assert found.chat_template == TEMPLATE
    assert found.config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|user|>",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "model_max_length": 2048,
        "chat_template": TEMPLATE,
    }


def test_named_tokens_are_special_where_no_types_are_given(tmp_path):
    _, library = read(tmp_path, byte_level(tokenizer__ggml__token_type=None))
    assert library.encode("ab<|end|>").tokens == ["ab", "<|end|>"]
    assert len(library.encode("<tool>").ids) > 1


@pytest.mark.parametrize(
    ("pre", "bos", "eos", "tokens"),
    [
        ("gpt-2", None, None, "ab"),
        ("gpt-2", True, None, "<|user|> ab"),
        ("gpt-2", True, True, "<|user|> ab <|end|>"),
        ("llama-bpe", None, None, "<|user|> ab"),  # Llama 3's files do not say it
        ("llama-bpe", False, None, "ab"),
    ],
)
def test_what_is_put_around_a_text(tmp_path, pre, bos, eos, tokens):
    changes = {"tokenizer__ggml__add_bos_token": bos, "tokenizer__ggml__add_eos_token": eos}
    _, library = read(tmp_path, byte_level(tokenizer__ggml__pre=pre, **changes))
    assert " ".join(library.encode("ab").tokens) == tokens
    assert library.encode("ab", add_special_tokens=False).tokens == ["ab"]
    assert " ".join(library.encode("ab", "ab").tokens) == f"{tokens} {tokens}"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("abc", "<s> ▁a bc"),
        ("b abc", "<s> ▁ b ▁a bc"),
        ("babc", "<s> ▁ b abc"),  # ab before bc, then abc
        ("", "<s>"),
        ("é", "<s> ▁ <0xC3> <0xA9>"),
        ("a</s>b", "<s> ▁a </s> ▁ b"),
    ],
)
def test_sentencepiece_joins_the_best_score_first(tmp_path, text, tokens):
    _, library = read(tmp_path, sentencepiece())
    encoding = library.encode(text)
    assert " ".join(encoding.tokens) == tokens
    if "</s>" not in text:
        assert library.decode(encoding.ids) == text


def test_sentencepiece_without_a_space_in_front(tmp_path):
    _, library = read(tmp_path, sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}))
    assert library.encode("abc").tokens == ["<s>", "abc"]
    assert library.decode(library.encode(" abc").ids) == " abc"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__model": None}, "has no tokenizer"),
        ({"tokenizer__ggml__model": "no_vocab"}, "has no tokenizer"),
        ({"tokenizer__ggml__model": "t5"}, "of the kind t5 .*; read are gpt2"),
        ({"tokenizer__ggml__pre": "tekken"}, "pre is tekken: .* known are default, gpt-2, smollm, llama-bpe, qwen2"),
        ({"tokenizer__ggml__tokens": None}, "tokens is missing"),
        ({"tokenizer__ggml__tokens": [1, 2]}, "tokens is missing or no list of strings"),
        ({"tokenizer__ggml__tokens": ["a", "b", "a"]}, "tokens has 'a' twice"),
        ({"tokenizer__ggml__tokens": ["a", b"\xff".decode("utf-8", "surrogateescape")]}, "not UTF-8"),
        ({"tokenizer__ggml__merges": ["a b", "a z"]}, "merge 1, 'a z'"),
        ({"tokenizer__ggml__merges": ["ab"]}, "merge 0, 'ab'"),
        ({"tokenizer__ggml__token_type": [1, 2]}, "not one type for each of the 269 tokens"),
        ({"tokenizer__ggml__bos_token_id": 269}, "bos_token_id is 269, and ids run from 0 to 268"),
        ({"tokenizer__ggml__bos_token_id": None, "tokenizer__ggml__add_bos_token": True}, "add_bos_token asks"),
        ({"tokenizer__ggml__add_space_prefix": True}, "add_space_prefix"),
        ({"tokenizer__ggml__model": "llama"}, "scores are not one for each"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, byte_level(**changes))


# From the two files to metadata.


@pytest.mark.parametrize("pre", gguf_tokenizer.PRE)
@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (False, False)])
def test_a_tokenizer_goes_into_a_file_and_back(tmp_path, pre, bos, eos):
    before = byte_level(tokenizer__ggml__pre=pre, tokenizer__ggml__add_bos_token=bos, tokenizer__ggml__add_eos_token=eos)
    found, _ = read(tmp_path, before)
    after = gguf_tokenizer.metadata(found.tokenizer, found.config)
    gguf.write(tmp_path / "after.gguf", after | {"general.architecture": "llama", "llama.context_length": 2048}, {})
    assert gguf_tokenizer.read(GgufFile(tmp_path / "after.gguf").metadata) == found
    plain = {key: value.value if isinstance(value, Value) else value for key, value in before.items() if "tokenizer" in key}
    assert {key: value.value for key, value in after.items()} == plain


def test_smollms_own_files_have_a_name(tmp_path):
    """Its pre-tokenizer is written with the library's own splits of digits and of GPT-2's words."""
    found, _ = read(tmp_path, byte_level(tokenizer__ggml__pre="smollm"))
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    theirs = found.tokenizer | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, plain]}}
    assert gguf_tokenizer.metadata(theirs, {})["tokenizer.ggml.pre"].value == "smollm"
    assert gguf_tokenizer.metadata(theirs | {"pre_tokenizer": plain}, {})["tokenizer.ggml.pre"].value == "gpt-2"


def test_rows_without_a_token_are_filled(tmp_path):
    found, _ = read(tmp_path, byte_level())
    after = gguf_tokenizer.metadata(found.tokenizer, found.config, size=272)
    assert after["tokenizer.ggml.tokens"].value[-3:] == ["[PAD269]", "[PAD270]", "[PAD271]"]
    assert after["tokenizer.ggml.token_type"].value[-4:] == [1, 5, 5, 5]
    with pytest.raises(UserError, match="has 269 tokens, the model's embedding only 268 rows"):
        gguf_tokenizer.metadata(found.tokenizer, found.config, size=268)


def test_tokenizers_that_are_not_written_are_refused(tmp_path):
    found, _ = read(tmp_path, byte_level(tokenizer__ggml__add_bos_token=True))
    metaspace = {"pre_tokenizer": {"type": "Metaspace"}}
    for tokenizer, config, message in (
        (found.tokenizer | {"model": {"type": "WordPiece"}}, {}, "only byte-level BPE"),
        (found.tokenizer | metaspace, {}, "no name in GGUF"),
        (found.tokenizer | {"normalizer": {"type": "NFKC"}}, {}, "no name in GGUF"),
        (found.tokenizer, {"eos_token": "</s>"}, "eos_token </s> is no token"),
        (found.tokenizer, {"bos_token": "<|end|>"}, "puts <|user|> around texts"),
    ):
        with pytest.raises(UserError, match=message.replace("|", "[|]")):
            gguf_tokenizer.metadata(tokenizer, config)
    spm, _ = read(tmp_path, sentencepiece())
    with pytest.raises(UserError, match="only byte-level BPE"):
        gguf_tokenizer.metadata(spm.tokenizer, spm.config)
