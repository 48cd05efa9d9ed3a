"""Linear maps: plain ones, into heads and out of them.

Axes: D model width, N heads, H head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from transformers_jax.errors import UserError


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., A] times kernel [A, C], as one product of matrices.

    With x flattened to rows, the kernel's gradient is a product that CPUs take as it is; over the axes [B, T] together
    they transpose both sides first. Of many rows they form a tall kernel's gradient faster lying down, [C, A], which the
    barrier keeps XLA from undoing; of few, as in a step of decoding, turning the kernel would cost more than it brings.
    """
    rows = x.reshape(-1, x.shape[-1])
    tall = kernel.shape[0] > kernel.shape[1]
    if tall and len(rows) >= 2 * kernel.shape[0] and jax.default_backend() == "cpu":
        kernel = jax.lax.optimization_barrier(kernel.T).T
    return (rows @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def gathered(kernel: jax.Array) -> jax.Array:
    """A kernel [A, ...] whose rows are whole on every device of the mesh in context; its other axes are split as they were.

    What stores a kernel in parts along A gathers it for its use (ZeRO stage 3), and no product sums over devices. It is also
    needed: where A and the rows of the batch are split over one axis of a mesh of three, the partitioner of jaxlib 0.10
    gets gradients wrong.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return kernel
    spec = PartitionSpec(None, *[PartitionSpec.UNCONSTRAINED] * (kernel.ndim - 1))
    return jax.lax.with_sharding_constraint(kernel, spec)


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
    stddev: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(kernel_init(self.stddev), self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), self.param_dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
        bias = self.param("bias", zeros, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = matmul(x, gathered(kernel) if self.axes[0] == "embed" else kernel)
        return y if bias is None else y + bias


class ToHeads(nn.Module):
    """x [..., D] → [..., N, H], by a kernel [D, N, H] drawn on the fan of the [D, N * H] matrix."""

    num_heads: int
    head_width: int | None
    use_bias: bool
    dtype: jnp.dtype | None
    param_dtype: jnp.dtype
    stddev: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, heads = x.shape[-1], self.num_heads
        head_width = self.head_width or _head_width(width, heads)
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(_on_matrix((width, heads * head_width), self.stddev), ("embed", "heads", "kv")),
            (width, heads, head_width),
            self.param_dtype,
        )
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("heads", "kv"))
        bias = self.param("bias", zeros, (heads, head_width), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = matmul(x, gathered(kernel).reshape(width, -1)).reshape(*x.shape[:-1], heads, head_width)  # [..., N, H]
        return y if bias is None else y + bias


class FromHeads(nn.Module):
    """y [..., N, H] → [..., D], by a kernel [N, H, D] drawn on the fan of the [N * H, D] matrix."""

    use_bias: bool
    dtype: jnp.dtype | None
    param_dtype: jnp.dtype
    stddev: float = 0.0

    @nn.compact
    def __call__(self, y: jax.Array, width: int) -> jax.Array:
        heads, head_width = y.shape[-2:]
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(_on_matrix((heads * head_width, width), self.stddev), ("heads", "kv", "embed")),
            (heads, head_width, width),
            self.param_dtype,
        )
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, (width,), self.param_dtype) if self.use_bias else None
        y, kernel, bias = nn.dtypes.promote_dtype(y, kernel, bias, dtype=self.dtype)
        x = matmul(y.reshape(*y.shape[:-2], -1), kernel.reshape(-1, width))  # [..., D]
        return x if bias is None else x + bias


def kernel_init(stddev: float):
    """How kernels start: N(0, stddev²) cut off at two standard deviations (Devlin et al. 2019's code), or with 0
    Xavier's uniform numbers (Glorot and Bengio 2010, eq. 16)."""
    return nn.initializers.truncated_normal(stddev) if stddev else nn.initializers.xavier_uniform()


def _on_matrix(matrix: tuple[int, int], stddev: float):
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
