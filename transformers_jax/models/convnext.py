"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s").

Axes: B batch rows, H height, W width, C channels, s pixels of an image to a side of one position, D width, L labels.

Four stages; each position of stage i stands for 4 · 2^i pixels squared and has widths[i] channels. A block of width D has
8·D² + 58·D parameters (49·D + D for the taps, 2·D for the norm, 8·D² + 5·D for the two linear maps, D for the scale).
"""

import dataclasses
import functools

import flax.linen as nn
import jax

from transformers_jax.layers.adapter import adapted
from transformers_jax.layers.blocks import Stack
from transformers_jax.layers.convolution2d import Conv2d, DepthwiseConv2d
from transformers_jax.layers.drop_path import DropPath, LayerScale
from transformers_jax.layers.feedforward import FeedForward
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.models import image_encoder
from transformers_jax.models.name_map import Head, NameMap, Row, activation_from_hf, activation_to_hf, linear, norm, renamed
from transformers_jax.models.pyramid_heads import DetectionHead, SegmentationHead
from transformers_jax.outputs import DetectionOutput, EncoderOutput, LabelOutput

NORM_EPSILON = 1e-6
"""Of all layer norms but the last, whose is `Config.norm_epsilon`."""

SIZES = {
    "tiny": dict(),
    "small": dict(depths=(3, 3, 27, 3)),
    "base": dict(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
    "large": dict(depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536)),
    "xlarge": dict(depths=(3, 3, 27, 3), widths=(256, 512, 1024, 2048)),
}
"""Section 3."""


@dataclasses.dataclass(frozen=True)
class Config(image_encoder.Config):
    """Fields of `config.model`: those of all models of images, and

    depths: blocks of each stage.  widths: channels of each stage.
    patch_size: of the first convolution, which moves by its own width.
    layer_scale: initial scale of each branch's channels; 0 for none.
    decoder_width: of heads "segmentation" and "detection".
    decoder_layers: of head "detection", convolutions in front of each output.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    patch_size: int = 4
    layer_scale: float = 1e-6
    drop_path: float = 0.1
    decoder_width: int = 256
    decoder_layers: int = 4

    def __post_init__(self):
        super().__post_init__()
        self.per_stage("depths", "widths")


class Block(nn.Module):
    """x + scale · W₂ gelu(W₁ LN(depthwise 7×7 of x)), W₁ to four times the width (figure 4). Its running array is a pair:
    x, and the number of the block within its stage.

    before: blocks of the stages before.
    layers: blocks of all stages.
    """

    config: Config
    before: int
    layers: int

    @nn.compact
    def __call__(self, running: tuple, deterministic: bool) -> tuple:
        """(x [B, H, W, D], number) → (x, number + 1)."""
        c, (x, number) = self.config, running
        types = dict(dtype=c.dtype, param_dtype=c.param_dtype)
        y = DepthwiseConv2d(7, name="depthwise", **c.numbers())(x)
        y = LayerNorm(NORM_EPSILON, name="norm", **types)(y)
        y = FeedForward(4 * x.shape[-1], activation=c.activation, name="feed_forward", **c.numbers())(y)
        if c.layer_scale:
            y = LayerScale(c.layer_scale, name="layer_scale", **types)(y)
        y, drop = adapted(self, "feed_adapter", y), DropPath(c.drop_path, self.layers)
        return x + drop(y, self.before + number, deterministic=deterministic), number + 1


