"""A vector for each word of a text, in its context: as BERT gives features for tagging (Devlin et al. 2019, section 5.3).

Words have white space between them. Texts that are longer than the model reads become windows that overlap, and a word has its
vector from the window where it stands deepest.

Axes: B batch rows, T length, W words of a row, D width.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.inference.embeddings import recipe_of
from transformers_jax.inference.layers import Layers, states
from transformers_jax.inference.predictor import Loaded, loaded
from transformers_jax.layers.pooling import POOLINGS, pool, unit
from transformers_jax.outputs import EncoderOutput
from transformers_jax.tasks.parts.windows import Window, windows
from transformers_jax.tasks.task import Task

_WORD = re.compile(r"\S+")


class Words(Task):
    """Texts {"text": str} to the vectors of their words: to be handed to a `Predictor` that gives hidden states.

    Args:
      pooling: one of `layers.pooling.POOLINGS`, over the tokens of a word: "first" is the paper's.
      normalise: vectors have length 1.
      max_length: tokens of a window with what surrounds them; 0 for no limit.

    Raises:
      UserError: an unknown pooling.
    """

    one_a_row = True
    streams = {"": ("tokens", "token_types", "words")}

    def __init__(self, tokenizer, *, pooling: str = "first", normalise: bool = False, max_length: int = 0):
        if pooling not in POOLINGS:
            raise UserError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        self.tokenizer, self.pooling, self.normalise = tokenizer, pooling, normalise
        self._room = max_length - tokenizer.surrounding(pair=False) if max_length else 0

    def examples(self, source: Sequence[dict]) -> list[dict]:
        """The windows of all texts: {"example": its number, "words": tokens of each, "window"}."""
        found = []
        for i in range(len(source)):
            tokens = [word[: self._room or None] for word in self._tokens_of(source[i]["text"])]
            room = self._room or max(1, sum(map(len, tokens)))
            found += [
                {"example": i, "words": tokens[w.start : w.end], "window": w}
                for w in windows([len(word) for word in tokens], room, room // 4)
            ]
        return found

    def _tokens_of(self, text: str) -> list[list[tuple[int, bool]]]:
        """The tokens of each word, as the text as a whole has them, and whether each is more than the white space before it."""
        ids, places = self.tokenizer.encode_with_offsets(text)
        found, at = [], 0
        for _, end in words_of(text):
            first = at
            while at < len(ids) and places[at][0] < end:
                at += 1
            found.append([(ids[k], places[k][0] < places[k][1]) for k in range(first, at)])
        return found

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """A window → `tokens`, `token_types`, and `words`, the number of each token's word in the window, from 1 on; else 0."""
        joined = self.tokenizer.joined([token for word in example["words"] for token, _ in word])
        numbers = [number * own for number, word in enumerate(example["words"], 1) for _, own in word]
        return joined.fields() | {"words": np.array([0, *numbers, 0], np.int32)}

    def predict(self, output: EncoderOutput, batch: dict) -> dict[str, jax.Array]:
        """`vectors` [B, W, D], W being T: of words that are not there zeros."""
        length = batch["words"].shape[1]

        def of_word(number):
            return pool(output.hidden, batch["words"] == number, self.pooling) * jnp.any(batch["words"] == number, -1)[:, None]

        vectors = jnp.moveaxis(jax.lax.map(of_word, jnp.arange(1, length + 1)), 0, 1)
        return {"vectors": unit(vectors) if self.normalise else vectors}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"words": [str], "vectors": [[float]]} of each text; a word of which the vocabulary has nothing has None."""
        found: list[dict] = [{"words": [s["text"][a:b] for a, b in words_of(s["text"])], "vectors": []} for s in source]
        for example, vectors in zip(self.examples(source), predictions["vectors"], strict=True):
            w: Window = example["window"]
            for i in range(w.own_start - w.start, w.own_end - w.start):
                there = any(own for _, own in example["words"][i])
                found[example["example"]]["vectors"].append(vectors[i].tolist() if there else None)
        return found


class WordEmbedder:
    """Texts → {"words", "vectors"} of each, in their order; a blank text has neither.

    Args:
      there: an encoder.
      layers: whose states the vectors are made of; None for the last one's.
      lowercase: texts are put in lower case first, as the folder's own recipe says.
      pooling, normalise, max_length: as of `Words`.
    """

    def __init__(
        self, there: Loaded, layers: Layers | None = None, *, lowercase: bool = False, pooling: str = "first",
        normalise: bool = False, max_length: int = 0,
    ):  # fmt: skip
        limits = [limit for limit in (max_length, there.longest()) if limit]
        tokenizer = there.tokenizer.lowercased() if lowercase else there.tokenizer
        self._task = Words(tokenizer, pooling=pooling, normalise=normalise, max_length=min(limits, default=0))
        self._predict = states(there, self._task, layers)

    @classmethod
    def of(cls, path: str, layers: Layers | None = None, *, step: int | str | None = None, **options) -> "WordEmbedder":
        """Of a folder, a workdir or a name on the hub.

        Raises:
          UserError: there is no encoder, or an option is not possible.
        """
        return cls.over(loaded(path, step=step), layers, **options)

    @classmethod
    def over(cls, there: Loaded, layers: Layers | None = None, **options) -> "WordEmbedder":
        """The same of a model that is there."""
        return cls(there, layers, lowercase=recipe_of(there).lowercase, **options)

    def __call__(self, texts: Sequence[str]) -> list[dict]:
        """See the class."""
        full = [{"text": text} for text in texts if text.strip()]
        found = iter(self._task.answers(full, self._predict(self._task.examples(full))) if full else ())
        return [next(found) if text.strip() else {"words": [], "vectors": []} for text in texts]


def words_of(text: str) -> list[tuple[int, int]]:
    """Where each word of a text stands: text[start:end]."""
    return [match.span() for match in _WORD.finditer(text)]
