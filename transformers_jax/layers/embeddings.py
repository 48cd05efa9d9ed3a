"""Token embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def embedding_table(
    module: nn.Module, name: str, vocab_size: int, width: int, param_dtype, stddev: float | None = None
) -> jax.Array:
    """Declares an embedding [V, D] in `module`, drawn from N(0, stddev²).

    stddev: D^-½ if not given, so that lookups scaled by √D have unit variance.
    """
    stddev = width**-0.5 if stddev is None else stddev
    init = nn.with_logical_partitioning(nn.initializers.normal(stddev), ("vocab", "embed"))
    return module.param(name, init, (vocab_size, width), param_dtype)


def embed(table: jax.Array, tokens: jax.Array, dtype) -> jax.Array:
    """Rows of the table scaled by √D (Vaswani et al. 2017, section 3.4): table [V, D], tokens [...] → [..., D]."""
    return lookup(table, tokens, dtype) * jnp.asarray(table.shape[-1] ** 0.5, dtype)


def lookup(table: jax.Array, tokens: jax.Array, dtype) -> jax.Array:
    """Rows of the table as they are: table [V, D], tokens [...] → [..., D]."""
    mesh = jax.sharding.get_abstract_mesh()
    if "tensor" in mesh.axis_names and not mesh.manual_axes:  # gather the table's columns, not the looked-up rows
        table = jax.lax.with_sharding_constraint(table, PartitionSpec("tensor", None))
    return jnp.take(table, tokens, axis=0).astype(dtype)
