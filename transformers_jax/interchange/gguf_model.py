"""A whole model from a GGUF file: fields of its config, leaves, tokenizer, and the tokens that end what it writes."""

import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import gguf_tokenizer, huggingface, mapping
from transformers_jax.interchange.gguf import GgufFile
from transformers_jax.interchange.gguf_llama import GgufWeights


class OpenedGguf(NamedTuple):
    """What a file holds, its arrays unread.

    fields: of `config.model`: `name`, the model's fields, and `vocab_size`.
    leaves: all variables by name, see `mapping`; layers apart.
    tokenizer: as the file's metadata describe it.
    ends: the tokens that end a text, a turn or a message.
    """

    fields: dict
    leaves: dict[str, mapping.Leaf]
    tokenizer: Tokenizer
    ends: tuple[int, ...]


def is_file(path: str | os.PathLike) -> bool:
    """Whether a path is that of a GGUF file, by its name."""
    return Path(path).suffix.lower() == ".gguf"


def opened(path: str | os.PathLike) -> OpenedGguf:
    """The model of a file. Its arrays are read and dequantised one by one, when they are asked for.

    Raises:
      UserError: there is no such file, it is damaged, or of a model or tokenizer that is not read.
    """
    fields, leaves, file = weights(path)
    found, tokenizer = _tokenizer(file)
    ends = {found.ids[role] for role in ("eos", "eot", "eom") if role in found.ids}
    return OpenedGguf(fields, leaves, tokenizer, tuple(sorted(ends | {tokenizer.eos_id})))


def weights(path: str | os.PathLike) -> tuple[dict, dict[str, mapping.Leaf], GgufFile]:
    """(fields, leaves, the open file), without the tokenizer. Raises as `opened` does."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    file = GgufFile(path)
    found = GgufWeights(file)
    return *huggingface.matched(found.config, lambda: found, Path(path)), file


def tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer of a file, with its chat template. Raises as `opened` does."""
    return _tokenizer(GgufFile(path))[1]


def _tokenizer(file: GgufFile) -> tuple[gguf_tokenizer.GgufTokenizer, Tokenizer]:
    """The tokenizer as the file's metadata describe it, and made of that."""
    try:
        found = gguf_tokenizer.read(file.metadata)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(found.tokenizer), encoding="utf-8")
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(found.config), encoding="utf-8")
        return found, Tokenizer.load(folder)
