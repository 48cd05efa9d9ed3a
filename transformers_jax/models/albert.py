"""ALBERT (Lan et al. 2020, "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations"): a BERT whose
layers share their parameters, and whose embeddings are narrower than its layers.

Axes: B batch rows, T length, E embedding width, D model width, F hidden width, V vocabulary.

(V + max_length + token_types + 2) · E for the embeddings, E·D + D into the layers, 4·D² + 2·D·F + 9·D + F for each group
of layers, D² + D for the pooler: base has 11,683,584 parameters.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from transformers_jax.errors import UserError
from transformers_jax.layers.blocks import EncoderBlock
from transformers_jax.layers.embeddings import Embeddings, TokenTransform
from transformers_jax.layers.masks import Mask
from transformers_jax.layers.projections import Linear
from transformers_jax.models import encoder
from transformers_jax.models.name_map import (
    ENCODER,
    POSITION_IDS,
    Head,
    NameMap,
    Row,
    Tie,
    activation_from_hf,
    activation_to_hf,
    linear,
    norm,
    renamed,
)


@dataclasses.dataclass(frozen=True)
class Config(encoder.Config):
    """Fields of `config.model`: those of every encoder, and

    embedding_width: E.
    groups: how many sets of parameters the layers have, one after the other.
    inner: blocks in each layer.
    """

    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: str = "gelu_tanh"
    embedding_width: int = 128
    groups: int = 1
    inner: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.layers % self.groups:
            raise UserError(f"config.model.groups is {self.groups}, which does not divide the {self.layers} layers")


class Group(nn.Module):
    """One layer, of `inner` blocks. Its methods have nn.scan's form: (carry, *shared) → (carry, None)."""

    block: Callable[[], nn.Module]
    inner: int
    remat: bool
    scanned: bool

    def setup(self):
        self.inner_block = [self.block() for _ in range(self.inner)]

    def __call__(
        self, x: jax.Array, mask: Mask, deterministic: bool, read: jax.Array | None = None
    ) -> tuple[jax.Array, None]:
        for block in self.inner_block:
            rest = (read,) if read is not None and block is self.inner_block[-1] else ()

            def run(block, x, rest=rest):
                return block(x, mask, deterministic, *rest)

            x = (nn.remat(run, prevent_cse=not self.scanned) if self.remat else run)(block, x)
        return x, None


