"""BERT's pretraining: a masked language model over two stretches of text, and whether the second follows the first (Devlin
et al. 2019, section 3.1 and appendix A.2); or ALBERT's, whether the two are in order (Lan et al. 2020, section 3.1).

The source gives one sentence an example, and an empty one between documents: config.data.unit is "sentence".
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.data.text.pairs import truncated
from transformers_jax.errors import UserError
from transformers_jax.layers.losses import label_sums
from transformers_jax.outputs import LabelOutput, PretrainingOutput
from transformers_jax.tasks.masked_lm import FillMask, cross_entropy_of_masked
from transformers_jax.tasks.parts.labels import Labels
from transformers_jax.tasks.parts.masking import Masking
from transformers_jax.tasks.task import Task as Base

RELATIONS = ("next_sentence", "sentence_order")
FOLLOWS = ("follows", "does not follow")
"""What the numbers of a pair's relation mean."""


class Task(Base):
    """Pretraining of examples {"text": sentence}, one behind the other.

    Args:
      tokenizer: turns text into tokens; must have a mask token.
      relation: "next_sentence" (label 0: the second text goes on where the first ends; 1: it is from elsewhere) or
        "sentence_order" (0: as they stand; 1: exchanged). Both are evenly frequent, but that behind a document's last
        sentence there is only something from elsewhere.
      masking: "static" masks a pair once and for all, "dynamic" anew each time it is trained on.
      mask_rate, whole_words: see `masking.Masking`.
      max_length: tokens of a pair with what surrounds them; pairs are filled up to it.
      short: so many pairs are filled to a random length only, as in BERT.
      duplicates: pairs that begin with the same sentence.
    """

    row_fields = ("label",)
    streams: Streams = {"": ("tokens", "token_types", "targets", "weights")}

    def __init__(
        self, tokenizer, *, relation: str = "next_sentence", masking: str = "static", mask_rate: float = 0.15,
        whole_words: bool = False, max_length: int = 128, short: float = 0.1, duplicates: int = 1,
    ):  # fmt: skip
        if relation not in RELATIONS:
            raise UserError(f"config.task.relation={relation!r} is not one of {', '.join(RELATIONS)}")
        if masking not in ("dynamic", "static"):
            raise UserError(f"config.task.masking={masking!r} is not one of dynamic, static")
        self.tokenizer, self.relation, self.mask_rate = tokenizer, relation, mask_rate
        self._room = max_length - tokenizer.surrounding(pair=True)
        if self._room < 2:
            raise UserError(f"config.task.max_length={max_length} has no room for two texts")
        self.short, self.duplicates = short, duplicates
        self.masking = Masking(tokenizer, mask_rate=mask_rate, whole_words=whole_words)
        if masking == "dynamic":
            self.augment = self.masking.anew

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "pretraining"}

    def examples(self, source: Sequence[dict]) -> "Starts":
        """One example a sentence, from which on its text is read."""
        return Starts(source, self._room, self.duplicates)

    def encode(self, example: dict) -> dict:
        """{"number", "lines", "others"} → 1-D int32 `tokens`, `token_types`, `targets`, `weights`, and `label`."""
        rng = np.random.default_rng([7, example["number"]])
        room = self._room if rng.random() >= self.short else int(rng.integers(2, self._room + 1))
        first, second, label = self._pair(example, room, rng)
        # Both halves keep a token: the room is two at least.
        joined = self.tokenizer.joined([i for i, _ in first], [i for i, _ in second])
        words = np.full(len(joined.ids), -1)
        for start, text in zip(joined.starts, (first, second), strict=True):
            words[start : start + len(text)] = [word for _, word in text]
        masked = self.masking.fixed(np.asarray(joined.ids, np.int32), words)
        return {"token_types": np.asarray(joined.types, np.int32), "words": words, "label": label} | masked

    def _pair(self, example: dict, room: int, rng: np.random.Generator):
        """Two texts, [(token, word)] each, of at most `room` tokens in all, and their label."""
        lines = self._tokens(example["lines"], room, 0)
        cut = int(rng.integers(1, len(lines))) if len(lines) > 1 else 0
        first = [token for line in lines[: cut or 1] for token in line]
        second = [token for line in lines[cut:] for token in line] if cut else []
        label = int(rng.random() < 0.5)
        if self.relation == "sentence_order":
            if not cut:  # a document of one sentence is cut inside it
                first, second = first[: (len(first) + 1) // 2], first[(len(first) + 1) // 2 :]
            label = label if first and second else 0
            first, second = (second, first) if label else (first, second)
        elif label or not cut:
            label = 1
            others = self._tokens(example["others"], max(1, room - len(first)), 10**6)
            second = [token for line in others for token in line]
        first, second = truncated([first, second], room, "longest_first")
        return first, second, label

    def _tokens(self, lines: Sequence[str], room: int, word: int) -> list[list[tuple[int, int]]]:
        """(token, its word) of each line, as many lines as it takes to fill the room; words are counted from `word` on."""
        found, used = [], 0
        for line in lines:
            tokens, words = self.tokenizer.encode_with_words(line)
            found.append([(token, word + w) for token, w in zip(tokens, words, strict=True)])
            word += words[-1] + 1 if words else 0
            used += len(tokens)
            if used >= room:
                break
        return found

    def loss(self, output: PretrainingOutput, batch: dict, *, train: bool):
        """The sum of both means, summed: masked tokens, and rows scaled to count as many tokens as a full row has masked.

        Weight, `nll` and `correct` are those of the masked tokens; `next_` ones those of the rows.
        """
        tokens = cross_entropy_of_masked(output.lm, batch)
        rows = label_sums(output.next, batch["label"], batch["row_weights"])
        loss = tokens.loss + rows.loss * (self.mask_rate * batch["tokens"].shape[1])
        sums = {"nll": tokens.nll, "correct": tokens.correct}
        return loss, tokens.weight, sums | {"next_correct": rows.correct, "next_weight": rows.weight}

    def predict(self, output: PretrainingOutput, batch: dict) -> dict[str, jax.Array]:
        """`probabilities` [B, 2] that the second text follows, or does not."""
        return {"probabilities": jax.nn.softmax(output.next.astype(jnp.float32))}

    def answering(self, model: nn.Module, *, top: int) -> tuple[Base, nn.Module]:
        """Lines have gaps to be filled."""
        return FillMask(self.tokenizer, top=top), model


class NextSentence(Base):
    """Whether the second text of {"first", "second": str} follows the first, by any model that has learned such a relation.
    Of ALBERT's, whether the two are in order.

    Args:
      max_length: tokens of a pair with what surrounds them, the longer of the two texts is cut; 0 for all of them.
    """

    name = "next_sentence"
    one_a_row = True
    streams: Streams = {"": ("tokens", "token_types")}
    line_means, line_keys = "two texts with a TAB between them", ("first", "second")

    def __init__(self, tokenizer, *, max_length: int = 0):
        self.tokenizer, self.max_length, self._labels = tokenizer, max_length, Labels(FOLLOWS)

    def encode(self, example: dict) -> dict:
        """→ 1-D int32 `tokens`, `token_types`."""
        return self.tokenizer.encode_pair(example["first"], example["second"], max_length=self.max_length).fields()

    def predict(self, output: PretrainingOutput | LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`probabilities` [B, 2], as FOLLOWS names them."""
        logits = output.next if isinstance(output, PretrainingOutput) else output.logits
        return {"probabilities": jax.nn.softmax(logits.astype(jnp.float32))}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"prediction", "probabilities"} of each pair."""
        return [self._labels.answer(row) for row in predictions["probabilities"]]

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"first", "second"}."""
        return dict(zip(("first", "second"), cells, strict=True))


class Starts:
    """Sentence i of a source with those behind it, and sentences from elsewhere.

    Args:
      source: sentences, an empty one between documents.
      room: sentences that are given at most: each has a token at least.
      duplicates: examples that begin with the same sentence.
    """

    def __init__(self, source: Sequence[dict], room: int, duplicates: int):
        self.source, self.room, self.duplicates = source, room, duplicates
        full = np.array([bool(source[i]["text"].strip()) for i in range(len(source))])
        self.numbers = np.flatnonzero(full)
        self.documents = np.cumsum(~full)  # [sentences] the document of each
        if not len(self.numbers):
            raise UserError("config.data: there is no sentence to train on")

    def __len__(self) -> int:
        return len(self.numbers) * self.duplicates

    def __getitem__(self, i: int) -> dict:
        number, rng = int(self.numbers[i // self.duplicates]), np.random.default_rng([8, i])
        elsewhere = number
        for _ in range(10):  # as often as BERT tries
            elsewhere = int(self.numbers[rng.integers(len(self.numbers))])
            if self.documents[elsewhere] != self.documents[number]:
                break
        return {"number": i, "lines": self._from(number), "others": self._from(elsewhere)}

    def _from(self, number: int) -> list[str]:
        lines = []
        while number < len(self.source) and len(lines) < self.room and (text := self.source[number]["text"]).strip():
            lines.append(text)
            number += 1
        return lines
