"""Llama (Touvron et al. 2023; Dubey et al. 2024, "The Llama 3 Herd of Models"), and the models that differ from it in little:
Mistral (Jiang et al. 2023: a window), Qwen2 (Yang et al. 2024: biases of queries, keys and values), Qwen3 (Yang et al. 2025:
norms of queries and keys).

Axes: B batch rows, T length, D model width, F feed-forward width, N heads, K heads of keys, H head width, V vocabulary.

With L layers: V·D for the embedding and once more for the softmax where it is untied, L · (2·(N + K)·H·D + 3·D·F + 2·D) for the
layers, D for the last norm: Llama 3 8B has 8,030,261,248 parameters, 70B 70,553,706,496.
"""

import dataclasses
import functools

import jax

from transformers_jax.errors import UserError
from transformers_jax.layers.blocks import CausalBlock, Stack
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.norms import RMSNorm
from transformers_jax.layers.positions import Rotary
from transformers_jax.models import decoder_only
from transformers_jax.models.name_map import (
    Head,
    Ignore,
    NameMap,
    Row,
    Tie,
    activation_from_hf,
    activation_to_hf,
    linear,
    renamed,
)

VARIANTS = ("llama", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class Config(decoder_only.Config):
    """Fields of `config.model`: those of every decoder, and those below; the defaults are Llama 3 8B's.

    variant: one of VARIANTS; but for names in foreign files it decides nothing.
    kv_heads: heads of keys and values, each shared by num_heads / kv_heads heads of queries (Ainslie et al. 2023); 0 for
      num_heads.  A genome's attention has its own heads, all with their own keys.
    head_width: of each head; 0 for width / num_heads.
    window: how many positions a token sees, its own among them; 0 for all before it.
    qkv_bias: biases of queries, keys and values; out_bias, of attention's last projection; mlp_bias, of the feed-forward.
    qk_norm: root mean square norms of each head of queries and keys.
    rope_theta, rope_scaling, rope_factor, rope_low_freq_factor, rope_high_freq_factor, rope_original_length: of the rotary
      positions, as in `layers.positions.Rotary`.
    """

    width: int = 4096
    num_heads: int = 32
    mlp_width: int = 14_336
    layers: int = 32
    max_length: int = 8192
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: str = "swish"
    tie_embeddings: bool = False
    variant: str = "llama"
    kv_heads: int = 8
    head_width: int = 0
    window: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 500_000.0
    rope_scaling: str = ""
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_length: int = 8192

    def __post_init__(self):
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise UserError(f"config.model.variant is {self.variant!r}; it is one of {', '.join(VARIANTS)}")
        if not self.head_width and self.width % self.num_heads:
            raise UserError(
                f"config.model.num_heads {self.num_heads} does not divide config.model.width {self.width}: give head_width"
            )
        if self.kv_heads and self.num_heads % self.kv_heads:
            raise UserError(f"config.model.kv_heads {self.kv_heads} does not divide config.model.num_heads {self.num_heads}")

    @property
    def rotary(self) -> Rotary:
        """The rotary positions."""
        return Rotary(
            self.rope_theta,
            self.rope_scaling,
            self.rope_factor,
            self.rope_low_freq_factor,
            self.rope_high_freq_factor,
            self.rope_original_length,
        )

    def block_fields(self) -> dict:
        """The fields of a `layers.blocks.CausalBlock`."""
        return super().block_fields() | {
            "norm": "pre",
            "norm_kind": "rms_norm",
            "gated": True,
            "mlp_bias": self.mlp_bias,
            "rotary": self.rotary,
            "kv_heads": self.kv_heads or self.num_heads,
            "head_width": self.head_width or self.width // self.num_heads,
            "head_norm": self.norm_epsilon if self.qk_norm else 0.0,
            "attention_bias": self.qkv_bias,
            "attention_out_bias": self.out_bias,
        }


class Model(decoder_only.DecoderOnly):
    """The decoder."""

    configs = {"causal_lm": "llama.py:smollm2_135m"}

    def setup(self):
        c = self.config
        self.setup_tables()
        block = self.block or functools.partial(CausalBlock, **c.block_fields())
        self.decoder = Stack(block, c.layers, c.scan_layers, c.remat)
        self.final_norm = RMSNorm(c.norm_epsilon, c.dtype, c.param_dtype)
        self.drop = Dropout(c.embedding_dropout)

    def embed(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        return self.drop(self.words(tokens), deterministic=deterministic)

    def finish(self, x: jax.Array) -> jax.Array:
        return self.final_norm(x)

    def window(self) -> int:
        return self.config.window


# Hugging Face's names

_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "layers",
    "max_position_embeddings": "max_length",
    "attention_dropout": "attention_dropout",
    "rms_norm_eps": "norm_epsilon",
    "initializer_range": "stddev",
}
_KEYS = (
    *_FIELDS, "num_key_value_heads", "head_dim", "hidden_act", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling",
    "rope_parameters", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    "pretraining_tp",  # how products are cut, not what they give
)  # fmt: skip
_UNSAID = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "attention_dropout": 0.0}
"""What `transformers` takes for a key that a config.json lacks, where it is not our default."""

