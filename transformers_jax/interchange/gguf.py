"""GGUF files, versions 2 and 3, little endian: metadata and tensors by name, read where they lie and written one by one.

The container (docs/gguf.md of ggml) is a header, padding, and the tensors' bytes:

    "GGUF"  version uint32  number of tensors uint64  number of metadata entries uint64
    an entry:   key string, kind uint32, value;  an array is the kind of its items uint32, their number uint64, the items
    a tensor:   name string, number of axes uint32, length of each axis uint64 (the last axis first), type uint32,
                offset uint64 from the end of the padded header
    a string:   its number of bytes uint64, UTF-8

The header and each tensor begin at a multiple of `general.alignment`, 32 where it is not given. Nothing is allocated by a
number that the file claims before the number is checked against the file's size. `gguf_blocks` has the types of tensors,
`gguf_values` the kinds of metadata.

    file = GgufFile("model.gguf")
    file.metadata["llama.block_count"]              # 30
    file.tensor("blk.0.attn_q.weight")              # float32 [576, 576]
    write("copy.gguf", file.typed_metadata(), {name: file.stored(name) for name in file.tensors})
"""

import math
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformers_jax.errors import DiskError, UserError
from transformers_jax.interchange import gguf_blocks
from transformers_jax.interchange.gguf_values import Cursor, Metadata, Value, as_value, packed, packed_kind, packed_string

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), "general.alignment"
_LEAST_ENTRY, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8  # bytes
_AXES = 4  # of a tensor: no file has more


class TensorEntry(NamedTuple):
    """What the header says of a tensor."""

    name: str
    shape: tuple[int, ...]  # as NumPy has it: the last axis lies together
    type: str  # its name in llama.cpp
    start: int  # byte in the file
    size: int | None  # bytes; None where nobody here knows those of the type


class Stored(NamedTuple):
    """A tensor as a file has it: rows of bytes, uint8 [..., bytes of a row]."""

    type: str
    shape: tuple[int, ...]
    raw: np.ndarray


class Deferred(NamedTuple):
    """A tensor to be written whose numbers are made when its turn comes."""

    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


