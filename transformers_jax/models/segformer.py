"""SegFormer (Xie et al. 2021, "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers").

Axes: B batch rows, H height, W width, C channels, h rows and w columns of positions, T = h · w, R how many times fewer rows and
columns keys have, D width of a stage, F width inside its feed-forward, E width of the decoder, L labels.

Four stages; each position of stage i stands for 4 · 2^i pixels squared and has widths[i] channels. A block of width D with
F = 4·D has 12·D² + 53·D parameters, and R²·D² + 3·D more where keys are fewer.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.adapter import adapted
from transformers_jax.layers.attention import MultiHeadAttention
from transformers_jax.layers.blocks import Stack
from transformers_jax.layers.convolution2d import Conv2d, DepthwiseConv2d
from transformers_jax.layers.drop_path import DropPath
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.feedforward import ACTIVATIONS
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.projections import Linear
from transformers_jax.layers.resize import resize
from transformers_jax.models import image_encoder
from transformers_jax.models.image_encoder import IMAGENET_MEAN, IMAGENET_STD
from transformers_jax.models.name_map import (
    Head,
    NameMap,
    Row,
    activation_from_hf,
    activation_to_hf,
    batch_norm,
    linear,
    norm,
    renamed,
)
from transformers_jax.outputs import EncoderOutput, LabelOutput

_WIDE = dict(widths=(64, 128, 320, 512))
SIZES = {
    "b0": dict(),
    "b1": _WIDE,
    "b2": _WIDE | dict(depths=(3, 4, 6, 3), decoder_width=768),
    "b3": _WIDE | dict(depths=(3, 4, 18, 3), decoder_width=768),
    "b4": _WIDE | dict(depths=(3, 8, 27, 3), decoder_width=768),
    "b5": _WIDE | dict(depths=(3, 6, 40, 3), decoder_width=768),
}
"""Table 6."""


@dataclasses.dataclass(frozen=True)
class Config(image_encoder.Config):
    """Fields of `config.model`: those of all models of images, and, a number for each stage,

    widths: D.  depths: blocks.  num_heads: of attention.
    reductions: R.  mlp_ratios: F / D.
    patch_sizes, strides: of the convolution in front of the stage, whose patches overlap where the stride is smaller.

    decoder_width: E, of head "segmentation".
    """

    widths: tuple[int, ...] = (32, 64, 160, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    decoder_width: int = 256
    image_size: int = 512
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    norm_epsilon: float = 1e-5
    drop_path: float = 0.1
    classifier_dropout: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.per_stage(*STAGE_FIELDS)


STAGE_FIELDS = ("widths", "depths", "num_heads", "reductions", "mlp_ratios", "patch_sizes", "strides")


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values are those of R × R positions together (equations 1 and 2)."""

    config: Config
    stage: int

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[B, h, w, D] → [B, h, w, D]."""
        c, (rows, height, width, features) = self.config, x.shape
        context, reduction = x, c.reductions[self.stage]
        if reduction > 1:
            options = dict(axes=("embed", "mlp"), name="reduction", **c.numbers())
            context = Conv2d(features, reduction, reduction, **options)(x)  # [B, h / R, w / R, D]
            context = LayerNorm(c.norm_epsilon, c.dtype, c.param_dtype, name="reduction_norm")(context)
        attention = MultiHeadAttention(
            c.num_heads[self.stage],
            dropout_rate=c.attention_dropout,
            use_bias=True,
            implementation=c.attention,
            name="attention",
            **c.numbers(),
        )
        x, context = x.reshape(rows, -1, features), context.reshape(rows, -1, features)  # [B, T, D], [B, T / R², D]
        return attention(x, context, mask=None, deterministic=deterministic).reshape(rows, height, width, features)


class MixFeedForward(nn.Module):
    """A feed-forward with a depthwise 3×3 convolution before its activation: the zeros around the map tell positions where
    they are (equation 3)."""

    config: Config
    stage: int

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[B, h, w, D] → [B, h, w, D]."""
        c, drop = self.config, Dropout(self.config.dropout)
        inner = int(x.shape[-1] * c.mlp_ratios[self.stage])
        h = Linear(inner, ("embed", "mlp"), name="expand", **c.numbers())(x)  # [B, h, w, F]
        h = ACTIVATIONS[c.activation](DepthwiseConv2d(3, "mlp", name="depthwise", **c.numbers())(h))
        h = drop(h, deterministic=deterministic)
        h = Linear(x.shape[-1], ("mlp", "embed"), name="contract", **c.numbers())(h)  # [B, h, w, D]
        return drop(h, deterministic=deterministic)


