"""The steps of byte pair encoding end in the tokens that the tokenizer makes; how many bytes each stands for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.data.text import trace
from transformers_jax.data.text.tokenizer import Tokenizer, learn_bpe
from transformers_jax.data.text.train_tokenizer import learn

TEXTS = ["the cat sat on the mat, the cat that sat", "another dog; the other cat isn't that good", "été là-bas"] * 4
MADE = {kind: learn(kind, TEXTS, 320) for kind in ("byte_bpe", "wordpiece")} | {"bpe": learn_bpe(TEXTS, 330)}


@pytest.mark.parametrize("kind", ["bpe", "byte_bpe"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="the caotsn,'é日\n ", max_size=40))
def test_steps_end_in_the_tokens(kind, text):
    tokenizer = MADE[kind]
    merges = trace.Merges(tokenizer)
    tokens = [token for word in merges.words(text) for token in word.tokens]
    assert tokens == [tokenizer.library.id_to_token(i) for i in tokenizer.encode(text)]
    for word in merges.words(text):
        for before, step in zip([word.symbols, *(s.symbols for s in word.steps)], word.steps, strict=False):
            assert merges.ranks[step.pair] == step.number and len(step.symbols) == len(before) - 1


def test_what_people_see():
    learned = Tokenizer.from_merges([("a", "b"), ("ab", "</w>")], alphabet="c")
    assert list(trace.lines(learned, "ab c")) == [
        "ab</w>", "                    a b </w>", "           merge 1  ab </w>", "           merge 2  ab</w>",
        "c</w>", "                    c </w>", f"3 tokens: ab</w>={learned.id_of('ab</w>')} c={learned.id_of('c')} </w>=259",
    ]  # fmt: skip
    (line,) = trace.lines(MADE["wordpiece"], "cats")
    assert line.startswith("2 tokens: cat=")


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=30))
def test_bytes_of_tokens_over_bytes_are_exact(text):
    tokenizer = MADE["byte_bpe"]
    assert tokenizer.byte_lengths()[tokenizer.encode(text)].sum() == len(text.encode(errors="surrogatepass"))


def test_bytes_of_other_tokens():
    text = "the cat, isn't là 日"
    for kind, more in ("bpe", 1), ("wordpiece", None):
        tokenizer = MADE[kind]
        lengths = tokenizer.byte_lengths()
        assert lengths.shape == (tokenizer.vocab_size,) and not lengths[[tokenizer.pad_id, tokenizer.eos_id]].any()
        assert more is None or lengths[tokenizer.encode(text)].sum() == len(text.encode()) + more
    assert MADE["wordpiece"].byte_lengths()[MADE["wordpiece"].encode("the cats")].tolist() == [4, 4, 1]


@pytest.mark.parametrize("kind", list(MADE))
def test_names_of_special_tokens_are_read_only_where_asked(kind):
    tokenizer = MADE[kind]
    end = tokenizer.token(tokenizer.eos_id)
    text = f"the cat{end}{end}the"
    ids, places = tokenizer.encode_marked(text)
    assert ids == [*tokenizer.encode("the cat"), tokenizer.eos_id, tokenizer.eos_id, *tokenizer.encode("the")]
    assert [text[slice(*place)] for i, place in zip(ids, places, strict=True) if i == tokenizer.eos_id] == [end, end]
    assert tokenizer.eos_id not in tokenizer.encode(text) and end in tokenizer.special_names
