"""The Evolved Transformer (So, Liang, Le 2019, "The Evolved Transformer", figure 3), with the Transformer's embeddings.

Axes: B batch rows, S source length, T target length, N heads, D model width, V vocabulary.

Three encoder and four decoder blocks stand for the Transformer's six and six layers. With n and m blocks of width D, no
attention biases and one shared embedding of V rows there are
n·(21.5·D² + 64·D) + m·(28.5·D² + 62.5·D) + 4·D + V·D parameters.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.attention import MultiHeadAttention
from transformers_jax.layers.convolution import Conv, SeparableConv
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.masks import Mask
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.projections import Linear
from transformers_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of `config.model`; the defaults are the paper's base model, of 64.1M parameters with 33,288 embedding rows.

    width: D, a multiple of num_heads; where widths are given as a share of it, 4 D or D / 2, they follow it.
    num_heads: N of all attentions but the decoder's first, which has twice as many, up to 16.
    encoder_layers, decoder_layers: numbers of blocks.
    dropout: on embeddings and sublayer outputs; attention_dropout on weights; mlp_dropout inside sublayers.
    The others are those of `transformer.Config`.
    """

    vocab_size: int
    width: int = 512
    num_heads: int = 8
    encoder_layers: int = 3
    decoder_layers: int = 4
    dropout: float = 0.1
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.1
    positions: str = "concatenated"
    relative_distance: int = 0
    max_length: int = 512
    attention_bias: bool = False
    share_embeddings: bool = True
    scan_layers: bool = True
    remat: bool = False
    attention: str = "auto"
    dtype: str = "float32"
    param_dtype: str = "float32"

    norm: ClassVar[str] = "pre"
    genome: ClassVar[str] = ""

    def block_fields(self) -> dict:
        """The fields that blocks take, by the same names."""
        names = "width num_heads dropout attention_dropout mlp_dropout attention_bias relative_distance attention dtype"
        return {name: getattr(self, name) for name in f"{names} param_dtype".split()}


class EvolvedBlock(nn.Module):
    """What both blocks share: their fields, the layers they are built from, and the residual connection."""

    width: int
    num_heads: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    attention_bias: bool = False
    relative_distance: int = 0
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def types(self) -> dict:
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    def attention_layer(self, num_heads: int, *, relative: bool) -> MultiHeadAttention:
        return MultiHeadAttention(
            num_heads=num_heads,
            dropout_rate=self.attention_dropout,
            use_bias=self.attention_bias,
            relative_distance=self.relative_distance if relative else 0,
            implementation=self.attention,
            **self.types(),
        )

    def linear(self, features: int, *axes: str) -> Linear:
        return Linear(features, axes, **self.types())

    def separable(self, features: int, width: int, *axes: str, causal: bool) -> SeparableConv:
        return SeparableConv(features, width, causal, axes, **self.types())

    def norm_layer(self) -> LayerNorm:
        return LayerNorm(**self.types())

    def residual(self, x: jax.Array, y: jax.Array, deterministic: bool) -> jax.Array:
        """x [B, T, D] plus y [B, T, D or less], dropped out; channels that y lacks stay as they are."""
        return x + widened(self.drop(y, deterministic=deterministic), x.shape[-1])


