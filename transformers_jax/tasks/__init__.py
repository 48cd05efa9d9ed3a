"""One file a task: how a raw example becomes batch fields, the loss, the metrics and the evaluation. Built by module name."""

import importlib
import pkgutil

from transformers_jax.errors import UserError
from transformers_jax.tasks.task import Task

SHARED = {"parts", "task"}
"""Of this folder, what is no task."""


def known() -> list[str]:
    """The names of all tasks."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def named(name: str) -> type[Task]:
    """The class of the task with this name, a file of this folder.

    Raises:
      UserError: there is no such task.
    """
    if name not in known():
        raise UserError(f"config.task.name is {name!r}; known tasks: {', '.join(known())}")
    return importlib.import_module(f"{__name__}.{name}").Task


def build(config, tokenizer=None, data=None) -> Task:
    """The task that `config.name` names, with its other keys as keyword arguments.

    Args:
      tokenizer: for a task that reads text.
      data: config.data, for a task that reads images: it says how they are cut out and changed at random.

    Raises:
      UserError: an unknown task, or a key it does not take.
    """
    fields = dict(config)
    kind = named(name := fields.pop("name"))
    try:
        return kind(tokenizer if kind.reads == "text" else data, **fields)
    except TypeError as error:
        raise UserError(f"config.task does not fit the task {name}: {error}") from error
