"""Small files, whole or not at all; a folder for one process at a time. A leaf of the import graph."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from transformers_jax.errors import UserError

MOST_SHOWN = 32
"""Numbers of an array that are written out."""


def json_value(value: Any) -> Any:
    """The value as JSON has it. An array of few numbers becomes a list; a larger one, and bytes, a description of it,
    "uint8 [32, 32, 3]" or "512 bytes"; a number that is not finite None; something else its text."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)) and not isinstance(value, np.generic):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if not isinstance(value, (np.ndarray, np.generic)):
        return str(value)
    return json_value(value.tolist()) if value.size <= MOST_SHOWN else f"{value.dtype} {list(value.shape)}"


def read_text(path: str | os.PathLike, key: str) -> str:
    """A UTF-8 file.

    Raises:
      UserError: names the key, the path, and what is wrong with it.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{key}: no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: cannot read {path}: {error}") from error


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 file: it has its old content, or none, until all of the new one is there."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """A folder, made where there is none, for one process at a time; the lock goes with the process.

    Raises:
      UserError: another process has it, in the words of `message`; or it cannot be made or written.
    """
    lock = filelock.FileLock(path / "lock")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(message) from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}: {error.filename}") from error
    try:
        yield
    finally:
        lock.release()