class EvolvedEncoderBlock(EvolvedBlock):
    """A gated linear unit, convolutions, self-attention, feed-forward (figure 3, left)."""

    def setup(self):
        d = self.width
        self.gate_norm = self.norm_layer()
        self.gate_values, self.gates = self.linear(d, "embed", "mlp"), self.linear(d, "embed", "mlp")
        self.branches_norm, self.close_norm = self.norm_layer(), self.norm_layer()
        self.left = self.linear(4 * d, "embed", "mlp")
        self.right = Conv(d // 2, 3, **self.types())
        self.close = self.separable(d // 2, 9, "mlp", "embed", causal=False)
        self.attention_norm, self.self_attention = self.norm_layer(), self.attention_layer(self.num_heads, relative=True)
        self.feed_norm = self.norm_layer()
        self.expand, self.contract = self.linear(4 * d, "embed", "mlp"), self.linear(d, "mlp", "embed")
        self.drop, self.drop_hidden = Dropout(self.dropout), Dropout(self.mlp_dropout)

    def __call__(self, x: jax.Array, mask: Mask, deterministic: bool) -> jax.Array:
        """x [B, S, D] → [B, S, D]."""
        segments = mask.query_segments  # [B, S]

        h = self.gate_norm(x)
        x = self.residual(x, self.gate_values(h) * jax.nn.sigmoid(self.gates(h)), deterministic)

        h = self.branches_norm(x)
        left = self.drop_hidden(jax.nn.relu(self.left(h)), deterministic=deterministic)  # [B, S, 4 D]
        right = self.drop_hidden(jax.nn.relu(self.right(h, segments)), deterministic=deterministic)  # [B, S, D / 2]
        h = self.close_norm(left + widened(right, left.shape[-1]))  # [B, S, 4 D]
        x = self.residual(x, self.close(h, segments), deterministic)  # to the first D / 2 channels

        h = self.self_attention(self.attention_norm(x), mask=mask, deterministic=deterministic)
        x = self.residual(x, h, deterministic)

        h = self.drop_hidden(jax.nn.relu(self.expand(self.feed_norm(x))), deterministic=deterministic)  # [B, S, 4 D]
        return self.residual(x, self.contract(h), deterministic)


class EvolvedDecoderBlock(EvolvedBlock):
    """Self-attention beside attention to the source, convolutions, both attentions again, feed-forward (figure 3, right).

    `start` and `step` decode with a cache.
    """

    def setup(self):
        d = self.width
        self.wide_norm = self.norm_layer()
        self.wide_attention = self.attention_layer(max(min(2 * self.num_heads, 16), self.num_heads), relative=True)
        self.cross_attention_1 = self.attention_layer(self.num_heads, relative=False)
        self.branches_norm, self.close_norm = self.norm_layer(), self.norm_layer()
        self.left = self.separable(2 * d, 11, "embed", "mlp", causal=True)
        self.right = self.separable(d // 2, 7, "embed", "mlp", causal=True)
        self.close = self.separable(d, 7, "mlp", "embed", causal=True)
        self.attention_norm, self.self_attention = self.norm_layer(), self.attention_layer(self.num_heads, relative=True)
        self.cross_norm, self.cross_attention_2 = self.norm_layer(), self.attention_layer(self.num_heads, relative=False)
        self.feed_norm, self.contract_norm = self.norm_layer(), self.norm_layer()
        self.expand, self.contract = self.linear(4 * d, "embed", "mlp"), self.linear(d, "mlp", "embed")
        self.drop, self.drop_hidden = Dropout(self.dropout), Dropout(self.mlp_dropout)

    def __call__(self, x: jax.Array, encoded: jax.Array, self_mask: Mask, cross_mask: Mask, deterministic: bool) -> jax.Array:
        """x [B, T, D], encoded [B, S, D] → [B, T, D]."""
        segments = self_mask.query_segments  # [B, T]

        def attend(layer, h):
            return layer(h, mask=self_mask, deterministic=deterministic)

        def attend_source(layer, h):
            return layer(h, encoded, mask=cross_mask, deterministic=deterministic)

        def branches(h):
            return self.left(h, segments), self.right(h, segments)

        return self._sublayers(x, attend, attend_source, branches, lambda h: self.close(h, segments), deterministic)

    def start(self, encoded: jax.Array, length: int) -> jax.Array:
        """Makes the cache for `length` target positions from encoded [B, S, D], and returns encoded."""
        rows = encoded.shape[0]
        for attention in self.wide_attention, self.self_attention:
            attention.start(rows, length)
        for attention in self.cross_attention_1, self.cross_attention_2:
            attention.start_context(encoded)
        self.left.start(rows, self.width)
        self.close.start(rows, 2 * self.width)
        return encoded

    def step(self, x: jax.Array, index: jax.Array, source_segments: jax.Array) -> jax.Array:
        """One target position x [B, 1, D] at position `index` → [B, 1, D]."""

        def branches(h):
            window = self.left.roll(h)  # [B, 11, D], of which the narrower kernel reads the end
            return self.left.last(window), self.right.last(window)

        return self._sublayers(
            x,
            attend=lambda layer, h: layer.step(h, index),
            attend_source=lambda layer, h: layer.step_context(h, source_segments),
            branches=branches,
            close=self.close.step,
            deterministic=True,
        )

    def _sublayers(
        self, x: jax.Array, attend: Callable, attend_source: Callable, branches: Callable, close: Callable, deterministic: bool
    ) -> jax.Array:
        """x [B, T, D] → [B, T, D], with layers that look beyond a position applied by the functions given."""
        h = self.wide_norm(x)
        x = self.residual(x, attend(self.wide_attention, h), deterministic) + self.drop(
            attend_source(self.cross_attention_1, h), deterministic=deterministic
        )

        left, right = branches(self.branches_norm(x))  # [B, T, 2 D], [B, T, D / 2]
        left = self.drop_hidden(jax.nn.relu(left), deterministic=deterministic)
        right = self.drop_hidden(right, deterministic=deterministic)
        h = self.close_norm(left + widened(right, left.shape[-1]))  # [B, T, 2 D]
        x = self.residual(x, close(h), deterministic)

        x = self.residual(x, attend(self.self_attention, self.attention_norm(x)), deterministic)
        x = self.residual(x, attend_source(self.cross_attention_2, self.cross_norm(x)), deterministic)

        h = self.drop_hidden(jax.nn.swish(self.expand(self.feed_norm(x))), deterministic=deterministic)  # [B, T, 4 D]
        return self.residual(x, self.contract(self.contract_norm(h)), deterministic)


def widened(x: jax.Array, width: int) -> jax.Array:
    """x [B, T, C] with zeros behind its channels, [B, T, width]."""
    return x if x.shape[-1] == width else jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])))


class Model(transformer.Model):
    """The Transformer's embeddings, masks and decoding around the two blocks above."""

    config: Config

    def __post_init__(self):
        fields = self.config.block_fields()
        self.encoder_block = self.encoder_block or functools.partial(EvolvedEncoderBlock, **fields)
        self.decoder_block = self.decoder_block or functools.partial(EvolvedDecoderBlock, **fields)
        super().__post_init__()