_LAYER, _OURS = "layers.{i}.", "decoder/layer_{i}/block/"
_ATTENTION, _FEED = _OURS + "self_attention/", _OURS + "feed_forward/"
_BODY = (
    Row("embed_tokens.weight", "embedding"),
    *linear(_LAYER + "self_attn.q_proj", _ATTENTION + "query", "to_heads"),
    *linear(_LAYER + "self_attn.k_proj", _ATTENTION + "key", "to_heads"),
    *linear(_LAYER + "self_attn.v_proj", _ATTENTION + "value", "to_heads"),
    *linear(_LAYER + "self_attn.o_proj", _ATTENTION + "out", "from_heads"),
    Row(_LAYER + "self_attn.q_norm.weight", _ATTENTION + "query_norm/scale"),
    Row(_LAYER + "self_attn.k_norm.weight", _ATTENTION + "key_norm/scale"),
    *linear(_LAYER + "mlp.gate_proj", _FEED + "gate"),
    *linear(_LAYER + "mlp.up_proj", _FEED + "expand"),
    *linear(_LAYER + "mlp.down_proj", _FEED + "contract"),
    Row(_LAYER + "input_layernorm.weight", _OURS + "self_norm/scale"),
    Row(_LAYER + "post_attention_layernorm.weight", _OURS + "feed_norm/scale"),
    Row("norm.weight", "final_norm/scale"),
    Ignore(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "the rotations' frequencies, which older files hold"),
)
_LM_HEAD = (Row("lm_head.weight", "lm_head"), Tie("lm_head.weight", "model.embed_tokens.weight"))
"""The softmax's own table, or the tokens' embedding once more where they are tied."""


def _names(variant: str, name: str) -> NameMap:
    heads = {"none": Head(name + "Model"), "causal_lm": Head(name + "ForCausalLM", _LM_HEAD)}
    return NameMap(variant, prefix="model.", body=_BODY, heads=heads, neutral={"partial_rotary_factor": 1.0}, keys=_KEYS)


