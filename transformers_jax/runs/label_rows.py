"""The rows of a pretrained head by the names of their labels, which may stand in another order there.

Axes: L labels, the last axis of a classifier's kernel and of its bias.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from transformers_jax import config as configuration
from transformers_jax import tasks
from transformers_jax.interchange import huggingface, tokenizers

ROWS = r"(^|/)classifier/(kernel|bias)$"
"""Parameters with a row for each label."""

_NUMBERED = re.compile(r"LABEL_(\d+)")
"""What `transformers` calls a label without a name."""


def names_of(folder: Path) -> tuple[str, ...]:
    """The names of the labels of a folder of `transformers` or a workdir, in the order of its head's rows; () for none."""
    if huggingface.is_folder(folder):
        return tuple(huggingface.label_names(huggingface.read_config(folder)))
    config = configuration.read(folder)
    if config.task.get("labels"):
        return tuple(map(str, config.task.labels))
    return tasks.build(config.task, tokenizers.read(folder), config.data).label_names


def by_label(found: Mapping, theirs: Callable[[], Sequence[str]], ours: Sequence[str], path: str) -> dict:
    """Pretrained leaves with the rows of the head in another order: that of our labels.

    Names are compared as they are, else without regard to capitals; LABEL_3, as `transformers` calls what has no name, is
    the label "3". Where one of ours is not among theirs, the head is left out, and a warning says so.

    Args:
      found: leaves by name.
      theirs: gives the names of the pretrained labels; asked where there are rows.
      path: of the pretrained model, for the message.
    """
    rows = [name for name in found if re.search(ROWS, name)]
    if not rows:
        return dict(found)
    names = tuple(theirs())
    order = _order(names, ours)
    if order is None or any(found[name].shape[-1] != len(names) for name in rows):
        known = ", ".join(names) or "none by name"
        logging.warning(
            "--init_from=%s: its head's labels are %s, those of this run %s: the head begins anew", path, known, ", ".join(ours)
        )
        return {name: leaf for name, leaf in found.items() if not re.search(ROWS, name)}
    if order == list(range(len(names))):
        return dict(found)
    logging.info("the rows of the head are in the order of this run's labels: %s", ", ".join(ours))
    return dict(found) | {name: np.asarray(found[name])[..., order] for name in rows}


def _order(theirs: Sequence[str], ours: Sequence[str]) -> list[int] | None:
    """For each of our labels its number among theirs; None where one is not there, or not the only one of its name."""
    unnamed = theirs and all(_NUMBERED.fullmatch(name) for name in theirs)
    plain = [_NUMBERED.fullmatch(name)[1] for name in theirs] if unnamed and not _NUMBERED.fullmatch(ours[0]) else list(theirs)
    for form in (str, str.casefold):
        numbers = {form(name): i for i, name in enumerate(plain)}
        found = [numbers.get(form(name)) for name in ours]
        if len(numbers) == len(plain) and None not in found and len(set(found)) == len(ours):
            return found
    return None
