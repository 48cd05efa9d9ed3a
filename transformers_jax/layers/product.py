"""The one product of activations and a kernel: plain, quantised, or with a part of low rank beside it.

Every linear layer, projection and convolution multiplies here. What finetuning changes about a kernel stands in the
parameters, not in the model: a `QuantizedKernel` in the place of the array `kernel`, and beside it, if there is an adapter
of low rank (Hu et al. 2021, section 4.1), the leaves

    lora_a [A, r]   lora_b [r, C]   lora_scale []         y = xW + scale · (xA)B
    lora_dropout []                                       share of x that is dropped before A, in training
    lora_magnitude [C]                                    the length of each column of W + scale · AB (DoRA, Liu et al. 2024)

Of a stack of layers each leaf has a leading axis [layers, …], which `nn.scan` slices as it slices kernels.

Axes: A inputs, C outputs, r rank.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from transformers_jax.layers.affine import LayerOfStack
from transformers_jax.layers.places import NUMBER, KernelPlace, given, note, unsliced
from transformers_jax.layers.quantized import dequantize, is_quantized, low_rank, product

LOW_RANK = r"(^|/)lora_(a|b|magnitude)$"
"""Pattern of the leaves of an adapter of low rank that learn."""


def times_kernel(
    module: nn.Module,
    x: jax.Array,
    shape: tuple[int, ...],
    init: Callable,
    axes: tuple[str | None, ...],
    *,
    inputs: int = 1,
    bias_axes: tuple[str | None, ...] | None = None,
) -> jax.Array:
    """x [..., A] times the parameter "kernel" of `module`, plus its parameter "bias" → [..., C].

    Args:
      module: has the fields `dtype` and `param_dtype`.
      shape: of the kernel; its first `inputs` dimensions make up A, the others C.
      init: of a fresh kernel.
      axes: logical names of the kernel's dimensions.
      bias_axes: of the dimensions that make up C; None for no bias.
    """
    note(module, "kernel", KernelPlace(shape, inputs))
    kernel = given(module, "kernel")
    if (stack := unsliced(module)) is not None:
        kernel = LayerOfStack(stack, given(module, NUMBER))
    if not is_quantized(kernel):
        kernel = module.param("kernel", nn.with_logical_partitioning(init, axes), shape, module.param_dtype)
    bias = None
    if bias_axes is not None:
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, bias_axes)
        bias = module.param("bias", zeros, shape[inputs:], module.param_dtype)
    if is_quantized(kernel):
        x, bias = nn.dtypes.promote_dtype(x, bias, dtype=module.dtype)
    else:
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=module.dtype)
        kernel = gathered(kernel) if axes[0] == "embed" else kernel
        kernel = kernel.reshape(math.prod(shape[:inputs]), -1)  # [A, C]
    y = _with_low_rank(module, x, kernel) if given(module, "lora_a") is not None else multiply(x, kernel)
    return y if bias is None else y + bias.reshape(-1)


def multiply(x: jax.Array, kernel: Any) -> jax.Array:
    """x [..., A] times kernel [A, C], plain or quantised, as one product of matrices → [..., C].

    With x flattened to rows, the kernel's gradient is a product that CPUs take as it is; over the axes [B, T] together
    they transpose both sides first. Of many rows they form a tall kernel's gradient faster lying down, [C, A], which the
    barrier keeps XLA from undoing; of few, as in a step of decoding, turning the kernel would cost more than it brings.
    """
    if is_quantized(kernel):
        return product(x, kernel)
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


def _with_low_rank(module: nn.Module, x: jax.Array, kernel: Any) -> jax.Array:
    """x times a frozen kernel [A, C] and its part of low rank, which alone learns: W gets no gradient."""
    a, b, scale = (given(module, f"lora_{name}").astype(x.dtype) for name in ("a", "b", "scale"))
    y = low_rank(x, kernel, a, b, scale, dropout=lambda x: _dropped(module, x))
    magnitude = given(module, "lora_magnitude")
    if magnitude is None:
        return y
    whole = dequantize(kernel, jnp.float32).reshape(a.shape[0], -1) if is_quantized(kernel) else kernel.astype(jnp.float32)
    length = jnp.linalg.norm(whole + (scale * a @ b).astype(jnp.float32), axis=0)  # [C]
    length = jnp.maximum(length, 1e-30)  # of a column of zeros
    return y * (magnitude / jax.lax.stop_gradient(length)).astype(y.dtype)  # Liu et al. 2024, section 4.3


def _dropped(module: nn.Module, x: jax.Array) -> jax.Array:
    """x after the dropout of the part of low rank: only where the rate is a leaf, and training brings random numbers."""
    rate = given(module, "lora_dropout")
    if rate is None or not module.has_rng("dropout"):
        return x
    kept = jax.random.uniform(module.make_rng("dropout"), x.shape) >= rate
    return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)
