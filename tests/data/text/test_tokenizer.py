"""Our own tokenizer: the lecture's tokens, no text lost, one file that the library runs."""

import gzip
import json
import logging
import os
import subprocess
import sys
from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from real_data import shared_data

from transformers_jax.data.text import words
from transformers_jax.data.text.tokenizer import BYTE_TOKENS, Tokenizer, learn_bpe
from transformers_jax.errors import UserError

LECTURE = (
    "A b,a s,e r,s er,w as,Ab was,Abwas ser,B e,a n,d l,h an,n g,u ng,Be han,dl ung,Behan dlung,A n,a g,l ag"
).split(",")
LECTURE_MERGES = [tuple(merge.split(" ")) for merge in LECTURE]
LINES = [
    "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    "Two young, White males are outside near many bushes.",
    "Mehrere Männer mit Schutzhelmen bedienen ein Antriebsradsystem.",
    "Several men in hard hats are operating a giant pulley system.",
    "Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",
    "A little girl climbing into a wooden playhouse, isn't she?",
    "lower lower lowest newest newest widest low low low 1998 don't well-known",
]


@pytest.fixture(scope="module")
def tokenizer():
    return learn_bpe(LINES, vocab_size=450)


def test_the_lecture_word():
    tokenizer = Tokenizer.from_merges(LECTURE_MERGES)
    tokens = "Abwasser b e han dlung s an lag e </w>".split()
    assert tokenizer.tokens("Abwasserbehandlungsanlage") == tokens
    assert tokenizer.tokens("die Abwasserbehandlungsanlage!")[-len(tokens) - 3 : -3] == tokens  # wherever it stands
    assert tokenizer.decode(tokenizer.encode("Abwasserbehandlungsanlage")) == "Abwasserbehandlungsanlage"


def test_the_library_merges_the_best_pair_first(tokenizer):
    ranks = {tuple(pair): rank for rank, pair in enumerate(json.loads(tokenizer._library.to_str())["model"]["merges"])}
    assert len(ranks) > 100
    for word in words.words(" ".join([*LINES, "Mädchenhemd slowest"])):
        symbols = list(word)
        while possible := [pair for pair in pairwise(symbols) if pair in ranks]:
            i = list(pairwise(symbols)).index(min(possible, key=ranks.get))
            symbols[i : i + 2] = ["".join(symbols[i : i + 2])]
        assert [token.value for token in tokenizer._library.model.tokenize(word)] == symbols


def test_the_lecture_corpus_as_lines():
    lines = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3
    tokenizer = learn_bpe(lines, merges=10)
    learned = [tokenizer.token(i) for i in range(tokenizer.vocab_size - 10, tokenizer.vocab_size)]
    assert learned == "es est est</w> lo low ne new newest</w> low</w> wi".split()
    assert tokenizer.tokens("lowest low") == ["low", "est</w>", "low</w>"]
    assert learn_bpe([" ".join(lines)], merges=10).fingerprint() == tokenizer.fingerprint()


def test_order_of_the_vocabulary(tokenizer):
    names = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    assert names[:3] == ["<pad>", "<s>", "</s>"]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.unk_id is None and tokenizer.mask_id is None
    assert tuple(names[3:259]) == BYTE_TOKENS
    assert names[259] == "</w>" and len(set(names)) == 450
    alphabet = [name for name in names[262:] if len(name) == 1]
    assert alphabet == sorted(set("".join(LINES)) - {" "}) == names[262 : 262 + len(alphabet)]
    assert [tokenizer.id_of(name) for name in names] == list(range(450))
    assert tokenizer.id_of("no such token") is None


