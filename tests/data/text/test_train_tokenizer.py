"""Vocabularies of the encoders, learned from text."""

import pydoc_data.topics

import pytest

from transformers_jax.data.text import bpe, train_tokenizer
from transformers_jax.data.text.tokenizer import Tokenizer, learn_bpe
from transformers_jax.data.text.train_tokenizer import KINDS, learn, placeholder
from transformers_jax.errors import UserError

LINES = "\n".join(pydoc_data.topics.topics[name] for name in ("assignment", "if", "while", "try")).splitlines()


@pytest.mark.parametrize("kind", KINDS)
class TestKinds:
    SIZE = {"wordpiece": 300, "byte_bpe": 400, "unigram": 300}

    def test_specials_and_size(self, kind):
        t = learn(kind, LINES, self.SIZE[kind])
        assert t.vocab_size <= self.SIZE[kind] and t.vocab_size > self.SIZE[kind] - 20
        assert len({t.pad_id, t.bos_id, t.eos_id, t.unk_id, t.mask_id}) == 5
        assert t.separators == (1 if kind == "wordpiece" else 2)
        assert t.mask_id not in t.textual_ids() and len(t.textual_ids()) == t.vocab_size - 5

    def test_a_text_is_written_in_tokens_and_comes_back(self, kind):
        t = learn(kind, LINES, self.SIZE[kind])
        text = "The statement is assigned, if it is."
        assert t.unk_id not in t.encode(text)
        assert t.decode(t.encode(text)).replace(" ", "") == text.replace(" ", "")

    def test_its_file_loads_as_the_same(self, kind, tmp_path):
        t = learn(kind, LINES, self.SIZE[kind])
        t.save(tmp_path)
        again = Tokenizer.load(tmp_path)
        assert again.fingerprint() == t.fingerprint() and again.separators == t.separators

    def test_a_special_name_in_a_text_is_text(self, kind):
        t = learn(kind, LINES, self.SIZE[kind])
        for name in "[MASK]", "<mask>", "</s>", "[CLS]":
            assert not {t.mask_id, t.bos_id, t.eos_id, t.pad_id}.intersection(t.encode(f"it is {name} it"))


def test_capitals_are_dropped_where_it_is_asked_for():
    uncased, cased = (learn("wordpiece", LINES, 300, lowercase=lower) for lower in (True, False))
    assert uncased.encode("THE") == uncased.encode("the")
    assert cased.encode("The") != cased.encode("the")


def test_mistakes_are_named():
    with pytest.raises(UserError, match="config.tokenizer.kind='words' is not one of bpe, wordpiece, byte_bpe, unigram"):
        learn("words", LINES, 100)
    with pytest.raises(UserError, match="no text; check config.data"):
        learn("wordpiece", ["", " "], 100)
    with pytest.raises(UserError, match="config.tokenizer.vocab_size=20: the characters of the text alone make"):
        learn("wordpiece", LINES, 20)


def test_a_placeholder_has_the_size_and_the_special_tokens():
    t = placeholder(1000)
    assert t.vocab_size == 1000 and t.mask_id is not None and t.surrounding(pair=True) == 3


def test_one_long_run_of_letters_is_learned_from_in_parts(caplog):
    run = "acgt" * 1500
    assert list(train_tokenizer.parts(f"a {run} b")) == [f"a {run[:1000]}", *[run[:1000]] * 5, " b"]
    assert list(train_tokenizer.parts("a few words")) == ["a few words"]
    assert "acgtacgt" in {train_tokenizer.learn("byte_bpe", [run, "words"] * 3, 280).token(i) for i in range(280)}


def test_merges_too(monkeypatch, caplog):
    given = []

    def learn(words):
        given.extend(words)
        return learned(given)

    learned = bpe.learn
    monkeypatch.setattr(bpe, "learn", learn)
    tokenizer = learn_bpe(["acgt" * 500 + " words"], merges=4)
    assert max(len(word) for word, _ in given) == 200 and sum(len(word) for word, _ in given) == 2000 + 1 + 6
    assert "a word of 2001 characters: words are learned from in parts of 200" in caplog.text
    assert tokenizer.tokens("acgtacgt")[0] == "acgtacgt"
