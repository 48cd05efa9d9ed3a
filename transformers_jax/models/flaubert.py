"""FlauBERT (Le et al. 2020, "FlauBERT: Unsupervised Language Model Pre-training for French"), built as XLM (Lample and
Conneau 2019): its embeddings are normalised, then each layer's norm stands behind its sublayers as in BERT or, in the
small and the large model, before them, with none behind the last layer.

Axes: B batch rows, T length, D model width, V vocabulary.

With N layers: (V + max_length + 2) · D for the embeddings and N · (12·D² + 13·D) for the layers; base (V = 68,729, cased)
has 138,233,088 parameters.
"""

import dataclasses
import functools

import flax.linen as nn
import jax

from transformers_jax.errors import UserError
from transformers_jax.layers.blocks import EncoderBlock, Stack
from transformers_jax.layers.embeddings import Embeddings, lookup
from transformers_jax.layers.gather import gather
from transformers_jax.layers.masks import Mask
from transformers_jax.layers.projections import Linear
from transformers_jax.models import encoder
from transformers_jax.models.name_map import ENCODER, POSITION_IDS, Head, NameMap, Row, Tie, linear, norm, renamed


@dataclasses.dataclass(frozen=True)
class Config(encoder.Config):
    """Fields of `config.model`: those of every encoder, and

    norm: "post" or "pre".
    languages: rows of the table of languages, that are added where a batch has `languages` [B, T]; 1 for no such table.
    token_types_as_tokens: token types are numbers of tokens, whose vectors are added. The paper has none of this, but it is
      what `transformers` does with token types. Its tokenizer gave them before version 5: weights that were finetuned so
      want the key in their config.json.
    classifier_dropout: before the labels of whole rows; before tags stands `dropout`.
    labels: of "multiple_choice" too: as many scores are mixed into one for each choice.
    """

    token_types: int = 0
    norm: str = "post"
    languages: int = 1
    token_types_as_tokens: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.norm not in ("pre", "post"):
            raise UserError(f"config.model.norm is {self.norm!r}; it is one of pre, post")


