"""SentencePiece models without the sentencepiece package: equal to what that package (0.2.3) gave for two small models
of Bible verses in the public domain: unigram with a character map; BPE with user-defined pieces, spaces kept."""

import json
import struct
from pathlib import Path

import pytest

from transformers_jax.data.text import sentencepiece_model
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError

GOLDEN = Path(__file__).parent.parent.parent / "golden"
EXPECTED = json.loads((GOLDEN / "sentencepiece.json").read_text(encoding="utf-8"))
KINDS = ["sentencepiece_unigram", "sentencepiece_bpe"]


def varint(value):
    """An integer as protocol buffers write it."""
    value &= (1 << 64) - 1
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(pieces, trainer=(), normalizer=()):
    """The bytes of a model of (text, score, type) pieces and of (field number, value) pairs."""
    rows = [field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces]
    parts = {2: trainer, 3: normalizer}
    return b"".join(rows + [field(n, b"".join(field(*pair) for pair in pairs)) for n, pairs in parts.items()])


SMALL = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
SMALL += [(character, -5.0, 1) for character in "▁lowers"] + [("▁low", -2.0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_sentencepiece(kind):
    tokenizer, expected = Tokenizer.load(GOLDEN / f"{kind}.model"), EXPECTED[kind]
    assert tokenizer.vocab_size == 700 and len(expected["ids"]) == len(EXPECTED["lines"]) > 15
    for line, ids, text in zip(EXPECTED["lines"], expected["ids"], expected["texts"], strict=True):
        assert tokenizer.encode(line) == ids, line
        assert tokenizer.decode(ids).lstrip() == text.lstrip(), line  # the package drops doubled spaces in front
    assert tokenizer.encode_batch(EXPECTED["lines"]) == expected["ids"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    assert tokenizer.pad_id == (3 if kind == "sentencepiece_unigram" else 2)  # this BPE has none: the end serves


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    tokenizer = Tokenizer.load(GOLDEN / f"{kind}.model")
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.encode_batch(EXPECTED["lines"]) == EXPECTED[kind]["ids"]


def test_special_and_byte_names_in_a_text_are_text():
    for kind in KINDS:
        tokenizer = Tokenizer.load(GOLDEN / f"{kind}.model")
        text = "<s> </s><unk> <0x41>"
        ids = tokenizer.encode(text)
        assert not {0, 1, 2, tokenizer.id_of("<0x41>")}.intersection(ids)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("folder_name", ["spiece.model", "tokenizer.model", "some.model"])
def test_a_folder_with_a_hand_written_model(tmp_path, folder_name):
    (tmp_path / folder_name).write_bytes(model(SMALL))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens("low lower") == ["▁low", "▁low", "e", "r"]
    assert tokenizer.decode(tokenizer.encode("  low   lower ")) == "low lower"
    assert tokenizer.tokens("lox") == ["▁", "l", "o", "<unk>"]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (2, 1, 2, 0)


def test_ids_of_special_pieces_are_read(tmp_path):
    pieces = [("<pad>", 0.0, 3), ("STOP", 0.0, 3), ("?", 0.0, 2), *SMALL[3:]]  # T5 has no beginning
    path = tmp_path / "spiece.model"
    path.write_bytes(model(pieces, trainer=[(3, 1), (40, 2), (41, -1), (42, 1), (43, 0)]))
    tokenizer = Tokenizer.load(path)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 1, 2)
    tokenizer.save(tmp_path / "saved" / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "saved").fingerprint() == tokenizer.fingerprint()


def test_normalizer_switches(tmp_path):
    path = tmp_path / "m.model"
    path.write_bytes(model(SMALL, normalizer=[(3, 0), (4, 0)]))  # no space in front, spaces kept
    tokenizer = Tokenizer.load(path)
    assert tokenizer.tokens("low  low") == ["l", "o", "w", "▁", "▁low"]
    assert tokenizer.decode(tokenizer.encode(" low  low ")) == " low  low "


def test_bpe_merges_follow_the_scores(tmp_path):
    merged = [("ow", -1.0, 1), ("lo", -2.0, 1), ("low", -3.0, 1), ("er", -4.0, 1)]
    path = tmp_path / "m.model"
    path.write_bytes(model(SMALL[:-1] + merged, trainer=[(3, 2)]))
    assert Tokenizer.load(path).tokens("low lower") == ["▁", "low", "▁", "low", "er"]
    assert Tokenizer.load(path).tokens("lo ow") == ["▁", "lo", "▁", "ow"]


HARD = ["Où est L'ÉVANGILE ?", "``Naïve'' Ångström, ﬁn… ½ İstanbul", "  Two\tCAFÉS  \u00a0here ", "日本 ガギ 한국 🙂 ’", ""]


def albert(folder):
    """A model with the special pieces of ALBERT's, the others and the character map those of the golden unigram one."""
    golden = list(sentencepiece_model.fields((GOLDEN / "sentencepiece_unigram.model").read_bytes()))
    rows = [dict(sentencepiece_model.fields(value)) for number, value in golden if number == 1]
    charsmap = next(dict(sentencepiece_model.fields(value))[2] for number, value in golden if number == 3)
    pieces = [("<pad>", 0.0, 3), ("<unk>", 0.0, 2), *((name, 0.0, 3) for name in ("[CLS]", "[SEP]", "[MASK]")), ('"', -6.0, 1)]
    pieces += [(row[1].decode(), struct.unpack("<f", row[2])[0], 1) for row in rows if row.get(3, 1) == 1 and row[1] != b'"']
    trainer = [(3, 1), (40, 1), (41, -1), (42, -1), (43, 0)]
    (folder / "spiece.model").write_bytes(model(pieces, trainer, [(2, charsmap)]))
    return [(text, score) for text, score, _ in pieces], charsmap


def described(folder, content, name="tokenizer_config.json"):
    (folder / name).write_text(json.dumps(content))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"keep_accents": True}])
