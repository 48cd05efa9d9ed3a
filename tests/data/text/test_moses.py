"""FlauBERT's tokenizer: Moses' words, tokens that end in `</w>`, places in the text; its files, read and written."""

import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformers_jax.data.text import moses
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import tokenizers as files

SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10)))
LETTERS = "abcdefghijklmnopqrstuvwxyzéèL'\".,-!?"
MERGES = [("L", "'</w>"), ("h", "o"), ("m", "m"), ("ho", "mm"), ("homm", "e</w>"), ("d", "i"), ("di", "t</w>")]
TOKENS = [*SPECIAL, *LETTERS, *(f"{c}</w>" for c in LETTERS), "L'</w>", "ho", "homme</w>", "dit</w>"]  # no "homm", "mm", "di"


def folder(path, merges=MERGES, tokens=TOKENS, **config):
    path.mkdir(exist_ok=True)
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    lines = [f"{a} {b} {100 - i}" for i, (a, b) in enumerate(merges)]  # with counts, as XLM writes them
    (path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def tokenizer(tmp_path):
    pytest.importorskip("sacremoses")
    return Tokenizer.load(folder(tmp_path / "flaubert"))


def test_words_and_tokens(tokenizer):
    assert tokenizer.tokens("L'homme dit: “ab…”") == [
        "L'</w>", "homme</w>", "dit</w>", "<unk>", '"</w>', "a", "b</w>", *["."] * 2, ".</w>", '"</w>',
    ]  # fmt: skip
    assert tokenizer.encode("") == tokenizer.encode(" \n") == []
    assert tokenizer.vocab_size == len(TOKENS)
    names = ("<pad>", "<s>", "</s>", "<unk>", "<special1>")
    ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id)
    assert ids == tuple(map(TOKENS.index, names))


def test_a_symbol_that_only_merges_name_is_unknown(tokenizer):
    assert tokenizer.tokens("homm dimm") == ["ho", "m", "m</w>", "<unk>", "m", "m</w>"]
    assert max(tokenizer.encode("homm mma di")) < len(TOKENS)
    assert set(tokenizer.textual_ids()) == set(range(len(SPECIAL), len(TOKENS)))


def test_text_is_no_special_token(tokenizer):
    assert not {*tokenizer.encode("<s> <special1> </w> <pad>")} & {TOKENS.index(p) for p in SPECIAL if p != "<unk>"}


def test_decoding(tokenizer):
    ids = tokenizer.encode("L'homme dit, ab.")
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == "L' homme dit , ab ."
    assert tokenizer.encode_batch(["L'homme", "dit"]) == [tokenizer.encode("L'homme"), tokenizer.encode("dit")]


@pytest.mark.parametrize(
    "text, found",
    [
        ("L'homme  dit : ab.", ["L'", "homme", "dit", ":", "a", "b", "."]),
        ("«ab» — dit…", ["«", "a", "b", "»", "—", "dit", "…", "…", "…"]),
        ("dit\u200b, ``ab''!", ["dit", ",", "`", "a", "b", "'", "!"]),
    ],
)
def test_places(tokenizer, text, found):
    ids, places = tokenizer.encode_with_offsets(text)
    assert [text[start:end] for start, end in places] == found
    assert len(ids) == len(places) == len(tokenizer.encode_with_words(text)[1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), max_size=30) | st.text("a'\"«»“…—.´` ,!\u00a0\u200b\u0301", max_size=20))
def test_any_text_has_places_in_order(tokenizer, text):
    ids, places = tokenizer.encode_with_offsets(text)
    assert len(ids) == len(places)
    assert all(0 <= start <= end <= len(text) for start, end in places)
    assert [start for start, _ in places] == sorted(start for start, _ in places)


def test_words_are_numbered(tokenizer):
    assert tokenizer.encode_with_words("L'homme ab dit.")[1] == [0, 1, 2, 2, 3, 4]


def test_lower_case(tmp_path):
    pytest.importorskip("sacremoses")
    tokenizer = Tokenizer.load(folder(tmp_path / "uncased", do_lowercase=True))
    assert tokenizer.tokens("HOMME") == ["homme</w>"]
    assert tokenizer.encode_with_offsets("Ab HOMME")[1] == [(0, 1), (1, 2), (3, 8)]


def test_saved_copied_and_exported(tokenizer, tmp_path):
    text = "L'homme dit: “homm ab…”"
    tokenizer.save(tmp_path / "tokenizer.json")
    files.write(tmp_path / "flaubert", tokenizer, longest=512, pair_types=False)
    assert not (tmp_path / "flaubert" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "flaubert" / "tokenizer_config.json").read_text())["tokenizer_class"] == "FlaubertTokenizer"
    loaded = [Tokenizer.load(tmp_path / name) for name in ("tokenizer.json", "flaubert")]
    for other in (*loaded, pickle.loads(pickle.dumps(tokenizer))):
        assert (other.encode(text), other.vocab_size) == (tokenizer.encode(text), tokenizer.vocab_size)
        assert other.fingerprint() == tokenizer.fingerprint()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"vocab.json: tokens end in </w>, as FlauBERT's do, but there is no token <s>"):
        Tokenizer.load(folder(tmp_path / "a", tokens=TOKENS[1:]))
    with pytest.raises(UserError, match="merges.txt, line 2: 'a b c d 99' is no merge"):
        Tokenizer.load(folder(tmp_path / "a", merges=[("a", "b"), ("a b", "c d")]))
    with pytest.raises(UserError, match="FlauBERT's are read, not those of XLMTokenizer"):
        Tokenizer.load(folder(tmp_path / "a", tokenizer_class="XLMTokenizer"))
    (folder(tmp_path / "a") / "config.json").write_text('{"model_type": "xlm"}')
    with pytest.raises(UserError, match="not those of xlm"):
        Tokenizer.load(tmp_path / "a")
    tokenizer = Tokenizer.load(folder(tmp_path / "b"))
    moses._moses.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "sacremoses", None)
    with pytest.raises(UserError, match="pip install sacremoses"):
        tokenizer.encode("dit")