class Model(encoder.Encoder):
    """The encoder with one head."""

    pools = False

    def setup(self):
        c = self.config
        self.embeddings = Embeddings(c.vocab_size, c.width, c.max_length, 0, 0, c.dropout, c.norm_epsilon, **c.numbers())
        if c.languages > 1:
            init = nn.with_logical_partitioning(nn.initializers.normal(c.stddev), (None, "embed"))
            self.language = self.param("language", init, (c.languages, c.width), c.param_dtype)
        block = self.block or functools.partial(EncoderBlock, **c.block_fields() | {"norm": c.norm})
        self.encoder = Stack(block, c.layers, c.scan_layers, c.remat)
        self.setup_head(pooler=False, choice=c.labels, tag_dropout=c.dropout)
        if c.head == "multiple_choice":
            self.choice = Linear(1, (None, None), **c.numbers())

    def states(self, batch: dict, deterministic: bool, read: jax.Array | None = None) -> jax.Array:
        tokens = batch["tokens"]  # [B, T]
        positions = batch["positions"]  # [B, T]
        segments = batch["segments"]  # [B, T]

        x = self.embeddings(tokens, positions, more=self.kinds(batch), deterministic=deterministic)  # [B, T, D]
        x = self.encoder(x, Mask(segments, segments), deterministic, read=read)
        return x * (gather(segments, read) > 0)[..., None]

    def kinds(self, batch: dict) -> jax.Array | None:
        """What languages and token types add to the embeddings, [B, T, D]."""
        c, more = self.config, []
        if c.languages > 1 and "languages" in batch:
            more.append(lookup(self.language, batch["languages"], c.dtype))
        if c.token_types_as_tokens and "token_types" in batch:
            more.append(lookup(self.embeddings.table(), batch["token_types"], c.dtype))
        return sum(more) if more else None

    def table(self) -> jax.Array:
        return self.embeddings.table()

    def pooled(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        return hidden[:, 0]

    def sequence(self, hidden: jax.Array, deterministic: bool) -> jax.Array:
        scores = super().sequence(hidden, deterministic)  # [B, L]
        return self.choice(scores) if self.config.head == "multiple_choice" else scores


# Hugging Face's names

_FIELDS = {
    "vocab_size": "vocab_size",
    "emb_dim": "width",
    "n_heads": "num_heads",
    "n_layers": "layers",
    "max_position_embeddings": "max_length",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "summary_first_dropout": "classifier_dropout",
    "layer_norm_eps": "norm_epsilon",
    "init_std": "stddev",
}
_FIXED = {
    "asm": False,
    "causal": False,
    "is_encoder": True,
    "summary_type": "first",
    "summary_use_proj": True,
    "summary_activation": None,
    "summary_proj_to_labels": True,
}
"""Keys of which one value is supported."""
_KEYS = (
    "gelu_activation", "pre_norm", "n_langs", "use_lang_emb", "token_types_as_tokens", "n_words",
    "embed_init_std", "sinusoidal_embeddings",
)  # fmt: skip
"""Further keys that are read, or only say how the file's numbers were drawn."""

_OURS = "encoder/layer_{i}/block/"
_BODY = (
    Row("embeddings.weight", "embeddings/word"),
    Row("position_embeddings.weight", "embeddings/position/embedding"),
    Row("lang_embeddings.weight", "language"),
    *norm("layer_norm_emb", "embeddings/norm"),
    *linear("attentions.{i}.q_lin", _OURS + "self_attention/query", "to_heads"),
    *linear("attentions.{i}.k_lin", _OURS + "self_attention/key", "to_heads"),
    *linear("attentions.{i}.v_lin", _OURS + "self_attention/value", "to_heads"),
    *linear("attentions.{i}.out_lin", _OURS + "self_attention/out", "from_heads"),
    *norm("layer_norm1.{i}", _OURS + "self_norm"),
    *linear("ffns.{i}.lin1", _OURS + "feed_forward/expand"),
    *linear("ffns.{i}.lin2", _OURS + "feed_forward/contract"),
    *norm("layer_norm2.{i}", _OURS + "feed_norm"),
    POSITION_IDS,
)
_TOKENS = (Row("pred_layer.proj.bias", "lm_bias"), Tie("pred_layer.proj.weight", "transformer.embeddings.weight"))
_SUMMARY = linear("sequence_summary.summary", "classifier")

NAMES = (
    NameMap(
        "flaubert",
        prefix="transformer.",
        body=_BODY,
        heads={
            "none": Head("FlaubertModel"),
            "masked_lm": Head("FlaubertWithLMHeadModel", _TOKENS),
            "sequence": Head("FlaubertForSequenceClassification", _SUMMARY),
            "tagging": Head("FlaubertForTokenClassification", linear("classifier", "classifier")),
            "span": Head("FlaubertForQuestionAnsweringSimple", linear("qa_outputs", "classifier")),
            "multiple_choice": Head("FlaubertForMultipleChoice", (*_SUMMARY, *linear("logits_proj", "choice"))),
        },
        neutral=ENCODER | _FIXED,
        keys=(*_FIELDS, *_KEYS),
    ),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head and labels. Sinusoids are read like learned positions."""
    fields = renamed({"vocab_size": config.get("n_words"), **config}, _FIELDS, Config)
    return fields | {
        "mlp_width": 4 * fields["width"],
        "activation": "gelu" if config.get("gelu_activation", True) else "relu",
        "norm": "pre" if config.get("pre_norm", False) else "post",
        "languages": config.get("n_langs", 1) if config.get("use_lang_emb", True) else 1,
        "token_types_as_tokens": config.get("token_types_as_tokens", False),
    }


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture and labels.

    Raises:
      UserError: a feed-forward or activation that FlauBERT's files cannot say.
    """
    if config.mlp_width != 4 * config.width:
        raise UserError(f"config.model.mlp_width is {config.mlp_width}: FlauBERT's files know only {4 * config.width}")
    if config.activation not in ("gelu", "relu"):
        raise UserError(f"config.model.activation is {config.activation!r}: FlauBERT's files know only gelu and relu")
    return {hf: getattr(config, ours) for hf, ours in _FIELDS.items()} | _FIXED | {
        "model_type": "flaubert",
        "gelu_activation": config.activation == "gelu",
        "pre_norm": config.norm == "pre",
        "n_langs": config.languages,
        "use_lang_emb": True,
        **({"token_types_as_tokens": True} if config.token_types_as_tokens else {}),
    }  # fmt: skip
