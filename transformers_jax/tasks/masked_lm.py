"""Masked language model: a text with tokens missing in, the missing tokens out. BERT's pretraining, and without next
sentence prediction RoBERTa's (Liu et al. 2019), CamemBERT's, XLM-RoBERTa's and FlauBERT's.

Several texts share a row where config.data.batching is "packing".
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.errors import UserError
from transformers_jax.layers.gather import aligned
from transformers_jax.layers.losses import Sums, cross_entropy
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.tasks.parts.masking import Masking
from transformers_jax.tasks.parts.scoring import LossOnly


class Task(LossOnly):
    """Masked language model of examples {"text": str}.

    Args:
      tokenizer: turns text into tokens; must have a mask token.
      masking: "dynamic" draws anew each time a text is trained on (RoBERTa), "static" masks it once and for all (BERT).
        Evaluation is always static.
      mask_rate: share of the tokens that are to be guessed.
      whole_words: whether words are guessed instead of tokens.
      max_length: tokens of a text with its beginning and end. Of longer ones dynamic masking takes a part that is drawn anew
        each time, static masking and evaluation the beginning. 0 leaves all texts whole.
    """

    streams: Streams = {"": ("tokens", "token_types", "targets", "weights")}
    augment = None

    def __init__(
        self, tokenizer, *, masking: str = "dynamic", mask_rate: float = 0.15, whole_words: bool = False, max_length: int = 0
    ):
        if masking not in ("dynamic", "static"):
            raise UserError(f"config.task.masking={masking!r} is not one of dynamic, static")
        self.tokenizer, self.max_length = tokenizer, max_length
        self.masking = Masking(tokenizer, mask_rate=mask_rate, whole_words=whole_words)
        if masking == "dynamic":
            self.augment = self._anew

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "masked_lm"}

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """{"text": str} → 1-D int32 arrays `tokens`, `token_types`, `targets`, `weights`, and what `augment` starts from:
        `words`, and for a text that is too long, `whole`."""
        ids, words = self.tokenizer.encode_with_words(example["text"])
        room = self.max_length - 2 if self.max_length else len(ids)
        tokens, words_of, types = self._framed(ids[:room], words[:room])
        fields = {"token_types": types, "words": words_of} | self.masking.fixed(tokens, words_of)
        if len(ids) > room:
            fields["whole"] = np.asarray([ids, words], np.int32)
        return fields

    def _framed(self, tokens: Sequence[int], words: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, the word of each and their types, with beginning and end."""
        joined = self.tokenizer.joined(tokens)
        return tuple(np.asarray(x, np.int32) for x in (joined.ids, [-1, *words, -1], joined.types))

    def _anew(self, fields: dict, rng: np.random.Generator) -> dict:
        """The fields masked another way, in another part of a text that is too long."""
        if "whole" not in fields:
            return self.masking.anew(fields, rng)
        room = self.max_length - 2
        start = rng.integers(fields["whole"].shape[1] - room + 1)
        tokens, words, types = self._framed(*fields["whole"][:, start : start + room].tolist())
        return {"token_types": types} | self.masking(tokens, words, rng)

    def loss(self, output: LanguageModelOutput, batch: dict, *, train: bool):
        """Summed loss, summed weight, and sums of the metrics: all scalars."""
        sums = cross_entropy_of_masked(output, batch)
        return sums.loss, sums.weight, {"nll": sums.nll, "correct": sums.correct}

    def gaps(self, text: str) -> dict[str, np.ndarray]:
        """The fields of a text with mask tokens written out, "Let's stick to [MASK] in this skit", all weights on them.

        `[MASK]` and `<mask>` both stand for the vocabulary's own mask token.

        Raises:
          UserError: the text has none.
        """
        t, name = self.tokenizer, self.tokenizer.token(self.tokenizer.mask_id)
        parts = text.replace("[MASK]", name).replace("<mask>", name).split(name)
        if len(parts) == 1:
            raise UserError(f"nothing to fill in: write {name} for each gap in the text")
        before = [token for part in parts[:-1] for token in (*t.encode(part.rstrip()), t.mask_id)]  # the gap is a word's start
        tokens = before + t.encode(parts[-1])
        fields = t.joined(tokens[: self.max_length - 2] if self.max_length else tokens).fields()
        return fields | {"targets": fields["tokens"], "weights": (fields["tokens"] == t.mask_id).astype(np.int32)}


def cross_entropy_of_masked(output: LanguageModelOutput, batch: dict) -> Sums:
    """Sums over the masked positions, of an output [B, M, D] at those or [B, T, D] at all positions."""
    targets, weights = aligned(output.hidden.shape[1], batch["weights"], batch["targets"])
    return cross_entropy(output.hidden, output.table, targets, jnp.asarray(weights), bias=output.bias)
