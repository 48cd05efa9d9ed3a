"""GGUF files for llama.cpp: a model with its tokenizer and chat template, and a file anew with matrices of another type."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from transformers_jax import models
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError
from transformers_jax.interchange import gguf, gguf_llama, gguf_tokenizer, huggingface, mapping, tokenizers
from transformers_jax.interchange.gguf import Deferred, GgufFile, Stored
from transformers_jax.interchange.gguf_blocks import FILE_TYPES
from transformers_jax.interchange.gguf_llama import GgufWeights
from transformers_jax.interchange.gguf_values import Value

TYPES = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}
"""Types of matrices by the names that --dtype has for them."""


def write(
    path: Path,
    fields: dict,
    leaves: Mapping[str, np.ndarray | mapping.Leaf],
    tokenizer: Tokenizer | None,
    kind: str = "F32",
    base: GgufFile | None = None,
    begun: bool = False,
) -> None:
    """Writes a model.

    Args:
      fields: of `config.model`, with `name`, `head` and `vocab_size`.
      leaves: all of its parameters by name, layers apart.
      kind: the type of its matrices, one of `TYPES`' values.
      base: a file whose tensors are passed on as they are where the model has the same numbers, and its metadata.
      begun: every text that it learned from had the begin token, as in a run of ours; otherwise the tokenizer says it.

    Raises:
      UserError: a model or a tokenizer that is not written to GGUF, or no tokenizer.
    """
    if fields["name"] != gguf_llama.ARCHITECTURE:
        raise UserError(f"config.model.name is {fields['name']!r}: of models, {gguf_llama.ARCHITECTURE} is written to GGUF")
    model = models.build(fields, fields["vocab_size"])
    about, config = model.protocol(), huggingface.hf_config(fields)
    if about.head != "causal_lm":
        raise UserError(f"config.model.head is {about.head!r}: to GGUF, a decoder with the head causal_lm is written")
    plan = mapping.plan(huggingface.names_of(fields), about.head, {name: leaf.shape for name, leaf in leaves.items()})
    ours = ((planned.theirs, _deferred(planned, leaves)) for planned in plan)
    tensors, types = gguf_llama.gguf_tensors(ours, config, kind)
    if base is not None:
        metadata = _changed(base, kind)
        tensors = {name: _untouched(base, name, tensor, types[name]) for name, tensor in tensors.items()}
    elif tokenizer is None:
        raise UserError("the model has no tokenizer that can be read, and a GGUF file has one in it")
    else:
        metadata = gguf_llama.gguf_metadata(config, kind) | _tokenizer(tokenizer, about.longest, fields["vocab_size"], begun)
    gguf.write(path, metadata, tensors, types)


def rewrite(source: Path, path: Path, kind: str = "") -> int:
    """Writes a file anew; tensors that are of their type already are passed on bit by bit. Returns how many were not.

    Args:
      kind: the type of matrices, one of `TYPES`' values; "" leaves all tensors as they are.

    Raises:
      UserError: a damaged file, or of a model that is not read.
    """
    file = GgufWeights(GgufFile(source)).file
    types = {name: gguf_llama.type_of(name, entry.shape, kind or entry.type) for name, entry in file.tensors.items()}
    kept = {name for name, entry in file.tensors.items() if not kind or types[name] == entry.type}
    tensors = {name: file.stored(name) if name in kept else _read(file, name) for name in file.tensors}
    gguf.write(path, _changed(file, kind) if kind else file.typed_metadata(), tensors, types)
    return len(tensors) - len(kept)


def kind_of(file: GgufFile) -> str:
    """The type of most matrices of a file, one of `TYPES`' values.

    Raises:
      UserError: it is of another type, BF16 say.
    """
    types = [entry.type for entry in file.tensors.values() if len(entry.shape) > 1]
    found = max(types, key=types.count)
    if found not in TYPES.values():
        raise UserError(f"{file.path} is of {found}, which is read and not written: give --dtype")
    return found


def _deferred(planned: mapping.Planned, leaves: Mapping[str, np.ndarray | mapping.Leaf]) -> Deferred:
    """A leaf under the name of `transformers`, made when it is written."""
    return Deferred(planned.shape(), lambda: mapping.written(planned, [np.asarray(leaves[name]) for name in planned.ours]))


def _read(file: GgufFile, name: str) -> Deferred:
    return Deferred(file.tensors[name].shape, lambda: file.tensor(name))


def _untouched(base: GgufFile, name: str, tensor: Deferred, kind: str) -> Deferred | Stored:
    """A tensor as the base has it where that is of the wanted type, and of the same numbers."""
    entry = base.tensors.get(name)
    same = entry is not None and entry.type == kind and np.array_equal(base.tensor(name), tensor.make())
    return base.stored(name) if same else tensor


def _changed(file: GgufFile, kind: str) -> dict[str, Value]:
    """The metadata of a file whose matrices are of another type now."""
    return file.typed_metadata() | {"general.file_type": Value("uint32", FILE_TYPES[kind])}


def _tokenizer(tokenizer: Tokenizer, longest: int, size: int, begun: bool) -> dict[str, Value]:
    """The metadata of a tokenizer with its chat template."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tokenizers.write(folder, tokenizer, longest=longest, pair_types=False, prompts=True, begun=begun)
        if not (folder / "tokenizer.json").is_file():
            raise UserError("only byte-level BPE is written to GGUF")
        content, config = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("tokenizer.json", "tokenizer_config.json")
        )
    config.pop("sep_token", None)  # BERT's
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return gguf_tokenizer.metadata(content, config, size)