class Block(nn.Module):
    """x + attention, then x + feed-forward, both of normed x. Its running array is a pair: x, and the number of the block
    within its stage."""

    config: Config
    stage: int

    @nn.compact
    def __call__(self, running: tuple, deterministic: bool) -> tuple:
        """(x [B, h, w, D], number) → (x, number + 1)."""
        c, (x, number) = self.config, running
        types = dict(dtype=c.dtype, param_dtype=c.param_dtype)
        drop_path, layer = DropPath(c.drop_path, sum(c.depths)), sum(c.depths[: self.stage]) + number
        y = LayerNorm(c.norm_epsilon, name="attention_norm", **types)(x)
        y = EfficientAttention(c, self.stage, name="self_attention")(y, deterministic)
        y = Dropout(c.dropout)(y, deterministic=deterministic)
        y = adapted(self, "attention_adapter", y)
        x = x + drop_path(y, layer, deterministic=deterministic)
        y = LayerNorm(c.norm_epsilon, name="feed_norm", **types)(x)
        y = MixFeedForward(c, self.stage, name="feed_forward")(y, deterministic)
        y = adapted(self, "feed_adapter", y)
        return x + drop_path(y, layer, deterministic=deterministic), number + 1


class DecodeHead(nn.Module):
    """The decoder of linear maps alone (section 3.2): every stage's map as wide as E and as large as the first one, together,
    fused, and labelled. Running statistics of its batch norm stand in the collection "batch_stats"."""

    config: Config

    def setup(self):
        c, numbers = self.config, self.config.numbers()
        self.project = [Linear(c.decoder_width, ("embed", "mlp"), **numbers) for _ in c.widths]
        self.fuse = Conv2d(c.decoder_width, 1, use_bias=False, axes=("mlp", "embed"), **numbers)
        ones, zeros = (nn.with_logical_partitioning(f, ("embed",)) for f in (nn.initializers.ones, nn.initializers.zeros))
        self.norm = nn.BatchNorm(
            momentum=0.9, epsilon=1e-5, dtype=c.dtype, param_dtype=c.param_dtype, scale_init=ones, bias_init=zeros
        )
        self.drop = Dropout(c.classifier_dropout)
        self.classifier = Conv2d(c.labels, 1, axes=("embed", None), **numbers)

    def __call__(self, maps: list[jax.Array], deterministic: bool) -> jax.Array:
        """The maps of all stages, finest first → logits [B, H / 4, W / 4, L]."""
        size = maps[0].shape[1:3]
        wide = [resize(project(x), size, "bilinear") for project, x in zip(self.project, maps, strict=True)]
        x = self.fuse(jnp.concatenate(wide[::-1], axis=-1))  # [B, H / 4, W / 4, E]
        x = nn.relu(self.norm(x, use_running_average=deterministic))
        return self.classifier(self.drop(x, deterministic=deterministic))


