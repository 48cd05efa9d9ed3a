"""BERT (Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding"), and the
models that differ from it in data, embeddings and heads only: RoBERTa (Liu et al. 2019), CamemBERT (Martin et al. 2020),
XLM-RoBERTa (Conneau et al. 2020).

Axes: B batch rows, T length, D model width, F hidden width, V vocabulary.

With N layers: (V + max_length + token_types + 2) · D for the embeddings, N · (4·D² + 2·D·F + 9·D + F) for the layers,
D² + D for the pooler: base has 109,482,240 parameters, large 335,141,888.
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

VARIANTS = ("bert", "roberta", "camembert", "xlm-roberta")


@dataclasses.dataclass(frozen=True)
class Config(encoder.Config):
    """Fields of `config.model`: those of every encoder, and

    variant: one of VARIANTS. But for names in foreign files only this differs: RoBERTa and its kin drop out before the
      dense layer of a sequence's labels too.
    position_offset: row of position 0 in the table of positions. RoBERTa and its kin keep the first two for padding (id 1),
      and count them in max_length.
    """

    variant: str = "bert"
    position_offset: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise UserError(f"config.model.variant is {self.variant!r}; it is one of {', '.join(VARIANTS)}")


class Model(encoder.Encoder):
    """The encoder with one head."""

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(
            c.vocab_size, c.width, c.max_length, c.token_types, c.position_offset, c.dropout, c.norm_epsilon, **c.numbers()
        )
        block = self.block or functools.partial(EncoderBlock, **c.block_fields())
        self.encoder = Stack(block, c.layers, c.scan_layers, c.remat)
        self.setup_head()
        if c.head in encoder.LANGUAGE_HEADS:
            self.lm = TokenTransform(c.width, c.activation, c.norm_epsilon, **c.numbers())

    def states(self, batch: dict, deterministic: bool, read: jax.Array | None = None) -> jax.Array:
        tokens = batch["tokens"]  # [B, T]
        positions = batch["positions"]  # [B, T]
        segments = batch["segments"]  # [B, T]
        token_types = batch.get("token_types")  # [B, T]

        x = self.embeddings(tokens, positions, token_types, deterministic=deterministic)  # [B, T, D]
        return self.encoder(x, Mask(segments, segments), deterministic, read=read)

    def transform(self, hidden: jax.Array) -> jax.Array:
        return self.lm(hidden)

    def table(self) -> jax.Array:
        return self.embeddings.table()

    def pooled(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        if self.config.variant != "bert" and self.config.head == "sequence":
            hidden = self.classifier_drop(hidden[:, :1], deterministic=deterministic)
        return super().pooled(hidden, deterministic)


# Hugging Face's names

_ROBERTAS = VARIANTS[1:]

_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "layers",
    "max_position_embeddings": "max_length",
    "type_vocab_size": "token_types",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "norm_epsilon",
    "initializer_range": "stddev",
}

_LAYER, _OURS = "encoder.layer.{i}.", "encoder/layer_{i}/block/"
_BODY = (
    Row("embeddings.word_embeddings.weight", "embeddings/word"),
    Row("embeddings.position_embeddings.weight", "embeddings/position/embedding"),
    Row("embeddings.token_type_embeddings.weight", "embeddings/token_type"),
    *norm("embeddings.LayerNorm", "embeddings/norm"),
    *linear(_LAYER + "attention.self.query", _OURS + "self_attention/query", "to_heads"),
    *linear(_LAYER + "attention.self.key", _OURS + "self_attention/key", "to_heads"),
    *linear(_LAYER + "attention.self.value", _OURS + "self_attention/value", "to_heads"),
    *linear(_LAYER + "attention.output.dense", _OURS + "self_attention/out", "from_heads"),
    *norm(_LAYER + "attention.output.LayerNorm", _OURS + "self_norm"),
    *linear(_LAYER + "intermediate.dense", _OURS + "feed_forward/expand"),
    *linear(_LAYER + "output.dense", _OURS + "feed_forward/contract"),
    *norm(_LAYER + "output.LayerNorm", _OURS + "feed_norm"),
    *linear("pooler.dense", "pooler"),
    POSITION_IDS,
)
_CLASSIFIER, _SPAN = linear("classifier", "classifier"), linear("qa_outputs", "classifier")
_NEXT = linear("cls.seq_relationship", "next_sentence")


def _tokens(transform: str, layer_norm: str, bias: str, decoder: str, table: str) -> tuple:
    """The masked language model's rows: its decoder is the table of tokens and the bias once more."""
    ties = (Tie(decoder + ".weight", table), Tie(decoder + ".bias", bias))
    return (*linear(transform, "lm/dense"), *norm(layer_norm, "lm/norm"), Row(bias, "lm_bias"), *ties)


