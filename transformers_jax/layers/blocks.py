"""The Transformer's two blocks, that of a decoder without an encoder, and the stack that repeats a block.

Axes: B batch, S source, T target, P prompt, D model width.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.adapter import adapted
from transformers_jax.layers.attention import MultiHeadAttention
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.feedforward import FeedForward, GatedFeedForward
from transformers_jax.layers.gather import gather
from transformers_jax.layers.masks import Mask, Place
from transformers_jax.layers.norms import LayerNorm, RMSNorm
from transformers_jax.layers.places import whole_stacks
from transformers_jax.layers.positions import Rotary
from transformers_jax.layers.projections import Stddev

NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


class Block(nn.Module):
    """What the Transformer's blocks share: their fields, and the residual connection around a sublayer.

    norm: "pre" is x + dropout(f(LN(x))), "post" is LN(x + dropout(f(x))) (Vaswani et al. 2017, section 3.1).
    norm_kind: a name of NORMS.  norm_epsilon: of the norms.
    gated: the feed-forward is `GatedFeedForward`.  mlp_bias: its layers add biases.
    rotary, kv_heads, head_width, head_norm: as in `MultiHeadAttention`.
    attention_bias: of the projections of attention; attention_out_bias of the last of them, if it is otherwise.
    stddev: of the kernels' initial numbers; 0 for Glorot's (`projections.kernel_init`).
    out_stddev: of those kernels whose outputs are added to the residual, if they start otherwise.
    """

    num_heads: int
    mlp_width: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    norm: str = "pre"
    activation: str = "relu"
    attention_bias: bool = False
    relative_distance: int = 0
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6
    stddev: Stddev = 0.0
    norm_kind: str = "layer_norm"
    gated: bool = False
    mlp_bias: bool = True
    rotary: Rotary | None = None
    kv_heads: int | None = None
    head_width: int | None = None
    head_norm: float = 0.0
    attention_out_bias: bool | None = None
    out_stddev: Stddev | None = None

    def attention_layer(self, *, relative: bool) -> MultiHeadAttention:
        return MultiHeadAttention(
            num_heads=self.num_heads,
            kv_heads=self.kv_heads,
            head_width=self.head_width,
            dropout_rate=self.attention_dropout,
            use_bias=self.attention_bias,
            out_bias=self.attention_out_bias,
            rotary=self.rotary if relative else None,
            head_norm=self.head_norm,
            relative_distance=self.relative_distance if relative else 0,
            implementation=self.attention,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            stddev=self.stddev,
            out_stddev=self.out_stddev,
        )

    def feed_forward_layer(self) -> nn.Module:
        kind = GatedFeedForward if self.gated else FeedForward
        types = (self.dtype, self.param_dtype)
        starts = (self.stddev, self.out_stddev)
        return kind(self.mlp_width, self.mlp_dropout, self.activation, *types, *starts, self.mlp_bias)

    def norm_layer(self) -> nn.Module:
        return NORMS[self.norm_kind](self.norm_epsilon, self.dtype, self.param_dtype)

    def residual(
        self,
        x: jax.Array,
        norm: nn.Module,
        sublayer: Callable,
        deterministic: bool = True,
        read: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, T, D] → [B, T, D], or [B, M, D] where the sublayer gives positions `read` [B, M] alone."""
        kept = gather(x, read)
        if self.norm == "pre":
            return kept + self.adapted(norm, self.drop(sublayer(norm(x)), deterministic=deterministic))
        return norm(kept + self.adapted(norm, self.drop(sublayer(x), deterministic=deterministic)))

    def adapted(self, norm: nn.Module, h: jax.Array) -> jax.Array:
        """A sublayer's output h [B, T, D] after Houlsby's layers, if the parameters have them: self_adapter of self_norm."""
        return adapted(self, norm.name.replace("norm", "adapter"), h)


class EncoderBlock(Block):
    """Self-attention, then feed-forward."""

    def setup(self):
        self.self_attention, self.self_norm = self.attention_layer(relative=True), self.norm_layer()
        self.feed_forward, self.feed_norm = self.feed_forward_layer(), self.norm_layer()
        self.drop = Dropout(self.dropout)

    def __call__(self, x: jax.Array, mask: Mask, deterministic: bool, read: jax.Array | None = None) -> jax.Array:
        """x [B, S, D] → [B, S, D], or [B, M, D] of positions `read` [B, M] alone, which see what they always see."""

        def attend(h):
            if read is None:
                return self.self_attention(h, mask=mask, deterministic=deterministic)
            return self.self_attention(gather(h, read), h, mask=mask.at(read), deterministic=deterministic)

        def feed(h):
            return self.feed_forward(h, deterministic=deterministic)

        x = self.residual(x, self.self_norm, attend, deterministic, read)
        return self.residual(x, self.feed_norm, feed, deterministic)


