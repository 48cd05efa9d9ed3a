"""The readable learner: the lecture's example, and agreement with one that counts everything anew at each merge."""

from collections import Counter
from itertools import islice, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.data.text.bpe import END_OF_WORD, learn, merges_of

LECTURE = {"low": 5, "lower": 2, "newest": 6, "widest": 3}


def counted_anew(word_counts, n):
    """The merges by the definition alone: count all pairs of all words in their order, merge the first of the best."""
    words = [([*word, END_OF_WORD], count) for word, count in word_counts.items()]
    merges = []
    while len(merges) < n:
        counts = Counter()  # keeps the order in which pairs are first seen
        for symbols, count in words:
            for pair in pairwise(symbols):
                counts[pair] += count
        if not counts:
            break
        best = max(counts, key=counts.get)  # the first of the largest
        if best not in merges:
            merges.append(best)
        for symbols, _ in words:
            i = 0
            while i + 1 < len(symbols):
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def test_the_lecture_example():
    merges = merges_of(LECTURE, 10)
    assert ["".join(pair) for pair in merges] == "es est est</w> lo low ne new newest</w> low</w> wi".split()
    assert merges[2] == ("est", "</w>")  # the end of the word is a symbol of its own


def test_the_first_seen_pair_wins_a_tie():
    assert merges_of({"ab": 1, "cd": 1}, 1) == [("a", "b")]
    assert merges_of({"cd": 1, "ab": 1}, 1) == [("c", "d")]
    assert merges_of({"xab": 2, "ab": 3, "yz": 5}, 1) == [("a", "b")]  # 5 each with `b </w>` and `y z`


def test_a_merge_of_its_own_neighbour():
    assert merges_of({"aaaa": 1}, 9) == [("a", "a"), ("aa", "aa"), ("aaaa", END_OF_WORD)]
    assert merges_of({"aaa": 1}, 9) == [("a", "a"), ("aa", "a"), ("aaa", END_OF_WORD)]


def test_stops_when_nothing_is_left():
    assert merges_of({}, 5) == []
    assert merges_of({"a": 3}, 5) == [("a", END_OF_WORD)]
    assert merges_of(LECTURE, 0) == []
    assert len(merges_of(LECTURE, 1000)) == len(counted_anew(LECTURE, 1000)) < 25


words = st.text(alphabet="abc", min_size=1, max_size=10)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(words, st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 40))
def test_agrees_with_counting_anew(word_counts, n):
    assert merges_of(word_counts, n) == counted_anew(word_counts, n)


def test_agrees_with_counting_anew_on_text():
    german = "der Hund und der Hase sehen den Herrn, der den anderen Hund und die anderen Hasen gesehen hat " * 3
    english = "the dog and the hare see the man who has seen the other dog and the other hares"
    word_counts = Counter((german + english).split())
    assert merges_of(word_counts, 200) == counted_anew(word_counts, 200)


def test_symbols_may_be_given():
    assert list(islice(learn([(("x", "yy", "z"), 2), (("yy", "z"), 1)]), 2)) == [("yy", "z"), ("x", "yyz")]
