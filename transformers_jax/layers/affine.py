"""Frozen kernels in blocks of 32 with a scale each, laid out so that CPUs decode fast from them.

Axes: A inputs, C outputs, L layers, K = A / 32 blocks, R rows of activations.

The blocks are llama.cpp's. Each holds 32 numbers of one output, next to each other along A:

    q8_0  w = scale · q, q of -127 … 127
    q4_0  w = scale · (q - 8), q of 0 … 15
    q4_1  w = scale · q + minimum, q of 0 … 15

XLA on CPUs fuses no dequantisation into a matrix product. For few rows the product is therefore a loop over blocks of
multiply-adds written out one by one, with the outputs as the last axis, which vectorises: two numbers are taken out of a
byte, four out of a word of 32 bits, by shifts. For more rows a tile of outputs is dequantised and multiplied at a time, which
from two rows on takes less time than a product with the float32 matrix.
`--xla_cpu_prefer_vector_width=512` in XLA_FLAGS makes the loop nearly twice as fast on machines with AVX-512.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from transformers_jax.errors import UserError

BLOCK = 32
KINDS = ("q8_0", "q4_0", "q4_1")
FEW = 2
"""Up to so many rows the loop of multiply-adds is the faster way, on CPUs."""
TILE = 2**19
"""About how many numbers are dequantised at a time for more rows, on CPUs: they stay in the cache."""


@struct.dataclass
class AffineKernel:
    """A kernel as blocks of 32; a node of a pytree whose leaves are plain arrays, with a leading axis L if stacked.

    codes: q8_0: int32 [K, 8, C], each of four numbers that follow one another along A, the first in the lowest byte.
      q4_0, q4_1: uint8 [K, 16, C], number i of the block in the lower bits of byte i, number 16 + i in the upper ones.
    scale: [K, C], float16 or float32.
    minimum: like scale, of q4_1; None otherwise.
    kind: "q8_0", "q4_0" or "q4_1".
    shape: the kernel's own.
    inputs: how many leading axes of `shape` make up A.
    dtype: what `dequantize` returns unless told otherwise.
    """

    codes: jax.Array
    scale: jax.Array
    minimum: jax.Array | None
    kind: str = struct.field(pytree_node=False)
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    inputs: int = struct.field(pytree_node=False)
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
        return len(self.codes.shape) == 4

    def times(self, rows: jax.Array, layer: jax.Array | int | None = None) -> jax.Array:
        """rows [R, A] → [R, C] in their dtype, by whichever way is fast for so many.

        layer: which one of a stack. A slice made by the caller would be a copy of the layer's codes.
        """
        if self.stacked != (layer is not None):
            raise ValueError("a stack of kernels needs `layer` for a product, a single kernel has none")
        if jax.default_backend() != "cpu":
            return rows @ self._of_layer(layer).transpose(rows.dtype).T
        way = _by_terms if len(rows) <= FEW else _by_tiles
        return way(rows.astype(jnp.float32), self, layer).astype(rows.dtype)

    def times_transpose(self, rows: jax.Array) -> jax.Array:
        """rows [R, C] → [R, A]."""
        return rows @ self.transpose(rows.dtype)

    def transpose(self, dtype: Any) -> jax.Array:
        """The dequantised matrix of one layer, transposed: [C, A]."""
        values = self._dequantized(jnp.arange(self.codes.shape[-1]))
        return values.astype(dtype).T

    def columns(self, indices: jax.Array) -> jax.Array:
        """The columns of these outputs, dequantised: indices [...] → [..., A], as of an embedding that is the head too."""
        values = self._dequantized(indices.reshape(-1)).T  # [n, A]
        return values.reshape(*indices.shape, -1).astype(self.dtype)

    def _dequantized(self, columns):
        """The matrix of these outputs [n] alone, float32 [A, n]."""
        codes, scale = self.codes[..., columns], self.scale[..., columns]
        minimum = None if self.minimum is None else self.minimum[..., columns]
        parts = [_affine(part, scale[:, None], minimum, self.kind) for part in _parts(codes, self.kind)]  # each [K, ·, n]
        axis = 2 if self.kind == "q8_0" else 1
        return jnp.stack(parts, axis).reshape(self.matrix_shape[0], -1)

    def _of_layer(self, layer):
        return self if layer is None else jax.tree.map(lambda leaf: leaf[layer], self)

    def logical_axes(self, axes: tuple[str | None, ...]) -> dict[str, tuple[str | None, ...]]:
        """The logical axes of every leaf that is there, by its field's name, from those of the kernel (L in front)."""
        layers, axes = (axes[:1], axes[1:]) if self.stacked else ((), axes)
        given, taken = axes[0], axes[self.inputs]
        named = {"codes": (given, None, taken), "scale": (given, taken), "minimum": (given, taken)}
        return {name: layers + found for name, found in named.items() if getattr(self, name) is not None}


