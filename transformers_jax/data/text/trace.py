"""How byte pair encoding makes tokens of a text, step by step: which merge joins what (Sennrich, Haddow and Birch 2016)."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from transformers_jax.data.text import bpe, words
from transformers_jax.data.text.tokenizer import Tokenizer


class Step(NamedTuple):
    """A merge: its number, from 1, the pair that it joins, and the symbols of the word afterwards."""

    number: int
    pair: tuple[str, str]
    symbols: list[str]


class Word(NamedTuple):
    """A word as the encoding sees it, its symbols before the first merge, and the merges in the order they are applied."""

    text: str
    symbols: list[str]
    steps: list[Step]

    @property
    def tokens(self) -> list[str]:
        """What is left when no merge applies any more."""
        return self.steps[-1].symbols if self.steps else self.symbols


class Merges:
    """The merges of a tokenizer.

    Attributes:
      ranks: the number of each pair, from 1; empty for a vocabulary that is no byte pair encoding.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.library = tokenizer, tokenizer.library
        self.model = json.loads(self.library.to_str())["model"]
        merges = self.model.get("merges", ()) if self.model["type"] == "BPE" else ()
        pairs = (tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges)
        self.ranks = {pair: number for number, pair in enumerate(pairs, start=1)}

    def words(self, text: str) -> Iterator[Word]:
        """The words of a text with the steps of each; only where there are merges."""
        normalizer, splitter = self.library.normalizer, self.library.pre_tokenizer
        text = normalizer.normalize_str(text) if normalizer else text
        for word, _ in splitter.pre_tokenize_str(text) if splitter else [(text, None)]:
            symbols = self._symbols(word)
            yield Word(word, symbols, list(self._steps(symbols)))

    def _symbols(self, word: str) -> list[str]:
        """What the first merge starts from: characters, bytes of those that are no token; or the word, if it is a token and
        such are taken whole, as Llama 3 does."""
        vocabulary, suffix = self.model["vocab"], self.model.get("end_of_word_suffix") or ""
        if self.model.get("ignore_merges") and word in vocabulary:
            return [word]
        characters = [*word[:-1], word[-1:] + suffix] if word else []
        found = []
        for character in characters:
            if character in vocabulary or not self.model.get("byte_fallback"):
                found.append(character)
            else:
                found += [f"<0x{byte:02X}>" for byte in character.encode()]
        return found

    def _steps(self, symbols: list[str]) -> Iterator[Step]:
        """Each time the merge that was learned first, at the first place where it applies."""
        symbols = list(symbols)
        while pairs := [(self.ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in self.ranks]:
            number, i = min(pairs)
            pair = symbols[i], symbols[i + 1]
            symbols[i : i + 2] = ["".join(pair)]
            yield Step(number, pair, list(symbols))


def lines(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """The steps as they are shown to people; of a vocabulary without merges the tokens alone."""
    merges = Merges(tokenizer)
    for word in merges.words(text) if merges.ranks else ():
        yield _shown([word.text])
        yield f"    {'':>14}  {_shown(word.symbols)}"
        yield from (f"    {f'merge {step.number}':>14}  {_shown(step.symbols)}" for step in word.steps)
    ids = tokenizer.encode(text)
    yield f"{len(ids)} tokens: " + " ".join(f"{tokenizer.token(i)}={i}" for i in ids)


def _shown(symbols: list[str]) -> str:
    return " ".join(symbols).replace(words.END, bpe.END_OF_WORD)
