"""A tag for each word: named entities, as BERT is finetuned for CoNLL-2003 (Devlin et al. 2019, section 5.3).

A word is cut into tokens; its tag is read from the first. Sentences that are longer than a row become windows that overlap,
and each word has its tag from the window where it stands deepest, so that every word has one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.layers.losses import label_sums
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import entities
from transformers_jax.tasks.parts.labels import Labels
from transformers_jax.tasks.parts.windows import Remembered, windows
from transformers_jax.tasks.task import Task as Base


class Task(Base):
    """Examples {"words": [str], "tags": [str]}; those without tags are predicted only.

    Args:
      tokenizer: turns words into tokens.
      labels: the tags, in the order of the head's rows: BIO ("O", "B-PER", "I-PER"), IO, IOB1, BIOES or BILOU; see
        `parts.entities`.
      max_length: tokens of a window with what surrounds them.
      overlap: tokens that two windows share; max_length // 4 if negative.
      label_smoothing: probability mass spread evenly over the tags in training.
    """

    learned, one_a_row = "tags", True
    streams: Streams = {"": ("tokens", "token_types", "targets", "weights")}
    scored_by, main_metric, bigger_is_better = "predictions", "f1", True
    line_means, line_keys = "words with blanks between them", ("words",)

    def __init__(
        self, tokenizer, *, labels: Sequence[str], max_length: int = 128, overlap: int = -1, label_smoothing: float = 0.0
    ):
        self.tokenizer, self.labels, self.label_smoothing = tokenizer, Labels(labels), label_smoothing
        self._room = max_length - tokenizer.surrounding(pair=False)
        self.overlap = max_length // 4 if overlap < 0 else overlap
        apart = len(tokenizer.encode(" a")) == len(tokenizer.encode("a"))
        self._before_word = " " if apart else ""  # a byte-level vocabulary has other tokens for what follows a space
        self._remembered = Remembered(self._windows)

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "tagging", "labels": len(self.labels)}

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The windows of all sentences, made once for a source."""
        return self._remembered(source)

    def _windows(self, source: Sequence[dict]) -> list[dict]:
        """Each sentence as one or several {"example": its number, "tokens" of each word, "tags", "window"}."""
        self.labels.check(source, lambda example: example.get("tags", ()))
        found = []
        for i in range(len(source)):
            words, tags = source[i]["words"], source[i].get("tags")
            tokens = self._tokens(words)
            for w in windows([len(p) for p in tokens], self._room, self.overlap):
                some = None if tags is None else tags[w.start : w.end]
                found.append({"example": i, "tokens": tokens[w.start : w.end], "tags": some, "window": w})
        return found

    def _tokens(self, words: Sequence[str]) -> list[list[int]]:
        """The tokens of each word, one at least and no more than a window holds."""
        nothing = [self.tokenizer.eos_id if self.tokenizer.unk_id is None else self.tokenizer.unk_id]
        found = self.tokenizer.encode_batch([self._before_word + word for word in words])
        return [tokens[: self._room] or nothing for tokens in found]

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """A window → `tokens`, `token_types`, and at the first token of each word that belongs to it `targets`, `weights`."""
        joined = self.tokenizer.joined([token for word in example["tokens"] for token in word])
        targets, weights = np.zeros([2, len(joined.ids)], np.int32)
        if example["tags"] is not None:
            places = self._places(example)
            first = example["window"].own_start - example["window"].start
            targets[places] = [self.labels.number(tag) for tag in example["tags"][first : first + len(places)]]
            weights[places] = 1
        return joined.fields() | {"targets": targets, "weights": weights}

    def _places(self, example: dict) -> np.ndarray:
        """The position of the first token of each word that belongs to the window."""
        w = example["window"]
        firsts = np.cumsum([1, *(len(word) for word in example["tokens"])])[:-1]
        return firsts[w.own_start - w.start : w.own_end - w.start]

    def loss(self, output: LabelOutput, batch: dict, *, train: bool):
        """Cross entropy summed over words, the number of words, and how many have the right tag."""
        sums = label_sums(output.logits, batch["targets"], batch["weights"], self.label_smoothing if train else 0.0)
        return sums.loss, sums.weight, {"correct": sums.correct}

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`tags` [B, T], numbers, and the `probability` [B, T] of each."""
        probabilities = jax.nn.softmax(output.logits.astype(jnp.float32))
        return {"tags": jnp.argmax(probabilities, axis=-1), "probability": jnp.max(probabilities, axis=-1)}

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """Entity-level precision, recall and f1 as conlleval counts them, and accuracy over words."""
        answers = self.answers(source, predictions)
        known = [i for i in range(len(source)) if "tags" in source[i]]
        return entities.score([source[i]["tags"] for i in known], [answers[i]["prediction"] for i in known]) if known else {}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"prediction": a tag for each word, "probabilities": of each} of each example."""
        found: list[dict] = [{"prediction": [], "probabilities": []} for _ in range(len(source))]
        rows = zip(self.examples(source), predictions["tags"], predictions["probability"], strict=True)
        for window, tags, probability in rows:
            places, answer = self._places(window), found[window["example"]]
            answer["prediction"] += [self.labels.names[i] for i in tags[places]]
            answer["probabilities"] += [round(float(p), 4) for p in probability[places]]
        return found

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"words"}."""
        return {"words": [word for word in " ".join(cells).split(" ") if word]}
