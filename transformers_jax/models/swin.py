"""Swin (Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows").

Axes: B batch rows, H height, W width, h rows and w columns of positions, M side of a window, n windows of all images, N heads,
K width of a head, D width, L labels.

Four stages; each position of stage i stands for P · 2^i pixels squared, P being patch_size, and has width · 2^i channels. A
block of width D with N heads has 12·D² + 13·D + (2·M - 1)²·N parameters.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.layers.adapter import adapted
from transformers_jax.layers.attention import dot_product_attention
from transformers_jax.layers.blocks import Stack
from transformers_jax.layers.convolution2d import Conv2d, patches
from transformers_jax.layers.drop_path import DropPath
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.feedforward import FeedForward
from transformers_jax.layers.kernels import MASKED
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.projections import FromHeads, Linear, ToHeads
from transformers_jax.layers.resize import resize
from transformers_jax.models import image_encoder
from transformers_jax.models.name_map import (
    Head,
    Ignore,
    NameMap,
    Row,
    activation_from_hf,
    activation_to_hf,
    linear,
    norm,
    renamed,
)
from transformers_jax.models.pyramid_heads import DetectionHead, SegmentationHead
from transformers_jax.outputs import DetectionOutput, EncoderOutput, LabelOutput

NORM_EPSILON = 1e-5
"""Of the norms after the patches and before they are merged; the others have `Config.norm_epsilon`."""

SIZES = {
    "tiny": dict(),
    "small": dict(depths=(2, 2, 18, 2)),
    "base": dict(depths=(2, 2, 18, 2), width=128, num_heads=(4, 8, 16, 32)),
    "large": dict(depths=(2, 2, 18, 2), width=192, num_heads=(6, 12, 24, 48)),
}
"""Section 3.3."""


@dataclasses.dataclass(frozen=True)
class Config(image_encoder.Config):
    """Fields of `config.model`: those of all models of images, and

    width: channels of the first stage; each further one has twice as many.
    depths, num_heads: blocks and heads of each stage.
    window: M.
    mlp_ratio: how many times wider the feed-forward is inside.
    patch_size: P.
    absolute_positions: learned positions are added to the patches too (table 4's ablation).
    decoder_width: of heads "segmentation" and "detection".
    decoder_layers: of head "detection", convolutions in front of each output.
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    patch_size: int = 4
    absolute_positions: bool = False
    norm_epsilon: float = 1e-5
    drop_path: float = 0.1
    decoder_width: int = 256
    decoder_layers: int = 4

    def __post_init__(self):
        super().__post_init__()
        self.per_stage("depths", "num_heads")
        if self.window < 2:
            raise UserError(f"config.model.window is {self.window}; it must be 2 or more")


def to_windows(x: jax.Array, side: int) -> jax.Array:
    """[B, h, w, D] → [n, side², D], h and w being multiples of the side."""
    cut = patches(x, side)  # [B, h / side, w / side, side² · D]
    return cut.reshape(-1, side * side, x.shape[-1])


def from_windows(x: jax.Array, side: int, height: int, width: int) -> jax.Array:
    """The inverse of `to_windows`: [n, side², D] → [B, h, w, D]."""
    x = x.reshape(-1, height // side, width // side, side, side, x.shape[-1])  # [B, h / side, w / side, side, side, D]
    return x.swapaxes(2, 3).reshape(-1, height, width, x.shape[-1])


def seen(height: int, width: int, side: int, shift: int | jax.Array) -> jax.Array:
    """Bool [windows of an image, side², side²]: which position of a shifted window sees which (section 3.2, figure 4).

    A shift brings the first rows and columns to the end, beside others that they do not touch in the image: positions of a
    window see each other only where both have been moved, or neither. Without a shift, all do.
    """

    def region(length):
        place = jnp.arange(length)
        return (place >= length - side).astype(jnp.int32) + (place >= length - shift)  # [h] or [w]

    regions = region(height)[:, None] * 3 + region(width)  # [h, w]
    windows = to_windows(regions[None, :, :, None], side)[..., 0]  # [windows, side²]
    return windows[:, :, None] == windows[:, None, :]


def offsets(side: int, window: int) -> np.ndarray:
    """The row of the table of biases for each pair of positions of a window: [side², side²] ints below (2·M - 1)².

    window: M, which the table is made for; `side` is smaller where a whole map is.
    """
    row, column = np.divmod(np.arange(side * side), side)  # [side²]
    down, across = (x[:, None] - x[None, :] + window - 1 for x in (row, column))  # [side², side²]
    return down * (2 * window - 1) + across


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each offset of query and key (equation 4).

    Attention pictures: with the collection "intermediates" mutable, it sows "weights" [n, N, side², side²].

    Parameters: query, key, value kernels [D, N, K], out kernel [N, K, D], their biases; bias_table [(2·M - 1)², N].
    """

    num_heads: int
    config: Config

    @nn.compact
    def __call__(self, x: jax.Array, side: int, mask: jax.Array | None, deterministic: bool) -> jax.Array:
        """x [n, side², D] → [n, side², D]; mask as from `seen`."""
        c = self.config
        options = dict(head_width=None, use_bias=True, **c.numbers())
        q, k, v = (ToHeads(self.num_heads, name=name, **options)(x) for name in ("query", "key", "value"))  # [n, side², N, K]
        init = nn.with_logical_partitioning(nn.initializers.truncated_normal(c.stddev), (None, "heads"))
        table = self.param("bias_table", init, ((2 * c.window - 1) ** 2, self.num_heads), c.param_dtype)
        bias = jnp.transpose(table[offsets(side, c.window)], (2, 0, 1))[None]  # [1, N, side², side²]
        if mask is not None:  # added to the bias: one pass less over the scores, forward and backward
            hidden = jnp.where(mask, 0.0, MASKED)[:, None]  # [windows of an image, 1, side², side²]
            bias = bias + jnp.tile(hidden, (len(x) // len(mask), 1, 1, 1))  # [n, N, side², side²]
        rate = 0.0 if deterministic else c.attention_dropout
        rng = self.make_rng("dropout") if rate else None
        options = dict(bias=bias, dropout_rate=rate, dropout_rng=rng, implementation=c.attention)
        if self.is_mutable_collection("intermediates"):
            y, weights = dot_product_attention(q, k, v, return_weights=True, **options)
            self.sow("intermediates", "weights", weights)
        else:
            y = dot_product_attention(q, k, v, **options)
        return FromHeads(use_bias=True, name="out", **c.numbers())(y, x.shape[-1])


class Block(nn.Module):
    """x + attention within windows, then x + feed-forward, both of normed x (equation 3); windows are shifted in every other
    block of a stage. Its running array is a pair: x, and the number of the block within its stage.

    before: blocks of the stages before.
    layers: blocks of all stages.
    """

    config: Config
    num_heads: int
    before: int
    layers: int

    @nn.compact
    def __call__(self, running: tuple, deterministic: bool) -> tuple:
        """(x [B, h, w, D], number) → (x, number + 1)."""
        c, (x, number) = self.config, running
        types = dict(dtype=c.dtype, param_dtype=c.param_dtype)
        drop, drop_path = Dropout(c.dropout), DropPath(c.drop_path, self.layers)
        y = LayerNorm(c.norm_epsilon, name="attention_norm", **types)(x)
        y = drop(self.attend(y, number, deterministic), deterministic=deterministic)
        y = adapted(self, "attention_adapter", y)
        x = x + drop_path(y, self.before + number, deterministic=deterministic)
        y = LayerNorm(c.norm_epsilon, name="feed_norm", **types)(x)
        y = FeedForward(int(c.mlp_ratio * x.shape[-1]), activation=c.activation, name="feed_forward", **c.numbers())(y)
        y = drop(y, deterministic=deterministic)
        y = adapted(self, "feed_adapter", y)
        return x + drop_path(y, self.before + number, deterministic=deterministic), number + 1

    def attend(self, x: jax.Array, number: int | jax.Array, deterministic: bool) -> jax.Array:
        """Attention of x [B, h, w, D] within its windows, which block 1, 3, … shifts by half a window.

        Zeros fill up the last windows. A map that is no larger than a window is one, or a row of them, without a shift.
        """
        height, width = x.shape[1:3]
        side = min(height, width, self.config.window)
        shift = 0 if side == min(height, width) else number % 2 * (side // 2)
        x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        padded = x.shape[1:3]
        moved = not isinstance(shift, int) or shift > 0  # of scanned blocks it is not known before the run
        x = jnp.roll(x, (-shift, -shift), (1, 2)) if moved else x
        mask = seen(*padded, side, shift) if moved else None
        attention = WindowAttention(self.num_heads, self.config, name="attention")
        x = from_windows(attention(to_windows(x, side), side, mask, deterministic), side, *padded)
        x = jnp.roll(x, (shift, shift), (1, 2)) if moved else x
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Four neighbours become one position of twice the width: [B, h, w, D] → [B, h / 2, w / 2, 2·D]; zeros fill odd sides."""

    config: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, (height, width) = self.config, x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = jnp.concatenate([x[:, row::2, column::2] for column in range(2) for row in range(2)], axis=-1)  # [B, h/2, w/2, 4·D]
        x = LayerNorm(NORM_EPSILON, c.dtype, c.param_dtype, name="norm")(x)
        return Linear(x.shape[-1] // 2, ("embed", "mlp"), use_bias=False, name="reduction", **c.numbers())(x)


class Model(image_encoder.ImageEncoder):
    """Patches and stages with one head; `pyramid` gives what each stage makes of images."""

    heads = ("none", "classification", "segmentation", "detection")
    configs = {"classification": "swin.py:finetune"}

    def setup(self):
        c = self.config
        self.patches = Conv2d(c.width, c.patch_size, c.patch_size, **c.numbers())
        self.patch_norm = c.norm_layer(NORM_EPSILON)
        if c.absolute_positions:
            init = nn.with_logical_partitioning(nn.initializers.truncated_normal(c.stddev), (None, "embed"))
            self.positions = self.param("positions", init, ((c.image_size // c.patch_size) ** 2, c.width), c.param_dtype)
        layers, self.drop = sum(c.depths), Dropout(c.dropout)
        blocks = [
            functools.partial(Block, c, heads, before=sum(c.depths[:i]), layers=layers) for i, heads in enumerate(c.num_heads)
        ]
        self.stage = [Stack(block, depth, c.scan_layers, c.remat) for block, depth in zip(blocks, c.depths, strict=True)]
        self.merge = [PatchMerging(c) for _ in c.depths[1:]]
        self.final_norm = c.norm_layer()
        self.setup_head()
        if c.head == "segmentation":
            self.decode_head = SegmentationHead(c, len(c.depths))
        if c.head == "detection":
            self.detection_head = DetectionHead(c, len(c.depths), c.patch_size)

    def __call__(self, batch: dict, *, deterministic: bool = True) -> EncoderOutput | LabelOutput | DetectionOutput:
        """Logits: [B, L], for head "segmentation" [B, H / 4, W / 4, L]; for head "none" hidden states [B, h · w, D] of the last
        stage and their mean [B, D]."""
        if self.config.head == "segmentation":
            return LabelOutput(self.decode_head(self.pyramid(batch, deterministic), deterministic))
        if self.config.head == "detection":
            return self.detection_head(self.pyramid(batch, deterministic))
        hidden = self.encode(batch, deterministic)
        pooled = image_encoder.mean_pool(hidden)  # [B, D]
        if self.config.head == "classification":
            return LabelOutput(self.labels_of(pooled, deterministic))
        return EncoderOutput(hidden, pooled)

    def encode(self, batch: dict, deterministic: bool = True) -> jax.Array:
        """The last stage's normed states [B, h · w, D]."""
        x = self.final_norm(self.pyramid(batch, deterministic)[-1])
        return x.reshape(x.shape[0], -1, x.shape[-1])  # [B, h · w, D]

    def pyramid(self, batch: dict, deterministic: bool = True) -> list[jax.Array]:
        """The maps of all stages, finest first: [B, H / s, W / s, width · 2^i] with s = 4, 8, 16, 32; sides are rounded up."""
        x = self.embedded(batch, deterministic)
        maps = []
        for i, stage in enumerate(self.stage):
            x = self.merge[i - 1](x) if i else x
            x, _ = stage((x, 0), deterministic)
            maps.append(x)
        return maps

    def embedded(self, batch: dict, deterministic: bool) -> jax.Array:
        """The normed patches [B, h, w, width]; zeros fill up those at the border."""
        c, x = self.config, self.pixels(batch)  # [B, H, W, C]
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (0, -height % c.patch_size), (0, -width % c.patch_size), (0, 0)))
        x = self.patch_norm(self.patches(x))  # [B, h, w, width]
        if c.absolute_positions:
            side = c.image_size // c.patch_size
            table = self.positions.reshape(side, side, -1)
            x = x + resize(table, x.shape[1:3], "bicubic").astype(x.dtype)
        return self.drop(x, deterministic=deterministic)


# Hugging Face's names

_FIELDS = {
    "num_channels": "channels",
    "embed_dim": "width",
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window",
    "mlp_ratio": "mlp_ratio",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "drop_path_rate": "drop_path",
    "use_absolute_embeddings": "absolute_positions",
    "layer_norm_eps": "norm_epsilon",
    "initializer_range": "stddev",
}

_LAYER, _OURS = "encoder.layers.{s}.blocks.{i}.", "stage_{s}/layer_{i}/block/"
_BODY = (
    *linear("embeddings.patch_embeddings.projection", "patches", "conv"),
    *norm("embeddings.norm", "patch_norm"),
    Row("embeddings.position_embeddings", "positions", "lead"),
    *norm(_LAYER + "layernorm_before", _OURS + "attention_norm"),
    *linear(_LAYER + "attention.self.query", _OURS + "attention/query", "to_heads"),
    *linear(_LAYER + "attention.self.key", _OURS + "attention/key", "to_heads"),
    *linear(_LAYER + "attention.self.value", _OURS + "attention/value", "to_heads"),
    Row(_LAYER + "attention.self.relative_position_bias_table", _OURS + "attention/bias_table"),
    *linear(_LAYER + "attention.output.dense", _OURS + "attention/out", "from_heads"),
    *norm(_LAYER + "layernorm_after", _OURS + "feed_norm"),
    *linear(_LAYER + "intermediate.dense", _OURS + "feed_forward/expand"),
    *linear(_LAYER + "output.dense", _OURS + "feed_forward/contract"),
    *norm("encoder.layers.{s}.downsample.norm", "merge_{s}/norm"),
    Row("encoder.layers.{s}.downsample.reduction.weight", "merge_{s}/reduction/kernel", "transpose"),
    *norm("layernorm", "final_norm"),
    Ignore(r"encoder\..*\.relative_position_index", "which offset is which, the same for all"),
)

NAMES = (
    NameMap(
        "swin",
        prefix="swin.",
        body=_BODY,
        heads={
            "none": Head("SwinModel"),
            "classification": Head("SwinForImageClassification", linear("classifier", "classifier")),
        },
        neutral={"qkv_bias": True},
        keys=(*_FIELDS, "hidden_act", "image_size", "patch_size", "encoder_stride", *image_encoder.BACKBONE_KEYS),
        modules=(
            (r"attention\.self\.([qkv])[a-z]*", r"attention.\1_proj"),
            (r"attention\.self\.(relative_position_bias)", r"attention.\1.\1"),
            *image_encoder.MODULES,
        ),
    ),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head and labels."""
    fields = renamed(config, _FIELDS, Config)
    sizes = {name: image_encoder.square(config, name, getattr(Config, name)) for name in ("image_size", "patch_size")}
    return fields | sizes | {
        "activation": activation_from_hf(config.get("hidden_act", "gelu")),
        "vocab_size": 0,
    }  # fmt: skip


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture and labels."""
    return {hf: getattr(config, ours) for hf, ours in _FIELDS.items()} | {
        "model_type": "swin",
        "hidden_act": activation_to_hf(config.activation),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "qkv_bias": True,
    }
