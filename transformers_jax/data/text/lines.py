"""Files of lines, plain or gzip."""

import codecs
import gzip
import zlib
from pathlib import Path

import numpy as np

from transformers_jax.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
PIECE = 2**20  # bytes that are checked at once


class Lines:
    """The lines of a UTF-8 text file, plain or gzip: its bytes in memory, and where each line begins.

    Only a line feed ends a line, with or without a carriage return before it; a byte order mark is dropped.

    Raises:
      UserError: the file is missing, damaged or not UTF-8; names the key, the path and the line.
    """

    def __init__(self, path: str | Path, key: str):
        try:
            data = Path(path).read_bytes()
            data = gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
        except FileNotFoundError as e:
            raise UserError(f"{key}: no file {path}") from e
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"{key}: cannot read {path}: {e}") from e
        data = data.removeprefix(BOM)
        if (bad := _not_utf8(data)) is not None:
            line = data.count(b"\n", 0, bad[0]) + 1
            raise UserError(f"{key}: {path}, line {line} is not UTF-8 ({bad[1]}); convert the file")
        if data and not data.endswith(b"\n"):
            data += b"\n"
        self.data = data
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        self.starts = np.concatenate([[0], ends + 1])  # [lines + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.data[self.starts[i] : self.starts[i + 1] - 1].removesuffix(b"\r").decode("utf-8")


def _not_utf8(data: bytes) -> tuple[int, str] | None:
    """Where the first byte stands that is not UTF-8, and what is wrong with it; None where all are."""
    decoder, kept = codecs.getincrementaldecoder("utf-8")(), 0  # bytes of a character that goes on in the next piece
    for start in range(0, len(data), PIECE):
        try:
            decoder.decode(data[start : start + PIECE], final=start + PIECE >= len(data))
        except UnicodeDecodeError as e:
            return start - kept + e.start, e.reason
        kept = len(decoder.getstate()[0])
    return None


def paths_of(config, split: str, example: str) -> list[str]:
    """The files that config.data.<split> names, "a.txt,b.txt".

    Raises:
      UserError: it names none; says what one may look like.
    """
    names = config.get(split, "")
    paths = [path.strip() for path in names.split(",") if path.strip()]
    if not paths:
        raise UserError(f"config.data.{split}={names!r} names no file; give some, as in config.data.{split}={example}")
    return paths


def filled(path: str, key: str) -> Lines:
    """The lines of a file that has some.

    Raises:
      UserError: the file cannot be read, or holds nothing but white space.
    """
    lines = Lines(path, key)
    if not lines.data.strip():
        raise UserError(f"{key}: {path} is empty")
    return lines
