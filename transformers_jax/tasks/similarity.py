"""Sentence vectors that are near where sentences mean the same: Sentence-BERT (Reimers and Gurevych 2019).

Both sentences go through one encoder; a vector is the mean of the last hidden states. Three objectives (section 3):

    regression           the cosine of the two vectors u, v is the score
    classification       softmax over W [u; v; |u - v|]
    multiple_negatives   of all second sentences of the batch, the right one is nearest (Henderson et al. 2017)

Axes: B batch rows, D width, L labels.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.batch import Streams
from transformers_jax.data.text.pairs import grouped
from transformers_jax.errors import UserError
from transformers_jax.layers.losses import label_sums, squared_error
from transformers_jax.layers.pooling import POOLINGS, SIMILARITIES, Recipe, pool, unit
from transformers_jax.layers.projections import Linear
from transformers_jax.outputs import EncoderOutput
from transformers_jax.tasks.parts import metrics
from transformers_jax.tasks.parts.labels import Labels
from transformers_jax.tasks.task import Task as Base

OBJECTIVES = ("regression", "classification", "multiple_negatives")


class Related(NamedTuple):
    """Hidden states [B, 2, T, D] of pairs, and the logits [B, L] of how the two are related."""

    hidden: jax.Array
    logits: jax.Array


class Task(Base):
    """Examples {"first", "second": str, "score": float or "label": str}.

    Args:
      tokenizer: turns text into tokens.
      objective: one of OBJECTIVES.
      labels: classification: of the data, in the order of the head's rows.
      highest: regression: the score of two sentences that mean the same; 0 is that of two that have nothing in common.
      scale: multiple_negatives: what cosines are multiplied with.
      pooling: one of `layers.pooling.POOLINGS`.
      normalise: the vectors that the trained encoder gives have length 1; compared are their directions in any case.
      max_length: tokens of a sentence with what surrounds it.
      lowercase: sentences are put in lower case first.
      prompts: what may stand before a sentence, ("query=query: ", "document=") say.  prompt: the name of the one that stands
        there; "" for none.
      similarity: one of `layers.pooling.SIMILARITIES`, by which the trained encoder's vectors are compared in use.
    """

    one_a_row, groups = True, 2
    streams: Streams = {"": ("tokens", "token_types")}
    scored_by, bigger_is_better = "predictions", True
    line_means, line_keys = "two texts with a TAB between them", ("first", "second")

    def __init__(
        self, tokenizer, *, objective: str = "regression", labels: Sequence[str] = (), highest: float = 5.0,
        scale: float = 20.0, pooling: str = "mean", normalise: bool = True, max_length: int = 128, lowercase: bool = False,
        prompts: Sequence[str] = (), prompt: str = "", similarity: str = "cosine",
    ):  # fmt: skip
        if objective not in OBJECTIVES:
            raise UserError(f"config.task.objective={objective!r} is not one of {', '.join(OBJECTIVES)}")
        if pooling not in POOLINGS:
            raise UserError(f"config.task.pooling={pooling!r} is not one of {', '.join(POOLINGS)}")
        if similarity not in SIMILARITIES:
            raise UserError(f"config.task.similarity={similarity!r} is not one of {', '.join(SIMILARITIES)}")
        if wrong := [text for text in prompts if "=" not in text]:
            raise UserError(f"config.task.prompts: {wrong[0]!r} is no name=text")
        self.tokenizer = tokenizer.lowercased() if lowercase else tokenizer
        self.objective, self.highest, self.scale = objective, highest, scale
        self.pooling, self.normalise, self.max_length = pooling, normalise, max_length
        self.labels = Labels(labels) if objective == "classification" else None
        self.learned = {"regression": "score", "classification": "label"}.get(objective, "")
        self.row_fields = (self.learned,) if self.learned else ()
        self.contrasts = objective == "multiple_negatives"
        pairs = tuple(tuple(text.split("=", 1)) for text in prompts)
        self.recipe = Recipe(pooling, normalise, max_length, lowercase, pairs, prompt, True, similarity)
        self._before = self.recipe.before()
        self.main_metric = "spearman" if objective == "regression" else "accuracy"  # of negatives: that of the loss

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "none"}

    def wrap(self, model: nn.Module, build: Callable[[str, dict], nn.Module]) -> nn.Module:
        """The encoder, for classification with W behind it."""
        return Siamese(model, len(self.labels), self.pooling) if self.labels else model

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The same examples, all labels known."""
        return self.labels.checked(source) if self.labels else source

    def encode(self, example: dict) -> dict:
        """→ `tokens`, `token_types`, a list of two arrays, and `label`, -1 where there is none, or `score`, NaN then."""
        texts = [self._before + example[name] for name in ("first", "second")]
        rows = [self.tokenizer.encode_pair(text, max_length=self.max_length) for text in texts]
        value = self.labels.of(example) if self.labels else example.get("score", math.nan)
        return grouped(rows) | ({self.learned: value} if self.learned else {})

    def loss(self, output: EncoderOutput | Related, batch: dict, *, train: bool):
        """The objective summed over pairs, their number, and sums of the metrics."""
        weights = batch["row_weights"].astype(jnp.float32)  # [B]
        if self.labels:
            sums = label_sums(output.logits, batch["label"], weights)
            return sums.loss, sums.weight, {"correct": sums.correct}
        vectors = self._vectors(output, batch)  # [B, 2, D]
        cosines = jnp.einsum("id,jd->ij", vectors[:, 0], vectors[:, 1])  # [B, B]
        if self.objective == "regression":
            return *squared_error(jnp.diagonal(cosines), batch["score"] / self.highest, weights), {}
        logits = jnp.where(weights > 0, self.scale * cosines, -1e9)
        sums = label_sums(logits, jnp.arange(len(weights)), weights)
        return sums.loss, sums.weight, {"correct": sums.correct}

    def _vectors(self, output: EncoderOutput | Related, batch: dict) -> jax.Array:
        """[B, 2, D], of length 1."""
        return unit(pool(output.hidden, batch["segments"] > 0, self.pooling))

    def predict(self, output: EncoderOutput | Related, batch: dict) -> dict[str, jax.Array]:
        """`cosine` [B] of the two vectors; with labels also their `probabilities` [B, L]."""
        vectors = self._vectors(output, batch)
        found = {"cosine": jnp.sum(vectors[:, 0] * vectors[:, 1], axis=-1)}
        return found | ({"probabilities": jax.nn.softmax(output.logits.astype(jnp.float32))} if self.labels else {})

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """Spearman's and Pearson's correlation of cosine and score, where pairs have scores; accuracy, where labels."""
        scored = [i for i in range(len(source)) if "score" in source[i]]
        result = {"pairs": len(source)}
        if scored:
            truth, found = [source[i]["score"] for i in scored], predictions["cosine"][scored]
            result |= {"spearman": metrics.spearman(truth, found), "pearson": metrics.pearson(truth, found)}
        truth, found = self.labels.judged(source, predictions["probabilities"]) if self.labels else ([], [])
        if truth:
            result |= {"accuracy": metrics.accuracy(truth, found)}
        return result

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"cosine"}, with labels also "prediction" and "probabilities", of each pair."""
        found: list[dict] = [{"cosine": round(float(x), 4)} for x in predictions["cosine"]]
        for answer, row in zip(found, predictions["probabilities"] if self.labels else (), strict=False):
            answer |= self.labels.answer(row)
        return found

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"first", "second"}."""
        return dict(zip(("first", "second"), cells, strict=True))


class Siamese(nn.Module):
    """An encoder of pairs and the classifier W [3 D, L] (section 3, without bias). Its parameters are the encoder's, and
    `classifier` beside them."""

    body: nn.Module
    labels: int
    pooling: str = "mean"

    @property
    def config(self):
        return self.body.config

    @nn.nowrap
    def protocol(self):
        """What the encoder tells about itself; it reads groups of two."""
        return dataclasses.replace(self.body.protocol(), sizes={"C": 2})

    def setup(self):
        nn.share_scope(self, self.body)
        self.classifier = Linear(self.labels, ("embed", None), use_bias=False)

    def __call__(self, batch: dict, *, deterministic: bool = True) -> Related:
        hidden = self.body(batch, deterministic=deterministic).hidden  # [B, 2, T, D]
        vectors = pool(hidden, batch["segments"] > 0, self.pooling)  # [B, 2, D]
        u, v = vectors[:, 0], vectors[:, 1]
        return Related(hidden, self.classifier(jnp.concatenate([u, v, jnp.abs(u - v)], axis=-1)))

    def encode(self, batch: dict, deterministic: bool) -> jax.Array:
        """Hidden states of single sentences, as the encoder's own."""
        return self.body.encode(batch, deterministic)
