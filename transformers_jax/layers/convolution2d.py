"""Convolutions over images.

Axes: B batch rows, H height, W width, A input channels, C output channels, K width of a square kernel.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.product import times_kernel

NUMBERS = ("NHWC", "HWIO", "NHWC")
"""Axes of images, kernels and results in the language of `jax.lax.conv_general_dilated`."""


class Conv2d(nn.Module):
    """x [B, H, W, A] → [B, H', W', C]: a kernel [K, K, A, C] and a bias [C].

    A kernel that moves by its own width over an image without padding is one product of matrices, of its patches [K · K · A]:
    so patches are embedded. What is left over at the right and at the bottom is then not read, as in PyTorch.

    size: K.
    stride: how far the kernel moves.
    padding: zeros around the image on each side, or "SAME", for H / stride positions, rounded up.
    axes: logical names of A and C.
    stddev: of the kernel's initial numbers, cut off at two standard deviations; 0 for a variance of 1 / (K · K · A).
    standardise: each of the C kernels has mean 0 and variance 1 before it is used (Qiao et al. 2019), with this epsilon
      beside the variance; 0 for kernels as they are.
    """

    features: int
    size: int
    stride: int = 1
    padding: int | str = 0
    use_bias: bool = True
    axes: tuple[str | None, str | None] = (None, "embed")
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    stddev: float = 0.0
    standardise: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, axes = (self.size, self.size, x.shape[-1], self.features), ("conv", "conv", *self.axes)
        init = nn.initializers.truncated_normal(self.stddev) if self.stddev else nn.initializers.lecun_normal()
        if self.stride == self.size and not self.padding and not self.standardise:
            cut = patches(x, self.size)  # [B, H', W', K · K · A]
            return times_kernel(self, cut, shape, init, axes, inputs=3, bias_axes=axes[3:] if self.use_bias else None)
        kernel = self.param("kernel", nn.with_logical_partitioning(init, axes), shape, self.param_dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
        bias = self.param("bias", zeros, (self.features,), self.param_dtype) if self.use_bias else None
        kernel = standardised(kernel, self.standardise) if self.standardise else kernel
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = convolve2d(x, kernel, self.stride, self.padding)
        return y if bias is None else y + bias


def convolve2d(x: jax.Array, kernel: jax.Array, stride: int, padding: int | str) -> jax.Array:
    """A convolution of x [B, H, W, A] and a kernel [K, K, A, C]: [B, H', W', C]; stride and padding as of `Conv2d`.

    On CPUs it is one product with the K² shifted images beside each other, whose gradients are products too: XLA computes
    those of its own convolution there by a loop that is several times slower. Other backends have convolutions.
    """
    size, strides = len(kernel), (stride, stride)
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (size, size), strides, padding) if isinstance(padding, str) else None
    pads = pads or [(padding, padding)] * 2
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NUMBERS)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    down, right = (stride * ((side - size) // stride) + 1 for side in x.shape[1:3])
    shifted = [x[:, i : i + down : stride, j : j + right : stride] for i in range(size) for j in range(size)]
    return jnp.einsum("bhwka,kac->bhwc", jnp.stack(shifted, axis=3), kernel.reshape(size * size, *kernel.shape[2:]))


def patches(x: jax.Array, size: int) -> jax.Array:
    """The patches of images [B, H, W, A], each as one vector by row, column, channel: [B, H // K, W // K, K · K · A]."""
    rows, height, width, channels = x.shape
    if size == 1:
        return x
    down, right = height // size, width // size
    x = x[:, : down * size, : right * size].reshape(rows, down, size, right, size, channels)  # [B, H', K, W', K, A]
    return x.swapaxes(2, 3).reshape(rows, down, right, size * size * channels)  # [B, H', W', K · K · A]


def standardised(kernel: jax.Array, epsilon: float) -> jax.Array:
    """Kernels [K, K, A, C] less their mean, divided by their standard deviation, each of the C by itself, in float32."""
    kernel = kernel.astype(jnp.float32)
    kernel = kernel - kernel.mean(axis=(0, 1, 2), keepdims=True)
    return kernel * jax.lax.rsqrt(jnp.mean(kernel**2, axis=(0, 1, 2), keepdims=True) + epsilon)


class DepthwiseConv2d(nn.Module):
    """Each channel of x [B, H, W, C] convolved with taps of its own, the image surrounded by zeros: [B, H, W, C].

    Parameters: kernel [K, K, 1, C], bias [C].

    size: K, odd.
    axis: logical name of C.
    """

    size: int
    axis: str | None = "embed"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    stddev: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        init = nn.initializers.truncated_normal(self.stddev) if self.stddev else nn.initializers.lecun_normal()
        init = nn.with_logical_partitioning(init, ("conv", "conv", None, self.axis))
        kernel = self.param("kernel", init, (self.size, self.size, 1, channels), self.param_dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
        bias = self.param("bias", zeros, (channels,), self.param_dtype)
        x, bias = nn.dtypes.promote_dtype(x, bias, dtype=self.dtype)
        return depthwise2d(x, kernel[:, :, 0]) + bias


def depthwise2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each channel convolved with its own taps, y[b, h, w, c] = Σ_ij kernel[i, j, c] · x[b, h + i - m, w + j - m, c] with
    m = K // 2, zeros outside.

    On CPUs it is K² shifted multiply-adds with a gradient of the same form, several times faster than XLA's grouped
    convolution there, which other backends compute.

    Args:
      x: [B, H, W, C].
      kernel: [K, K, C], K odd.

    Returns:
      [B, H, W, C] in the dtype of x; the sums are in float32.
    """
    if jax.default_backend() == "cpu":
        return shifted_sum(x, kernel)
    kernel, channels = kernel[:, :, None].astype(x.dtype), x.shape[-1]  # [K, K, 1, C]
    numbers = {"dimension_numbers": NUMBERS, "feature_group_count": channels}
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **numbers)


def _padded(x, size):
    around = (size // 2, size // 2, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), around, around, (0, 0, 0)])


@jax.custom_vjp
def shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise2d` as shifted multiply-adds."""
    size, (height, width) = len(kernel), x.shape[1:3]
    padded, kernel = _padded(x, size), kernel.astype(jnp.float32)
    terms = (
        jax.lax.slice(padded, (0, i, j, 0), (len(x), i + height, j + width, x.shape[3])) * kernel[i, j]
        for i in range(size)
        for j in range(size)
    )
    return functools.reduce(jax.lax.add, terms).astype(x.dtype)


def _forward(x, kernel):
    return shifted_sum(x, kernel), (x, kernel)


def _backward(saved, gradient):
    """The image's gradient is the same sum with the taps turned around."""
    x, kernel = saved
    return shifted_sum(gradient, kernel[::-1, ::-1]), _of_taps(x, gradient, len(kernel)).astype(kernel.dtype)


def _of_taps(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """The taps' gradient [K, K, C], float32: entry (i, j) is the sum of x[b, h + i - m, w + j - m] · gradient[b, h, w].

    Row after row of the images is multiplied and added up position by position, a sum [K, W, C] for each of the K columns of
    taps, as `shifted_sum` does, in arrays that stay in the cache; the sums over W come last. One reduction a tap over all
    positions would read x and the gradient K² times.
    """
    rows, height, width, channels = x.shape
    few = next(n for n in (8, 7, 6, 5, 4, 3, 2, 1) if rows % n == 0)  # images at once
    padded = _padded(x, size)

    def add(sums, place):
        image, row = place // height * few, place % height
        above = jax.lax.dynamic_slice(padded, (image, row, 0, 0), (few, size, padded.shape[2], channels))
        here = jax.lax.dynamic_slice(gradient, (image, row, 0, 0), (few, 1, width, channels))  # [few, 1, W, C]
        above, here = above.astype(jnp.float32), here.astype(jnp.float32)
        products = [[above[n, :, j : j + width] * here[n] for n in range(few)] for j in range(size)]  # [K, W, C] each
        return [functools.reduce(jax.lax.add, terms, own) for own, terms in zip(sums, products, strict=True)], None

    zeros = [jnp.zeros((size, width, channels))] * size
    sums, _ = jax.lax.scan(add, zeros, jnp.arange(rows // few * height))
    return jnp.stack([one.sum(axis=1) for one in sums], axis=1)


shifted_sum.defvjp(_forward, _backward)
