"""ViT (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale").

Axes: B batch rows, H height, W width, C channels, P width of a patch, h rows and w columns of patches, T positions, D model
width, F mlp width, L labels. T is h · w, and one more with a class token, which is the first.

With N layers: P²·C·D + D for the patches, D for the class token, T·D for the positions, N · (4·D² + 2·D·F + 9·D + F) for the
layers, 2·D for the last norm, D·L + L for the labels: base has 86,567,656 parameters with 1,000 labels.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers.blocks import EncoderBlock, Stack
from transformers_jax.layers.convolution2d import Conv2d
from transformers_jax.layers.drop_path import DropPath, LayerScale
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.masks import Mask
from transformers_jax.layers.positions2d import sinusoidal_2d
from transformers_jax.layers.projections import Linear
from transformers_jax.layers.resize import resize
from transformers_jax.layers.resnet import ResNetStem
from transformers_jax.models import image_encoder
from transformers_jax.models.name_map import Head, NameMap, Row, activation_from_hf, activation_to_hf, linear, norm, renamed
from transformers_jax.outputs import EncoderOutput, LabelOutput

POSITIONS, POOLINGS, STEMS = ("learned", "sinusoidal_2d", "none"), ("class", "mean"), ("patches", "resnet")

SIZES = {
    "tiny": dict(width=192, num_heads=3, mlp_width=768),
    "small": dict(width=384, num_heads=6, mlp_width=1536),
    "base": dict(),
    "large": dict(width=1024, num_heads=16, mlp_width=4096, layers=24),
    "huge": dict(width=1280, num_heads=16, mlp_width=5120, layers=32, patch_size=14),
    "hybrid_base": dict(stem="resnet"),
}
"""Table 1 of the paper, its hybrid with a ResNet-50, and the two that Touvron et al. 2021 (DeiT, table 1) added."""


@dataclasses.dataclass(frozen=True)
class Config(image_encoder.Config):
    """Fields of `config.model`: those of all models of images, and

    layers: N.  patch_size: P.
    positions: "learned", a table made for image_size and interpolated at other sizes; "sinusoidal_2d", fixed sines of row and
      column; or "none".
    pooling: what is read for the labels: a "class" token, which stands in front of the patches, or their "mean".
    pooler: head "none" gives a dense layer and tanh of what is read as `EncoderOutput.pooled`.
    stem: "patches"; or "resnet", a BiT ResNet whose positions, 16 × 16 pixels each, take the place of patches (section 3.1).
    stem_depths: bottlenecks of the ResNet's stages; three in the paper's ResNet-50, of which the third is longer.
    stem_width: channels of the ResNet's first convolution.
    layer_scale: initial scale of each branch's channels; 0 for none.
    genome: another block than the paper's, as a genome's JSON file, text or name; its encoder cells are the layers.
    genome_unit: width that one relative output dimension of the genome stands for; 0 is width // 2.
    """

    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    layers: int = 12
    patch_size: int = 16
    positions: str = "learned"
    pooling: str = "class"
    pooler: bool = False
    stem: str = "patches"
    stem_depths: tuple[int, ...] = (3, 4, 9)
    stem_width: int = 64
    layer_scale: float = 0.0
    genome: str = ""
    genome_unit: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("positions", POSITIONS), ("pooling", POOLINGS), ("stem", STEMS)):
            if getattr(self, name) not in known:
                raise UserError(f"config.model.{name} is {getattr(self, name)!r}; it is one of {', '.join(known)}")
        if self.layers < 1:
            raise UserError(f"config.model.layers is {self.layers}; it must be 1 or more")
        if self.image_size < self.stride():
            raise UserError(f"config.model.image_size {self.image_size} is smaller than a patch of {self.stride()}")
        if self.genome and (self.drop_path or self.layer_scale):
            raise UserError("config.model.drop_path and layer_scale are the paper's block's: set both to 0 beside a genome")

    def stride(self) -> int:
        """Pixels between one position and the next: P, or those of the ResNet's."""
        return self.patch_size if self.stem == "patches" else 2 * 2 ** len(self.stem_depths)

    def block_fields(self) -> dict:
        """The fields of a `Block`."""
        names = "num_heads mlp_width dropout attention_dropout activation attention norm_epsilon stddev dtype param_dtype"
        own = {"mlp_dropout": self.dropout, "norm": "pre", "attention_bias": True}
        own |= {"drop_path": self.drop_path, "layers": self.layers, "layer_scale": self.layer_scale}
        return {name: getattr(self, name) for name in names.split()} | own


