"""The language of the tables at the bottom of model files: which leaf of a Hugging Face file is which of our parameters.

A table is read both ways. Its rows name leaves by patterns in which `{i}` is a number, a layer's: "encoder.layer.{i}.x.weight"
is "encoder/layer_{i}/block/x/kernel". Stacked layers ("encoder/layer/block/x/kernel", first axis the layers) are the same
leaves: the reader stacks them. What is done to an array on the way is a verb.

Axes: A inputs, C outputs, D model width, N heads, H head width.
"""

import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np

from transformers_jax.errors import UserError

Shape = tuple[int, ...]


class Verb(NamedTuple):
    """What an array goes through, by its shape here.

    theirs: shape here → shape in the file.
    read: (array of the file, shape here) → our array.
    write: our array → array of the file.
    """

    theirs: callable
    read: callable
    write: callable


def _from_matrix(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x.T.reshape(shape)


VERBS = {
    # as it is
    "": Verb(lambda s: s, lambda x, s: x, lambda x: x),
    # [C, A] → [A, C]
    "transpose": Verb(lambda s: s[::-1], lambda x, s: x.T, lambda x: x.T),
    # [N · H, D] → [D, N, H]
    "to_heads": Verb(
        lambda s: (math.prod(s[1:]), s[0]), _from_matrix, lambda x: x.reshape(x.shape[0], -1).T
    ),
    # [D, N · H] → [N, H, D]
    "from_heads": Verb(
        lambda s: (s[-1], math.prod(s[:-1])), _from_matrix, lambda x: x.reshape(-1, x.shape[-1]).T
    ),
    # [D, N · H] → [D, N, H]
    "flat_heads": Verb(lambda s: (s[0], math.prod(s[1:])), lambda x, s: x.reshape(s), lambda x: x.reshape(x.shape[0], -1)),
    # [N · H, D] → [N, H, D]
    "heads_flat": Verb(
        lambda s: (math.prod(s[:-1]), s[-1]), lambda x, s: x.reshape(s), lambda x: x.reshape(-1, x.shape[-1])
    ),
    # [N · H] → [N, H]
    "heads": Verb(lambda s: (math.prod(s),), lambda x, s: x.reshape(s), lambda x: x.reshape(-1)),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf there is one here, or several: those that lie behind each other along an axis of theirs, as a fused query,
    key and value do.

    verb: a name of VERBS.
    axis: of theirs, along which several of ours lie.
    """

    theirs: str
    ours: str | tuple[str, ...]
    verb: str = ""
    axis: int = 0

    def names(self) -> tuple[str, ...]:
        """Our patterns."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclasses.dataclass(frozen=True)
class Tie:
    """A leaf that repeats another one of the file: if it is there it must be equal, and it is not written."""

    theirs: str
    of: str


@dataclasses.dataclass(frozen=True)
class Ignore:
    """Leaves that carry nothing, by a regular expression over the whole name, and why."""

    pattern: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Head:
    """A model with this head: the class of `transformers`, and the rows that it adds to the body's.

    A row replaces one of the body for the same parameter of ours.
    """

    architecture: str
    rows: tuple[Row | Tie | Ignore, ...] = ()


@dataclasses.dataclass(frozen=True)
class NameMap:
    """The names of one architecture.

    model_type: of config.json.
    prefix: of the body's leaves in a model with a head.
    body: rows of what all heads have, without the prefix.
    heads: by `config.model.head`.
    """

    model_type: str
    prefix: str
    body: tuple[Row | Tie | Ignore, ...]
    heads: dict[str, Head]

    def rows(self, head: str) -> list[Row | Tie | Ignore]:
        """The rows of a model with this head, names in full."""
        own = self.heads[head].rows
        replaced = {row.names() for row in own if isinstance(row, Row)}
        kept = [row for row in self.body if not isinstance(row, Row) or row.names() not in replaced]
        return [*(self._prefixed(row) if head != "none" else row for row in kept), *own]

    def _prefixed(self, row):
        if isinstance(row, Ignore):
            return Ignore(f"({re.escape(self.prefix)})?{row.pattern}", row.reason)
        changes = {"of": self.prefix + row.of} if isinstance(row, Tie) else {}
        return dataclasses.replace(row, theirs=self.prefix + row.theirs, **changes)

    def ties(self) -> list[Tie]:
        """Of all heads."""
        return list(dict.fromkeys(row for head in self.heads for row in self.rows(head) if isinstance(row, Tie)))

    def knows(self, name: str) -> bool:
        """Whether some head has a leaf of this name."""
        rows = [row for head in self.heads for row in self.rows(head)]
        return any(regex(row.pattern if isinstance(row, Ignore) else row.theirs, row).fullmatch(name) for row in rows)


def regex(pattern: str, row: Row | Tie | Ignore | None = None) -> re.Pattern:
    """The expression of a pattern; `{i}` is a group of digits. An `Ignore`'s is one already."""
    if isinstance(row, Ignore):
        return re.compile(pattern)
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(pattern)))


# Rows that come together

def linear(theirs: str, ours: str, verb: str = "transpose") -> tuple[Row, Row]:
    """A dense layer: weight and bias there, kernel and bias here."""
    return Row(f"{theirs}.weight", f"{ours}/kernel", verb), Row(
        f"{theirs}.bias", f"{ours}/bias", "heads" if verb == "to_heads" else ""
    )


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """A layer norm: weight and bias there, scale and bias here."""
    return Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")


POSITION_IDS = Ignore(r"(embeddings\.)?position_ids", "the numbers 0, 1, 2, … that older files hold")


# Values of config.json

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "swish": "silu"}


def activation_to_hf(name: str) -> str:
    """The name that `transformers` has for one of `layers.feedforward.ACTIVATIONS`."""
    return _ACTIVATIONS[name]


def activation_from_hf(name: str) -> str:
    """Ours for one of `transformers`'.

    Raises:
      UserError: it is none of ours.
    """
    known = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh", "swish": "swish"}
    if name not in known:
        raise UserError(f"config.json: the activation {name!r} is none of {', '.join(known)}")
    return known[name]


def renamed(config: dict, table: dict[str, str], defaults: type) -> dict:
    """Our fields from the keys of a config.json; a key that it lacks gives the field's default, if it has one.

    Raises:
      UserError: a key without default is missing.
    """
    given = {f.name: f.default for f in dataclasses.fields(defaults) if f.default is not dataclasses.MISSING}
    fields = {ours: config.get(theirs, given.get(ours)) for theirs, ours in table.items()}
    if missing := [theirs for theirs, ours in table.items() if fields[ours] is None]:
        raise UserError(f"config.json: no {missing[0]}")
    return fields
