"""DistilBERT (Sanh et al. 2019, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter"): half of
BERT's layers, no token types, no pooler; it learns from BERT.

Axes: B batch rows, T length, D model width, F hidden width, V vocabulary.

With N layers: (V + max_length + 2) · D for the embeddings and N · (4·D² + 2·D·F + 9·D + F) for the layers: 66,362,880
parameters.
"""

import dataclasses
import functools

import jax

from transformers_jax.errors import UserError
from transformers_jax.layers.blocks import EncoderBlock, Stack
from transformers_jax.layers.embeddings import Embeddings, TokenTransform
from transformers_jax.layers.masks import Mask
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
    """Fields of `config.model`: those of every encoder.

    classifier_dropout: before the labels of whole rows; before tags stands `dropout`.
    """

    layers: int = 6
    token_types: int = 0
    classifier_dropout: float = 0.2
    span_dropout: float = 0.1


class Model(encoder.Encoder):
    """The encoder with one head."""

    pools = False

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c.vocab_size, c.width, c.max_length, 0, 0, c.dropout, c.norm_epsilon, **c.numbers())
        block = self.block or functools.partial(EncoderBlock, **c.block_fields())
        self.encoder = Stack(block, c.layers, c.scan_layers, c.remat)
        self.setup_head(tag_dropout=c.dropout)
        if c.head in encoder.LANGUAGE_HEADS:
            self.lm = TokenTransform(c.width, c.activation, c.norm_epsilon, **c.numbers())

    def states(self, batch: dict, deterministic: bool, read: jax.Array | None = None) -> jax.Array:
        tokens = batch["tokens"]  # [B, T]
        positions = batch["positions"]  # [B, T]
        segments = batch["segments"]  # [B, T]

        x = self.embeddings(tokens, positions, deterministic=deterministic)  # [B, T, D]
        return self.encoder(x, Mask(segments, segments), deterministic, read=read)

    def transform(self, hidden: jax.Array) -> jax.Array:
        return self.lm(hidden)

    def table(self) -> jax.Array:
        return self.embeddings.table()

    def pooled(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        return jax.nn.relu(self.pooler(hidden[:, 0]))


# Hugging Face's names

_FIELDS = {
    "vocab_size": "vocab_size",
    "dim": "width",
    "n_heads": "num_heads",
    "hidden_dim": "mlp_width",
    "n_layers": "layers",
    "max_position_embeddings": "max_length",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "seq_classif_dropout": "classifier_dropout",
    "qa_dropout": "span_dropout",
    "initializer_range": "stddev",
}

EPSILON = 1e-12
"""Of the layer norms: its config.json has no key for another."""

_LAYER, _OURS = "transformer.layer.{i}.", "encoder/layer_{i}/block/"
_BODY = (
    Row("embeddings.word_embeddings.weight", "embeddings/word"),
    Row("embeddings.position_embeddings.weight", "embeddings/position/embedding"),
    *norm("embeddings.LayerNorm", "embeddings/norm"),
    *linear(_LAYER + "attention.q_lin", _OURS + "self_attention/query", "to_heads"),
    *linear(_LAYER + "attention.k_lin", _OURS + "self_attention/key", "to_heads"),
    *linear(_LAYER + "attention.v_lin", _OURS + "self_attention/value", "to_heads"),
    *linear(_LAYER + "attention.out_lin", _OURS + "self_attention/out", "from_heads"),
    *norm(_LAYER + "sa_layer_norm", _OURS + "self_norm"),
    *linear(_LAYER + "ffn.lin1", _OURS + "feed_forward/expand"),
    *linear(_LAYER + "ffn.lin2", _OURS + "feed_forward/contract"),
    *norm(_LAYER + "output_layer_norm", _OURS + "feed_norm"),
    POSITION_IDS,
)
_TOKENS = (
    *linear("vocab_transform", "lm/dense"),
    *norm("vocab_layer_norm", "lm/norm"),
    Row("vocab_projector.bias", "lm_bias"),
    Tie("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
)
_CLASSIFIER = linear("classifier", "classifier")
_POOLED = (*linear("pre_classifier", "pooler"), *_CLASSIFIER)

NAMES = (
    NameMap(
        "distilbert",
        prefix="distilbert.",
        body=_BODY,
        heads={
            "none": Head("DistilBertModel"),
            "masked_lm": Head("DistilBertForMaskedLM", _TOKENS),
            "sequence": Head("DistilBertForSequenceClassification", _POOLED),
            "tagging": Head("DistilBertForTokenClassification", _CLASSIFIER),
            "span": Head("DistilBertForQuestionAnswering", linear("qa_outputs", "classifier")),
            "multiple_choice": Head("DistilBertForMultipleChoice", _POOLED),
        },
        neutral=ENCODER,
        keys=(*_FIELDS, "activation", "sinusoidal_pos_embds"),
    ),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head and labels. Sinusoids are read like learned positions."""
    return renamed(config, _FIELDS, Config) | {"activation": activation_from_hf(config.get("activation", "gelu"))}


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture and labels."""
    if config.norm_epsilon != EPSILON:
        raise UserError(f"config.model.norm_epsilon is {config.norm_epsilon}; transformers' distilbert has {EPSILON} alone")
    fields = {hf: getattr(config, ours) for hf, ours in _FIELDS.items()}
    return fields | {"model_type": "distilbert", "activation": activation_to_hf(config.activation), "pad_token_id": 0}