NAMES = (
    _names("llama", "Llama"),
    _names("mistral", "Mistral"),
    _names("qwen2", "Qwen2"),
    _names("qwen3", "Qwen3"),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head.

    Raises:
      UserError: a key asks for what is not computed here.
    """
    fields, variant = renamed(_UNSAID | config, _FIELDS, Config), config["model_type"]
    bias = config.get("attention_bias", False) if variant in ("llama", "qwen3") else False
    kv_heads = {"mistral": 8, "qwen2": 32, "qwen3": 32}.get(variant)
    return fields | {
        "variant": variant,
        "kv_heads": config.get("num_key_value_heads", kv_heads) or fields["num_heads"],
        "head_width": config.get("head_dim", 128 if variant == "qwen3" else None) or 0,
        "activation": activation_from_hf(config.get("hidden_act", "silu")),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "window": _window(config, fields["layers"]),
        "qkv_bias": bias or variant == "qwen2",
        "out_bias": bias,
        "mlp_bias": config.get("mlp_bias", False) if variant == "llama" else False,
        "qk_norm": variant == "qwen3",
        **_rope(config),
    }


def _window(config: dict, layers: int) -> int:
    """The window of all layers; those of several kinds are refused."""
    if config["model_type"] == "llama":
        return 0
    size = config.get("sliding_window", 4096) or 0
    if config["model_type"] == "mistral":
        return size
    if not config.get("use_sliding_window", False):
        size = 0
    first = config.get("max_window_layers", 28)
    default = ["sliding_attention" if size and i >= first else "full_attention" for i in range(layers)]
    kinds = sorted(set(config.get("layer_types") or default))
    if len(kinds) > 1 or kinds[0] not in ("full_attention", "sliding_attention"):
        raise UserError(
            f"config.json: layer_types {', '.join(kinds)} (use_sliding_window, max_window_layers {first}) are not supported: "
            "all layers have one window, or none"
        )
    if kinds[0] == "full_attention":
        return 0
    if not size:
        raise UserError("config.json: layer_types are sliding_attention, and sliding_window or use_sliding_window is not given")
    return size


def _rope(config: dict) -> dict:
    """The fields of the rotary positions: of rope_parameters as transformers 5 writes, of rope_theta and rope_scaling as older
    ones do."""
    given = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    if nested := [key for key, value in given.items() if isinstance(value, dict)]:
        raise UserError(f"config.json: rope_parameters by kind of layer ({', '.join(nested)}) are not supported")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"config.json: rope_scaling {kind!r} is not supported, only default, linear and llama3")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"config.json: partial_rotary_factor {given['partial_rotary_factor']} is not computed, only 1.0")
    found = {"rope_theta": float(given.get("rope_theta", config.get("rope_theta", 10_000.0)))}
    if kind == "default":
        return found | {"rope_scaling": ""}
    wanted = {"factor": "rope_factor"}
    if kind == "llama3":
        wanted |= {
            "low_freq_factor": "rope_low_freq_factor",
            "high_freq_factor": "rope_high_freq_factor",
            "original_max_position_embeddings": "rope_original_length",
        }
    if missing := [key for key in wanted if key not in given]:
        raise UserError(f"config.json: rope_scaling {kind} has no {missing[0]}")
    return found | {"rope_scaling": kind} | {ours: given[key] for key, ours in wanted.items()}


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture.

    Raises:
      UserError: `transformers` has no such model.
    """
    variant, c = config.variant, config
    computed = {  # by transformers' model of this kind
        "qkv_bias": {"llama": c.out_bias, "mistral": False, "qwen2": True, "qwen3": c.out_bias}[variant],
        "out_bias": c.out_bias if variant in ("llama", "qwen3") else False,
        "mlp_bias": c.mlp_bias if variant == "llama" else False,
        "qk_norm": variant == "qwen3",
        "window": 0 if variant == "llama" else c.window,
    }
    for key, value in computed.items():
        if getattr(c, key) != value:
            raise UserError(f"config.model.{key} is {getattr(c, key)}: transformers' {variant} has only {value}")
    rope = {"rope_type": c.rope_scaling or "default"}
    if c.rope_scaling:
        rope["factor"] = c.rope_factor
    if c.rope_scaling == "llama3":
        rope |= {"low_freq_factor": c.rope_low_freq_factor, "high_freq_factor": c.rope_high_freq_factor}
        rope["original_max_position_embeddings"] = c.rope_original_length
    described = {hf: getattr(c, ours) for hf, ours in _FIELDS.items()} | {
        "model_type": variant,
        "num_key_value_heads": c.kv_heads or c.num_heads,
        "head_dim": c.head_width or c.width // c.num_heads,
        "hidden_act": activation_to_hf(c.activation),
        "tie_word_embeddings": c.tie_embeddings,
        "rope_theta": c.rope_theta,
        "rope_scaling": rope if c.rope_scaling else None,
    }
    if variant in ("llama", "qwen3"):
        described["attention_bias"] = c.out_bias
    if variant == "llama":
        return described | {"mlp_bias": c.mlp_bias}
    if variant == "mistral":
        return described | {"sliding_window": c.window or None}
    return described | {
        "use_sliding_window": bool(c.window),
        "sliding_window": c.window or None,
        "max_window_layers": 0 if c.window else c.layers,
        "layer_types": ["sliding_attention" if c.window else "full_attention"] * c.layers,
    }