class SharedStack(nn.Module):
    """`layers` layers with the parameters of `groups`: each group is applied layers / groups times, then the next.

    scan: one compiled layer a group, applied again and again.
    """

    block: Callable[[], nn.Module]
    layers: int
    groups: int
    inner: int
    scan: bool
    remat: bool

    def setup(self):
        kind = Group
        if self.scan:
            kind = nn.scan(
                Group,
                variable_broadcast="params",
                variable_axes={"intermediates": 0},
                split_rngs={"params": False, "dropout": True},
                in_axes=nn.broadcast,
                length=self.layers // self.groups,
            )
        self.group = [kind(self.block, self.inner, self.remat, self.scan) for _ in range(self.groups)]

    def __call__(self, x: jax.Array, mask: Mask, deterministic: bool, read: jax.Array | None = None) -> jax.Array:
        """x [B, T, D] → [B, T, D], or [B, M, D] of positions `read` [B, M] alone; not of scanned layers."""
        times = 1 if self.scan else self.layers // self.groups
        for i in range(self.groups * times):
            last = i == self.groups * times - 1
            x, _ = self.group[i // times](x, mask, deterministic, read if last else None)
        return x


class Model(encoder.Encoder):
    """The encoder with one head. Head "pretraining" is ALBERT's: `next` tells sentences in order (0) from swapped ones (1)."""

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(
            c.vocab_size, c.embedding_width, c.max_length, c.token_types, 0, c.dropout, c.norm_epsilon, **c.numbers()
        )
        self.widen = Linear(c.width, (None, "embed"), **c.numbers())
        block = self.block or functools.partial(EncoderBlock, **c.block_fields())
        self.encoder = SharedStack(block, c.layers, c.groups, c.inner, c.scan_layers, c.remat)
        self.setup_head()
        if c.head in encoder.LANGUAGE_HEADS:
            self.lm = TokenTransform(c.embedding_width, c.activation, c.norm_epsilon, **c.numbers())

    def states(self, batch: dict, deterministic: bool, read: jax.Array | None = None) -> jax.Array:
        tokens = batch["tokens"]  # [B, T]
        positions = batch["positions"]  # [B, T]
        segments = batch["segments"]  # [B, T]
        token_types = batch.get("token_types")  # [B, T]

        x = self.embeddings(tokens, positions, token_types, deterministic=deterministic)  # [B, T, E]
        return self.encoder(self.widen(x), Mask(segments, segments), deterministic, read)  # [B, T, D] or [B, M, D]

    def transform(self, hidden: jax.Array) -> jax.Array:
        return self.lm(hidden)  # [B, M, E]

    def table(self) -> jax.Array:
        return self.embeddings.table()

    def relation(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        return self.next_sentence(self.classifier_drop(self.pooled(hidden, deterministic), deterministic=deterministic))


# Hugging Face's names

_FIELDS = {
    "vocab_size": "vocab_size",
    "embedding_size": "embedding_width",
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "layers",
    "num_hidden_groups": "groups",
    "inner_group_num": "inner",
    "max_position_embeddings": "max_length",
    "type_vocab_size": "token_types",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout_prob": "classifier_dropout",
    "layer_norm_eps": "norm_epsilon",
    "initializer_range": "stddev",
}

_LAYER, _OURS = "encoder.albert_layer_groups.{g}.albert_layers.{i}.", "encoder/group_{g}/inner_block_{i}/"
_BODY = (
    Row("embeddings.word_embeddings.weight", "embeddings/word"),
    Row("embeddings.position_embeddings.weight", "embeddings/position/embedding"),
    Row("embeddings.token_type_embeddings.weight", "embeddings/token_type"),
    *norm("embeddings.LayerNorm", "embeddings/norm"),
    *linear("encoder.embedding_hidden_mapping_in", "widen"),
    *linear(_LAYER + "attention.query", _OURS + "self_attention/query", "to_heads"),
    *linear(_LAYER + "attention.key", _OURS + "self_attention/key", "to_heads"),
    *linear(_LAYER + "attention.value", _OURS + "self_attention/value", "to_heads"),
    *linear(_LAYER + "attention.dense", _OURS + "self_attention/out", "from_heads"),
    *norm(_LAYER + "attention.LayerNorm", _OURS + "self_norm"),
    *linear(_LAYER + "ffn", _OURS + "feed_forward/expand"),
    *linear(_LAYER + "ffn_output", _OURS + "feed_forward/contract"),
    *norm(_LAYER + "full_layer_layer_norm", _OURS + "feed_norm"),
    *linear("pooler", "pooler"),
    POSITION_IDS,
)
_TOKENS = (
    *linear("predictions.dense", "lm/dense"),
    *norm("predictions.LayerNorm", "lm/norm"),
    Row("predictions.bias", "lm_bias"),
    Tie("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
    Tie("predictions.decoder.bias", "predictions.bias"),
)
_ORDER = linear("sop_classifier.classifier", "next_sentence")
_CLASSIFIER = linear("classifier", "classifier")

NAMES = (
    NameMap(
        "albert",
        prefix="albert.",
        body=_BODY,
        heads={
            "none": Head("AlbertModel"),
            "masked_lm": Head("AlbertForMaskedLM", _TOKENS),
            "pretraining": Head("AlbertForPreTraining", _TOKENS + _ORDER),
            "sequence": Head("AlbertForSequenceClassification", _CLASSIFIER),
            "tagging": Head("AlbertForTokenClassification", _CLASSIFIER),
            "span": Head("AlbertForQuestionAnswering", linear("qa_outputs", "classifier")),
            "multiple_choice": Head("AlbertForMultipleChoice", _CLASSIFIER),
        },
        neutral=ENCODER,
        keys=(*_FIELDS, "hidden_act"),
        optional={"pooler": "pooler."},
    ),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head and labels."""
    return renamed(config, _FIELDS, Config) | {"activation": activation_from_hf(config.get("hidden_act", "gelu_new"))}


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture and labels."""
    fields = {hf: getattr(config, ours) for hf, ours in _FIELDS.items()}
    return fields | {"model_type": "albert", "hidden_act": activation_to_hf(config.activation), "pad_token_id": 0}