def test_words_and_punctuation():
    assert list(words.words("")) == []
    shown = [word.replace(words.END, "</w>") for word in words.words('Hello, (world)!  "don\'t"')]
    assert shown == ["Hello</w>", "￭,</w>", "(￭</w>", "world</w>", "￭)!</w>", "</w>", '"￭</w>', "don</w>"] + [
        "￭'￭</w>",
        "t</w>",
        '￭"</w>',
    ]


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
AWKWARD = st.lists(
    st.sampled_from(
        [" ", "  ", "\t", "\0", "\r", "\u2028", "\u00a0", "\u200f", "\ufeff", "▁", ".", ",", "'", "_", "-", "="]
        + ["a", "low", "ß", "e\u0301", "🙂", "❤\ufe0f", "👩\u200d👧", "日本", "न\u094d"]
        + ["</w>", "<pad>", "<s>", "</s>", "<0x41>", "<0xC3>"]
        + [*words.MARKS, words.ESCAPE + ".", words.END + words.JOIN, words.JOIN + words.END]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=500, deadline=None)
@given(st.one_of(ANY, AWKWARD))
@example("")
@example(" ")
@example("   leading, double  and trailing  ")
@example("␛␗￭␛=␛.␛-␗␗ ￭ a￭b a␗b")
@example("\ud7ff\ue000\U0010ffff\ufdd0\ufffe")
def test_no_text_is_lost(text):
    for tokenizer in TOKENIZERS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {0, 1, 2}.intersection(ids)
        assert (ids == []) == (text == "")


TOKENIZERS = [learn_bpe(LINES, vocab_size=450), learn_bpe(LINES, vocab_size=262), Tokenizer.from_merges(LECTURE_MERGES)]


def test_special_names_in_a_text_are_text(tokenizer):
    ids = tokenizer.encode("<pad> </s><s>")
    assert len(ids) > 8 and min(ids) > 2
    assert tokenizers.Tokenizer.from_str(tokenizer._library.to_str()).encode("<pad> </s><s>").ids == ids


def test_special_ids_are_dropped_and_text_is_kept(tokenizer):
    ids = tokenizer.encode("Two men.")
    assert tokenizer.decode([1, *ids, 2, 0, 0]) == "Two men."
    assert tokenizer.decode([]) == tokenizer.decode([0, 1, 2]) == ""
    assert tokenizer.decode(np.array(ids, np.int32)) == tokenizer.decode(iter(ids)) == "Two men."


def test_any_ids_decode(tokenizer):
    """A model may say anything: cut words, half characters, marks in the wrong place."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, tokenizer.vocab_size, (200, 12))
    texts = tokenizer.decode_batch(rows)
    assert len(texts) == 200 and all(isinstance(text, str) for text in texts)
    assert texts == [tokenizer.decode(row) for row in rows]


@pytest.mark.parametrize("wrong", [-1, 450, 10**6])
def test_ids_outside_the_vocabulary(tokenizer, wrong):
    with pytest.raises(ValueError, match=f"id {wrong} is outside the vocabulary: ids run from 0 to 449"):
        tokenizer.decode([5, wrong])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode_batch([[5], [wrong]])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.token(wrong)


def test_batches_equal_single_lines(tokenizer):
    lines = ["", " ", *LINES, "</w> 🙂"]
    assert tokenizer.encode_batch(lines) == [tokenizer.encode(line) for line in lines]
    assert tokenizer.decode_batch(tokenizer.encode_batch(lines)) == lines
    assert tokenizer.encode_batch([]) == tokenizer.decode_batch([]) == []


def test_one_file_that_the_library_runs(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "tokenizer.json")
    assert os.listdir(tmp_path / "new") == ["tokenizer.json"]
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "tokenizer.json"))
    for text in [*LINES, "", " a  b ", "<s> </w> 🙂␗", "unseen: Ωmega"]:
        assert library.encode(text).ids == tokenizer.encode(text)
        assert library.decode(tokenizer.encode(text)) == text
    for path in (tmp_path / "new", tmp_path / "new" / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.fingerprint() == tokenizer.fingerprint()
        assert (loaded.pad_id, loaded.bos_id, loaded.eos_id, loaded.unk_id, loaded.vocab_size) == (0, 1, 2, None, 450)
        assert loaded.encode_batch(LINES) == tokenizer.encode_batch(LINES)


def test_saves_into_a_folder_and_over_an_old_file(tokenizer, tmp_path):
    TOKENIZERS[1].save(tmp_path)
    tokenizer.save(tmp_path)
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    assert Tokenizer.load(tmp_path).fingerprint() == tokenizer.fingerprint()


def test_fingerprint_is_stable_and_telling(tokenizer):
    assert tokenizer.fingerprint() == learn_bpe(iter(LINES), vocab_size=450).fingerprint()
    others = {learn_bpe(LINES, vocab_size=449).fingerprint(), learn_bpe(LINES[1:], vocab_size=450).fingerprint()}
    assert tokenizer.fingerprint() not in others and len(others) == 2
    content = json.loads(tokenizer._library.to_str())
    content["normalizer"] = {"type": "Lowercase"}
    changed = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), tokenizer._special)
    assert changed.fingerprint() != tokenizer.fingerprint()


def test_a_copy_is_the_same(tokenizer):
    """Copying takes the way to a worker process."""
    copy = deepcopy(tokenizer)
    assert copy.encode("<pad> 1998") == tokenizer.encode("<pad> 1998")
    assert copy.fingerprint() == tokenizer.fingerprint()


FORK = """
import os, sys
from transformers_jax.data.text.tokenizer import learn_bpe
tokenizer = learn_bpe(["a little text, a little more"], merges=5)
ids = tokenizer.encode_batch(["a little"] * 100)
child = os.fork()
if child == 0:
    os._exit(0 if tokenizer.encode_batch(["a little"] * 100) == ids else 1)
_, status = os.waitpid(child, 0)
print(status, os.environ.get("TOKENIZERS_PARALLELISM"), tokenizer.encode_batch(["a little"] * 100) == ids)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("setting", [None, "false"])
def test_a_fork_neither_warns_nor_hangs(setting):
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    environment |= {"TOKENIZERS_PARALLELISM": setting} if setting else {}
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, env=environment, cwd=os.getcwd()
    )
    assert (done.stdout.split(), done.stderr) == (["0", str(setting), "True"], "")