@struct.dataclass
class LayerOfStack:
    """One layer of a stack of kernels, which is read where it lies: a slice would be a copy of the layer's codes."""

    stack: AffineKernel
    layer: jax.Array

    one_parameter = True

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(A, C)."""
        return self.stack.matrix_shape

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's own."""
        return self.stack.shape

    @property
    def dtype(self) -> str:
        """As of the stack."""
        return self.stack.dtype

    stacked = False

    def times(self, rows: jax.Array) -> jax.Array:
        """rows [R, A] → [R, C]."""
        return self.stack.times(rows, self.layer)

    def times_transpose(self, rows: jax.Array) -> jax.Array:
        """rows [R, C] → [R, A]."""
        return rows @ self.transpose(rows.dtype)

    def transpose(self, dtype: Any) -> jax.Array:
        """The dequantised matrix, transposed: [C, A]."""
        return jax.tree.map(lambda leaf: leaf[self.layer], self.stack).transpose(dtype)


def from_blocks(
    kind: str, codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None = None, *,
    shape: tuple[int, ...] | None = None, inputs: int = 1, dtype: str = "float32",
) -> AffineKernel:  # fmt: skip
    """A kernel from blocks as GGUF files have them, without rounding anything.

    Args:
      kind: one of `KINDS`.
      codes: q8_0: int8 [C, K, 32]. q4_0, q4_1: uint8 [C, K, 16]. A leading axis L makes a stack.
      scale: [C, K].
      minimum: [C, K], of q4_1.
      shape: of the kernel, if it is not the matrix [A, C].
      inputs: how many leading axes of `shape` make up A.

    Raises:
      UserError: a kind that there is not.
    """
    if kind not in KINDS:
        raise UserError(f"quantization kind {kind!r}: give one of {', '.join(KINDS)}")
    if kind == "q8_0":
        codes = np.ascontiguousarray(codes).view("<i4")  # [C, K, 8]
    turned = [None if part is None else np.ascontiguousarray(np.moveaxis(part, -2 - late, -1))
              for part, late in ((codes, 1), (scale, 0), (minimum, 0))]  # fmt: skip
    shape = shape or (codes.shape[-2] * BLOCK, codes.shape[-3])
    leaves = (None if part is None else jnp.asarray(part) for part in turned)
    return AffineKernel(*leaves, kind=kind, shape=tuple(shape), inputs=inputs, dtype=dtype)


