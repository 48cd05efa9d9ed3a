"""Linear maps: plain ones, into heads and out of them.

Axes: D model width, N heads, H head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers.product import times_kernel

Stddev = float | nn.initializers.Initializer
"""How a kernel starts, as `kernel_init` reads it."""


class Linear(nn.Module):
    """x [..., A] → [..., C]: a kernel [A, C] and a bias [C].

    axes: logical names of A and C.
    stddev: of the kernel's initial numbers, drawn as `kernel_init` says.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32
    stddev: Stddev = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, init = (x.shape[-1], self.features), kernel_init(self.stddev)
        return times_kernel(self, x, shape, init, self.axes, bias_axes=self.axes[1:] if self.use_bias else None)


class ToHeads(nn.Module):
    """x [..., D] → [..., N, H], by a kernel [D, N, H] drawn on the fan of the [D, N * H] matrix."""

    num_heads: int
    head_width: int | None
    use_bias: bool
    dtype: jnp.dtype | None
    param_dtype: jnp.dtype
    stddev: Stddev = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, heads = x.shape[-1], self.num_heads
        head_width = self.head_width or _head_width(width, heads)
        init = _on_matrix((width, heads * head_width), self.stddev)
        bias_axes = ("heads", "kv") if self.use_bias else None
        y = times_kernel(self, x, (width, heads, head_width), init, ("embed", "heads", "kv"), bias_axes=bias_axes)
        return y.reshape(*x.shape[:-1], heads, head_width)  # [..., N, H]


class FromHeads(nn.Module):
    """y [..., N, H] → [..., D], by a kernel [N, H, D] drawn on the fan of the [N * H, D] matrix."""

    use_bias: bool
    dtype: jnp.dtype | None
    param_dtype: jnp.dtype
    stddev: Stddev = 0.0

    @nn.compact
    def __call__(self, y: jax.Array, width: int) -> jax.Array:
        heads, head_width = y.shape[-2:]
        init, axes = _on_matrix((heads * head_width, width), self.stddev), ("heads", "kv", "embed")
        y = y.reshape(*y.shape[:-2], -1)  # [..., N · H]
        bias_axes = ("embed",) if self.use_bias else None
        return times_kernel(self, y, (heads, head_width, width), init, axes, inputs=2, bias_axes=bias_axes)  # [..., D]


def kernel_init(stddev: Stddev):
    """How kernels start: N(0, stddev²) cut off at two standard deviations (Devlin et al. 2019's code), or with 0
    Xavier's uniform numbers (Glorot and Bengio 2010, eq. 16). An initializer is itself."""
    if callable(stddev):
        return stddev
    return nn.initializers.truncated_normal(stddev) if stddev else nn.initializers.xavier_uniform()


def _on_matrix(matrix: tuple[int, int], stddev: Stddev):
    """`kernel_init` for a kernel that is this matrix, folded."""

    def init(key, shape, dtype):
        return kernel_init(stddev)(key, matrix, dtype).reshape(shape)

    return init


def _head_width(width: int, heads: int) -> int:
    """Width of each of `heads` equal heads of a model `width` wide; UserError if they do not fit."""
    if width % heads:
        raise UserError(
            f"num_heads {heads} does not divide the model width {width}: change one of them, or give head_width"
        )
    return width // heads
