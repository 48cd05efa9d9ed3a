"""What BERT and its descendants share: the fields of their configs, and the heads.

Axes: B batch rows, C rows of a group, T length, M positions that are read or masked, D model width, V vocabulary, L labels.

A batch has `tokens`, `positions`, `segments` and, where sentences come in pairs, `token_types`, each [B, T]; or [B, C, T]
with C rows that belong together, as a question's choices do. Rows may be packed where each position has its own target;
what concerns a whole row is read from its first position.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers import gather as masked
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.feedforward import ACTIVATIONS
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.projections import Linear
from transformers_jax.models.protocol import ENCODES, TEXT, Protocol
from transformers_jax.outputs import EncoderOutput, LabelOutput, LanguageModelOutput, PretrainingOutput

HEADS = ("none", "masked_lm", "pretraining", "next_sentence", "sequence", "tagging", "span", "multiple_choice")
FIRST_HEADS = ("pretraining", "next_sentence", "sequence", "multiple_choice")
LANGUAGE_HEADS = ("masked_lm", "pretraining")
LABELLED_HEADS = ("sequence", "tagging", "multiple_choice")
"""Those that read a row's first position, those that predict tokens, those that give labels."""

CONFIGS = {
    "none": "sentence_bert.py:sts",
    "masked_lm": "bert.py:quickstart",
    "pretraining": "bert.py:base",
    "next_sentence": "bert.py:base",
    "sequence": "bert.py:sentences",
    "tagging": "bert.py:ner",
    "span": "bert.py:squad",
    "multiple_choice": "bert.py:swag",
}
"""Where the config of a converted model's workdir comes from, by its head: model, labels and tokenizer are replaced."""

HeadOutput = EncoderOutput | LanguageModelOutput | PretrainingOutput | LabelOutput

