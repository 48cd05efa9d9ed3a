"""Byte pair encoding, learned readably (Sennrich, Haddow and Birch 2016, section 3.2).

Every word becomes its characters and `</w>`, a symbol of its own that marks where the word ends. Then, again and again,
the most frequent pair of neighbouring symbols is joined to one symbol. A pair is a tuple of two strings.

Ties: among equally frequent pairs the first seen is merged, that is the pair that comes first when the words are read
in their order (the order of the mapping), each from left to right, as they are split at that moment. So the merges are
a function of the words, their counts and their order. Overlapping neighbours all count: `a a a` has two pairs.

What makes it fast: counts are kept up to date instead of counted anew. A merge touches only the words that contain the
pair (an index pair → words), and the next pair comes from a queue whose entries may be out of date, yet never hide a
better pair.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise

END_OF_WORD = "</w>"

Pair = tuple[str, str]


def merges_of(word_counts: Mapping[str, int], n: int) -> list[Pair]:
    """The first `n` merges of the words, best first; fewer where every word has become one symbol.

    Args:
      word_counts: how often each word occurs; its order is the order of the corpus.
      n: how many merges are wanted.
    """
    return list(islice(learn(((*word, END_OF_WORD), count) for word, count in word_counts.items()), n))


def learn(words: Iterable[tuple[Sequence[str], int]]) -> Iterator[Pair]:
    """Yields merges, best first, until nothing is left to merge.

    Two pairs may spell the same symbol (`a bc` and `ab c`), so a pair may come up again after it was merged away. It is
    then merged again but not given twice.

    Args:
      words: the symbols of each word, without merges, and how often the word occurs; in the order of the corpus.
    """
    corpus = _Corpus(words)
    given = set()
    while pair := corpus.best():
        corpus.merge(pair)
        if pair not in given:
            given.add(pair)
            yield pair


def _merged(word: list[str], left: str, right: str) -> list[str]:
    """The word with each `left right` joined, from left to right."""
    joined, result, i, last = left + right, [], 0, len(word) - 1
    while i <= last:
        if word[i] == left and i < last and word[i + 1] == right:
            result.append(joined)
            i += 2
        else:
            result.append(word[i])
            i += 1
    return result


class _Corpus:
    """The words as they are split now, with the count and the words of each pair, and a queue of pairs."""

    def __init__(self, words: Iterable[tuple[Sequence[str], int]]):
        self.words: list[list[str]] = []
        self.frequencies: list[int] = []
        self.counts: dict[Pair, int] = defaultdict(int)
        self.where: dict[Pair, set[int]] = defaultdict(set)
        for i, (symbols, frequency) in enumerate(words):
            self.words.append(list(symbols))
            self.frequencies.append(frequency)
            for pair in pairwise(symbols):
                self.counts[pair] += frequency
                self.where[pair].add(i)
        # An entry is (−count, (word, characters before the pair), pair): the best pair is the smallest.
        # Counts fall and first places move back without a new entry; whatever grows gets one. So no entry is ever worse
        # than the truth about its pair, and an entry that comes out and is still true is the best pair of all.
        self.entries = {pair: (-count, self._first(pair), pair) for pair, count in self.counts.items()}
        self.queue = list(self.entries.values())
        heapq.heapify(self.queue)

    def best(self) -> Pair | None:
        """The most frequent pair, the first seen where counts tie; None when no pair is left."""
        while self.queue:
            entry = heapq.heappop(self.queue)
            negative, first, pair = entry
            if self.entries.get(pair) is not entry:  # a newer entry of this pair is in the queue, or was
                continue
            if self.counts[pair] != -negative:
                self._enter(pair, first)
            elif first != (place := self._first(pair)):
                self._enter(pair, place)
            else:
                return pair
        return None

    def merge(self, pair: Pair) -> None:
        """Joins the pair in every word that contains it, and brings counts, index and queue up to date."""
        joined, grown = "".join(pair), set()
        for i in list(self.where[pair]):
            before = list(pairwise(self.words[i]))
            self.words[i] = _merged(self.words[i], *pair)
            after = list(pairwise(self.words[i]))
            for old in before:
                self.counts[old] -= self.frequencies[i]
            for new in after:
                self.counts[new] += self.frequencies[i]
            for gone in set(before).difference(after):
                self.where[gone].discard(i)
            for new in after:
                if joined in new:
                    self.where[new].add(i)
                    grown.add(new)
        del self.counts[pair], self.entries[pair], self.where[pair]
        for new in grown:
            self._enter(new, self._first(new))

    def _enter(self, pair: Pair, first: tuple[int, int]) -> None:
        """Puts the pair into the queue with its present count, or forgets it when it no longer occurs."""
        if count := self.counts[pair]:
            self.entries[pair] = entry = (-count, first, pair)
            heapq.heappush(self.queue, entry)
        else:
            del self.entries[pair], self.counts[pair], self.where[pair]

    def _first(self, pair: Pair) -> tuple[int, int]:
        """Where the pair is seen first: the word, and how many characters of it come before the pair."""
        i = min(self.where[pair])
        characters = 0
        for neighbours in pairwise(self.words[i]):
            if neighbours == pair:
                break
            characters += len(neighbours[0])
        return i, characters