class DecoderBlock(Block):
    """Causal self-attention, attention to the encoder, then feed-forward; `start` and `step` decode with a cache."""

    def setup(self):
        self.self_attention, self.self_norm = self.attention_layer(relative=True), self.norm_layer()
        self.cross_attention, self.cross_norm = self.attention_layer(relative=False), self.norm_layer()
        self.feed_forward, self.feed_norm = self.feed_forward_layer(), self.norm_layer()
        self.drop = Dropout(self.dropout)

    def __call__(
        self, x: jax.Array, encoded: jax.Array, self_mask: Mask, cross_mask: Mask, deterministic: bool
    ) -> jax.Array:
        """x [B, T, D], encoded [B, S, D] → [B, T, D]."""

        def attend(h):
            return self.self_attention(h, mask=self_mask, deterministic=deterministic)

        def attend_source(h):
            return self.cross_attention(h, encoded, mask=cross_mask, deterministic=deterministic)

        def feed(h):
            return self.feed_forward(h, deterministic=deterministic)

        x = self.residual(x, self.self_norm, attend, deterministic)
        x = self.residual(x, self.cross_norm, attend_source, deterministic)
        return self.residual(x, self.feed_norm, feed, deterministic)

    def start(self, encoded: jax.Array, length: int) -> jax.Array:
        """Makes the cache for `length` target positions from encoded [B, S, D], and returns encoded."""
        self.self_attention.start(encoded.shape[0], length)
        self.cross_attention.start_context(encoded)
        return encoded

    def step(self, x: jax.Array, index: jax.Array, source_segments: jax.Array) -> jax.Array:
        """One target position x [B, 1, D] at position `index` → [B, 1, D]."""
        x = self.residual(x, self.self_norm, lambda h: self.self_attention.step(h, index))
        x = self.residual(x, self.cross_norm, lambda h: self.cross_attention.step_context(h, source_segments))
        return self.residual(x, self.feed_norm, self.feed_forward)


class CausalBlock(Block):
    """Causal self-attention, then feed-forward: the block of a decoder without an encoder (Radford et al. 2018, figure 1).

    `start` and `step` decode with a cache, after prompts of different lengths.
    """

    def setup(self):
        self.self_attention, self.self_norm = self.attention_layer(relative=True), self.norm_layer()
        self.feed_forward, self.feed_norm = self.feed_forward_layer(), self.norm_layer()
        self.drop = Dropout(self.dropout)

    def __call__(self, x: jax.Array, mask: Mask, deterministic: bool) -> jax.Array:
        """x [B, T, D] → [B, T, D]; the mask is causal."""

        def attend(h):
            return self.self_attention(h, mask=mask, deterministic=deterministic)

        def feed(h):
            return self.feed_forward(h, deterministic=deterministic)

        x = self.residual(x, self.self_norm, attend, deterministic)
        return self.residual(x, self.feed_norm, feed, deterministic)

    def start(self, x: jax.Array, mask: Mask, length: int) -> jax.Array:
        """Prompts x [B, P, D] → [B, P, D]; also makes the cache of what `length` steps read."""
        x = self.residual(x, self.self_norm, lambda h: self.self_attention.start_prompt(h, mask, length))
        return self.residual(x, self.feed_norm, self.feed_forward)

    def step(self, x: jax.Array, place: Place) -> jax.Array:
        """One position x [B, 1, D] that stands at `place` → [B, 1, D]."""
        x = self.residual(x, self.self_norm, lambda h: self.self_attention.step_prompt(h, place))
        return self.residual(x, self.feed_norm, self.feed_forward)


class Stack(nn.Module):
    """`layers` copies of a block, one after the other.

    block: makes one block; the block's methods take the running array first and return it changed.
    scan: one compiled block, scanned over stacked parameters [layers, ...]: compile time does not grow with depth.
      Otherwise the copies `layer_0`, `layer_1`, … are compiled one by one, which runs faster on CPUs.
    remat: keep only each block's input for the backward pass and compute the rest again (Chen et al. 2016). On CPUs that
      saves memory in scanned blocks only.
    """

    block: Callable[[], nn.Module]
    layers: int
    scan: bool = False
    remat: bool = False

    def setup(self):
        if self.scan:
            scan = nn.scan(
                _Carry,
                variable_axes={"params": 0, "cache": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=self.layers,
                check_constancy_invariants=False,  # would trace the block once more
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.layer = scan(self.block, self.remat, True)
        else:
            self.layer = [_Carry(self.block, self.remat, False) for _ in range(self.layers)]

    def __call__(self, x: jax.Array, *shared, method: str = "__call__", read: jax.Array | None = None) -> jax.Array:
        """Applies the named method of every block in turn; `shared` arguments are the same for all.

        read: positions [B, M] that the last block is asked for alone; not of scanned layers, which are one block.
        """
        if self.scan:
            with whole_stacks(self, "layer"):
                return self.layer(x, method, *shared)[0]
        if method != "__call__" and not self.is_initializing():
            numbers = {i: value for i, value in enumerate(shared) if isinstance(value, int)}  # a length, which sets shapes
            arrays = [value for i, value in enumerate(shared) if i not in numbers]
            for layer in self.layer:
                x = layer.traced_once(x, method, tuple(numbers.items()), *arrays)
            return x
        for layer in self.layer:
            rest = (read,) if read is not None and layer is self.layer[-1] else ()
            x, _ = layer(x, method, *shared, *rest)
        return x


class _Carry(nn.Module):
    """A block in the form that nn.scan wants: (carry, *shared) → (carry, None).

    scanned: by nn.scan, where XLA cannot merge what remat computes again with what was computed before.
    """

    block: Callable[[], nn.Module]
    remat: bool
    scanned: bool

    @nn.compact
    def __call__(self, x, method, *shared):
        block = self.block(name="block")

        def run(block, x):
            return getattr(block, method)(x, *shared)

        return (nn.remat(run, prevent_cse=not self.scanned) if self.remat and method == "__call__" else run)(block, x), None

    @functools.partial(nn.jit, static_argnums=(2, 3))
    def traced_once(self, x: jax.Array, method: str, numbers: tuple[tuple[int, int], ...], *arrays) -> jax.Array:
        """The named method of the block, which Python traces once for all layers that are alike: a decoder of 30 layers is
        traced a few times before it writes its first token.

        Args:
          numbers: arguments that are no arrays, with their places among all.
        """
        shared = list(arrays)
        for place, number in numbers:
            shared.insert(place, number)
        return self(x, method, *shared)[0]
