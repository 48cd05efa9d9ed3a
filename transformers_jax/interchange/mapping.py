"""The engine that reads the tables of `models.name_map` both ways: which leaf of a file is which of ours, and how.

Our names are those of parameters, layers apart; in front of a leaf of another collection stands the collection's and a colon,
"batch_stats:norm/mean". Arrays are read when they are asked for, each in the file's own dtype.

Axes: A inputs, C outputs, D model width, N heads, H head width, T positions; kh, kw of a convolution's window.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.core import meta

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.interchange import stacking
from transformers_jax.interchange.weights import Leaf
from transformers_jax.models.name_map import Constant, NameMap, Row, regex

Shape = tuple[int, ...]


class Verb(NamedTuple):
    """What an array goes through, by its shape here.

    theirs: shape here → shape in the file.
    read: (array of the file, shape here) → our array.
    write: our array → array of the file.
    """

    theirs: Callable[[Shape], Shape]
    read: Callable[[np.ndarray, Shape], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _from_matrix(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x.T.reshape(shape)


def _as_shaped(x: np.ndarray, shape: Shape) -> np.ndarray:
    return x.reshape(shape)


VERBS = {
    # as it is
    "": Verb(lambda s: s, lambda x, s: x, lambda x: x),
    # [C, A] → [A, C]
    "transpose": Verb(lambda s: s[::-1], lambda x, s: x.T, lambda x: x.T),
    # [N · H, D] → [D, N, H]
    "to_heads": Verb(lambda s: (math.prod(s[1:]), s[0]), _from_matrix, lambda x: x.reshape(x.shape[0], -1).T),
    # [D, N · H] → [N, H, D]
    "from_heads": Verb(lambda s: (s[-1], math.prod(s[:-1])), _from_matrix, lambda x: x.reshape(-1, x.shape[-1]).T),
    # [D, N · H] → [D, N, H]
    "flat_heads": Verb(lambda s: (s[0], math.prod(s[1:])), _as_shaped, lambda x: x.reshape(x.shape[0], -1)),
    # [N · H, D] → [N, H, D]
    "heads_flat": Verb(lambda s: (math.prod(s[:-1]), s[-1]), _as_shaped, lambda x: x.reshape(-1, x.shape[-1])),
    # [N · H] → [N, H]
    "heads": Verb(lambda s: (math.prod(s),), _as_shaped, lambda x: x.reshape(-1)),
    # [C, A, kh, kw] → [kh, kw, A, C], [C, 1, kh, kw] → [kh, kw, 1, C] of one a channel, [C, A, kw] → [kw, A, C]
    "conv": Verb(
        lambda s: (*s[:-3:-1], *s[:-2]),
        lambda x, s: x.transpose(*range(2, x.ndim), 1, 0),
        lambda x: x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)),
    ),
    # [1, T, D] → [T, D], [1, 1, D] → [D]: a class token, positions
    "lead": Verb(lambda s: (*[1] * (3 - len(s)), *s), _as_shaped, lambda x: x.reshape(*[1] * (3 - x.ndim), *x.shape)),
}


TURNED = ("", "transpose", "to_heads", "from_heads")
"""Verbs of matrices whose rows in the file are outputs of a kernel here, or vectors of a table."""


class Planned(NamedTuple):
    """One leaf of a file.

    row: of the table.
    theirs: its name there.
    ours: the shapes of ours that it holds, by name.
    module: its name in a model in memory, in `transformers` 5.
    """

    row: Row
    theirs: str
    ours: dict[str, Shape]
    module: str

    def parts(self) -> list[Shape]:
        """The shapes in the file of each of ours."""
        return [tuple(VERBS[self.row.verb].theirs(shape)) for shape in self.ours.values()]

    def shape(self) -> Shape:
        """The shape of the whole in the file."""
        parts, axis = self.parts(), self.row.axis
        return (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :]) if len(parts) > 1 else parts[0]


def plan(names: NameMap, head: str, ours: Mapping[str, Shape]) -> list[Planned]:
    """A leaf of the file for every one of ours, layers apart.

    Raises:
      UserError: leaves of ours that no row covers.
    """
    ours = {name: tuple(shape) for name, shape in stacking.names(ours).items()}
    rows = [(row, [regex(pattern) for pattern in row.names()]) for row in names.rows(head) if isinstance(row, Row)]
    found, covered = [], set()
    for name in ours:
        for row, patterns in rows:
            if match := patterns[0].fullmatch(name):
                parts = [pattern.format(**match.groupdict()) for pattern in row.names()]
                if missing := [part for part in parts if part not in ours]:
                    raise UserError(f"{row.theirs} holds {name} and {missing[0]}, which the model does not have")
                theirs = row.theirs.format(**match.groupdict())
                found.append(Planned(row, theirs, {part: ours[part] for part in parts}, names.module(theirs)))
                covered.update(parts)
    if left := sorted(set(ours) - covered):
        raise UserError(f"{len(left)} parameters have no name in {names.heads[head].architecture}: {', '.join(left)}")
    return found


def leaves(
    planned: Planned,
    where: str,
    shape: Shape,
    part: Callable[[int, int, int], np.ndarray],
    kernel: Callable[[Shape, int], Any] | None = None,
) -> dict[str, Leaf]:
    """Our leaves of one of a file.

    Args:
      where: names the file's leaf in messages.
      shape: that it has in the file.
      part: (axis, start, stop) → that part of the file's array.
      kernel: see `weights.Leaf`, where the file has the leaf in blocks.

    Raises:
      UserError: it has another shape than the model's.
    """
    wanted, axis, found, start = planned.shape(), planned.row.axis, {}, 0
    if tuple(shape) != wanted:
        raise UserError(f"{where} has shape {tuple(shape)}; by config.json it should have {wanted}")
    for (name, ours), theirs in zip(planned.ours.items(), planned.parts(), strict=True):
        stop = start + theirs[axis] if theirs else 0
        own = kernel if len(planned.ours) == 1 and planned.row.verb in TURNED else None
        found[name] = Leaf(ours, _reader(planned.row, ours, part, (axis, start, stop)), kernel=own)
        start = stop
    return found


def _reader(row: Row, shape: Shape, part: Callable, place: tuple[int, int, int]) -> Callable[[], np.ndarray]:
    return lambda: np.ascontiguousarray(VERBS[row.verb].read(part(*place), shape))


def written(planned: Planned, ours: Sequence[np.ndarray]) -> np.ndarray:
    """The file's leaf from our arrays, in their order."""
    parts = [VERBS[planned.row.verb].write(np.asarray(array)) for array in ours]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=planned.row.axis)


