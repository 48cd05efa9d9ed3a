"""One branch of a genome's block: a layer and its activation, its widths, and how many parameters it has.

Axes: B batch rows, T length, S source length, C input channels, F output channels, D model width.

The layers are those of tensor2tensor's `neural_architecture_search/nas_layers.py` (So, Liang, Le 2019, appendix A).
"""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.genomes.genome import Branch
from transformers_jax.layers.attention import MultiHeadAttention
from transformers_jax.layers.convolution import Conv, LightweightConv, SeparableConv
from transformers_jax.layers.masks import Mask, Place
from transformers_jax.layers.positions import Rotary
from transformers_jax.layers.projections import Linear

ACTIVATIONS = {
    "swish": jax.nn.swish,
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),  # TensorFlow's slope
    "none": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class BranchOptions:
    """What all branches of a model share; the names are those of `models.transformer.Config`.

    num_heads: of attention to the encoder; self-attention's are the genome's.
    dropout: on what a branch gives; mlp_dropout instead where its block is wider than the model.
    rotary: how self-attention turns queries and keys, if it does.
    """

    num_heads: int = 8
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    attention_bias: bool = False
    relative_distance: int = 0
    attention: str = "auto"
    dtype: str = "float32"
    param_dtype: str = "float32"
    rotary: Rotary | None = None


def kind(layer: str) -> tuple[str, int, int]:
    """A layer's name in parts, as "light15r4" → ("light", 15, 4); numbers that it has not are 0."""
    name, first, second = re.fullmatch(r"([A-Za-z]+)(\d*)(?:r(\d+))?", layer).groups()
    return name, int(first or 0), int(second or 0)


def output_width(branch: Branch, width: int, unit: int) -> int:
    """Channels that a live branch gives for an input of `width`: relative width × unit.

    Identity keeps its input's width. So does a lightweight convolution, whose channels each read one channel, if the
    width is no multiple of the input's.
    """
    wanted = branch.width * unit
    name = kind(branch.layer)[0]
    return width if name == "id" or (name == "light" and wanted % width) else wanted


