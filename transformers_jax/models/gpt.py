"""GPT (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training") and GPT-2 (Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners").

Axes: B batch rows, T length, D model width, F feed-forward width, V vocabulary.

With N layers and F = 4·D: (V + max_length) · D for the embeddings, N · (12·D² + 13·D) for the layers, and 2·D for GPT-2's
last norm: GPT has 116,534,784 parameters, GPT-2 small 124,439,808, medium 354,823,168, large 774,030,080, XL 1,557,611,200.
"""

import dataclasses
import functools

import flax.linen as nn
import jax

from transformers_jax.errors import UserError
from transformers_jax.layers.blocks import CausalBlock, Stack
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.positions import LearnedPositions
from transformers_jax.models import decoder_only
from transformers_jax.models.name_map import (
    POSITION_IDS,
    Head,
    Ignore,
    NameMap,
    Row,
    Tie,
    activation_from_hf,
    activation_to_hf,
    linear,
    norm,
    renamed,
)

VARIANTS = ("gpt2", "openai-gpt")


@dataclasses.dataclass(frozen=True)
class Config(decoder_only.Config):
    """Fields of `config.model`: those of every decoder, whose defaults are GPT-2 small's, and

    variant: "gpt2", or "openai-gpt" for the first GPT: norms behind the sublayers (post-norm), and none at the end.
    """

    variant: str = "gpt2"

    def __post_init__(self):
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise UserError(f"config.model.variant is {self.variant!r}; it is one of {', '.join(VARIANTS)}")

    def block_fields(self) -> dict:
        """The fields of a `layers.blocks.CausalBlock`. GPT-2's kernels in front of the residual start smaller by
        1/√(number of residual layers) (Radford et al. 2019, section 2.3)."""
        fields = super().block_fields() | {"attention_bias": True}
        if self.variant == "openai-gpt":
            return fields | {"norm": "post"}
        return fields | {"norm": "pre", "out_stddev": nn.initializers.normal(self.stddev * (2 * self.layers) ** -0.5)}


class Model(decoder_only.DecoderOnly):
    """The decoder."""

    configs = {"causal_lm": "gpt.py:small"}

    def setup(self):
        c = self.config
        self.setup_tables()
        self.position = LearnedPositions(c.max_length, c.width, c.stddev, c.dtype, c.param_dtype)
        block = self.block or functools.partial(CausalBlock, **c.block_fields())
        self.decoder = Stack(block, c.layers, c.scan_layers, c.remat)
        if c.variant == "gpt2" or c.genome:  # a genome's cells have their norms in front
            self.final_norm = LayerNorm(c.norm_epsilon, c.dtype, c.param_dtype)
        self.drop = Dropout(c.embedding_dropout)

    def embed(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        return self.drop(self.words(tokens) + self.position(positions), deterministic=deterministic)

    def finish(self, x: jax.Array) -> jax.Array:
        return self.final_norm(x) if self.config.variant == "gpt2" or self.config.genome else x


# Hugging Face's names

_FIELDS = {
    "vocab_size": "vocab_size",
    "n_embd": "width",
    "n_head": "num_heads",
    "n_layer": "layers",
    "n_positions": "max_length",
    "resid_pdrop": "dropout",
    "embd_pdrop": "embedding_dropout",
    "attn_pdrop": "attention_dropout",
    "layer_norm_epsilon": "norm_epsilon",
    "initializer_range": "stddev",
}

_LAYER, _OURS = "h.{i}.", "decoder/layer_{i}/block/"
_ATTENTION = _OURS + "self_attention/"
_HEADS = tuple(_ATTENTION + name for name in ("query", "key", "value"))
_LAYERS = (  # their kernels are [inputs, outputs], as ours are
    *linear(_LAYER + "attn.c_attn", _HEADS, "flat_heads", axis=1),
    *linear(_LAYER + "attn.c_proj", _ATTENTION + "out", "heads_flat"),
    *linear(_LAYER + "mlp.c_fc", _OURS + "feed_forward/expand", ""),
    *linear(_LAYER + "mlp.c_proj", _OURS + "feed_forward/contract", ""),
    *norm(_LAYER + "ln_1", _OURS + "self_norm"),
    *norm(_LAYER + "ln_2", _OURS + "feed_norm"),
    Ignore(r"h\.\d+\.attn\.(masked_)?bias", "the causal mask and the score of a masked key, which older files hold"),
)
_SUMMARY = (  # of heads that are not here
    "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "n_ctx",
)  # fmt: skip


def _lm_head(embedding: str) -> tuple:
    """The softmax's table: the tokens' embedding once more, or its own where they are not tied."""
    return Row("lm_head.weight", "lm_head"), Tie("lm_head.weight", embedding)


NAMES = (
    NameMap(
        "gpt2",
        prefix="transformer.",
        body=(
            Row("wte.weight", "embedding"),
            Row("wpe.weight", "position/embedding"),
            *_LAYERS,
            *norm("ln_f", "final_norm"),
        ),
        heads={"none": Head("GPT2Model"), "causal_lm": Head("GPT2LMHeadModel", _lm_head("transformer.wte.weight"))},
        neutral={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        keys=(*_FIELDS, "n_inner", "activation_function", "reorder_and_upcast_attn", *_SUMMARY),
    ),
    NameMap(
        "openai-gpt",
        prefix="transformer.",
        body=(
            Row("tokens_embed.weight", "embedding"),
            Row("positions_embed.weight", "position/embedding"),
            *_LAYERS,
            POSITION_IDS,
        ),
        heads={
            "none": Head("OpenAIGPTModel"),
            "causal_lm": Head("OpenAIGPTLMHeadModel", _lm_head("transformer.tokens_embed.weight")),
        },
        keys=(*_FIELDS, "afn", *_SUMMARY),
    ),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head."""
    fields = renamed(config, _FIELDS, Config)
    first = config["model_type"] == "openai-gpt"
    theirs = config.get("afn", "gelu") if first else config.get("activation_function", "gelu_new")
    return fields | {
        "variant": config["model_type"],
        "mlp_width": (not first and config.get("n_inner")) or 4 * fields["width"],
        # the first GPT's "gelu" is the approximation
        "activation": "gelu_tanh" if first and theirs == "gelu" else activation_from_hf(theirs),
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture.

    Raises:
      UserError: `transformers` has no such model.
    """
    described = {hf: getattr(config, ours) for hf, ours in _FIELDS.items()}
    described |= {"model_type": config.variant, "tie_word_embeddings": config.tie_embeddings}
    if config.variant == "gpt2":
        return described | {"n_inner": config.mlp_width, "activation_function": activation_to_hf(config.activation)}
    if config.mlp_width != 4 * config.width or config.activation == "gelu":
        raise UserError("config.model: transformers' openai-gpt has mlp_width 4 · width, and no exact gelu")
    return described | {"afn": "gelu" if config.activation == "gelu_tanh" else activation_to_hf(config.activation)}
