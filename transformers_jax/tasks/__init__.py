"""One file a task: how a raw example becomes batch fields, the loss, the metrics and the evaluation. Built by module name."""

import importlib
import pkgutil

from transformers_jax.errors import UserError

PARTS = ("entities", "labels", "masking", "metrics", "scoring", "squad", "windows")
"""Files of this folder that are parts of tasks."""


def build(config, tokenizer):
    """The task that `config.name` names, a file of this folder, with its other keys as keyword arguments.

    Raises:
      UserError: an unknown task, or a key it does not take.
    """
    fields = dict(config)
    name = fields.pop("name")
    known = sorted({m.name for m in pkgutil.iter_modules(__path__)}.difference(PARTS))
    if name not in known:
        raise UserError(f"config.task.name is {name!r}; known tasks: {', '.join(known)}")
    task = importlib.import_module(f"{__name__}.{name}").Task
    try:
        return task(tokenizer, **fields)
    except TypeError as error:
        raise UserError(f"config.task does not fit the task {name}: {error}") from error