def quantize_affine(kernel: np.ndarray, kind: str = "q4_0", *, inputs: int = 1, stacked: bool = False) -> AffineKernel:
    """A kernel in blocks of 32 with float16 constants, rounded as llama.cpp does; on the host.

    Args:
      kernel: of any shape, with a leading axis L if `stacked`.
      kind: one of `KINDS`.
      inputs: how many of the kernel's leading axes (after L) are inputs.

    Raises:
      UserError: a kind that there is not, or inputs that are no multiple of 32.
    """
    if kind not in KINDS:
        raise UserError(f"quantization kind {kind!r}: give one of {', '.join(KINDS)}")
    shape = kernel.shape[stacked:]
    width = math.prod(shape[:inputs])
    if width % BLOCK:
        raise UserError(f"a kernel of {width} inputs has no {kind}: blocks are of {BLOCK}")
    matrix = np.asarray(kernel, np.float32).reshape(-1, width, math.prod(shape[inputs:]))  # [L, A, C]
    blocks = matrix.swapaxes(1, 2).reshape(len(matrix), -1, width // BLOCK, BLOCK)  # [L, C, K, 32]
    codes, scale, minimum = _rounded(blocks, kind)
    found = [codes, scale.astype(np.float16), None if minimum is None else minimum.astype(np.float16)]
    found = found if stacked else [None if part is None else part[0] for part in found]
    return from_blocks(kind, *found, shape=shape, inputs=inputs, dtype=np.dtype(kernel.dtype).name)


def _rounded(blocks, kind):
    """Codes as `from_blocks` takes them, scale and minimum (or None), float32, of blocks [..., 32]."""
    if kind == "q8_0":
        scale = np.abs(blocks).max(-1) / 127
        return np.round(blocks * _inverse(scale)[..., None]).astype(np.int8), scale, None
    if kind == "q4_0":  # the largest number, with its sign, is -8
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
        scale, minimum = largest / -8, None
        codes = blocks * _inverse(scale)[..., None] + 8.5
    else:
        minimum = blocks.min(-1)
        scale = (blocks.max(-1) - minimum) / 15
        codes = (blocks - minimum[..., None]) * _inverse(scale)[..., None] + 0.5
    codes = np.minimum(codes.astype(np.uint8), 15)
    return codes[..., :16] | codes[..., 16:] << 4, scale, minimum


def _inverse(scale):
    """1 / scale, and 0 where it is 0."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _parts(codes, kind):
    """The numbers q in codes, as float32 arrays of their shape: the four of a word, or the two of a byte."""
    if kind == "q8_0":
        return [((codes << (24 - 8 * part)) >> 24).astype(jnp.float32) for part in range(4)]
    codes = codes.astype(jnp.int32)
    return [(codes & 15).astype(jnp.float32), (codes >> 4).astype(jnp.float32)]


def _inputs_of_parts(rows, kind):
    """rows [R, A] → [parts, R, K, 8 or 16]: the inputs that belong to each of `_parts`."""
    if kind == "q8_0":
        return jnp.moveaxis(rows.reshape(len(rows), -1, 8, 4), -1, 0)
    return jnp.moveaxis(rows.reshape(len(rows), -1, 2, 16), 2, 0)


def _affine(numbers, scale, minimum, kind):
    """The weights of numbers q [K, ·, n], with scale [K, 1, n] and minimum [K, n]."""
    scale = scale.astype(jnp.float32)
    if minimum is not None:
        return numbers * scale + minimum[:, None].astype(jnp.float32)
    return (numbers - 8) * scale if kind == "q4_0" else numbers * scale


def _by_terms(rows, kernel, layer):
    """rows [R, A], few of them → float32 [R, C]: a loop over blocks, and in it all 32 terms written out.

    Of a byte = low + 16 · high the terms low · x + high · x' are low · (x - x' / 16) + byte · (x' / 16), which spares a shift.
    """
    kind, length = kernel.kind, kernel.codes.shape[-2]
    inputs = _inputs_of_parts(rows, kind)  # [parts, R, K, length]
    sums = inputs.sum((0, 3))  # [R, K], what minimum is multiplied by
    if kind != "q8_0":
        inputs = jnp.stack([inputs[0] - inputs[1] / 16, inputs[1] / 16])

    def factors(codes):
        return _parts(codes, kind) if kind == "q8_0" else [(codes & 15).astype(jnp.float32), codes.astype(jnp.float32)]

    def of_block(array, index):
        return array[index] if layer is None else array[layer, index]

    def add(index, y):
        total = 0.0
        for place in range(length):
            codes = kernel.codes[index, place] if layer is None else kernel.codes[layer, index, place]  # [C]
            for part, numbers in enumerate(factors(codes)):
                total = total + numbers * inputs[part, :, index, place][:, None]
        if kind == "q4_0":
            total = total - 8 * sums[:, index][:, None]
        y = y + total * of_block(kernel.scale, index).astype(jnp.float32)
        if kernel.minimum is not None:
            y = y + of_block(kernel.minimum, index).astype(jnp.float32) * sums[:, index][:, None]
        return y

    y = jnp.zeros((len(rows), kernel.codes.shape[-1]), jnp.float32)
    return jax.lax.fori_loop(0, kernel.codes.shape[-3], add, y)


def _by_tiles(rows, kernel, layer):
    """rows [R, A] → float32 [R, C]: some outputs at a time, each part of the codes dequantised and multiplied alone.

    Joining the parts to one matrix of the tile first would take ten times longer.
    """
    width, outputs = kernel.matrix_shape
    inputs = _inputs_of_parts(rows, kernel.kind)
    inputs = inputs.reshape(*inputs.shape[:2], -1)  # [parts, R, A / parts]
    tiles = _tiles(width, outputs)

    def cut(array, index):
        if layer is not None:
            array = jax.lax.dynamic_index_in_dim(array, layer, 0, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(array, index * (outputs // tiles), outputs // tiles, array.ndim - 1)

    def one(index):
        scale = cut(kernel.scale, index)[:, None]
        minimum = None if kernel.minimum is None else cut(kernel.minimum, index)
        found = 0.0
        for part, numbers in enumerate(_parts(cut(kernel.codes, index), kernel.kind)):
            tile = _affine(numbers, scale, minimum, kernel.kind)  # [K, 8 or 16, C / tiles]
            found = found + inputs[part] @ tile.reshape(-1, tile.shape[-1])
        return found

    if tiles == 1:
        return one(0)
    return jnp.moveaxis(jax.lax.map(one, jnp.arange(tiles)), 0, 1).reshape(len(rows), outputs)  # [R, C]


def _tiles(width: int, outputs: int) -> int:
    """Into how many equal tiles of about `TILE` numbers, each a multiple of 16 outputs, a matrix falls; 1 if it does not."""
    wanted = max(1, round(width * outputs / TILE))
    fitting = [n for n in range(1, 4 * wanted) if outputs % n == 0 and outputs // n % 16 == 0]
    return min(fitting, key=lambda n: abs(n - wanted), default=1)
