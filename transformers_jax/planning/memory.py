"""Memory a step takes on each device: what the state occupies there, and what XLA reserves for everything together."""

import math
from typing import NamedTuple

import jax


class Memory(NamedTuple):
    """Bytes on one device.

    state: parameters, optimizer moments and running statistics, as they are sharded.
    batch: the batch's share.
    temporaries: activations and gradients, as XLA laid them out; None where the backend does not tell.
    """

    state: int
    batch: int
    temporaries: int | None

    @property
    def total(self) -> int:
        return self.state + self.batch + (self.temporaries or 0)


def of_step(compiled, state, batch) -> Memory:
    """Memory of a compiled training step.

    Args:
      compiled: `jax.jit(step).lower(state, batch).compile()`.
      state, batch: arrays or `jax.ShapeDtypeStruct`s; where they have shardings, one device's share counts.
    """
    analysis = compiled.memory_analysis()
    temporaries = None if analysis is None else int(analysis.temp_size_in_bytes)
    return Memory(per_device(state), per_device(batch), temporaries)


def per_device(tree) -> int:
    """Bytes of a tree on one device: each leaf's shard in its dtype."""
    return sum(math.prod(_shard(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _shard(leaf) -> tuple[int, ...]:
    sharding = getattr(leaf, "sharding", None)
    return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)


def available(device) -> int | None:
    """Bytes that a device lets JAX use; None where it does not say, as CPUs do not."""
    statistics = device.memory_stats() or {}
    return statistics.get("bytes_limit")
