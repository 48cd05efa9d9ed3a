"""From any model to a GGUF file: a folder of `transformers`, a workdir, or another GGUF file."""

from pathlib import Path

import jax
import numpy as np

from transformers_jax import config as configuration
from transformers_jax import models
from transformers_jax.errors import UserError
from transformers_jax.interchange import gguf_adapter, gguf_export, gguf_model, huggingface, mapping, stacking, tokenizers
from transformers_jax.interchange.gguf import GgufFile
from transformers_jax.runs import initialise
from transformers_jax.training import best
from transformers_jax.training.checkpoint import Checkpoints


def convert(source: str, target: str, *, dtype: str = "", merge: bool = False, step: int | str | None = None) -> str:
    """Writes a model as a GGUF file; returns what was done in a line.

    Args:
      source: a folder of `transformers` or its name on the hub, a workdir, or a GGUF file.
      target: a file that does not exist.
      dtype: one of `gguf_export.TYPES`: of matrices; by default as a GGUF file has them, of other sources f32.
      merge: parts of low rank become part of their kernels; otherwise the file holds them alone.
      step: which checkpoint of a workdir, see `training.best.place`.

    Raises:
      UserError: the source cannot be read, or GGUF has no place for such a model; the target is there already.
    """
    made = Path(target)
    if made.exists():
        raise UserError(f"--to={target} is there already: give another name")
    made.parent.mkdir(parents=True, exist_ok=True)
    folder = initialise.converted(source, step)
    if gguf_model.is_file(folder):
        return _from_file(folder, made, dtype)
    if huggingface.is_folder(folder):
        fields, leaves, tokenizer = huggingface.opened(folder)
        gguf_export.write(made, fields, leaves, tokenizer, gguf_export.TYPES[dtype or "f32"])
        return f"{_count(leaves)} parameters in {made}"
    return _from_workdir(folder, made, dtype, merge, step)


def _from_file(source: Path, made: Path, dtype: str) -> str:
    changed = gguf_export.rewrite(source, made, gguf_export.TYPES[dtype] if dtype else "")
    return f"{len(GgufFile(made).tensors)} tensors in {made}, {changed} of them of another type than in {source}"


def _from_workdir(workdir: Path, made: Path, dtype: str, merge: bool, step: int | str | None) -> str:
    config, tokenizer = configuration.read(workdir), tokenizers.read(workdir)
    fields = initialise.trained_fields(config, tokenizer)
    fields["vocab_size"] = fields.get("vocab_size") or (tokenizer.vocab_size if tokenizer else 0)
    step = best.settled(workdir, step)
    folder, number = best.place(workdir, step)
    with Checkpoints(folder) as checkpoints:
        base = checkpoints.saved_base(number)
    if not merge and (learned := initialise.low_rank(workdir, step)):
        return _adapter(made, fields, learned, base.path)
    leaves = stacking.separate(mapping.named(initialise.plain(workdir, step)))
    source = GgufFile(base.path) if base and gguf_model.is_file(base.path) else None
    kind = gguf_export.TYPES[dtype] if dtype else gguf_export.kind_of(source) if source else "F32"
    begun = not initialise.was_converted(workdir)
    gguf_export.write(made, fields, leaves, tokenizer, kind, source, begun=begun)
    return f"{_count(leaves)} parameters in {made}"


def _adapter(made: Path, fields: dict, leaves: dict, base: str) -> str:
    """The parts of low rank of a run alone."""
    model = models.build(fields, fields["vocab_size"])
    if not huggingface.has_names(fields["name"]):
        raise UserError(f"config.model.name is {fields['name']!r}: of adapters, those of a Llama are written to GGUF")
    plan = mapping.plan(huggingface.names_of(fields), model.protocol().head, stacking.names(mapping.shapes(model)))
    leaves = jax.tree.map(np.asarray, leaves)
    gguf_adapter.write(made, huggingface.hf_config(fields), plan, leaves)
    return f"{_count(leaves)} parameters beside {base} in {made}, an adapter; --merge writes the whole model"


def _count(leaves: dict) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(leaves)):,}"
