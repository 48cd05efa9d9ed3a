"""A residual network as the beginning of a vision Transformer: BiT's ResNet (Kolesnikov et al. 2020, "Big Transfer"), with
group norms and standardised kernels in place of batch norms.

Axes: B batch rows, H height, W width, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.convolution2d import Conv2d

EPSILON = 1e-5
"""Beside the variance of group norms."""
KERNEL_EPSILON = 1e-8
"""Beside the variance of kernels."""


class GroupNorm(nn.Module):
    """Each group of channels of one image with mean 0 and variance 1 (Wu and He 2018), then a scale and a bias; in float32.

    groups: so many, or one for two channels where there are few, as in the narrowest layer of the paper: a group of one channel
      would know nothing of how strong the channel is beside others, and a network of them learns late.
    """

    groups: int = 32
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] → [B, H, W, C]."""
        channels = x.shape[-1]
        ones, zeros = (nn.with_logical_partitioning(f, ("conv",)) for f in (nn.initializers.ones, nn.initializers.zeros))
        scale = self.param("scale", ones, (channels,), self.param_dtype)
        bias = self.param("bias", zeros, (channels,), self.param_dtype)
        groups = min(self.groups, max(1, channels // 2))
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, channels // groups)  # [B, H · W, G, C / G]
        y = y - y.mean(axis=(1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y**2, axis=(1, 3), keepdims=True) + EPSILON)
        return (y.reshape(x.shape) * scale + bias).astype(self.dtype)


class Bottleneck(nn.Module):
    """x + three convolutions, 1×1 to a quarter of the channels, 3×3, 1×1 (He et al. 2016), the activation at the end.

    features: channels of the output.
    projects: the input goes through a convolution too, as where it changes its size.
    """

    features: int
    stride: int
    projects: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def conv(name, features, size, stride=1):
            options = dict(padding="SAME", use_bias=False, axes=("conv", "conv"), standardise=KERNEL_EPSILON)
            return Conv2d(features, size, stride, name=name, **options, **types)

        def norm(name):
            return GroupNorm(name=name, **types)

        kept, inner = x, self.features // 4
        if self.projects:
            kept = norm("project_norm")(conv("project", self.features, 1, self.stride)(x))
        y = nn.relu(norm("norm_1")(conv("conv_1", inner, 1)(x)))
        y = nn.relu(norm("norm_2")(conv("conv_2", inner, 3, self.stride)(y)))
        y = norm("norm_3")(conv("conv_3", self.features, 1)(y))
        return nn.relu(y + kept)


class ResNetStem(nn.Module):
    """[B, H, W, channels] → [B, H / s, W / s, C], s being 2 · 2^stages: 16 of three stages.

    depths: bottlenecks of each stage.
    width: channels of the first convolution; a stage gives 4, 8, 16, … times as many.
    """

    depths: tuple[int, ...]
    width: int = 64
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        options = dict(padding="SAME", use_bias=False, axes=(None, "conv"), standardise=KERNEL_EPSILON)
        x = Conv2d(self.width, 7, 2, name="conv", **options, **types)(x)  # [B, H / 2, W / 2, width]
        x = nn.relu(GroupNorm(name="norm", **types)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")  # [B, H / 4, W / 4, width]
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                block = Bottleneck(4 * self.width * 2**stage, stride, i == 0, name=f"stage_{stage}_block_{i}", **types)
                x = block(x)
        return x
