"""Where arrays live: the mesh of devices, logical axes → mesh axes, and batches over it.

The mesh has three axes. `data` copies parameters and splits rows; `fsdp` splits rows and, along "embed", parameters too
(Rajbhandari et al. 2020, ZeRO stage 3); `tensor` splits vocabulary, heads and hidden units (Shoeybi et al. 2019).
Models name the axes of their parameters; RULES say what those are split over; XLA puts the communication in.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformers_jax import parameters
from transformers_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""Mesh axes that split the rows of a batch."""

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


def make_mesh(config: Mapping, devices: list | None = None) -> Mesh:
    """The mesh from `config.mesh`, whose keys data, fsdp and tensor are sizes; one may be -1: whatever is left.

    Args:
      config: a mapping; a missing key is 1, except data, which is -1.
      devices: all devices of all processes by default.

    Raises:
      UserError: an unknown key, a size that is neither positive nor -1, more than one -1, or a product that is not the
        number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if unknown := sorted(set(config) - set(AXES)):
        raise UserError(f"config.mesh.{unknown[0]} is not a mesh axis; there are {', '.join(AXES)}")
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | dict(config)
    shown = " ".join(f"{axis}={sizes[axis]}" for axis in AXES)
    if bad := [axis for axis in AXES if sizes[axis] < 1 and sizes[axis] != -1]:
        raise UserError(f"config.mesh.{bad[0]} is {sizes[bad[0]]}; give a positive size, or -1 for whatever is left")
    free = [axis for axis in AXES if sizes[axis] == -1]
    if len(free) > 1:
        raise UserError(f"config.mesh {shown}: only one axis may be -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes[axis] for axis in AXES) != len(devices):
        raise UserError(
            f"config.mesh {shown} does not fit {len(devices)} device(s): the product must be {len(devices)}; "
            f"set one axis to -1 and the others to divisors of {len(devices)}"
        )
    return _placed(tuple(sizes[axis] for axis in AXES), devices)


def _placed(shape: tuple[int, ...], devices: list) -> Mesh:
    """The mesh of a shape. One process leaves the order of devices to JAX, which knows the interconnect; of several each
    has its devices side by side, so that the rows it reads are side by side in a batch (see `data_shard`)."""
    types = (AxisType.Auto,) * len(AXES)
    if jax.process_count() == 1:
        try:
            return jax.make_mesh(shape, AXES, devices=devices, axis_types=types)
        except (ValueError, NotImplementedError, AssertionError) as error:  # several slices, say
            logging.info("the mesh has its devices in plain order: %s", error)
    else:
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=types)


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
    specs = {n: (x.shape, _spec(n, x.shape, axes.get(n), mesh, rules, logged)) for n, x in leaves.items()}

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
    )


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


@functools.lru_cache(maxsize=64)
def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows, the first dimension, split over data and fsdp; every other dimension whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


@functools.lru_cache(maxsize=64)
def data_shard(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads the index-th of `count` equal shares of each global batch.

    Processes whose devices hold the same rows, because `tensor` reaches across them, have the same index.

    Raises:
      UserError: the rows of some process are no such share.
    """
    ways = math.prod(mesh.shape[axis] for axis in ROWS)
    held: dict[int, set[int]] = {}  # process → the parts, of as many as there are ways, that its devices hold
    for device, (rows,) in row_sharding(mesh).devices_indices_map((ways,)).items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    size = len(held[jax.process_index()])
    for process, parts in sorted(held.items()):
        first = min(parts)
        if first % size or parts != set(range(first, first + size)):
            raise UserError(
                f"config.mesh data={mesh.shape['data']} × fsdp={mesh.shape['fsdp']} does not share out the rows of a batch "
                f"evenly: process {process} of {len(held)} would hold {len(parts)} of {ways} parts, from number {first}; let "
                f"data × fsdp be a multiple or a divisor of the number of processes"
            )
    return min(held[jax.process_index()]) // size, ways // size


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


def check_rows(rows: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that a global batch can be split over the mesh and into microbatches.

    Raises:
      UserError: it cannot; says which numbers of rows near it can.
    """
    ways = math.prod(mesh.shape[axis] for axis in ROWS)
    if rows % (ways * accumulate):
        step = ways * accumulate
        near = " or ".join(str(n) for n in (rows // step * step, rows // step * step + step) if n)
        times = f" × config.training.accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"config.data.batch_size: a batch of {rows} rows does not divide over the mesh's "
            f"data={mesh.shape['data']} × fsdp={mesh.shape['fsdp']}{times}; take {near}"
        )


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, *, parallelism: str = "jit") -> dict[str, jax.Array]:
    """A batch on the devices, from the rows that this process has read.

    Args:
      batch: fields [rows of this process, ...], in this process's place in the global batch (see `data_shard`).
      parallelism: "jit" gives fields [B, ...] with rows over the mesh; "pmap" [devices, B / devices, ...].

    Raises:
      UserError: the global number of rows does not divide over the mesh.
    """
    _, count = data_shard(mesh)
    rows = len(next(iter(batch.values())))
    check_rows(rows * count, mesh)
    if parallelism == "pmap":
        batch = {name: value.reshape(mesh.size, -1, *value.shape[1:]) for name, value in batch.items()}
    return jax.make_array_from_process_local_data(row_sharding(mesh), dict(batch))
