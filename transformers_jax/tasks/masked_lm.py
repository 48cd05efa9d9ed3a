"""Masked language model: a text with tokens missing in, the missing tokens out. BERT's pretraining, and without next
sentence prediction RoBERTa's (Liu et al. 2019), CamemBERT's, XLM-RoBERTa's and FlauBERT's.

Several texts share a row where config.data.batching is "packing". The trained model fills the gaps of texts.

Axes: B batch rows, T length, M gaps, D model width, V vocabulary.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.errors import UserError
from transformers_jax.layers.gather import aligned, gather, masked_positions
from transformers_jax.layers.losses import Sums, cross_entropy
from transformers_jax.outputs import LanguageModelOutput, PretrainingOutput
from transformers_jax.tasks.parts.masking import Masking
from transformers_jax.tasks.task import Task as Base

GAPS = 4
"""Gaps that are filled in one row, so that every row has the same number; a text with more of them has several rows."""


class Task(Base):
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

    def __init__(
        self, tokenizer, *, masking: str = "dynamic", mask_rate: float = 0.15, whole_words: bool = False, max_length: int = 0
    ):
        if masking not in ("dynamic", "static"):
            raise UserError(f"config.task.masking={masking!r} is not one of dynamic, static")
        self.tokenizer, self.max_length, self.mask_rate = tokenizer, max_length, mask_rate
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

    def answering(self, model: nn.Module, *, top: int) -> tuple[Base, nn.Module]:
        """Lines have gaps to be filled."""
        return FillMask(self.tokenizer, top=top), model


def cross_entropy_of_masked(output: LanguageModelOutput, batch: dict) -> Sums:
    """Sums over the masked positions, of an output [B, M, D] at those or [B, T, D] at all positions."""
    targets, weights = aligned(output.hidden.shape[1], batch["weights"], batch["targets"])
    return cross_entropy(output.hidden, output.table, targets, jnp.asarray(weights), bias=output.bias)


class FillMask(Base):
    """What stands best in the gaps of texts {"text": "Let's stick to [MASK] in this skit"}, by any model that predicts tokens.

    Args:
      top: words for a gap.
    """

    name = "fill_mask"
    one_a_row = True
    streams: Streams = {"": ("tokens", "token_types", "targets")}
    line_means, line_keys = "a text with [MASK] in it", ("text",)

    def __init__(self, tokenizer, *, top: int = 5):
        if tokenizer.mask_id is None:
            raise UserError("nothing can be filled in: the vocabulary has no mask token")
        self.tokenizer, self.top = tokenizer, top

    def examples(self, source: Sequence[dict]) -> list[dict]:
        """Each text once for every GAPS of its gaps: {"example", "text", "first": the first gap that is filled}."""
        found = []
        for i in range(len(source)):
            count = with_gaps(self.tokenizer, source[i]["text"]).count(self.tokenizer.mask_id)
            rows = range(0, max(1, count), GAPS)
            found += [{"example": i, "text": source[i]["text"], "first": first} for first in rows]
        return found

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """→ `tokens`, `token_types`, and `targets`, which are 1 at the gaps that this row fills.

        Raises:
          UserError: the text has no gap.
        """
        fields = self.tokenizer.joined(with_gaps(self.tokenizer, example["text"])).fields()
        gaps = np.flatnonzero(fields["tokens"] == self.tokenizer.mask_id)
        if not len(gaps):
            mask = self.tokenizer.token(self.tokenizer.mask_id)
            raise UserError(f"nothing to fill in: write {mask} or [MASK] for each gap in the text")
        targets = np.zeros(len(fields["tokens"]), np.int32)
        targets[gaps[example["first"] : example["first"] + GAPS]] = 1
        return fields | {"targets": targets}

    def predict(self, output: LanguageModelOutput | PretrainingOutput, batch: dict) -> dict[str, jax.Array]:
        """`tokens` [B, M, top], their `probabilities` [B, M, top], and `gap` [B, M]: whether there is such a gap."""
        missing = batch["targets"] > 0  # [B, T]
        positions = masked_positions(missing, min(GAPS, missing.shape[1]))  # [B, M]
        logits = logits_at(output, positions)  # [B, M, V]
        probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits), min(self.top, logits.shape[-1]))
        return {"tokens": tokens, "probabilities": probabilities, "gap": gather(missing, positions)}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"gaps": [[{"word", "probability"}, …] best first, …]} of each text."""
        found: list[dict] = [{"gaps": []} for _ in range(len(source))]
        rows = zip(*(predictions[name] for name in ("tokens", "probabilities", "gap")), strict=True)
        for example, row in zip(self.examples(source), rows, strict=True):
            gaps = zip(*row, strict=True)
            found[example["example"]]["gaps"] += [self._words(ids, chances) for ids, chances, there in gaps if there]
        return found

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"text"}."""
        return {"text": "\t".join(cells)}

    def _words(self, ids: np.ndarray, chances: np.ndarray) -> list[dict]:
        pairs = zip(ids, chances, strict=True)
        return [{"word": _word(self.tokenizer, i), "probability": round(float(p), 4)} for i, p in pairs]


def logits_at(output: LanguageModelOutput | PretrainingOutput, positions: jax.Array) -> jax.Array:
    """The logits [B, M, V] in float32 of positions [B, M], of an output of all positions.

    Raises:
      UserError: the model predicts no tokens.
    """
    output = output.lm if isinstance(output, PretrainingOutput) else output
    if not isinstance(output, LanguageModelOutput):
        raise UserError(f"this model fills no gaps: it gives no tokens but {type(output).__name__}")
    hidden = gather(output.hidden, positions)  # [B, M, D]
    logits = jnp.einsum("bmd,vd->bmv", hidden.astype(jnp.float32), output.table.astype(jnp.float32))
    return logits if output.bias is None else logits + output.bias


def parts_around(tokenizer, text: str) -> list[str]:
    """What stands before, between and behind the gaps of a text; `[MASK]` and `<mask>` are the vocabulary's own mask token."""
    name = tokenizer.token(tokenizer.mask_id)
    return text.replace("[MASK]", name).replace("<mask>", name).split(name)


def with_gaps(tokenizer, text: str) -> list[int]:
    """The tokens of a text, a mask token for each gap."""
    *parts, last = parts_around(tokenizer, text)
    before = [token for part in parts for token in (*tokenizer.encode(part.rstrip()), tokenizer.mask_id)]
    return before + tokenizer.encode(last)  # white space before a gap belongs to the word that is missing


def _word(tokenizer, i: int) -> str:
    """A token as it would be written: "comedy", "##ing" where it goes on; a special token by its name."""
    token = tokenizer.token(int(i))
    return token if token.startswith("##") else tokenizer.decode([int(i)]).strip() or token