def test_vocab_size_is_exact():
    for size in (262, 270, 300, 333, 420):
        tokenizer = learn_bpe(LINES, vocab_size=size)
        assert tokenizer.vocab_size == size == len(tokenizer._library.get_vocab())
        assert tokenizer.decode_batch(tokenizer.encode_batch(LINES)) == LINES


def test_rare_characters_stay_bytes():
    lines = ["aaa bbb"] * 3 + ["xaaa"]
    rare = learn_bpe(lines, merges=0, min_count=2)
    assert rare.tokens("xab") == ["<0x78>", "a", "b", "</w>"]
    assert learn_bpe(lines, merges=0, alphabet_limit=1).tokens("xab") == ["<0x78>", "a", "<0x62>", "</w>"]
    assert learn_bpe(lines, merges=0).tokens("xab") == ["x", "a", "b", "</w>"]
    crossed = learn_bpe(["cafés cafés", "cafe cafe cafe"], merges=3, alphabet_limit=4)  # c, a, f, e: no merge crosses é
    assert crossed.tokens("cafés cafe") == ["caf", "<0xC3>", "<0xA9>", "<0x73>", "</w>", "cafe", "</w>"]
    assert crossed.decode(crossed.encode("cafés")) == "cafés"


def test_line_ends_belong_to_no_line():
    with_ends = learn_bpe([line + "\n" for line in LINES], merges=20)
    assert with_ends.fingerprint() == learn_bpe(LINES, merges=20).fingerprint()


@pytest.mark.parametrize("lines", [[], [""], ["", "   ", "\n"]])
def test_a_corpus_without_text(lines):
    with pytest.raises(UserError, match="no text"):
        learn_bpe(lines, vocab_size=300)


def test_wrong_wishes(caplog):
    with pytest.raises(UserError, match="tokenizer.vocab_size is 261; bytes and special tokens alone are 262"):
        learn_bpe(LINES, vocab_size=261)
    with pytest.raises(ValueError, match="either"):
        learn_bpe(LINES)
    with pytest.raises(UserError, match="merge 2 joins 'xy', which no earlier merge makes"):
        Tokenizer.from_merges([("a", "b"), ("xy", "b")])
    with caplog.at_level(logging.WARNING):
        small = learn_bpe(["ab ab"], vocab_size=1000)
    assert small.vocab_size == 262 + 2 + 2 and small.tokens("ab") == ["ab</w>"]
    assert "too small for 1000 tokens" in caplog.text


def test_real_text_comes_back():
    texts = []
    for language in ("en", "de"):
        with gzip.open(shared_data(f"multi30k/val.{language}.gz"), "rt", encoding="utf-8") as file:
            texts += [line.rstrip("\n") for line in file]
    tokenizer = learn_bpe(texts, vocab_size=2000)
    ids = tokenizer.encode_batch(texts)
    assert tokenizer.vocab_size == 2000 and tokenizer.decode_batch(ids) == texts
    assert 10 < sum(map(len, ids)) / len(texts) < 25
    assert max(map(max, ids)) < 2000