def head_width(width: int, heads: int) -> int:
    """Of `heads` heads that together are as wide as their input, or just wider where it is no multiple."""
    return -(-width // heads)


def parameters(layer: str, width: int, features: int, context: int, options: BranchOptions) -> int:
    """How many parameters a layer has.

    Args:
      layer: its name.
      width, features: of its input and output.
      context: width of the encoder's output, D.
    """
    name, size, reduction = kind(layer)
    if name in ("id", "dead"):
        return 0
    if name == "GLU":
        return 2 * (width + 1) * features
    if name == "conv":
        return (size * width + 1) * features
    if name == "sep":
        return size * width + (width + 1) * features
    if name == "light":
        return size * (width // reduction + width % reduction) * (features // width)
    source, heads = (width, size) if name == "att" else (context, options.num_heads)
    inner = heads * head_width(width, heads)
    count = (width + 2 * source) * inner + inner * features
    if options.attention_bias:
        count += 3 * inner + features
    if name == "att" and options.relative_distance:
        count += 2 * (2 * options.relative_distance + 1) * head_width(width, heads)
    return count


class BranchLayer(nn.Module):
    """A live branch without its norm: [B, T, C] → [B, T, F].

    width, features: C and F.
    causal: whether it belongs to a decoder.
    """

    branch: Branch
    width: int
    features: int
    causal: bool
    options: BranchOptions

    def setup(self):
        options, (name, size, reduction) = self.options, kind(self.branch.layer)
        types = dict(dtype=options.dtype, param_dtype=options.param_dtype)
        if name == "GLU":
            self.value = Linear(self.features, ("embed", "mlp"), **types)
            self.gate = Linear(self.features, ("embed", "mlp"), **types)
        elif name == "conv" and size == 1:
            self.linear = Linear(self.features, ("embed", "mlp"), **types)
        elif name == "conv":
            self.convolution = Conv(self.features, size, causal=self.causal, **types)
        elif name == "sep":
            self.convolution = SeparableConv(self.features, size, causal=self.causal, **types)
        elif name == "light":
            self.convolution = LightweightConv(self.features, size, reduction=reduction, causal=self.causal, **types)
        elif name == "att":
            self.self_attention = self.attention_layer(size, options.relative_distance, options.rotary)
        elif name == "enc":
            self.cross_attention = self.attention_layer(options.num_heads)

    def attention_layer(
        self, heads: int, relative_distance: int = 0, rotary: Rotary | None = None
    ) -> MultiHeadAttention:
        """As wide inside as its input, whatever it gives (tensor2tensor)."""
        return MultiHeadAttention(
            num_heads=heads,
            head_width=head_width(self.width, heads),
            features=self.features,
            dropout_rate=self.options.attention_dropout,
            use_bias=self.options.attention_bias,
            relative_distance=relative_distance,
            rotary=rotary,
            implementation=self.options.attention,
            dtype=self.options.dtype,
            param_dtype=self.options.param_dtype,
        )

    def __call__(
        self,
        x: jax.Array,
        mask: Mask,
        context: jax.Array | None = None,
        context_mask: Mask | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Whole rows.

        Args:
          x: [B, T, C].
          mask: of the rows to themselves; its segments bound convolutions.
          context, context_mask: the encoder's output [B, S, D] and who sees what of it; for a decoder's branches.
        """
        name, size, _ = kind(self.branch.layer)
        if name == "att":
            x = self.self_attention(x, mask=mask, deterministic=deterministic)
        elif name == "enc":
            x = self.cross_attention(x, context, mask=context_mask, deterministic=deterministic)
        elif size > 1:
            x = self.convolution(x, mask.query_segments)
        else:
            x = self.pointwise(x)
        return ACTIVATIONS[self.branch.activation](x)

    def pointwise(self, x: jax.Array) -> jax.Array:
        """The layers that look at one position."""
        if self.branch.layer == "GLU":
            return self.value(x) * jax.nn.sigmoid(self.gate(x))
        return self.linear(x) if self.branch.layer == "conv1" else x

    def start(self, context: jax.Array, length: int) -> None:
        """Makes the cache of up to `length` positions, for rows that read context [B, S, D]."""
        name, size, _ = kind(self.branch.layer)
        if name == "att":
            self.self_attention.start(context.shape[0], length)
        elif name == "enc":
            self.cross_attention.start_context(context)
        elif size > 1:
            self.convolution.start(context.shape[0], self.width)

    def start_prompt(self, x: jax.Array, mask: Mask, length: int) -> jax.Array:
        """Prompts x [B, P, C] → [B, P, F]; also makes the cache of what `length` steps read."""
        name, size, _ = kind(self.branch.layer)
        if name == "att":
            x = self.self_attention.start_prompt(x, mask, length)
        elif size > 1:
            x = self.convolution.start_prompt(x, mask.query_segments)
        else:
            x = self.pointwise(x)
        return ACTIVATIONS[self.branch.activation](x)

    def step_prompt(self, x: jax.Array, place: Place) -> jax.Array:
        """One position x [B, 1, C] that stands at `place` → [B, 1, F]."""
        name, size, _ = kind(self.branch.layer)
        if name == "att":
            x = self.self_attention.step_prompt(x, place)
        elif size > 1:
            x = self.convolution.step(x)
        else:
            x = self.pointwise(x)
        return ACTIVATIONS[self.branch.activation](x)

    def step(self, x: jax.Array, index: jax.Array, source_segments: jax.Array) -> jax.Array:
        """One position x [B, 1, C] at `index` → [B, 1, F]."""
        name, size, _ = kind(self.branch.layer)
        if name == "att":
            x = self.self_attention.step(x, index)
        elif name == "enc":
            x = self.cross_attention.step_context(x, source_segments)
        elif size > 1:
            x = self.convolution.step(x, index)
        else:
            x = self.pointwise(x)
        return ACTIVATIONS[self.branch.activation](x)


def combine(combiner: str, branches: list[jax.Array]) -> jax.Array:
    """One, two or more arrays [B, T, ...] as one: the narrower ones padded with what changes nothing, or side by side."""
    if len(branches) == 1:
        return branches[0]
    if combiner == "concat":
        return jnp.concatenate(branches, axis=-1)
    width = max(x.shape[-1] for x in branches)
    neutral = 1 if combiner == "multiply" else 0
    result, *others = (
        x if x.shape[-1] == width else jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[-1])), constant_values=neutral)
        for x in branches
    )
    for other in others:
        result = result * other if combiner == "multiply" else result + other
    return result