STREAM = ("tokens", "positions", "segments", "token_types", "languages")


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of `config.model` that all encoders have; the defaults are BERT base (Devlin et al. 2019, section 3).

    layers: N of the papers.  hidden: width inside the feed-forward.  max_length: rows of the table of positions.
    token_types: kinds of tokens: BERT's sentences A and B.
    activation: a name of `layers.feedforward.ACTIVATIONS`.
    dropout: on embeddings and sublayer outputs; attention_dropout on weights; classifier_dropout before the labels,
      span_dropout before an answer's scores.
    head: one of HEADS.  labels: of "sequence" and "tagging".  pooler: whether "none" gives `EncoderOutput.pooled`.
    max_mask_rate: a row has at most this share of positions to predict; the head computes no others in training.
    stddev: of the initial numbers.  norm_epsilon: of the layer norms.
    scan_layers: one compiled block for all layers; without it the program is larger, and faster on CPUs.
    genome: other blocks than these, as a genome's JSON file, text or name; its encoder cells are the layers.
    genome_unit: width that one relative output dimension of the genome stands for; 0 is width // 2.
    """

    vocab_size: int
    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    layers: int = 12
    max_length: int = 512
    token_types: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    span_dropout: float = 0.0
    activation: str = "gelu"
    head: str = "none"
    labels: int = 2
    pooler: bool = True
    max_mask_rate: float = 0.2
    norm_epsilon: float = 1e-12
    stddev: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    attention: str = "auto"
    dtype: str = "float32"
    param_dtype: str = "float32"
    genome: str = ""
    genome_unit: int = 0

    def __post_init__(self):
        if self.head not in HEADS:
            raise UserError(f"config.model.head is {self.head!r}; it is one of {', '.join(HEADS)}")
        if self.layers < 1:
            raise UserError(f"config.model.layers is {self.layers}; it must be 1 or more")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"config.model.activation is {self.activation!r}; it is one of {', '.join(ACTIVATIONS)}")

    def block_fields(self) -> dict:
        """The fields of a `layers.blocks.EncoderBlock`."""
        names = "num_heads mlp_width dropout attention_dropout activation attention norm_epsilon stddev dtype param_dtype"
        return {name: getattr(self, name) for name in names.split()} | {"norm": "post", "attention_bias": True}

    def numbers(self) -> dict:
        """How an embedding or a dense layer starts and computes."""
        return {"stddev": self.stddev, "dtype": self.dtype, "param_dtype": self.param_dtype}


class Encoder(nn.Module):
    """From a batch to its head's output. An architecture gives `setup`, `states`, `table` and what differs of the rest.

    block: makes one block with the signature of `layers.blocks.EncoderBlock`; None for the architecture's own.
    """

    config: Any
    block: Callable[..., nn.Module] | None = None
    genome_cells = {"block": ("encoder", "layers")}
    pools = True  # whether the architecture itself summarises a row, without a head

    def __call__(self, batch: dict, *, deterministic: bool = True) -> HeadOutput:
        """The output of `config.head`: for "none" an `EncoderOutput`, over tokens their own, else `LabelOutput`."""
        groups = batch["tokens"].shape[:-1]  # (B,) or (B, C)
        batch = batch | {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in STREAM if name in batch}
        hidden = self.encode(batch, deterministic, self.reads(batch))  # [B · C, T or M, D]
        match self.config.head:
            case "none":
                pooled = self.pooled(hidden, deterministic) if self.pools and self.config.pooler else None
                hidden = hidden.reshape(*groups, *hidden.shape[1:])
                return EncoderOutput(hidden, None if pooled is None else pooled.reshape(*groups, -1))
            case "masked_lm":
                return self.tokens(hidden, batch)
            case "pretraining":
                return PretrainingOutput(self.tokens(hidden, batch), self.relation(hidden, deterministic))
            case "next_sentence":
                return LabelOutput(self.relation(hidden, deterministic))
            case "sequence":
                return LabelOutput(self.sequence(hidden, deterministic))
            case "tagging":
                return LabelOutput(self.classifier(self.classifier_drop(hidden, deterministic=deterministic)))
            case "span":
                return LabelOutput(self.classifier(self.span_drop(hidden, deterministic=deterministic)))
            case "multiple_choice":
                return LabelOutput(self.sequence(hidden, deterministic).reshape(groups))

    @nn.nowrap
    def protocol(self) -> Protocol:
        """What this model tells about itself; its longest input is the table of positions without rows never looked up."""
        c, labelled = self.config, self.config.head in LABELLED_HEADS
        kinds = c.token_types > 1
        return Protocol(
            reads=(TEXT,),
            does=(ENCODES,),
            fields=("tokens", "positions", "segments", *["token_types"] * kinds),
            longest=c.max_length - getattr(c, "position_offset", 0),
            head=c.head,
            heads=HEADS,
            labelled=LABELLED_HEADS,
            labels=c.labels if labelled else 0,
            token_heads=LANGUAGE_HEADS,
            token_types=kinds,
            max_mask_rate=c.max_mask_rate,
            configs=CONFIGS,
            sizes={"C": 2} if c.head == "multiple_choice" else {},
        )

    def setup_head(self, *, pooler: bool = True, choice: int = 1, tag_dropout: float | None = None) -> None:
        """Makes the parts of the head; to be called in `setup`.

        pooler: a dense layer stands between a row's first position and what is read from it.
        choice: outputs of the classifier for each choice.
        tag_dropout: before the labels of "tagging"; classifier_dropout if not given.
        """
        c, head = self.config, self.config.head
        if pooler and (head in FIRST_HEADS or head == "none" and self.pools and c.pooler):
            self.pooler = Linear(c.width, ("embed", None), **c.numbers())
        if head in ("pretraining", "next_sentence"):
            self.next_sentence = Linear(2, ("embed", None), **c.numbers())
        if outputs := {"sequence": c.labels, "tagging": c.labels, "span": 2, "multiple_choice": choice}.get(head):
            self.classifier = Linear(outputs, ("embed", None), **c.numbers())
        if head in LANGUAGE_HEADS:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
            self.lm_bias = self.param("lm_bias", zeros, (c.vocab_size,), c.param_dtype)
        if c.genome:
            self.final_norm = LayerNorm(c.norm_epsilon, c.dtype, c.param_dtype)
        tagging = head == "tagging" and tag_dropout is not None
        self.classifier_drop = Dropout(tag_dropout if tagging else c.classifier_dropout)
        self.span_drop = Dropout(c.span_dropout)

    def states(self, batch: dict, deterministic: bool, read: jax.Array | None = None) -> jax.Array:
        """What comes out of the last block, [B, T, D], for a batch without groups; of positions `read` alone, [B, M, D]."""
        raise NotImplementedError

    def encode(self, batch: dict, deterministic: bool = True, read: jax.Array | None = None) -> jax.Array:
        """Hidden states [B, T, D] of a batch without groups, or [B, M, D] of its positions `read` [B, M] alone.

        The last block computes no others, unless it is another's, shares its program, or its attention is wanted whole.
        A genome's cells have their norms in front, so one is added.
        """
        whole = self.block or self.config.scan_layers or self.is_mutable_collection("intermediates")
        hidden = self.states(batch, deterministic, None if whole else read)
        hidden = self.final_norm(hidden) if self.config.genome else hidden
        return masked.gather(hidden, read) if whole else hidden

    def reads(self, batch: dict) -> jax.Array | None:
        """The positions that the head reads: a row's first, then the masked ones, [B, M]; None for all."""
        head, (rows, length) = self.config.head, batch["tokens"].shape
        found = [jnp.zeros((rows, 1), jnp.int32)] if head in FIRST_HEADS else []
        if head in LANGUAGE_HEADS:
            count = self.predicted(batch)
            if count == length:
                return None
            found.append(masked.masked_positions(batch["weights"], count))
        return jnp.concatenate(found, axis=1) if found else None

    def predicted(self, batch: dict) -> int:
        """M: how many positions of a row a masked language model predicts; all where the batch does not say which."""
        length = batch["tokens"].shape[-1]
        return masked.predicted(self.config.max_mask_rate, length) if "weights" in batch else length

    def table(self) -> jax.Array:
        """The vectors of tokens [V, D] of the softmax over them."""
        raise NotImplementedError

    def transform(self, hidden: jax.Array) -> jax.Array:
        """What comes between hidden states [B, M, D] and the softmax over tokens."""
        return hidden

    def tokens(self, hidden: jax.Array, batch: dict) -> LanguageModelOutput:
        """The masked language model's output for the masked positions, of the hidden states of all that `reads` names."""
        hidden = hidden[:, -self.predicted(batch) :]  # [B, M, D]
        return LanguageModelOutput(self.transform(hidden), self.table(), self.lm_bias.astype(hidden.dtype))

    def pooled(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        """A row's summary, from its first position: hidden [B, T, D] → [B, D]."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def relation(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        """[B, 2]: how the row's second sentence relates to its first."""
        return self.next_sentence(self.pooled(hidden, deterministic))

    def sequence(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        """Labels of whole rows, hidden [B, T, D] → [B, L]; a choice has one."""
        return self.classifier(self.classifier_drop(self.pooled(hidden, deterministic), deterministic=deterministic))