def test_albert_equals_transformers(tmp_path, config):
    transformers = pytest.importorskip("transformers")
    vocabulary, charsmap = albert(tmp_path)
    theirs = transformers.AlbertTokenizer(vocabulary, _spm_precompiled_charsmap=charsmap, **config)
    ours = described(tmp_path, {"tokenizer_class": "AlbertTokenizer", **config})
    assert (ours.pad_id, ours.bos_id, ours.eos_id, ours.unk_id, ours.mask_id) == (0, 2, 3, 1, 4)
    for line in [*HARD, *(line for line in EXPECTED["lines"] if not set(line) & set("<[▁"))]:
        assert ours.encode(line) == theirs.encode(line, add_special_tokens=False), line


def test_what_tells_that_a_model_is_alberts(tmp_path):
    albert(tmp_path)
    plain, text = Tokenizer.load(tmp_path), "``ÉTÉ''"
    small, upper = plain.encode('"ete"'), plain.encode(text)
    assert small != upper and plain.encode('"ETE"') != small
    assert described(tmp_path, {"model_type": "albert"}, "config.json").encode(text) == small
    assert described(tmp_path, {"keep_accents": True}).encode(text) == plain.encode('"été"')
    assert described(tmp_path, {"model_type": "t5"}, "config.json").encode(text) == plain.encode(text)
    (tmp_path / "config.json").unlink()
    assert described(tmp_path, {"do_lower_case": False}).encode(text) == plain.encode('"ETE"')
    assert described(tmp_path, {"tokenizer_class": "T5Tokenizer"}).encode(text) == upper
    other = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": True}  # accents and quotes stay
    assert described(tmp_path, other).encode(text) == plain.encode("``été''")
    described(tmp_path, {"tokenizer_class": "AlbertTokenizer"}).save(tmp_path / "saved" / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "saved").encode(text) == small


@pytest.mark.parametrize("kind", KINDS)
def test_words_begin_at_spaces(kind):
    tokenizer = Tokenizer.load(GOLDEN / f"{kind}.model")
    text = "In the beginning God created the heavens"
    ids, words = tokenizer.encode_with_words(text)
    spelled = [""] * (words[-1] + 1)
    for i, word in zip(ids, words, strict=True):
        spelled[word] += tokenizer.token(i)
    assert spelled == ["▁" + word for word in text.split()] and len(ids) > len(spelled)


def test_a_piece_over_a_space_is_of_one_word(tmp_path):
    path = tmp_path / "m.model"
    merged = [("lo", -2.0, 1), ("▁lo", -2.5, 1), ("er", -3.0, 1), ("er▁lo", -3.5, 1), ("▁w", -4.0, 1)]
    path.write_bytes(model(SMALL[:-1] + merged, trainer=[(3, 2)]))
    tokenizer = Tokenizer.load(path)
    assert tokenizer.tokens("wer loer s") == ["▁w", "er▁lo", "er", "▁", "s"]
    assert tokenizer.encode_with_words("wer loer s")[1] == [0, 0, 0, 1, 1]


BROKEN = {
    "empty": b"",
    "text": b"this is no model at all, only text",
    "cut off": (GOLDEN / "sentencepiece_bpe.model").read_bytes()[:5000],
    "endless number": b"\x0a" + b"\xff" * 20,
    "not UTF-8": field(1, field(1, b"\xff\xfe") + field(2, 0.0)),
    "a piece without text": field(1, field(2, 0.0)),
    "word model": model(SMALL, trainer=[(3, 3)]),
    "unk beyond the end": model(SMALL, trainer=[(40, 99)]),
    "a number in place of a message": field(1, 7),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_models_are_named(tmp_path, what):
    (tmp_path / "m.model").write_bytes(BROKEN[what])
    with pytest.raises(UserError, match=r"m\.model: not a SentencePiece model that can be read: \S"):
        Tokenizer.load(tmp_path / "m.model")


def test_models_that_number_their_pieces_otherwise(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model(SMALL))
    with pytest.raises(UserError, match="get their tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_fields_of_a_message():
    content = field(1, 300) + field(2, b"ab") + field(3, 0.5) + field(4, -1) + varint(5 << 3 | 1) + bytes(8)
    read = list(sentencepiece_model.fields(content))
    assert read == [(1, 300), (2, b"ab"), (3, struct.pack("<f", 0.5)), (4, (1 << 64) - 1), (5, bytes(8))]
    with pytest.raises(ValueError, match="cut off"):
        list(sentencepiece_model.fields(content[:-1]))
    with pytest.raises(ValueError, match="wire type 3 at byte 1"):
        list(sentencepiece_model.fields(varint(1 << 3 | 3)))
