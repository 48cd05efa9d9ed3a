"""Frozen kernels in four or eight bits, and their products with activations.

Axes: A inputs, C outputs, L layers, G blocks in a line, S bytes of a line.

A kernel [A, C] is quantised in blocks of consecutive numbers of its transpose [C, A], as bitsandbytes does, whose matrices
are [outputs, inputs]: codes and constants of the two are the same bytes. Each block keeps its largest absolute value,
absmax. Where the block divides A, every output has its own line of blocks, and the arrays of a kernel have a leading axis
C; otherwise all of [C, A] is one line and the last block may be shorter.

    int8  X_int8 = round(127 / absmax · X), and X again by the same constant (Dettmers et al. 2022, section 2)
    nf4   the nearest of 16 quantiles of the normal distribution, times absmax (Dettmers et al. 2023, section 3)

A kernel is never trained: a product has a gradient with regard to the activations only, for which the kernel is
dequantised a second time instead of being kept. What decodes fast on CPUs are the kernels of `affine.py`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from transformers_jax.errors import UserError
from transformers_jax.layers.affine import AffineKernel, LayerOfStack

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32,
)  # fmt: skip
"""NormalFloat's 16 values (Dettmers et al. 2023, appendix E)."""

KINDS = ("nf4", "int8")
NESTED_BLOCK = 256
"""How many values of absmax share a constant of their own in double quantisation."""
SMALLEST = 1e-38
"""What the absmax of a block of zeros counts as."""


