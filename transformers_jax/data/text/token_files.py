"""Token files: the tokens of many documents in one file of any size, which is read without being loaded.

The format:

    bytes 0 to 1,023    a JSON object, spaces, a line feed: {"format": "transformers_jax tokens 1", "fingerprint": of the
                        tokenizer, "vocab_size": its tokens, "dtype": "uint16" or "uint32", "documents": D, "tokens": N,
                        "bytes": of the documents' texts in UTF-8}
    N tokens            of the documents, one behind the other, little endian; zeros up to a multiple of 8 bytes
    D + 1 uint64        where each document begins among the tokens, and N

Documents are as they were encoded, without tokens that begin or end them. A file is written under another name until it is
whole.

Keys of config.data that are read here:
  train, validation, test: token files, "a.tokens,b.tokens".
"""

import array
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from transformers_jax.data.placed import Placed
from transformers_jax.data.text.lines import paths_of
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError

FORMAT = "transformers_jax tokens 1"
HEADER = 1024  # bytes
DTYPES = ("uint16", "uint32")
TOGETHER = 2**22  # characters that are encoded at once


class TokenFileWriter:
    """Writes a token file document by document; the file is there when the context ends without an error.

    Args:
      path: of the file.
      tokenizer: that makes the tokens.
    """

    def __init__(self, path: str | os.PathLike, tokenizer: Tokenizer):
        self.path = Path(path)
        self.draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self.dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self.header = {"format": FORMAT, "fingerprint": tokenizer.fingerprint(), "vocab_size": tokenizer.vocab_size}
        self.ends = array.array("Q", [0])  # where each document ends
        self.bytes = 0

    def __enter__(self) -> "TokenFileWriter":
        try:
            self.file = open(self.draft, "wb")  # noqa: SIM115  (closed by __exit__)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error
        self.file.write(bytes(HEADER))
        return self

    def add(self, ids: Sequence[int], text: str) -> None:
        """Adds a document, its tokens and its text."""
        self.file.write(np.asarray(ids, np.dtype(self.dtype).newbyteorder("<")).tobytes())
        self.ends.append(self.ends[-1] + len(ids))
        self.bytes += len(text.encode("utf-8"))

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._end()
        finally:
            self.file.close()
            if kind is not None:
                self.draft.unlink(missing_ok=True)
        if kind is None:
            self.draft.replace(self.path)

    def _end(self) -> None:
        self.file.write(bytes(-self.file.tell() % 8))
        self.file.write(np.asarray(self.ends, "<u8").tobytes())
        numbers = {"dtype": self.dtype, "documents": len(self.ends) - 1, "tokens": self.ends[-1], "bytes": self.bytes}
        content = json.dumps(self.header | numbers).encode()
        self.file.seek(0)
        self.file.write(content.ljust(HEADER - 1) + b"\n")


def write(path: str | os.PathLike, tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, int]:
    """Encodes texts, many at once on all cores, into a token file, and returns its numbers: documents, tokens, bytes."""
    with TokenFileWriter(path, tokenizer) as writer:
        for ids, text in encoded(tokenizer, texts):
            writer.add(ids, text)
    return {"documents": len(writer.ends) - 1, "tokens": writer.ends[-1], "bytes": writer.bytes}


def encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterable[tuple[list[int], str]]:
    """The tokens of each text, and the text; no more than some texts of TOGETHER characters are in memory at once."""
    waiting, size = [], 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= TOGETHER:
            yield from zip(tokenizer.encode_batch(waiting), waiting, strict=True)
            waiting, size = [], 0
    yield from zip(tokenizer.encode_batch(waiting), waiting, strict=True)


class TokenFile:
    """A token file, memory-mapped: document i is a 1-D array of its dtype, of which only what is used is read.

    Raises:
      UserError: no such file, another kind of file, or one that is not whole.
    """

    def __init__(self, path: str | os.PathLike, key: str):
        self.path = Path(path)
        self.header = _header(self.path, key)
        dtype, documents, tokens = (self.header[name] for name in ("dtype", "documents", "tokens"))
        offsets_at = HEADER + -(-tokens * np.dtype(dtype).itemsize // 8) * 8
        whole, size = offsets_at + 8 * (documents + 1), self.path.stat().st_size
        if size != whole:
            raise UserError(f"{key}: {path} has {size} bytes and should have {whole}: it was cut off or changed; make it again")
        little = np.dtype(dtype).newbyteorder("<")
        mapped = {"filename": self.path, "mode": "r"}
        self.tokens = np.memmap(dtype=little, offset=HEADER, shape=(tokens,), **mapped) if tokens else np.zeros(0, little)
        self.offsets = np.memmap(dtype="<u8", offset=offsets_at, shape=(documents + 1,), **mapped)
        if self.offsets[0] or self.offsets[-1] != tokens or (self.offsets[1:] < self.offsets[:-1]).any():
            raise UserError(f"{key}: {path}: its documents are not where its header says; make it again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.tokens[int(self.offsets[i]) : int(self.offsets[i + 1])]


class TokenFiles(Placed):
    """The documents of several token files, one file behind the other, as {"ids": array}."""

    def __init__(self, files: Sequence[TokenFile], key: str):
        self.files, self.key = files, key
        self.ends = np.cumsum([len(file) for file in files])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        file, number = self._place(i)
        return {"ids": file[number]}

    def where(self, i: int) -> str:
        """File and document of example i, for messages."""
        file, number = self._place(i)
        return f"{file.path}, document {number + 1}"

    def made_with(self, tokenizer: Tokenizer) -> None:
        """Checks that the files hold tokens of this tokenizer.

        Raises:
          UserError: names the first file that holds those of another.
        """
        ours = tokenizer.fingerprint()
        for file in self.files:
            if (theirs := file.header["fingerprint"]) != ours:
                raise UserError(
                    f"{self.key}: {file.path} was made with another vocabulary ({file.header['vocab_size']} tokens, "
                    f"fingerprint {theirs}) than this run's ({tokenizer.vocab_size} tokens, {ours}): give its tokenizer as "
                    "config.tokenizer.path, or make the file again with experiments.tokenize"
                )

    def _place(self, i: int) -> tuple[TokenFile, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self.ends, i, side="right"))
        return self.files[number], i - int(self.ends[number]) + len(self.files[number])


def _tokens(config, split: str) -> TokenFiles:
    key = f"config.data.{split}"
    return TokenFiles([TokenFile(path, key) for path in paths_of(config, split, f"{split}.tokens")], key)


KINDS: dict[str, Callable] = {"tokens": _tokens}


def _header(path: Path, key: str) -> dict:
    try:
        with path.open("rb") as file:
            content = file.read(HEADER)
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}") from error
    try:
        header = json.loads(content)
    except ValueError:
        header = None
    if len(content) < HEADER or not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"{key}: {path} is no token file; experiments.tokenize makes one of texts")
    numbers = [header.get(name) for name in ("documents", "tokens", "vocab_size")]
    counts = all(isinstance(n, int) and n >= 0 for n in numbers)
    if not counts or header.get("dtype") not in DTYPES or "fingerprint" not in header:
        raise UserError(f"{key}: {path}: its header is damaged; make it again")
    return header
