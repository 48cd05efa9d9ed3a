"""Values in the header of a GGUF file, from bytes and to bytes: metadata with their kinds, and the place one reads at.

A string is its number of bytes as uint64 and UTF-8; an array is the kind of its items as uint32, their number as uint64 and
the items. A number that the file claims is checked against the bytes that are left before anything is allocated by it.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformers_jax.errors import UserError

# Kinds of values by their number in the file, and how `struct` names those of a fixed size.
KINDS = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array", "uint64", "int64", "float64",
)  # fmt: skip
_CODES = dict(zip(KINDS, "BbHhIif?  Qqd", strict=True))
_SIZES = {kind: struct.calcsize(code) for kind, code in _CODES.items() if code != " "}
_NESTED = 4  # arrays in arrays: no file has more


class Value(NamedTuple):
    """A metadata value and its kind in the file. The items of an array are of the kind `of`; arrays in it are Values."""

    kind: str
    value: Any
    of: str | None = None


class Metadata(Mapping):
    """Key → value as Python has it: numbers, bools, strings, lists. Each is decoded when it is asked for.

    A string that is not UTF-8 keeps its bytes as lone surrogates, as Python's file names do.
    """

    def __init__(self, cursor: "Cursor", count: int):
        self._cursor = cursor
        self._places: dict[str, tuple[str, int]] = {}  # kind and byte of each value
        self._decoded: dict[str, Value] = {}
        for number in range(count):
            cursor.within = f"metadata entry {number}"
            key = cursor.name()
            if key in self._places:
                raise UserError(f"{cursor.path} has {key} twice: it is damaged, get it anew")
            cursor.within = key
            kind = cursor.kind()
            self._places[key] = (kind, cursor.at)
            cursor.skip(kind)

    def __getitem__(self, key: str):
        return plain(self.typed(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def typed(self, key: str) -> Value:
        """A value with its kind in the file."""
        if key not in self._decoded:
            kind, at = self._places[key]
            self._decoded[key] = Cursor(self._cursor.path, self._cursor.data, at, key).value(kind)
        return self._decoded[key]


class Cursor:
    """A place in a header, moved by reading; it stops at the file's end with an error that says within what."""

    def __init__(self, path: Path, data: mmap.mmap, at: int, within: str = "the header"):
        self.path, self.data, self.at, self.within = path, data, at, within

    def number(self, kind: str):
        """One number or bool."""
        start = self._taken(_SIZES[kind])
        if kind == "bool":
            return self.data[start] != 0
        return struct.unpack_from("<" + _CODES[kind], self.data, start)[0]

    def kind(self) -> str:
        """The kind of a value, or of an array's items."""
        number = self.number("uint32")
        if number >= len(KINDS):
            raise UserError(f"{self.path}: {self.within} is of the unknown kind {number}: it is damaged, get it anew")
        return KINDS[number]

    def bytes(self) -> bytes:
        """What a string holds."""
        length = self.number("uint64")
        start = self._taken(length)
        return self.data[start : start + length]

    def name(self) -> str:
        """A key or a tensor's name."""
        try:
            return self.bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: the name of {self.within} is not UTF-8: it is damaged, get it anew") from None

    def value(self, kind: str) -> Value:
        """A value that `skip` has found to lie within the file."""
        if kind == "string":
            return Value(kind, self.bytes().decode("utf-8", "surrogateescape"))
        if kind != "array":
            return Value(kind, self.number(kind))
        of, count = self.kind(), self.number("uint64")
        if of == "array":
            return Value(kind, [self.value(of) for _ in range(count)], of)
        if of == "string":
            return Value(kind, [self.bytes().decode("utf-8", "surrogateescape") for _ in range(count)], of)
        start = self._taken(count * _SIZES[of])
        dtype = np.dtype(of if of == "bool" else "<" + _CODES[of])
        return Value(kind, np.frombuffer(self.data, dtype, count, start).tolist(), of)

    def skip(self, kind: str, depth: int = 0) -> None:
        """Moves behind a value."""
        if kind == "string":
            self._taken(self.number("uint64"))
        elif kind != "array":
            self._taken(_SIZES[kind])
        elif depth == _NESTED:
            raise UserError(f"{self.path}: {self.within} has arrays in arrays, more than {_NESTED} deep: it is damaged")
        else:
            of, count = self.kind(), self.number("uint64")
            if of == "string":
                self._skip_strings(count)
            elif of == "array":
                self._room(count * 12)
                for _ in range(count):
                    self.skip(of, depth + 1)
            else:
                self._taken(count * _SIZES[of])

    def _skip_strings(self, count: int) -> None:
        """Moves behind so many strings. Vocabularies are long: this loop is what opening a file takes."""
        self._room(count * 8)
        length, data, at, last = struct.Struct("<Q").unpack_from, self.data, self.at, len(self.data) - 8
        for _ in range(count):
            if at > last:
                break
            at += 8 + length(data, at)[0]
        else:
            self._taken(at - self.at)
            return
        self._room(at + 8 - self.at)

    def _taken(self, count: int) -> int:
        """Where so many bytes begin; moves behind them."""
        self._room(count)
        start, self.at = self.at, self.at + count
        return start

    def _room(self, count: int) -> None:
        """Raises UserError if less than so many bytes are left."""
        if count > len(self.data) - self.at:
            raise UserError(
                f"{self.path} is cut short or damaged: {self.within} claims {count} bytes at byte {self.at}, "
                f"the file ends at {len(self.data)}: get it anew"
            )