@struct.dataclass
class QuantizedKernel:
    """A kernel as codes and constants; a node of a pytree whose leaves are plain arrays.

    Of a stack of layers every leaf has a leading axis L; the fields that are not arrays describe one layer, so that
    `nn.scan` may slice the leaves.

    codes: nf4: uint8 [C, A / 2], or [1, ⌈A · C / 2⌉] of one line, two to a byte, the first in the upper bits. int8: int8
      [C, A], or [1, A · C].
    absmax: [C, G], or [1, G] of one line, or [1, 1] of one constant for the whole kernel. float32; uint8 codes of
      `DYNAMIC` under double quantisation.
    nested_absmax: float32 [⌈number of blocks / 256⌉], the constants of absmax; None without double quantisation.
    nested_offset: float32 [], the mean that was taken off absmax; None without double quantisation.
    kind: "nf4" or "int8".
    shape: the kernel's own, for example [D, N, H] of a projection to heads.
    inputs: how many leading axes of `shape` make up A.
    block: numbers a block; 0: one constant for the whole kernel.
    dtype: what the kernel had, and what `dequantize` returns unless told otherwise.
    """

    codes: jax.Array
    absmax: jax.Array
    nested_absmax: jax.Array | None
    nested_offset: jax.Array | None
    kind: str = struct.field(pytree_node=False)
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    inputs: int = struct.field(pytree_node=False)
    block: int = struct.field(pytree_node=False)
    dtype: str = struct.field(pytree_node=False)

    one_parameter = True  # of a tree of parameters, see `parameters`

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(A, C)."""
        return math.prod(self.shape[: self.inputs]), math.prod(self.shape[self.inputs :])

    @property
    def size(self) -> int:
        """How many numbers it stands for, in all layers."""
        return math.prod(self.shape) * (self.codes.shape[0] if self.stacked else 1)

    @property
    def stacked(self) -> bool:
        """Whether the leaves have a leading axis of layers."""
        return len(self.codes.shape) == 3

    def times(self, rows: jax.Array) -> jax.Array:
        """rows [n, A] → [n, C]."""
        return jax.lax.dot_general(rows, self.transpose(rows.dtype), (((1,), (1,)), ((), ())))

    def times_transpose(self, rows: jax.Array) -> jax.Array:
        """rows [n, C] → [n, A]."""
        return rows @ self.transpose(rows.dtype)

    def transpose(self, dtype: Any) -> jax.Array:
        """The dequantised matrix of one layer lying as its blocks do, [C, A]."""
        if self.stacked:
            raise ValueError("a stack of quantised kernels has no product: slice its layers first, as nn.scan does")
        inputs, outputs = self.matrix_shape
        values = _nf4_values(self.codes) if self.kind == "nf4" else self.codes.astype(jnp.float32)
        scale = self._scale()  # [lines, G]
        lines, blocks = scale.shape
        if self.block:
            length = inputs * outputs // lines
            values = jnp.pad(values[:, :length], ((0, 0), (0, blocks * self.block - length)))
            values = values.reshape(lines, blocks, self.block) * scale[..., None]
            values = values.reshape(lines, -1)[:, :length]
        else:
            values = values * scale
        return values.reshape(outputs, inputs).astype(dtype)  # [C, A]

    def _scale(self) -> jax.Array:
        """What the values of a code are multiplied by, a block: float32 [lines, G]."""
        scale = self.absmax
        if self.nested_absmax is not None:
            values = _padded(jnp.asarray(dynamic_map())[scale].reshape(-1), NESTED_BLOCK).reshape(-1, NESTED_BLOCK)
            values = values * self.nested_absmax[:, None] + self.nested_offset
            scale = values.reshape(-1)[: scale.size].reshape(scale.shape)
        return scale / 127 if self.kind == "int8" else scale

    def logical_axes(self, axes: tuple[str | None, ...]) -> dict[str, tuple[str | None, ...]]:
        """The logical axes of every leaf that is there, by its field's name, from those of the kernel.

        Args:
          axes: one a dimension of the kernel, with the axis of the layers in front if it is stacked. Dimensions that
            are one in the matrix are split as the first of them is.
        """
        layers, axes = (axes[:1], axes[1:]) if self.stacked else ((), axes)
        own_lines = self.codes.shape[-2] > 1
        of_codes = (axes[self.inputs], axes[0]) if own_lines else (None, None)
        of_absmax = of_codes if self.absmax.shape[-2] > 1 else (None, None)
        named = {"codes": of_codes, "absmax": of_absmax, "nested_absmax": (None,), "nested_offset": ()}
        return {name: layers + found for name, found in named.items() if getattr(self, name) is not None}


def quantize(
    kernel: jax.Array, kind: str = "nf4", *, block: int = 64, double: bool = True, inputs: int = 1, stacked: bool = False
) -> QuantizedKernel:
    """A kernel in four or eight bits. Works under `jax.jit` and `jax.eval_shape`; layers are quantised each apart.

    Args:
      kernel: of any shape, with a leading axis L if `stacked`.
      kind: "nf4" or "int8".
      block: how many numbers share a constant, an even number; 0, of int8 only: all of them.
      double: the constants of blocks are in eight bits too (Dettmers et al. 2023, section 3), as bitsandbytes does it on
        CPUs; its mean of the constants is summed in another order, which may differ in the last bit.
      inputs: how many of the kernel's leading axes (after L) are inputs.
      stacked: the first axis is one of layers.

    Raises:
      UserError: a kind or a block that there is not.
    """
    if kind not in KINDS:
        raise UserError(f"quantization kind {kind!r}: give one of {', '.join(KINDS)}")
    if block < 0 or block % 2 or (block == 0 and kind == "nf4"):
        raise UserError(f"quantization block {block} of {kind}: give an even number of values a block, such as 64")
    return _quantize(kernel, kind=kind, block=block, double=double, inputs=inputs, stacked=stacked)


@functools.partial(jax.jit, static_argnames="dtype")
def dequantize(kernel: QuantizedKernel | AffineKernel | LayerOfStack, dtype: Any = None) -> jax.Array:
    """The kernel in its own shape, with the leading axis L if it is stacked; in its own dtype unless told otherwise."""
    dtype = dtype or kernel.dtype

    def one(kernel):
        return kernel.transpose(dtype).T.reshape(kernel.shape)

    return jax.vmap(one)(kernel) if kernel.stacked else one(kernel)


def is_quantized(kernel: Any) -> bool:
    """Whether this is a quantised kernel; also what `is_leaf` of jax.tree functions asks."""
    return isinstance(kernel, QuantizedKernel | AffineKernel | LayerOfStack)


def bytes_per_parameter(kernel: QuantizedKernel | AffineKernel) -> float:
    """Bytes of all arrays of a kernel over the number of its parameters, in all layers. Also for ShapeDtypeStructs."""
    layers = kernel.codes.shape[0] if kernel.stacked else 1
    held = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(kernel))
    return held / (layers * math.prod(kernel.shape))


def product(x: jax.Array, kernel: jax.Array | QuantizedKernel | AffineKernel | LayerOfStack) -> jax.Array:
    """x [..., A] times a kernel [A, C] → [..., C] in the dtype of x.

    A quantised kernel, of whatever shape, counts as its matrix. It has no gradient; for that of x it is dequantised
    again, so that nothing is kept between the two but the codes. Scanned layers are dequantised one at a time; of layers
    written out one by one XLA dequantises as many at once as it likes.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = _frozen_product(rows, kernel) if is_quantized(kernel) else rows @ kernel
    return y.reshape(*x.shape[:-1], y.shape[-1])