class Model(image_encoder.ImageEncoder):
    """Stem and stages with one head; `pyramid` gives what each stage makes of images."""

    heads = ("none", "classification", "segmentation", "detection")
    configs = {"classification": "convnext.py:finetune"}

    def setup(self):
        c = self.config
        self.stem = Conv2d(c.widths[0], c.patch_size, c.patch_size, **c.numbers())
        self.stem_norm = c.norm_layer(NORM_EPSILON)
        blocks = [
            functools.partial(Block, c, before=sum(c.depths[:i]), layers=sum(c.depths)) for i in range(len(c.depths))
        ]
        self.stage = [Stack(block, depth, c.scan_layers, c.remat) for block, depth in zip(blocks, c.depths, strict=True)]
        self.down_norm = [c.norm_layer(NORM_EPSILON) for _ in c.widths[1:]]
        self.down = [Conv2d(width, 2, 2, axes=("embed", "mlp"), **c.numbers()) for width in c.widths[1:]]
        self.final_norm = c.norm_layer()
        self.setup_head()
        if c.head == "segmentation":
            self.decode_head = SegmentationHead(c, len(c.depths))
        if c.head == "detection":
            self.detection_head = DetectionHead(c, len(c.depths), c.patch_size)

    @nn.nowrap
    def smallest(self) -> int:
        return self.config.patch_size * 2 ** (len(self.config.depths) - 1)

    def __call__(self, batch: dict, *, deterministic: bool = True) -> EncoderOutput | LabelOutput | DetectionOutput:
        """Logits: [B, L], for head "segmentation" [B, H / 4, W / 4, L]; for head "none" the last map [B, H / 32, W / 32, D] and
        its normed mean [B, D]."""
        if self.config.head == "segmentation":
            return LabelOutput(self.decode_head(self.pyramid(batch, deterministic), deterministic))
        if self.config.head == "detection":
            return self.detection_head(self.pyramid(batch, deterministic))
        hidden = self.encode(batch, deterministic)
        pooled = self.final_norm(image_encoder.mean_pool(hidden))  # [B, D]
        if self.config.head == "classification":
            return LabelOutput(self.labels_of(pooled, deterministic))
        return EncoderOutput(hidden, pooled)

    def encode(self, batch: dict, deterministic: bool = True) -> jax.Array:
        """The last stage's map [B, H / 32, W / 32, D]."""
        return self.pyramid(batch, deterministic)[-1]

    def pyramid(self, batch: dict, deterministic: bool = True) -> list[jax.Array]:
        """The maps of all stages, finest first: [B, H / s, W / s, widths[i]] with s = 4, 8, 16, 32."""
        x = self.stem_norm(self.stem(self.pixels(batch)))  # [B, H / 4, W / 4, widths[0]]
        maps = []
        for i, stage in enumerate(self.stage):
            x = self.down[i - 1](self.down_norm[i - 1](x)) if i else x
            x, _ = stage((x, 0), deterministic)
            maps.append(x)
        return maps


# Hugging Face's names

_FIELDS = {
    "num_channels": "channels",
    "hidden_sizes": "widths",
    "depths": "depths",
    "patch_size": "patch_size",
    "layer_norm_eps": "norm_epsilon",
    "layer_scale_init_value": "layer_scale",
    "drop_path_rate": "drop_path",
    "initializer_range": "stddev",
}

_LAYER, _OURS = "encoder.stages.{s}.layers.{i}.", "stage_{s}/layer_{i}/block/"
_BODY = (
    *linear("embeddings.patch_embeddings", "stem", "conv"),
    *norm("embeddings.layernorm", "stem_norm"),
    *linear(_LAYER + "dwconv", _OURS + "depthwise", "conv"),
    *norm(_LAYER + "layernorm", _OURS + "norm"),
    *linear(_LAYER + "pwconv1", _OURS + "feed_forward/expand"),
    *linear(_LAYER + "pwconv2", _OURS + "feed_forward/contract"),
    Row(_LAYER + "layer_scale_parameter", _OURS + "layer_scale/scale"),
    *norm("layernorm", "final_norm"),
)


def _downsampling(stages: int) -> tuple:
    """Stage i begins with the convolution that ours count from 0 after stage i - 1."""
    rows = []
    for i in range(1, stages):
        theirs = f"encoder.stages.{i}.downsampling_layer."
        rows += [*norm(theirs + "0", f"down_norm_{i - 1}"), *linear(theirs + "1", f"down_{i - 1}", "conv")]
    return tuple(rows)


NAMES = (
    NameMap(
        "convnext",
        prefix="convnext.",
        body=_BODY + _downsampling(8),
        heads={
            "none": Head("ConvNextModel"),
            "classification": Head("ConvNextForImageClassification", linear("classifier", "classifier")),
        },
        keys=(*_FIELDS, "hidden_act", "image_size", "num_stages", *image_encoder.BACKBONE_KEYS),
    ),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head and labels."""
    fields = renamed(config, _FIELDS, Config)
    sizes = {name: image_encoder.square(config, name, getattr(Config, name)) for name in ("image_size", "patch_size")}
    return fields | sizes | {"activation": activation_from_hf(config.get("hidden_act", "gelu")), "vocab_size": 0}


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture and labels."""
    return {hf: getattr(config, ours) for hf, ours in _FIELDS.items()} | {
        "model_type": "convnext",
        "hidden_act": activation_to_hf(config.activation),
        "image_size": config.image_size,
        "num_stages": len(config.depths),
    }
