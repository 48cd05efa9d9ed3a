"""Which tokens of a text a masked language model has to guess (Devlin et al. 2019, section 3.1, task 1).

A share of the tokens is chosen; of those 80 % become the mask token, 10 % a random token and 10 % stay. Special tokens are
never chosen. With whole words all tokens of a chosen word are (BERT's "whole word masking" models of 2019).
"""

import zlib

import numpy as np

from transformers_jax.errors import UserError

MASKED, RANDOM = 0.8, 0.1
"""Of the chosen tokens; the rest stays as it is."""


class Masking:
    """Masks texts.

    Args:
      tokenizer: must have a mask token.
      mask_rate: share of the tokens that may be chosen; on average exactly, for the number of a text is rounded at random.
      whole_words: whether words are chosen instead of tokens.

    Raises:
      UserError: a vocabulary without a mask token, a share outside (0, 1).
    """

    def __init__(self, tokenizer, *, mask_rate: float = 0.15, whole_words: bool = False):
        if tokenizer.mask_id is None:
            raise UserError("config.tokenizer: the vocabulary has no mask token; wordpiece, byte_bpe and unigram have one")
        if not 0 < mask_rate < 1:
            raise UserError(f"config.task.mask_rate={mask_rate}: give the share of tokens to guess, between 0 and 1")
        self.mask_rate, self.whole_words, self.mask_id = mask_rate, whole_words, tokenizer.mask_id
        self.tokens = tokenizer.textual_ids()

    def __call__(self, tokens: np.ndarray, words: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`tokens` as the model reads them, `targets` (the true tokens, 0 where nothing is to be guessed), `weights`.

        Args:
          tokens: [T] int32 tokens.
          words: [T] the word that each token belongs to; -1 where none may be chosen.
        """
        chosen = self._chosen(words, rng)  # [n] positions
        fate, read = rng.random(len(chosen)), tokens.copy()
        random = self.tokens[rng.integers(len(self.tokens), size=len(chosen))]
        read[chosen] = np.where(fate < MASKED, self.mask_id, np.where(fate < MASKED + RANDOM, random, tokens[chosen]))
        weights = np.zeros(len(tokens), np.int32)
        weights[chosen] = 1
        return {"tokens": read, "targets": np.where(weights, tokens, 0).astype(np.int32), "weights": weights}

    def fixed(self, tokens: np.ndarray, words: np.ndarray) -> dict[str, np.ndarray]:
        """The same, always alike for the same tokens."""
        return self(tokens, words, np.random.default_rng(zlib.crc32(np.ascontiguousarray(tokens, np.int32))))

    def anew(self, fields: dict, rng: np.random.Generator) -> dict:
        """The fields of an example, with `words`, masked another way."""
        tokens = np.where(fields["weights"], fields["targets"], fields["tokens"]).astype(np.int32)
        return {**fields, **self(tokens, fields["words"], rng)}

    def _chosen(self, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        places = np.flatnonzero(words >= 0)
        if not len(places):
            return places
        count = max(1, int(self.mask_rate * len(places) + rng.random()))
        if not self.whole_words:
            return rng.choice(places, count, replace=False)
        order = rng.permutation(np.unique(words[places]))
        sizes = np.bincount(words[places], minlength=order.max() + 1)
        chosen, room = [], count
        for word in order.tolist():
            if sizes[word] <= room or not chosen:  # one word at least
                chosen.append(word)
                room -= sizes[word]
            if room <= 0:
                break
        return np.flatnonzero(np.isin(words, chosen))
