"""Where parameters live: logical axes → axes of the mesh (`transformers_jax.mesh`).

Models name the axes of their parameters; RULES say what those are split over; XLA puts the communication in.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformers_jax import parameters
from transformers_jax.mesh import ROWS

Rules = Mapping[str, tuple[str, ...]]
RULES: Rules = {
    "batch": ROWS,
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp",),
    "layers": (),
    "kv": (),
    "conv": (),
}
"""Logical axis → the mesh axes it is split over; () is copied. An axis outside the table is an error of the model."""

Overrides = Iterable[tuple[str, tuple[str | None, ...]]]
"""(pattern over parameter names, logical axes to take in place of the model's); the first that matches holds."""


def logical_axes(params: Any, overrides: Overrides = ()) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of parameters by name, read from the metadata of a boxed tree; unboxed leaves have none (None).

    Raises:
      UserError: the pattern of an override matches no parameter.
    """
    leaves, overrides = parameters.flat(params), list(overrides)
    for pattern, _ in overrides:
        parameters.matching(leaves, pattern, key="sharding override")
    named = {name: getattr(leaf, "names", None) for name, leaf in leaves.items()}
    return {name: parameters.lookup(name, overrides, axes) for name, axes in named.items()}


def state_shardings(state: Any, axes: Mapping[str, tuple], mesh: Mesh, rules: Rules = RULES) -> Any:
    """The sharding of every leaf of a training state.

    Parameters follow their logical axes. What the optimizer keeps for a parameter follows it: the same shape is split
    the same way, Adafactor's row and column statistics along the axes that are left. All else is on every device.

    Args:
      state: a TrainState of arrays or ShapeDtypeStructs, unboxed.
      axes: parameter name → logical axes, from `logical_axes`.

    Raises:
      ValueError: a logical axis that the rules lack, or not one axis a dimension.
    """
    logged: set[str] = set()
    leaves = {**parameters.flat(state.params), **parameters.flat(state.frozen)}
    arrays = {name: array for own, leaf in leaves.items() for name, array in _arrays(own, leaf, axes.get(own)).items()}
    specs = {n: (x.shape, _spec(n, x.shape, own, mesh, rules, logged)) for n, (x, own) in arrays.items()}

    def of_parameter(path, leaf):
        return NamedSharding(mesh, specs[parameters.name_of(path)][1])

    def of_slot(path, leaf):
        return NamedSharding(mesh, _slot_spec(path, leaf.shape, specs))

    copied = NamedSharding(mesh, PartitionSpec())
    return state.replace(
        step=copied,
        params=jax.tree_util.tree_map_with_path(of_parameter, state.params),
        frozen=jax.tree_util.tree_map_with_path(of_parameter, state.frozen),
        model_state=jax.tree.map(lambda _: copied, state.model_state),
        opt_state=jax.tree_util.tree_map_with_path(of_slot, state.opt_state),
        average=jax.tree_util.tree_map_with_path(of_parameter, state.average),
    )


def _arrays(name: str, leaf: Any, axes: tuple | None) -> dict[str, tuple[Any, tuple | None]]:
    """The arrays of a parameter by name, with their logical axes: itself, or those that a quantised kernel is made of."""
    if not parameters.is_packed(leaf):
        return {name: (leaf, axes)}
    known = leaf.logical_axes(axes) if axes else {}
    fields, _ = jax.tree_util.tree_flatten_with_path(leaf)
    return {f"{name}/{field}": (x, known.get(field)) for field, x in ((parameters.name_of(path), x) for path, x in fields)}


def _spec(name, shape, axes, mesh, rules, logged) -> PartitionSpec:
    """One entry a dimension. A mesh axis is used once, by the first that asks; what does not divide stays whole."""
    if axes is None:
        return PartitionSpec(*[None] * len(shape))
    if len(axes) != len(shape):
        raise ValueError(f"{name} has shape {shape} and logical axes {axes}: one axis a dimension")
    used, entries = set(), []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in rules:
            raise ValueError(f"{name} has the logical axis {axis!r}; the rules know {', '.join(rules)}")
        over = tuple(a for a in (rules[axis] if axis else ()) if mesh.shape[a] > 1 and a not in used)
        ways = math.prod(mesh.shape[a] for a in over)
        if size % ways:
            note = f"{axis}={size} does not divide over {'×'.join(over)}={ways}"
            if note not in logged:
                logging.warning("sharding: %s (%s): that axis is copied instead", note, name)
            logged.add(note)
            over = ()
        used.update(over)
        entries.append(over if len(over) > 1 else over[0] if over else None)
    return PartitionSpec(*entries)


def _slot_spec(path, shape, specs) -> PartitionSpec:
    """The spec of a leaf of the optimizer's state: its path ends in the name of the parameter it is kept for."""
    cut = next((i for i in reversed(range(len(path))) if not isinstance(path[i], jax.tree_util.DictKey)), -1)
    name = parameters.name_of(path[cut + 1 :])
    if name not in specs:
        return PartitionSpec()
    of_shape, spec = specs[name]
    if shape == of_shape:
        return spec
    # Adafactor sums over its largest axis for v_row, over the second largest for v_col (optax.scale_by_factored_rms).
    summed = {"v_row": -1, "v_col": -2}.get(parameters.name_of(path[cut : cut + 1]))
    if summed is None or len(shape) != len(of_shape) - 1:
        return PartitionSpec()
    axis = int(np.argsort(of_shape)[summed])
    kept = PartitionSpec(*spec[:axis], *spec[axis + 1 :])
    return kept if shape == of_shape[:axis] + of_shape[axis + 1 :] else PartitionSpec()


@contextlib.contextmanager
def rows_stay_split(mesh: Mesh) -> Iterator[None]:
    """While a model is traced in here, what its modules compute for the rows of a batch stays split by rows.

    Left alone, XLA may well gather the activations of all rows on every device in place of one layer's parameters. So
    each array that a module's method returns, and whose first dimension is the batch's, is held to `row_sharding`; its
    other dimensions, and every number, are left as they were. Models need not know of meshes.
    """
    rows = None

    def pin(value):
        if getattr(value, "ndim", 0) < 2 or value.shape[0] != rows:
            return value
        spec = PartitionSpec(ROWS, *[PartitionSpec.UNCONSTRAINED] * (value.ndim - 1))
        return jax.lax.with_sharding_constraint(value, NamedSharding(mesh, spec))

    def interceptor(call, args, kwargs, context):
        nonlocal rows
        fields = [leaf for leaf in jax.tree.leaves(args) if getattr(leaf, "ndim", 0)]
        if rows is not None or not fields:  # without arrays it is a helper of `setup`, which runs before that call
            return jax.tree.map(pin, call(*args, **kwargs))
        rows = fields[0].shape[0]  # The outermost call has the batch.
        try:
            return jax.tree.map(pin, call(*args, **kwargs))
        finally:
            rows = None

    with nn.intercept_methods(interceptor) if mesh.size > 1 else contextlib.nullcontext():
        yield