def plain(value: Value):
    """A value without its kinds."""
    return [plain(item) for item in value.value] if value.of == "array" else value.value


def as_value(value: Any, key: str) -> Value:
    """A metadata value with the kind it is written as; see `write`."""
    if isinstance(value, Value):
        return value
    if isinstance(value, str):
        return Value("string", value)
    if isinstance(value, bool | np.bool_):
        return Value("bool", bool(value))
    if isinstance(value, np.generic | np.ndarray) and value.ndim < 2 and value.dtype.name in _SIZES:
        return Value("array", value.tolist(), value.dtype.name) if value.ndim else Value(value.dtype.name, value.item())
    if isinstance(value, int):
        return Value(_whole([value], key), value)
    if isinstance(value, float):
        return Value("float32", value)
    if isinstance(value, list | tuple) and value:
        items = [as_value(item, key) for item in value]
        kinds = {item.kind for item in items}
        if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            kinds = {_whole(value, key)}
        if len(kinds) == 1:
            (of,) = kinds
            return Value("array", items if of == "array" else [item.value for item in items], of)
    raise UserError(f"metadata {key}: {value!r} is of no kind that GGUF has; a list has items of one kind")


def _whole(numbers: list[int], key: str) -> str:
    """The first kind that holds all of these."""
    for kind in ("uint32", "int32", "uint64", "int64"):
        limits = np.iinfo(kind)
        if limits.min <= min(numbers) and max(numbers) <= limits.max:
            return kind
    raise UserError(f"metadata {key}: {max(numbers, key=abs)} does not fit into 64 bits")


def packed_kind(kind: str) -> bytes:
    """A kind as the file has it."""
    if kind not in KINDS:
        raise UserError(f"{kind} is no kind of metadata; there are {', '.join(KINDS)}")
    return struct.pack("<I", KINDS.index(kind))


def packed(value: Value, key: str) -> bytes:
    """A value as the file has it, without its kind."""
    kind, content, of = value
    try:
        if kind == "string":
            return packed_string(content)
        if kind != "array":
            return struct.pack("<" + _CODES[kind], content)
        start = packed_kind(of) + struct.pack("<Q", len(content))
        if of == "array":
            return start + b"".join(packed(item, key) for item in content)
        if of == "string":
            return start + b"".join(map(packed_string, content))
        return start + struct.pack(f"<{len(content)}{_CODES[of]}", *content)
    except (struct.error, KeyError, ValueError, OverflowError, AttributeError, TypeError) as error:
        raise UserError(f"metadata {key} is no {kind}{f' of {of}' if of else ''}: {error}") from error


def packed_string(text: str) -> bytes:
    """A string, a key or a name as the file has it."""
    content = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(content)) + content
