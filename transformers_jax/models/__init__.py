"""One file an architecture: a config dataclass `Config`, a module `Model`. Built by module name; there is no registry."""

import dataclasses
import importlib
import pkgutil

from transformers_jax.errors import UserError


def build(config, vocab_size: int):
    """The model that `config.name` names, a file of this folder, with its other keys as fields of that file's `Config`.

    Args:
      config: a mapping with `name` and the fields of the architecture's `Config`.
      vocab_size: number of rows of the embedding.

    Raises:
      UserError: an unknown architecture, or a key that its `Config` does not have.
    """
    fields = dict(config)
    name = fields.pop("name")
    known = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "output")
    if name not in known:
        raise UserError(f"config.model.name is {name!r}; known models: {', '.join(known)}")
    module = importlib.import_module(f"{__name__}.{name}")
    allowed = {f.name for f in dataclasses.fields(module.Config)} - {"vocab_size"}
    if unknown := sorted(set(fields) - allowed):
        raise UserError(f"config.model.{unknown[0]} is not a field of {name}; its fields: {', '.join(sorted(allowed))}")
    return module.Model(module.Config(vocab_size=vocab_size, **fields))
