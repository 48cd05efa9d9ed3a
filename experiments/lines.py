"""Standard input of the launchers that answer it line by line."""

import sys
from collections.abc import Iterable, Iterator

from transformers_jax.errors import UserError

BLOCK = 1024
"""Lines that are read, sorted by length and answered together."""


def blocks_of_input() -> Iterator[list[str]]:
    """Standard input in lists of lines; on a terminal each line by itself."""
    return blocks(decoded(sys.stdin.buffer), 1 if sys.stdin.isatty() else BLOCK)


def decoded(stream: Iterable[bytes]) -> Iterator[str]:
    """The lines of a stream of bytes, without their ends, be they of Unix or Windows.

    Raises:
      UserError: names the line that is not UTF-8.
    """
    for number, line in enumerate(stream, 1):
        try:
            yield line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input, line {number} is not UTF-8 at byte {error.start + 1}") from error


def blocks(lines: Iterable[str], size: int = BLOCK) -> Iterator[list[str]]:
    """Lists of up to `size` lines; what was read before an error is translated first."""
    block: list[str] = []
    try:
        for line in lines:
            block.append(line)
            if len(block) == size:
                yield block
                block = []
    except UserError:
        if block:
            yield block
        raise
    if block:
        yield block