class Block(EncoderBlock):
    """The pre-norm block of the Transformer's encoder (equations 2 and 3), with stochastic depth and layer scale, which the
    paper has not, at rates and scales of 0 by default. Its running array is a pair: x, and the number of the layer."""

    drop_path: float = 0.0
    layers: int = 1
    layer_scale: float = 0.0

    def setup(self):
        super().setup()
        self.thinned = DropPath(self.drop_path, self.layers)
        if self.layer_scale:
            self.attention_scale = LayerScale(self.layer_scale, self.dtype, self.param_dtype)
            self.feed_scale = LayerScale(self.layer_scale, self.dtype, self.param_dtype)

    def __call__(self, running: tuple, mask: Mask | None, deterministic: bool) -> tuple:
        """(x [B, T, D], layer) → (x, layer + 1)."""
        x, layer = running

        def attend(h):
            h = self.self_attention(h, mask=mask, deterministic=deterministic)
            return self.thinned(self.attention_scale(h) if self.layer_scale else h, layer, deterministic=deterministic)

        def feed(h):
            h = self.feed_forward(h, deterministic=deterministic)
            return self.thinned(self.feed_scale(h) if self.layer_scale else h, layer, deterministic=deterministic)

        x = self.residual(x, self.self_norm, attend, deterministic)
        return self.residual(x, self.feed_norm, feed, deterministic), layer + 1


