"""Number formats of tensors in GGUF files: which there are, and the six that are read and written.

    F32, F16, BF16    one number after another
    Q8_0              blocks of 32: a float16 scale d, then 32 int8 codes q;                       x = q · d
    Q4_0              blocks of 32: a float16 scale d, then 16 bytes of two 4-bit codes q each;    x = (q − 8) · d
    Q4_1              blocks of 32: float16 scale d and minimum m, then 16 such bytes;             x = q · d + m

Byte j of a 4-bit block holds the code of number j in its low half and that of number j + 16 in its high half. A block
never crosses a row, so the last axis is a multiple of 32. All values are little endian. The formats are those of
ggml-common.h in llama.cpp, the rounding is that of its reference quantisers (`quantize_row_*_ref` in ggml-quants.c).

Axes: K numbers in a row, b blocks in a row (K / 32), … any number of leading axes.
"""

from typing import NamedTuple

import numpy as np

from transformers_jax.errors import UserError

BLOCK = 32  # numbers in a block of the quantised formats that are read
QUANTISED = ("Q8_0", "Q4_0", "Q4_1")
READ = ("F32", "F16", "BF16", *QUANTISED)


class Format(NamedTuple):
    """How a type lies in a file: `bytes` bytes for every `block` numbers of a row."""

    name: str
    block: int
    bytes: int


# The number of a type in the file → the type. Those that llama.cpp has dropped since, and Q8_1, which it keeps out of files,
# have no size here: (name, 0, 0).
FORMATS = {
    number: Format(*row)
    for number, row in {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 4: ("Q4_2", 0, 0), 5: ("Q4_3", 0, 0),
        6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 0, 0), 10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
        28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 31: ("Q4_0_4_4", 0, 0), 32: ("Q4_0_4_8", 0, 0),
        33: ("Q4_0_8_8", 0, 0), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 36: ("IQ4_NL_4_4", 0, 0),
        37: ("IQ4_NL_4_8", 0, 0), 38: ("IQ4_NL_8_8", 0, 0), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
        41: ("Q1_0", 128, 18),
    }.items()
}  # fmt: skip
NUMBERS = {format.name: number for number, format in FORMATS.items()}
# general.file_type of a file whose matrices have this type.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}


def format_of(name: str) -> Format:
    """The format of a type's name; its size is 0 where nobody here knows it."""
    return FORMATS[NUMBERS[name]] if name in NUMBERS else Format(name, 0, 0)


class Blocks(NamedTuple):
    """The parts of a quantised tensor: number j of block i in a row is codes[…, i, j] · scale[…, i] + minimum[…, i]."""

    codes: np.ndarray  # int8 [..., b, 32]; of Q4_0 already less 8
    scale: np.ndarray  # float32 [..., b]
    minimum: np.ndarray | None  # float32 [..., b]; None where it is zero


