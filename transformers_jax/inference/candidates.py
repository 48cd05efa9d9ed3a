"""How well given words stand in the gaps of a text: "Let's stick to [MASK] in this skit" with improvisation, comedy, aardvark.

A word of k tokens is asked for in a gap of k tokens, all missing at once; its probability is the product of theirs. Of several
gaps each is asked for by itself, while one token is missing in the others.

Axes: B batch rows, T length, M tokens of the longest word, D width, V vocabulary, n words.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.layers.gather import gather, masked_positions
from transformers_jax.outputs import LanguageModelOutput, PretrainingOutput
from transformers_jax.tasks.masked_lm import FillMask, logits_at, parts_around, with_gaps


class Candidates(FillMask):
    """The words, for each gap of texts {"text": "Let's stick to [MASK] in this skit"}, the likeliest first.

    Raises:
      UserError: a word is empty, or the vocabulary cannot write it.
    """

    def __init__(self, tokenizer, words: Sequence[str]):
        super().__init__(tokenizer)
        self.words = tuple(dict.fromkeys(words))
        self._tokens = {spaced: [self._written(word, spaced) for word in self.words] for spaced in (False, True)}
        self._all = sorted({tokens for every in self._tokens.values() for tokens in every})  # n
        self._ids = np.zeros((len(self._all), max(map(len, self._all))), np.int32)  # [n, M]
        self._real = np.zeros(self._ids.shape, np.float32)
        for row, tokens in enumerate(self._all):
            self._ids[row, : len(tokens)], self._real[row, : len(tokens)] = tokens, 1

    def _written(self, word: str, spaced: bool) -> tuple[int, ...]:
        """The tokens of a word: `spaced` behind a space, for vocabularies that tell the two apart."""
        if not word.strip():
            raise UserError("--candidates has an empty word: give words with commas between them")
        told = len(self.tokenizer.encode(" a")) == len(self.tokenizer.encode("a"))
        tokens = tuple(self.tokenizer.encode(f" {word}" if spaced and told else word))
        if not tokens or self.tokenizer.unk_id in tokens:
            raise UserError(f"--candidates: the vocabulary cannot write {word!r}")
        return tokens

    def examples(self, source: Sequence[dict]) -> list[dict]:
        """Each text once for every gap and every number of tokens of a word: {"example", "text", "gap", "spaced", "size"}."""
        found = []
        for i in range(len(source)):
            before = parts_around(self.tokenizer, source[i]["text"])[:-1] or [""]
            for gap, part in enumerate(before):
                spaced = part != part.rstrip()
                for size in sorted({len(tokens) for tokens in self._tokens[spaced]}):
                    place = {"example": i, "gap": gap, "spaced": spaced, "size": size}
                    found.append(place | {"text": source[i]["text"]})
        return found

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """→ `tokens`, `token_types`, and `targets`, which are 1 at the tokens of the one gap. Raises as `FillMask.encode`."""
        mask, ids = self.tokenizer.mask_id, with_gaps(self.tokenizer, example["text"])
        gaps = [place for place, i in enumerate(ids) if i == mask]
        if not gaps:
            raise UserError(f"nothing to fill in: write {self.tokenizer.token(mask)} or [MASK] for each gap in the text")
        at, size = gaps[example["gap"]], example["size"]
        joined = self.tokenizer.joined([*ids[:at], *[mask] * size, *ids[at + 1 :]])
        targets = np.zeros(len(joined.ids), np.int32)
        targets[joined.starts[0] + at : joined.starts[0] + at + size] = 1
        return joined.fields() | {"targets": targets}

    def predict(self, output: LanguageModelOutput | PretrainingOutput, batch: dict) -> dict[str, jax.Array]:
        """`scores` [B, n], the logarithm of each word's probability, which counts where the row's gap has its size; and
        `tokens` [B], how many of the gap's the model reads."""
        missing = batch["targets"] > 0  # [B, T]
        positions = masked_positions(missing, min(self._ids.shape[1], missing.shape[1]))  # [B, M]
        chances = jax.nn.log_softmax(logits_at(output, positions))  # [B, M, V]
        count = positions.shape[1]
        each = chances[:, jnp.arange(count), self._ids[:, :count]]  # [B, n, M]
        return {"scores": jnp.sum(each * self._real[:, :count], axis=-1), "tokens": gather(missing, positions).sum(axis=-1)}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"gaps": [[{"word", "probability"}, …] best first, …]} of each text."""
        found: list[dict[int, list]] = [{} for _ in range(len(source))]
        rows = zip(self.examples(source), predictions["scores"], predictions["tokens"], strict=True)
        for example, scores, tokens in rows:
            if tokens == example["size"]:  # else the model's longest input ends before it
                mine = found[example["example"]].setdefault(example["gap"], [])
                for word, own in zip(self.words, self._tokens[example["spaced"]], strict=True):
                    if len(own) == tokens:
                        mine.append((float(scores[self._all.index(own)]), word))
        return [{"gaps": [_ranked(gaps[gap]) for gap in sorted(gaps)]} for gaps in found]


def _ranked(words: list[tuple[float, str]]) -> list[dict]:
    """The likeliest first; equally likely ones in their order."""
    return [
        {"word": word, "probability": float(f"{np.exp(score):.4g}")} for score, word in sorted(words, key=lambda pair: -pair[0])
    ]