def constants(names: NameMap, head: str, plan: Iterable[Planned]) -> dict[str, np.ndarray]:
    """The leaves of a file that stand beside the planned ones and hold a number that is always the same."""
    found, rows = {}, [row for row in names.rows(head) if isinstance(row, Constant)]
    for planned in plan:
        for row in rows:
            if place := regex(row.beside).fullmatch(planned.theirs):
                found[row.theirs.format(**place.groupdict())] = np.asarray(row.value)
    return found


# Variables of a model by these names

def shapes(model) -> dict[str, Shape]:
    """The shapes of all variables of a model by name; nothing is computed."""
    found = jax.eval_shape(lambda: model.init(jax.random.key(0), model.protocol().example()))
    return {name: x.shape for name, x in named(meta.unbox(found)).items()}


def named(variables: dict[str, dict]) -> dict[str, Any]:
    """The leaves of {"params": …, "batch_stats": …} by name."""
    return {
        name if collection == "params" else f"{collection}:{name}": leaf
        for collection, tree in variables.items()
        for name, leaf in parameters.flat(tree).items()
    }


def variables(leaves: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[str, dict]:
    """The inverse of `named`; there is always a "params"."""
    found: dict[str, dict] = {"params": {}}
    for full, leaf in dict(leaves).items():
        collection, _, name = full.rpartition(":")
        found.setdefault(collection or "params", {})[name] = leaf
    return {collection: parameters.nest(tree) for collection, tree in found.items()}


def placed(leaves: Mapping[str, Any], wanted: dict[str, dict]) -> dict[str, dict]:
    """Variables on their devices: leaf after leaf is read, sent as it is, and given its dtype there.

    Args:
      leaves: arrays or `Leaf`s by name, stacked where the wanted are.
      wanted: variables as ShapeDtypeStructs with their shardings; each has its leaf.
    """
    return variables((name, on_devices(leaves[name], like)) for name, like in named(wanted).items())


def on_devices(leaf: Any, like: Any) -> jax.Array:
    """One leaf with the dtype and the sharding of `like`."""
    array = jax.device_put(np.asarray(leaf), like.sharding)
    return array if array.dtype == like.dtype else array.astype(like.dtype)


def streamed(leaves: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of one leaf after the other; no two need be in memory."""
    return ((name, np.asarray(leaf)) for name, leaf in leaves.items())