def blocks(raw: np.ndarray, kind: str) -> Blocks:
    """The codes, scales and minima of stored rows, uint8 [..., bytes of a row], of Q8_0, Q4_0 or Q4_1."""
    codes, scale, minimum = packed(raw, kind)
    if kind != "Q8_0":
        codes = np.concatenate([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1).view(np.int8)  # [..., b, 32]
    if kind == "Q4_0":
        codes = codes - np.int8(8)
    return Blocks(codes, scale.astype(np.float32), None if minimum is None else minimum.astype(np.float32))


def packed(raw: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The parts of stored rows as they are: codes (Q8_0: int8 [..., b, 32]; others: two in each of uint8 [..., b, 16]), and
    float16 [..., b] scale and minimum, the latter of Q4_1 alone."""
    size, halves = format_of(kind).bytes, 4 if kind == "Q4_1" else 2
    stored = raw.reshape(*raw.shape[:-1], raw.shape[-1] // size, size)  # [..., b, bytes of a block]
    numbers = np.ascontiguousarray(stored[..., :halves]).view("<f2")  # [..., b, 1 or 2]
    codes = np.ascontiguousarray(stored[..., halves:])
    return codes.view(np.int8) if kind == "Q8_0" else codes, numbers[..., 0], numbers[..., 1] if kind == "Q4_1" else None


def dequantise(raw: np.ndarray, kind: str) -> np.ndarray:
    """Stored rows, uint8 [..., bytes of a row], of a type in READ, as float32 [..., K]."""
    if kind == "F32":
        return _numbers(raw, "<f4").astype(np.float32)
    if kind == "F16":
        return _numbers(raw, "<f2").astype(np.float32)
    if kind == "BF16":  # the upper half of a float32
        return (_numbers(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    codes, scale, minimum = blocks(raw, kind)
    values = codes.astype(np.float32)  # [..., b, 32]
    with np.errstate(invalid="ignore"):  # scales that are not finite make numbers that are not
        values *= scale[..., None]
        if minimum is not None:
            values += minimum[..., None]
    return values.reshape(*raw.shape[:-1], codes.shape[-2] * BLOCK)  # [..., K]


def quantise(values: np.ndarray, kind: str) -> np.ndarray:
    """Numbers [..., K] as the rows of a file, uint8 [..., bytes of a row].

    Raises:
      UserError: rows that are no whole blocks, numbers that are not finite or too large for float16 where those have no place.
    """
    values = np.asarray(values)
    if kind == "F32":
        return _bytes(values.astype("<f4"))
    if kind == "BF16":
        return _bytes(_bfloat16(values.astype(np.float32)))
    if kind == "F16":
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        if np.any(np.isinf(halves) & np.isfinite(values)):
            raise UserError("numbers beyond 65,504 have no place in F16: write it as BF16 or F32")
        return _bytes(halves)
    if not values.ndim or values.shape[-1] % BLOCK:
        raise UserError(f"the shape {list(values.shape)} has no rows of whole blocks of {BLOCK} numbers, as {kind} has")
    values = values.astype(np.float32, copy=False)
    if not np.all(np.isfinite(values)):
        raise UserError(f"numbers that are not finite have no place in {kind}")
    count = values.shape[-1] // BLOCK
    stored = _PACK[kind](values.reshape(*values.shape[:-1], count, BLOCK))  # [..., b, bytes of a block]
    return stored.reshape(*values.shape[:-1], count * stored.shape[-1])  # [..., bytes of a row]


def _pack_q8_0(rows: np.ndarray) -> np.ndarray:
    scale = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
    scaled = rows * _inverse(scale)
    size = np.abs(scaled)
    whole = np.floor(size)
    whole += np.floor(2 * (size - whole))  # halves away from zero, as C's roundf
    codes = np.copysign(whole, scaled).astype(np.int8)
    return np.concatenate([_half(scale, "Q8_0"), codes.view(np.uint8)], axis=-1)


def _pack_q4_0(rows: np.ndarray) -> np.ndarray:
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=-1, keepdims=True), axis=-1)  # signed; it becomes code 0
    scale = largest / np.float32(-8)
    codes = np.minimum(rows * _inverse(scale) + np.float32(8.5), np.float32(15)).astype(np.uint8)
    return np.concatenate([_half(scale, "Q4_0"), _nibbles(codes)], axis=-1)


def _pack_q4_1(rows: np.ndarray) -> np.ndarray:
    least = rows.min(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # refused by _half
        scale = (rows.max(axis=-1, keepdims=True) - least) / np.float32(15)
    halves = [_half(scale, "Q4_1"), _half(least, "Q4_1")]
    codes = np.minimum((rows - least) * _inverse(scale) + np.float32(0.5), np.float32(15)).astype(np.uint8)
    return np.concatenate([*halves, _nibbles(codes)], axis=-1)


_PACK = {"Q8_0": _pack_q8_0, "Q4_0": _pack_q4_0, "Q4_1": _pack_q4_1}


def _inverse(scale: np.ndarray) -> np.ndarray:
    """One over the scale; zero where the scale is zero or so small that float16 has zero for it."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _half(number: np.ndarray, kind: str) -> np.ndarray:
    """A scale or minimum [..., b, 1] as the two bytes of its float16 [..., b, 2]."""
    with np.errstate(over="ignore"):
        half = number.astype("<f2")
    if not np.all(np.isfinite(half)):
        raise UserError(f"numbers this large have no place in {kind}, whose scales are float16: write it as BF16 or F32")
    return half.view(np.uint8)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Codes below 16 [..., 32], two a byte [..., 16]."""
    return codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << np.uint8(4))


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded to even; a NaN stays one, with its sign."""
    bits = values.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    return np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), quiet, rounded).astype("<u2")


def _numbers(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Stored bytes [..., bytes of a row] seen as numbers [..., K]."""
    return np.ascontiguousarray(raw).view(dtype)


def _bytes(values: np.ndarray) -> np.ndarray:
    """Numbers [..., K] seen as bytes [..., bytes of a row]."""
    return np.atleast_1d(np.ascontiguousarray(values)).view(np.uint8)
