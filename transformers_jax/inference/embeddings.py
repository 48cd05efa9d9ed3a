"""Vectors of sentences, and what is done with them: similarity, search, extractive summaries.

Axes: B batch rows, T length, D model width, n texts, m texts of a corpus.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.inference.layers import Layers, states
from transformers_jax.inference.predictor import Loaded, loaded
from transformers_jax.interchange import recipe as recipes
from transformers_jax.layers.pooling import POOLINGS, SIMILARITIES, Recipe, pool, unit
from transformers_jax.outputs import EncoderOutput
from transformers_jax.tasks.task import Task

_NEXT = r"""(?=["'“‘«(\[]?[^\Wa-z])"""  # what begins a sentence
_SENTENCE_END = re.compile(rf"""(?<=[.!?…])\s+{_NEXT}|(?<=[.!?…]["'”’»)\]])\s+{_NEXT}|\n+|(?<=[。！？])""")


class Sentences(Task):
    """Texts to vectors: a task to be handed to an `inference.Predictor` of a model with head "none".

    Raises:
      UserError: an unknown pooling or similarity.
    """

    one_a_row = True
    streams = {"": ("tokens", "token_types", "weights")}

    def __init__(self, tokenizer, recipe: Recipe):
        if recipe.pooling not in POOLINGS:
            raise UserError(f"pooling {recipe.pooling!r} is not one of {', '.join(POOLINGS)}")
        if recipe.similarity not in SIMILARITIES:
            raise UserError(f"similarity {recipe.similarity!r} is not one of {', '.join(SIMILARITIES)}")
        recipe.before()  # which it may lack
        self.tokenizer, self.recipe = tokenizer.lowercased() if recipe.lowercase else tokenizer, recipe

    def encode(self, example: dict) -> dict[str, Any]:
        """{"text": str, "before": str of a prompt} → `tokens`, `token_types`, `weights`: which positions are pooled."""
        before = example.get("before", "")
        joined = self.tokenizer.encode_pair(before + example["text"], max_length=self.recipe.max_length)
        weights = np.ones(len(joined.ids), np.int32)
        if before and not self.recipe.pool_prompt:
            weights[: 1 + len(self.tokenizer.encode(before))] = 0
        return joined.fields() | {"weights": weights}

    def predict(self, output: EncoderOutput, batch: dict) -> dict[str, jax.Array]:
        """`vector` [B, D]."""
        pooled = (batch["segments"] > 0) & (batch["weights"] > 0)  # [B, T]
        vectors = pool(output.hidden, pooled, self.recipe.pooling)
        return {"vector": unit(vectors) if self.recipe.normalise else vectors}


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine similarity [n, m] of vectors [n, D] and [m, D]; 0 to a vector of zeros."""
    return _unit(first) @ _unit(second).T


def paired_cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine similarity [n] of vectors [n, D], one to one."""
    return np.einsum("nd,nd->n", _unit(first), _unit(second))


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def similarities(first: np.ndarray, second: np.ndarray, kind: str = "cosine") -> np.ndarray:
    """Similarity [n, m], one of SIMILARITIES, of vectors [n, D] and [m, D]."""
    match kind:
        case "cosine":
            return cosine(first, second)
        case "dot":
            return first @ second.T
        case "euclidean":
            return -np.stack([np.linalg.norm(row - second, axis=-1) for row in first])
        case _:
            return -np.stack([np.abs(row - second).sum(axis=-1) for row in first])


def paired(first: np.ndarray, second: np.ndarray, kind: str = "cosine") -> np.ndarray:
    """The same [n] of vectors [n, D], one to one."""
    rows = zip(first, second, strict=True)
    return np.array([similarities(a[None], b[None], kind)[0, 0] for a, b in rows])


def nearest(
    queries: np.ndarray, corpus: np.ndarray, count: int, similarity: str = "cosine"
) -> list[list[tuple[int, float]]]:
    """(number, similarity) of the `count` most similar of corpus [m, D] to each of queries [n, D], best first.

    Equally similar ones come in their order.
    """
    found = []
    for start in range(0, len(queries), 256):  # [256, m] at once
        for row in similarities(queries[start : start + 256], corpus, similarity):
            best = np.argsort(-row, kind="stable")[:count]
            found.append([(int(i), float(row[i])) for i in best])
    return found


def sentences_of(text: str) -> list[str]:
    """The sentences of a text: they end with a line, or with . ! ? before white space and what does not begin small."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def centrality(vectors: np.ndarray, *, damping: float = 0.15, rounds: int = 100) -> np.ndarray:
    """How central each of n sentences is: LexRank over cosine similarities (Erkan and Radev 2004, section 3.3, "continuous
    LexRank", with sentence vectors in place of tf-idf). Sums to 1.

    The stationary distribution of a walk that goes from a sentence to another one with a chance proportional to their
    similarity (negative ones count as none), and anywhere with chance `damping`.

    Args:
      vectors: [n, D].
    """
    n = len(vectors)
    weights = np.maximum(cosine(vectors, vectors), 0.0) * (1 - np.eye(n))
    totals = weights.sum(axis=1, keepdims=True)
    walk = np.where(totals > 0, weights / np.maximum(totals, 1e-12), 1 / n)
    rank = np.full(n, 1 / n)
    for _ in range(rounds):
        rank = damping / n + (1 - damping) * rank @ walk
    return rank / rank.sum()


def summary(sentences: Sequence[str], vectors: np.ndarray, count: int) -> list[str]:
    """The `count` most central sentences, in the order of the text."""
    best = np.argsort(-centrality(vectors), kind="stable")[:count]
    return [sentences[i] for i in sorted(best)]


def recipe_of(there: Loaded) -> Recipe:
    """How a text becomes a vector by what the model was trained for, or by the files beside its weights.

    Raises:
      UserError: these cannot be read, or are not supported.
    """
    return (there.task and there.task.recipe) or recipes.read(there.folder)


class Embedder:
    """Texts → vectors [n, D], one a text in their order; a blank text gives zeros.

    Args:
      there: an encoder.
      recipe: how a text becomes a vector.
      layers: whose states it is made of; None for the last one's.
    """

    def __init__(self, there: Loaded, recipe: Recipe, layers: Layers | None = None):
        limits = [limit for limit in (recipe.max_length, there.longest()) if limit]
        self.recipe = recipe._replace(max_length=min(limits, default=0))
        self._predict = states(there, Sentences(there.tokenizer, self.recipe), layers)
        width, count = there.model.config.width, there.model.config.layers
        self.width = layers.width(width, count) if layers else width

    @classmethod
    def of(cls, path: str, layers: Layers | None = None, *, step: int | str | None = None, **changes) -> "Embedder":
        """Of a folder, a workdir or a name on the hub; `changes` replace fields of the recipe found there.

        Args:
          step: of a workdir, see `Experiment.trained`.

        Raises:
          UserError: there is no encoder, or none whose recipe is supported.
        """
        return cls.over(loaded(path, step=step), layers, **changes)

    @classmethod
    def over(cls, there: Loaded, layers: Layers | None = None, **changes) -> "Embedder":
        """The same of a model that is there."""
        return cls(there, recipe_of(there)._replace(**changes), layers)

    def named(self, *names: str) -> str | None:
        """The first of these names that the recipe has a prompt of, as `__call__` takes it; None for none."""
        return next((name for name in names if name in dict(self.recipe.prompts)), None)

    def __call__(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """
        Args:
          prompt: the name of what stands before the texts; None for what the recipe says, "" for nothing.

        Raises:
          UserError: there is no such prompt.
        """
        before = self.recipe.before(prompt)
        full = [i for i, text in enumerate(texts) if text.strip()]
        out = np.zeros((len(texts), self.width), np.float32)
        if full:
            out[full] = self._predict([{"text": texts[i], "before": before} for i in full])["vector"]
        return out
