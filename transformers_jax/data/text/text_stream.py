"""Texts of files one after the other, of any size: only the text that is read is in memory."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers_jax.data.text.lines import BOM, GZIP_MAGIC
from transformers_jax.errors import UserError

UNITS = ("line", "document", "file")


def texts(paths: Iterable[str | Path], unit: str, begins: str = "", key: str = "--files") -> Iterator[str]:
    """The texts of files, plain or gzip; of a `.jsonl` file the "text" of each line, whatever the unit.

    Args:
      unit: "line", "document" (lines up to a blank one, or from one that begins with `begins` to the next), or "file". Lines
        without anything but white space are no texts.
      key: what named the files, for messages.

    Raises:
      UserError: names the file, and the line, that cannot be read.
    """
    if unit not in UNITS:
        raise UserError(f"--unit={unit} is not one of {', '.join(UNITS)}")
    for path in paths:
        found = lines(path, key)
        if str(path).removesuffix(".gz").endswith(".jsonl"):
            yield from _of_json(found, path)
        elif unit == "line":
            yield from (line for line in found if line.strip())
        elif unit == "file":
            yield "\n".join(found)
        else:
            yield from _documents(found, begins)


def lines(path: str | Path, key: str) -> Iterator[str]:
    """The lines of a UTF-8 file, as `lines.Lines` has them."""
    number = 0
    try:
        with open(path, "rb") as plain:
            zipped = plain.read(2) == GZIP_MAGIC
            plain.seek(0)
            with gzip.open(plain) if zipped else plain as file:
                for number, line in enumerate(file, start=1):
                    line = line.removeprefix(BOM) if number == 1 else line
                    yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path}, line {number} is not UTF-8 ({error.reason}); convert the file") from error
    except FileNotFoundError as error:
        raise UserError(f"{key}: no file {path}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{key}: cannot read {path}: {error}") from error


def _documents(found: Iterable[str], begins: str) -> Iterator[str]:
    block: list[str] = []
    for line in found:
        if line.startswith(begins) if begins else not line.strip():
            if any(map(str.strip, block)):
                yield "\n".join(block)
            block = []
        if begins or line.strip():
            block.append(line)
    if any(map(str.strip, block)):
        yield "\n".join(block)


def _of_json(found: Iterable[str], path: str | Path) -> Iterator[str]:
    for number, line in enumerate(found, start=1):
        if line.strip():
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number} is no JSON object with a text") from error
            if not isinstance(text, str):
                raise UserError(f"{path}, line {number}: text is no text")
            yield text