def low_rank(
    x: jax.Array,
    kernel: jax.Array | QuantizedKernel | AffineKernel,
    a: jax.Array,
    b: jax.Array,
    scale: float | jax.Array,
    *,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """xW + scale · (xA)B, a frozen kernel with a part of low rank r that learns (Hu et al. 2021, section 4.1).

    Args:
      x: [..., A].
      kernel: W, [A, C]. It gets no gradient, be it quantised or plain.
      a: [A, r].
      b: [r, C].
      scale: α / r.
      dropout: x → x, of the part of low rank only.
    """
    if not is_quantized(kernel):
        kernel = jax.lax.stop_gradient(kernel).astype(x.dtype)
    dropped = dropout(x) if dropout else x
    return product(x, kernel) + scale * product(product(dropped, a.astype(x.dtype)), b.astype(x.dtype))


@jax.custom_vjp
def _frozen_product(rows, kernel):
    return kernel.times(rows)


def _forward(rows, kernel):
    return kernel.times(rows), kernel


def _backward(kernel, gradient):
    """The barrier keeps XLA from holding on to the forward pass's dequantised kernel until it is wanted here."""
    kernel, gradient = jax.lax.optimization_barrier((kernel, gradient))
    return kernel.times_transpose(gradient), None


_frozen_product.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames=("kind", "block", "double", "inputs", "stacked"))
def _quantize(kernel, *, kind, block, double, inputs, stacked):
    shape = kernel.shape[1:] if stacked else kernel.shape
    width = math.prod(shape[:inputs])

    def leaves(kernel):
        matrix = kernel.reshape(width, -1).astype(jnp.float32).T  # [C, A]
        if not block:
            absmax = jnp.max(jnp.abs(matrix)).reshape(1, 1)
            return _int8_codes(matrix, absmax), absmax, None, None
        lines = matrix if width % block == 0 else matrix.reshape(1, -1)
        blocks = _padded(lines, block).reshape(len(lines), -1, block)  # [lines, G, block]
        absmax = jnp.max(jnp.abs(blocks), axis=-1)
        if kind == "int8":
            codes = _int8_codes(blocks, absmax[..., None]).reshape(len(lines), -1)[:, : lines.shape[1]]
        else:
            partial = lines.shape[1] % block > 0
            codes = _nf4_codes(blocks, absmax, partial).reshape(len(lines), -1)[:, : lines.shape[1] + lines.shape[1] % 2]
            codes = codes[:, ::2] << 4 | codes[:, 1::2]  # [lines, S]
            absmax = absmax.at[-1, -1].max(SMALLEST) if partial else absmax
        return (codes, *quantize_absmax(absmax)) if double else (codes, absmax, None, None)

    found = jax.vmap(leaves)(kernel) if stacked else leaves(kernel)
    return QuantizedKernel(*found, kind=kind, shape=shape, inputs=inputs, block=block, dtype=kernel.dtype.name)


def _padded(values: jax.Array, multiple: int) -> jax.Array:
    """The last axis filled up with zeros to a multiple."""
    return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % multiple)])


def _int8_codes(values: jax.Array, absmax: jax.Array) -> jax.Array:
    """round(127 / absmax · X), int8; of zeros alone it is zero."""
    return jnp.round(values * (127 / jnp.maximum(absmax, 1e-35))).astype(jnp.int8)


