"""Causal language model: each token is predicted from those before it. GPT's pretraining (Radford et al. 2018) and that of all
its kin.

Documents are joined and cut where config.data.batching is "documents"; with "packing" and "rows" a document is an example.

Axes: B batch rows, T length, D model width, V vocabulary.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.data.documents import Document
from transformers_jax.data.text.token_files import TokenFiles
from transformers_jax.errors import UserError
from transformers_jax.layers.losses import cross_entropy, token_nll
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.tasks.task import Generate
from transformers_jax.tasks.task import Task as Base

PROMPT, SAMPLES = 32, 3
"""Tokens of a document that a sample goes on from; samples of an evaluation."""

CONTEXTS = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""From how many tokens in front on the bits of a byte are told apart: what a model gains from a longer context."""


class Task(Base):
    """Causal language model of examples {"text": str}, or {"ids": array of a token file}.

    Its scores are the loss of a token, its perplexity and accuracy, and `bits_per_byte`, the bits that the text takes for each
    of its bytes in UTF-8, see `data.text.token_bytes`. Tokens that end documents count in all four; they have no bytes.

    Args:
      tokenizer: turns text into tokens.
    """

    streams: Streams = {"": ("tokens", "targets", "weights")}

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "causal_lm"}

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The documents.

        Raises:
          UserError: they are tokens of another vocabulary.
        """
        if isinstance(source, TokenFiles):
            source.made_with(self.tokenizer)
        return source

    def document(self, example: dict) -> Document:
        """The tokens of a document, and the tokens that begin and end it.

        Raises:
          UserError: the example is neither a text nor tokens.
        """
        if "ids" in example:
            ids = example["ids"]
        elif "text" in example:
            (ids,) = self.tokenizer.encode_batch([example["text"]])  # without places, which take memory
        else:
            raise UserError(f"a document of config.task.name={self.name} has a text, and this one {', '.join(example)}")
        return Document(np.asarray(ids), self.tokenizer.bos_id, self.tokenizer.eos_id)

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """A document as one example: 1-D int32 arrays `tokens`, `targets`, `weights`."""
        document = self.document(example)
        return document.piece(0, len(document)) | {"weights": np.ones(len(document), np.int32)}

    def loss(self, output: LanguageModelOutput, batch: dict, *, train: bool):
        """Summed loss, summed weight, and sums of the metrics: all scalars."""
        return sums_of(output, batch, None if train else self._byte_lengths)

    def sums(self, output: LanguageModelOutput, batch: dict) -> dict[str, jax.Array]:
        """Bits and bytes [contexts] of the tokens with so much in front, see CONTEXTS."""
        weights = batch["weights"] * (batch["segments"] > 0)  # [B, T]
        bits = token_nll(output.hidden, output.table, batch["targets"], output.bias) / math.log(2)  # [B, T]
        sizes = jnp.asarray(self._byte_lengths)[batch["targets"]]  # [B, T]
        kind = jnp.searchsorted(jnp.array(CONTEXTS), batch["positions"], side="right") - 1  # [B, T]
        zeros = jnp.zeros(len(CONTEXTS))
        return {"bits": zeros.at[kind].add(bits * weights), "bytes": zeros.at[kind].add(sizes * weights)}

    def score_sums(self, totals: dict[str, np.ndarray]) -> dict[str, float]:
        """`bits_per_byte_after_16`, of tokens with 16 to 31 in front of them in their row, and so on."""
        found = zip(CONTEXTS, totals["bits"], totals["bytes"], strict=True)
        return {f"bits_per_byte_after_{context}": float(bits / size) for context, bits, size in found if size}

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict[str, float], list[dict]]:
        """As of every task; the scores also by context, which takes the loss once more and is left out in training."""
        losses, totals = scorer.totals(split, **model)
        samples = self.continuations(scorer.source(split), lambda prompts: scorer.continued(prompts, model))
        return losses | self.score_sums(totals), samples

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        """[V] bytes that each token stands for."""
        return self.tokenizer.byte_lengths()

    def continuations(self, source: Sequence[dict], generate: Generate) -> list[dict]:
        """How the first documents' beginnings go on: {"prompt", "continuation", "reference"}."""
        documents = [self.document(source[i]).ids.tolist() for i in range(min(SAMPLES, len(source)))]
        prompts = [[self.tokenizer.bos_id, *ids[:PROMPT]] for ids in documents]
        decode = self.tokenizer.decode
        return [
            {"prompt": decode(prompt), "continuation": decode(found), "reference": decode(ids[PROMPT : PROMPT + len(found)])}
            for prompt, found, ids in zip(prompts, generate(prompts), documents, strict=True)
        ]


def sums_of(output: LanguageModelOutput, batch: dict, byte_lengths: np.ndarray | None):
    """What `Task.loss` returns of a batch's `targets` where `weights` are 1.

    Args:
      byte_lengths: [V] bytes that each token stands for; None leaves out the bits of a byte.
    """
    targets = batch["targets"]  # [B, T]
    weights = batch["weights"] * (batch["segments"] > 0)  # [B, T]
    sums = cross_entropy(output.hidden, output.table, targets, weights, bias=output.bias)
    found = {"nll": sums.nll, "correct": sums.correct}
    if byte_lengths is not None:
        sizes = jnp.asarray(byte_lengths)[targets] * weights  # [B, T]
        found |= {"bits_per_byte": sums.nll / math.log(2), "bits_per_weight": jnp.sum(sizes).astype(jnp.float32)}
    return sums.loss, sums.weight, found