class Model(image_encoder.ImageEncoder):
    """The encoder with one head.

    block: makes one block with the signature of `layers.blocks.EncoderBlock`; None for the paper's.
    """

    block: Callable[..., nn.Module] | None = None
    genome_cells = {"block": ("encoder", "layers")}
    configs = {"classification": "vit.py:finetune"}

    def setup(self):
        c = self.config
        if c.genome and self.block is None:
            raise ValueError("a genome's blocks are made in models.build")
        types = dict(dtype=c.dtype, param_dtype=c.param_dtype)
        if c.stem == "resnet":
            self.stem = ResNetStem(c.stem_depths, c.stem_width, **types)
        size = c.patch_size if c.stem == "patches" else 1
        self.patches = Conv2d(c.width, size, size, axes=(None, "embed"), **c.numbers())
        normal = nn.initializers.normal(c.stddev)
        if c.pooling == "class":
            init = nn.with_logical_partitioning(normal, ("embed",))
            self.class_token = self.param("class_token", init, (c.width,), c.param_dtype)
        if c.positions == "learned":
            rows = (c.image_size // c.stride()) ** 2 + (c.pooling == "class")
            init = nn.with_logical_partitioning(normal, (None, "embed"))
            self.positions = self.param("positions", init, (rows, c.width), c.param_dtype)
        self.encoder = Stack(self.block or functools.partial(Block, **c.block_fields()), c.layers, c.scan_layers, c.remat)
        self.final_norm = c.norm_layer()
        if c.pooler and c.head == "none":
            self.pooler = Linear(c.width, ("embed", None), **c.numbers())
        self.drop = Dropout(c.dropout)
        self.setup_head()

    def __call__(self, batch: dict, *, deterministic: bool = True) -> EncoderOutput | LabelOutput:
        """Logits [B, L]; for head "none" hidden states [B, T, D] and what is read of them [B, D]."""
        c = self.config
        hidden = self.encode(batch, deterministic)  # [B, T, D]
        pooled = hidden[:, 0] if c.pooling == "class" else image_encoder.mean_pool(hidden)  # [B, D]
        if c.head == "classification":
            return LabelOutput(self.labels_of(pooled, deterministic))
        return EncoderOutput(hidden, jnp.tanh(self.pooler(pooled)) if c.pooler else pooled)

    def encode(self, batch: dict, deterministic: bool = True) -> jax.Array:
        """The normed hidden states [B, T, D], the class token's first."""
        x = self.embedded(batch, deterministic)  # [B, T, D]
        if self.block is None:
            x, _ = self.encoder((x, 0), None, deterministic)
        else:  # a genome's cells ask the mask for segments
            segments = jnp.ones(x.shape[:2], jnp.int32)
            x = self.encoder(x, Mask(segments, segments), deterministic)
        return self.final_norm(x)

    @nn.nowrap
    def smallest(self) -> int:
        return self.config.stride()

    def embedded(self, batch: dict, deterministic: bool) -> jax.Array:
        """Patches and class token with their positions (equation 1): [B, T, D]."""
        c = self.config
        x = self.pixels(batch)  # [B, H, W, C]
        x = self.patches(self.stem(x) if c.stem == "resnet" else x)  # [B, h, w, D]
        rows, down, across, width = x.shape
        x = x.reshape(rows, down * across, width)  # [B, h · w, D]
        places = self.places(down, across)  # [T, D], or None
        if c.pooling == "class":
            token = jnp.broadcast_to(self.class_token.astype(x.dtype), (rows, 1, width))
            x = jnp.concatenate([token, x], axis=1)  # [B, T, D]
        return self.drop(x if places is None else x + places.astype(x.dtype), deterministic=deterministic)

    def places(self, down: int, across: int) -> jax.Array | None:
        """The positions [T, D] of down · across patches, and of the class token if there is one; None if there are none.

        A learned table of another grid is interpolated with cubics (section 3.2); the class token's row stays.
        """
        c = self.config
        first = int(c.pooling == "class")
        if c.positions == "none":
            return None
        if c.positions == "sinusoidal_2d":
            table = jnp.asarray(sinusoidal_2d(down, across, c.width)).reshape(-1, c.width)
            return jnp.concatenate([jnp.zeros((first, c.width)), table])
        side = c.image_size // c.stride()
        if (down, across) == (side, side):
            return self.positions
        table = resize(self.positions[first:].reshape(side, side, c.width), (down, across), "bicubic")  # [h, w, D]
        return jnp.concatenate([self.positions[:first], table.reshape(-1, c.width)])


# Hugging Face's names

_FIELDS = {
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "layers",
    "num_channels": "channels",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "norm_epsilon",
    "initializer_range": "stddev",
}

_LAYER, _OURS = "encoder.layer.{i}.", "encoder/layer_{i}/block/"
_BODY = (
    Row("embeddings.cls_token", "class_token", "lead"),
    Row("embeddings.position_embeddings", "positions", "lead"),
    *linear("embeddings.patch_embeddings.projection", "patches", "conv"),
    *linear(_LAYER + "attention.attention.query", _OURS + "self_attention/query", "to_heads"),
    *linear(_LAYER + "attention.attention.key", _OURS + "self_attention/key", "to_heads"),
    *linear(_LAYER + "attention.attention.value", _OURS + "self_attention/value", "to_heads"),
    *linear(_LAYER + "attention.output.dense", _OURS + "self_attention/out", "from_heads"),
    *norm(_LAYER + "layernorm_before", _OURS + "self_norm"),
    *linear(_LAYER + "intermediate.dense", _OURS + "feed_forward/expand"),
    *linear(_LAYER + "output.dense", _OURS + "feed_forward/contract"),
    *norm(_LAYER + "layernorm_after", _OURS + "feed_norm"),
    *norm("layernorm", "final_norm"),
    *linear("pooler.dense", "pooler"),
)

NAMES = (
    NameMap(
        "vit",
        prefix="vit.",
        body=_BODY,
        heads={
            "none": Head("ViTModel"),
            "classification": Head("ViTForImageClassification", linear("classifier", "classifier")),
        },
        neutral={"qkv_bias": True, "pooler_act": "tanh"},
        keys=(*_FIELDS, "hidden_act", "image_size", "patch_size", "pooler_output_size", "encoder_stride"),
        optional={"pooler": "pooler."},
        modules=(
            (r"encoder\.layer\.", "layers."),
            (r"attention\.attention\.([qkv])[a-z]*", r"attention.\1_proj"),
            *image_encoder.MODULES,
        ),
    ),
)


def from_hf(config: dict) -> dict:
    """Fields of `Config` from a config.json, without head and labels.

    Raises:
      UserError: images or patches that are not square, or a pooler of another width than the model's.
    """
    fields = renamed(config, _FIELDS, Config)
    wanted = config.get("pooler_output_size") or fields["width"]
    if wanted != fields["width"]:
        raise UserError(f"config.json: pooler_output_size is {wanted}; here it is the model's width, {fields['width']}")
    activation = activation_from_hf(config.get("hidden_act", "gelu"))
    sizes = {name: image_encoder.square(config, name, getattr(Config, name)) for name in ("image_size", "patch_size")}
    return fields | sizes | {"activation": activation, "vocab_size": 0}


def to_hf(config: Config) -> dict:
    """The config.json of a `Config`, without architecture and labels.

    Raises:
      UserError: it has what `transformers`' ViT has not.
    """
    own = {"positions": "learned", "pooling": "class", "stem": "patches", "layer_scale": 0.0, "genome": ""}
    image_encoder.only("ViT", config, own)
    return {hf: getattr(config, ours) for hf, ours in _FIELDS.items()} | {
        "model_type": "vit",
        "hidden_act": activation_to_hf(config.activation),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "encoder_stride": config.patch_size,
        "qkv_bias": True,
        "pooler_output_size": config.width,
        "pooler_act": "tanh",
    }