class GgufFile:
    """An open file. `metadata` is decoded entry by entry when it is asked for, tensors are read from the mapped file.

    Raises:
      UserError: no such file, another format or version, a header that claims what the file does not hold, a file cut short.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._map = _mapped(self.path)
        self.version, tensors, entries = self._counts()
        cursor = Cursor(self.path, self._map, 24)
        self.metadata = Metadata(cursor, entries)
        self.alignment = self._alignment()
        self.tensors = self._entries(cursor, tensors)

    def tensor(self, name: str) -> np.ndarray:
        """A tensor's numbers as float32.

        Raises:
          UserError: no tensor of this name, or of a type that is not read.
        """
        entry = self._readable(name)
        return gguf_blocks.dequantise(self.raw(name), entry.type).reshape(entry.shape)

    def raw(self, name: str) -> np.ndarray:
        """A tensor's bytes as they lie in the file, uint8 [..., bytes of a row]; not copied, not to be written to.

        Raises:
          UserError: no tensor of this name, or of a type whose size is unknown.
        """
        entry = self._entry(name)
        if entry.size is None:
            raise UserError(self._refusal(entry))
        format, shape = gguf_blocks.format_of(entry.type), entry.shape or (1,)
        rows = (*shape[:-1], shape[-1] // format.block * format.bytes)
        return np.frombuffer(self._map, np.uint8, entry.size, entry.start).reshape(rows)

    def stored(self, name: str) -> Stored:
        """A tensor for `write` to pass on untouched."""
        return Stored(self._entry(name).type, self._entry(name).shape, self.raw(name))

    def typed_metadata(self) -> dict[str, Value]:
        """All metadata with their kinds, for `write` to give back exactly."""
        return {key: self.metadata.typed(key) for key in self.metadata}

    def forget(self) -> None:
        """Gives back the memory of pages that were read; they are read again when they are asked for."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def check(self) -> None:
        """Raises UserError if any tensor is of a type that is not read."""
        for name in self.tensors:
            self._readable(name)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.tensors:
            raise UserError(f"{self.path} has no tensor {name}")
        return self.tensors[name]

    def _readable(self, name: str) -> TensorEntry:
        entry = self._entry(name)
        if entry.type not in gguf_blocks.READ:
            raise UserError(self._refusal(entry))
        return entry

    def _refusal(self, entry: TensorEntry) -> str:
        *others, last = gguf_blocks.READ
        read = f"{', '.join(others)} or {last}"
        return f"{self.path}: {entry.name} is of type {entry.type}, which is not read: get a file of {read}"

    def _counts(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of metadata entries."""
        size = len(self._map)
        if self._map[:4] != MAGIC:
            raise UserError(f"{self.path} is no GGUF file: it does not begin with GGUF")
        if size < 24:
            raise UserError(f"{self.path} is cut short: it has {size} bytes, a header alone has 24: get it anew")
        version, tensors, entries = struct.unpack_from("<IQQ", self._map, 4)
        if version not in VERSIONS:
            big_endian = version & 0xFFFF == 0 and version
            what = "is big endian" if big_endian else f"is of GGUF version {version}"
            raise UserError(f"{self.path} {what}; read are versions 2 and 3, little endian: convert it with llama.cpp")
        for count, least, what in ((tensors, _LEAST_TENSOR, "tensors"), (entries, _LEAST_ENTRY, "metadata entries")):
            if count * least > size - 24:
                raise UserError(f"{self.path} claims {count} {what}, more than its {size} bytes can hold: get it anew")
        return version, tensors, entries

    def _alignment(self) -> int:
        return _checked_alignment(self.metadata.typed(ALIGNMENT) if ALIGNMENT in self.metadata else None, self.path)

    def _entries(self, cursor: Cursor, count: int) -> dict[str, TensorEntry]:
        """What the header says of the tensors, checked against the file."""
        found = {}
        for number in range(count):
            cursor.within = f"the entry of tensor {number}"
            name = cursor.name()
            if name in found:
                raise UserError(f"{self.path} has two tensors named {name}: it is damaged, get it anew")
            found[name] = self._tensor_entry(cursor, name)
        start = -(-cursor.at // self.alignment) * self.alignment
        found = {name: entry._replace(start=entry.start + start) for name, entry in found.items()}
        self._check_places(found, start)
        return found

    def _tensor_entry(self, cursor: Cursor, name: str) -> TensorEntry:
        """One tensor; its start is still counted from the end of the header."""
        axes = cursor.number("uint32")
        if axes > _AXES:
            raise UserError(f"{self.path}: {name} has {axes} axes, more than {_AXES}: it is damaged, get it anew")
        shape = tuple(reversed([cursor.number("uint64") for _ in range(axes)]))
        if 0 in shape and max(shape) > len(self._map):  # no size tells of the others
            raise UserError(f"{self.path}: {name} has the shape {list(shape)}: it is damaged, get it anew")
        number, offset = cursor.number("uint32"), cursor.number("uint64")
        format = gguf_blocks.FORMATS.get(number) or gguf_blocks.format_of(f"number {number}")
        if offset % self.alignment:
            raise UserError(f"{self.path}: {name} begins at {offset}, no multiple of {self.alignment}: get the file anew")
        if not format.block:
            return TensorEntry(name, shape, format.name, offset, None)
        row = shape[-1] if shape else 1
        if row % format.block:
            raise UserError(f"{self.path}: {name} has rows of {row}, no whole blocks of {format.block} as {format.name} has")
        return TensorEntry(name, shape, format.name, offset, math.prod(shape) // format.block * format.bytes)

    def _check_places(self, entries: dict[str, TensorEntry], start: int) -> None:
        """Every tensor lies within the file, and none in another."""
        places = sorted((entry.start, entry.size or 0, name) for name, entry in entries.items())
        end, before = start, None
        size = len(self._map)
        needed = max((begin + length for begin, length, _ in places), default=0)
        if needed > size:
            raise UserError(
                f"{self.path} is cut short: its header names {needed - start} bytes of tensors, the file has "
                f"{max(0, size - start)}: get it anew"
            )
        for begin, length, name in places:
            if begin < end:
                raise UserError(f"{self.path}: {name} lies in the bytes of {before}: it is damaged, get it anew")
            end, before = begin + length, name


def _mapped(path: Path) -> mmap.mmap:
    """The file's bytes, read when they are touched."""
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{path} is empty: get it anew")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _checked_alignment(value: Value | None, path: Path) -> int:
    """Bytes whose multiples tensors begin at, from the metadata."""
    kind, alignment, _ = value or Value("uint32", 32)
    if kind != "uint32" or alignment < 1 or alignment & (alignment - 1):
        raise UserError(f"{path}: {ALIGNMENT} is {alignment} ({kind}), not a power of two in uint32")
    return alignment


def write(
    path: str | os.PathLike,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | Stored | Deferred],
    types: str | Mapping[str, str] = "F32",
) -> None:
    """Writes a file of version 3, one tensor after another in the order given; an older file stays until the new one is whole.

    Args:
      metadata: values as Python or NumPy has them, or with their kind as a `Value`. A Python int becomes uint32, int32, uint64
        or int64, the first that holds it; a float float32. Lists become arrays of one kind.
      tensors: arrays, which are quantised to their type; `Deferred` arrays, made when their turn comes; or `Stored` bytes.
      types: of all tensors, or of each by name (F32 where it names none), out of `gguf_blocks.READ`. Stored ones keep theirs.

    Raises:
      UserError: names the key or tensor that cannot be written, before anything is, unless its numbers are to blame.
    """
    path = Path(path)
    chosen = {name: _type(name, tensor, types) for name, tensor in tensors.items()}
    shapes = {name: tuple(int(n) for n in tensor.shape) for name, tensor in tensors.items()}
    sizes = {name: _size(name, shapes[name], chosen[name]) for name in tensors}
    typed = {key: as_value(value, key) for key, value in metadata.items()}
    alignment = _checked_alignment(typed.get(ALIGNMENT), path)
    header = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(typed))]
    header += [packed_string(key) + packed_kind(value.kind) + packed(value, key) for key, value in typed.items()]
    offset = 0
    for name, shape in shapes.items():
        number = gguf_blocks.NUMBERS[chosen[name]]
        header += [packed_string(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number, offset)]
        offset += -(-sizes[name] // alignment) * alignment
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(b"".join(header))
            file.write(bytes(-file.tell() % alignment))
            for name, tensor in tensors.items():
                file.write(_rows(name, tensor, shapes[name], chosen[name]).reshape(-1).data)
                file.write(bytes(-file.tell() % alignment))
        draft.replace(path)
    except OSError as error:
        raise DiskError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def _type(name: str, tensor, types: str | Mapping[str, str]) -> str:
    """The type that a tensor is written as."""
    if isinstance(tensor, Stored):
        return tensor.type
    chosen = types if isinstance(types, str) else types.get(name, "F32")
    if chosen not in gguf_blocks.READ:
        raise UserError(f"{name}: type {chosen} is not written; written are {', '.join(gguf_blocks.READ)}")
    return chosen


def _size(name: str, shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor."""
    format = gguf_blocks.format_of(kind)
    row = shape[-1] if shape else 1
    if not format.block or row % format.block or len(shape) > _AXES:
        wanted = f"at most {_AXES} axes and rows of whole blocks of {format.block}"
        raise UserError(f"{name} of shape {list(shape)} cannot be written as {kind}, which wants {wanted}")
    return math.prod(shape) // format.block * format.bytes


def _rows(name: str, tensor, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """The bytes of a tensor, checked against what the header has been told."""
    try:
        if isinstance(tensor, Stored):
            rows = np.ascontiguousarray(tensor.raw)
        else:
            values = np.asarray(tensor.make() if isinstance(tensor, Deferred) else tensor)
            if values.shape != shape:
                raise UserError(f"it has the shape {list(values.shape)}, announced was {list(shape)}")
            rows = gguf_blocks.quantise(values, kind)
    except UserError as error:
        raise UserError(f"{name} cannot be written: {error}") from error
    if rows.dtype != np.uint8 or rows.nbytes != _size(name, shape, kind):
        raise UserError(f"{name} cannot be written: {rows.nbytes} bytes are no {kind} of shape {list(shape)}")
    return rows
