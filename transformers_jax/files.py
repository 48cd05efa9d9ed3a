"""Small files, whole or not at all; a folder for one process at a time. A leaf of the import graph."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from transformers_jax.errors import UserError


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