class Model(image_encoder.ImageEncoder):
    """The stages with one head; `pyramid` gives what each stage makes of images."""

    heads = ("none", "classification", "segmentation")
    configs = {"segmentation": "segformer.py:b0"}

    def setup(self):
        c = self.config
        shapes = zip(c.widths, c.patch_sizes, c.strides, strict=True)
        self.patches = [Conv2d(w, size, stride, size // 2, **c.numbers()) for w, size, stride in shapes]
        self.patch_norm = [c.norm_layer() for _ in c.widths]
        self.stage = [
            Stack(functools.partial(Block, c, i), depth, c.scan_layers, c.remat) for i, depth in enumerate(c.depths)
        ]
        self.stage_norm = [c.norm_layer() for _ in c.widths]
        self.setup_head()
        if c.head == "segmentation":
            self.decode_head = DecodeHead(c)

    @nn.nowrap
    def smallest(self) -> int:
        """Every stage has as many positions as stand together for one key."""
        c, stride, found = self.config, 1, 1
        for step, reduction in zip(c.strides, c.reductions, strict=True):
            stride *= step
            found = max(found, stride * reduction - stride + 1)
        return found

    def __call__(self, batch: dict, *, deterministic: bool = True) -> EncoderOutput | LabelOutput:
        """Logits: [B, L], for head "segmentation" [B, H / 4, W / 4, L]; for head "none" the last map and its mean [B, D]."""
        maps = self.pyramid(batch, deterministic)
        if self.config.head == "segmentation":
            return LabelOutput(self.decode_head(maps, deterministic))
        pooled = image_encoder.mean_pool(maps[-1])  # [B, D]
        if self.config.head == "classification":
            return LabelOutput(self.classifier(pooled))
        return EncoderOutput(maps[-1], pooled)

    def encode(self, batch: dict, deterministic: bool = True) -> jax.Array:
        """The last stage's map [B, H / 32, W / 32, D]."""
        return self.pyramid(batch, deterministic)[-1]

    def pyramid(self, batch: dict, deterministic: bool = True) -> list[jax.Array]:
        """The normed maps of all stages, finest first: [B, H / s, W / s, widths[i]] with s = 4, 8, 16, 32, sides rounded up."""
        x, maps = self.pixels(batch), []  # [B, H, W, C]
        for patches, patch_norm, stage, norm_ in zip(
            self.patches, self.patch_norm, self.stage, self.stage_norm, strict=True
        ):
            x, _ = stage((patch_norm(patches(x)), 0), deterministic)
            x = norm_(x)
            maps.append(x)
        return maps


# Hugging Face's names

_FIELDS = {
    "num_channels": "channels",
    "hidden_sizes": "widths",
    "depths": "depths",
    "num_attention_heads": "num_heads",
    "sr_ratios": "reductions",
    "mlp_ratios": "mlp_ratios",
    "patch_sizes": "patch_sizes",
    "strides": "strides",
    "decoder_hidden_size": "decoder_width",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout_prob": "classifier_dropout",
    "drop_path_rate": "drop_path",
    "initializer_range": "stddev",
}

_LAYER, _OURS = "encoder.block.{s}.{i}.", "stage_{s}/layer_{i}/block/"
_ATTENTION, _DECODER = _OURS + "self_attention/", "decode_head."
_BODY = (
    *linear("encoder.patch_embeddings.{s}.proj", "patches_{s}", "conv"),
    *norm("encoder.patch_embeddings.{s}.layer_norm", "patch_norm_{s}"),
    *norm(_LAYER + "layer_norm_1", _OURS + "attention_norm"),
    *linear(_LAYER + "attention.self.query", _ATTENTION + "attention/query", "to_heads"),
    *linear(_LAYER + "attention.self.key", _ATTENTION + "attention/key", "to_heads"),
    *linear(_LAYER + "attention.self.value", _ATTENTION + "attention/value", "to_heads"),
    *linear(_LAYER + "attention.output.dense", _ATTENTION + "attention/out", "from_heads"),
    *linear(_LAYER + "attention.self.sr", _ATTENTION + "reduction", "conv"),
    *norm(_LAYER + "attention.self.layer_norm", _ATTENTION + "reduction_norm"),
    *norm(_LAYER + "layer_norm_2", _OURS + "feed_norm"),
    *linear(_LAYER + "mlp.dense1", _OURS + "feed_forward/expand"),
    *linear(_LAYER + "mlp.dwconv.dwconv", _OURS + "feed_forward/depthwise", "conv"),
    *linear(_LAYER + "mlp.dense2", _OURS + "feed_forward/contract"),
    *norm("encoder.layer_norm.{s}", "stage_norm_{s}"),
)
_SEGMENTATION = (
    *linear(_DECODER + "linear_c.{s}.proj", "decode_head/project_{s}"),
    Row(_DECODER + "linear_fuse.weight", "decode_head/fuse/kernel", "conv"),
    *batch_norm(_DECODER + "batch_norm", "decode_head/norm"),
    *linear(_DECODER + "classifier", "decode_head/classifier", "conv"),
)

NAMES = (
    NameMap(
        "segformer",
        prefix="segformer.",
        body=_BODY,
        heads={
            "none": Head("SegformerModel"),
            "classification": Head("SegformerForImageClassification", linear("classifier", "classifier")),
            "segmentation": Head("SegformerForSemanticSegmentation", _SEGMENTATION),
        },
        keys=(*_FIELDS, "hidden_act", "num_encoder_blocks", "reshape_last_stage", "layer_norm_eps", "image_size",
              "semantic_loss_ignore_index", "downsampling_rates"),
        modules=(
            (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
            (r"encoder\.(patch_embeddings|layer_norm)\.(\d+)", r"stages.\2.\1"),
            (r"attention\.self\.([qkv])[a-z]*", r"attention.\1_proj"),
            (r"attention\.self\.sr", "attention.sequence_reduction.sequence_reduction"),
            (r"attention\.self\.layer_norm", "attention.sequence_reduction.layer_norm"),
            (r"mlp\.dense", "mlp.fc"),
            (r"layer_norm_1", "layernorm_before"),
            (r"layer_norm_2", "layernorm_after"),
            (r"linear_c\.", "linear_projections."),
            *image_encoder.MODULES,
        ),
    ),
)  # fmt: skip
"""`transformers` does not look at `layer_norm_eps` either: its norms have 1e-5."""


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head and labels."""
    fields, stages = renamed(config, _FIELDS, Config), config.get("num_encoder_blocks", 4)
    return fields | {name: list(fields[name][:stages]) for name in STAGE_FIELDS} | {
        "activation": activation_from_hf(config.get("hidden_act", "gelu")),
        "vocab_size": 0,
    }  # fmt: skip


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture and labels.

    Raises:
      UserError: it has what `transformers`' SegFormer has not.
    """
    image_encoder.only("SegFormer", config, {"norm_epsilon": 1e-5})
    return {hf: getattr(config, ours) for hf, ours in _FIELDS.items()} | {
        "model_type": "segformer",
        "hidden_act": activation_to_hf(config.activation),
        "num_encoder_blocks": len(config.depths),
        "reshape_last_stage": True,
    }