_PREDICTIONS, _WORDS = "cls.predictions.", "embeddings.word_embeddings.weight"
_BERT_TOKENS = _tokens(
    _PREDICTIONS + "transform.dense", _PREDICTIONS + "transform.LayerNorm",
    _PREDICTIONS + "bias", _PREDICTIONS + "decoder", "bert." + _WORDS,
)  # fmt: skip
_ROBERTA_TOKENS = _tokens("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder", "roberta." + _WORDS)


_KEYS = (*_FIELDS, "hidden_act", "classifier_dropout", "pad_token_id")
_OPTIONAL = {"pooler": "pooler."}


def _roberta(variant: str, name: str) -> NameMap:
    return NameMap(
        variant,
        prefix="roberta.",
        body=_BODY,
        heads={
            "none": Head(name + "Model"),
            "masked_lm": Head(name + "ForMaskedLM", _ROBERTA_TOKENS),
            "sequence": Head(
                name + "ForSequenceClassification",
                (*linear("classifier.dense", "pooler"), *linear("classifier.out_proj", "classifier")),
            ),
            "tagging": Head(name + "ForTokenClassification", _CLASSIFIER),
            "span": Head(name + "ForQuestionAnswering", _SPAN),
            "multiple_choice": Head(name + "ForMultipleChoice", _CLASSIFIER),
        },
        neutral=ENCODER,
        keys=_KEYS,
        optional=_OPTIONAL,
        padded_positions=True,
    )


NAMES = (
    NameMap(
        "bert",
        prefix="bert.",
        body=_BODY,
        heads={
            "none": Head("BertModel"),
            "masked_lm": Head("BertForMaskedLM", _BERT_TOKENS),
            "pretraining": Head("BertForPreTraining", _BERT_TOKENS + _NEXT),
            "next_sentence": Head("BertForNextSentencePrediction", _NEXT),
            "sequence": Head("BertForSequenceClassification", _CLASSIFIER),
            "tagging": Head("BertForTokenClassification", _CLASSIFIER),
            "span": Head("BertForQuestionAnswering", _SPAN),
            "multiple_choice": Head("BertForMultipleChoice", _CLASSIFIER),
        },
        neutral=ENCODER,
        keys=_KEYS,
        optional=_OPTIONAL,
    ),
    _roberta("roberta", "Roberta"),
    _roberta("camembert", "Camembert"),
    _roberta("xlm-roberta", "XLMRoberta"),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head and labels."""
    fields = renamed(config, _FIELDS, Config)
    dropout = config.get("classifier_dropout")
    return fields | {
        "variant": config["model_type"],
        "activation": activation_from_hf(config.get("hidden_act", "gelu")),
        "classifier_dropout": fields["dropout"] if dropout is None else dropout,
        "position_offset": config.get("pad_token_id", 1) + 1 if config["model_type"] in _ROBERTAS else 0,
    }


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture and labels."""
    if config.variant not in _ROBERTAS and config.position_offset:
        raise UserError(
            f"config.model.position_offset is {config.position_offset}, which transformers' {config.variant} does not have: "
            "its positions begin at row 0"
        )
    special = {"pad_token_id": config.position_offset - 1, "bos_token_id": 0, "eos_token_id": 2}
    return {hf: getattr(config, ours) for hf, ours in _FIELDS.items()} | {
        "model_type": config.variant,
        "hidden_act": activation_to_hf(config.activation),
        "classifier_dropout": config.classifier_dropout,
        **(special if config.variant in _ROBERTAS else {"pad_token_id": 0}),
    }