def _nf4_codes(blocks: jax.Array, absmax: jax.Array, partial: bool) -> jax.Array:
    """The number of the nearest value of `NF4`, the lower of two as near, for blocks [lines, G, block]: uint8.

    bitsandbytes multiplies whole blocks by 1 / absmax and divides a last one that is not full: so does this.
    """
    absmax = jnp.maximum(absmax, SMALLEST)[..., None]
    scaled = blocks * (1 / absmax)
    if partial:
        scaled = scaled.at[:, -1].set(blocks[:, -1] / absmax[:, -1])
    borders = (NF4[:-1] + NF4[1:]) / 2
    return sum((scaled > border).astype(jnp.uint8) for border in borders)


def _nf4_values(codes: jax.Array) -> jax.Array:
    """Bytes [lines, S] → values of `NF4`, float32 [lines, 2 · S].

    By tables of a byte's upper and lower value. Choosing with `where` would be no faster, and a scan would keep each of the
    16 numbers, broadcast to the size of the kernel, from one layer to the next.
    """
    pair = [jnp.asarray(table).at[codes].get(mode="promise_in_bounds") for table in (np.repeat(NF4, 16), np.tile(NF4, 16))]
    return jnp.stack(pair, axis=-1).reshape(len(codes), -1)


def quantize_absmax(absmax: jax.Array, offset: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The constants of blocks in eight bits, in blocks of 256 of their own, after their mean was taken off.

    The code of a value is that of the nearest `DYNAMIC` number to the nearest point of a grid of 65,536 from -1 to 1:
    bitsandbytes' table on CPUs.

    Args:
      absmax: float32 of any shape.
      offset: the mean; by default it is computed.

    Returns:
      uint8 codes like absmax, float32 [blocks] and float32 [].
    """
    offset = _sum(absmax.reshape(-1)) / absmax.size if offset is None else offset
    blocks = _padded((absmax - offset).reshape(-1), NESTED_BLOCK).reshape(-1, NESTED_BLOCK)
    nested = jnp.max(jnp.abs(blocks), axis=-1)
    scaled = jnp.clip(blocks * (1 / nested)[:, None], -1, 1)
    points = ((scaled + 1) * 32767.5 + 0.5).astype(jnp.int32)
    codes = jnp.where(nested[:, None] > 0, jnp.asarray(_nearest_dynamic())[points], 0)
    return codes.reshape(-1)[: absmax.size].reshape(absmax.shape), nested, offset


def _sum(values: jax.Array) -> jax.Array:
    """The sum of [n], pair by pair: rounding does not grow with n, and the order is the same on every device."""
    while len(values) > 1:
        values = _padded(values, 2)
        values = values[0::2] + values[1::2]
    return values[0]


@functools.cache
def dynamic_map() -> np.ndarray:
    """The 256 numbers of the dynamic 8-bit type in increasing order, float32 (Dettmers et al. 2022, section 2.3).

    Seven decades, from 1e-6 to 1, of 1, 2, … 64 numbers of either sign, in the middle of equal parts of [0.1, 1]; 0; 1.
    """
    found = [np.array([0, 1], np.float32)]
    for decade in range(7):
        parts = 2**decade
        steps, step = np.arange(parts + 1), np.float64((np.float32(1) - np.float32(0.1)) / np.float32(parts))
        up, down = np.float64(np.float32(0.1)) + step * steps, 1 - step * steps[::-1]
        borders = np.where(steps < (parts + 1) // 2, up, down).astype(np.float32)  # from both ends, as torch.linspace
        middles = np.float32(10.0 ** (decade - 6)) * ((borders[:-1] + borders[1:]) / np.float32(2))
        found += [middles, -middles]
    return np.sort(np.concatenate(found))


@functools.cache
def _nearest_dynamic() -> np.ndarray:
    """The code of the nearest number of `dynamic_map` to each of 65,536 points from -1 to 1, uint8."""
    points = np.float32(-1) + np.arange(65536, dtype=np.float32) * np.float32(2 / 65535)
    numbers = dynamic_map()
    return np.searchsorted((numbers[:-1] + numbers[1:]) / np.float32(2), points).astype(np.uint8)
