"""The mesh of devices: its axes, how it is made, and how the rows of a batch lie on it. A leaf of the import graph.

The mesh has three axes. `data` copies parameters and splits rows; `fsdp` splits rows and, along "embed", parameters too
(Rajbhandari et al. 2020, ZeRO stage 3); `tensor` splits vocabulary, heads and hidden units (Shoeybi et al. 2019).
"""

import functools
import math
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformers_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""Mesh axes that split the rows of a batch."""


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
