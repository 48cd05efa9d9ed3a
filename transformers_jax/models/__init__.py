"""One file an architecture: a config dataclass `Config`, a module `Model`. Built by module name; there is no registry."""

import dataclasses
import importlib
import pkgutil

from transformers_jax.errors import UserError

SHARED = {"decoder_only", "encoder", "image_encoder", "name_map", "protocol", "pyramid_heads", "with_genome"}
"""Files of this folder that are no architecture."""


def known() -> list[str]:
    """The names of all architectures."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def build(config, vocab_size: int):
    """The model that `config.name` names, a file of this folder, with its other keys as fields of that file's `Config`.

    Args:
      config: a mapping with `name` and the fields of the architecture's `Config`. Its `vocab_size`, if there is one and it
        is not 0, is for embeddings with more rows than the tokenizer has tokens, as pretrained ones often have.
      vocab_size: number of rows of the embedding; of a model that reads no text, 0.

    Raises:
      UserError: an unknown architecture, a key that its `Config` does not have, fewer rows than tokens, or a genome that
        is not there, invalid or not for this architecture.
    """
    fields = dict(config)
    name, rows = fields.pop("name"), fields.pop("vocab_size", 0) or vocab_size
    if rows < vocab_size:
        raise UserError(f"config.model.vocab_size is {rows}: the tokenizer's {vocab_size} tokens do not fit the embedding")
    if name not in known():
        raise UserError(f"config.model.name is {name!r}; known models: {', '.join(known())}")
    module = importlib.import_module(f"{__name__}.{name}")
    known_fields = {f.name for f in dataclasses.fields(module.Config)}
    allowed = known_fields - {"vocab_size"}
    if unknown := sorted(set(fields) - allowed):
        raise UserError(f"config.model.{unknown[0]} is not a field of {name}; its fields: {', '.join(sorted(allowed))}")
    if "vocab_size" in known_fields:
        fields["vocab_size"] = rows
    model = module.Model(module.Config(**fields))
    if not fields.get("genome"):
        return model
    from transformers_jax.models.with_genome import with_cells

    return with_cells(model, config)
