"""Token embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def embedding_table(module: nn.Module, name: str, vocab_size: int, width: int, param_dtype) -> jax.Array:
    """Declares an embedding [V, D] in `module`, drawn from N(0, D^-½), so that lookups scaled by √D have unit variance."""
    init = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), ("vocab", "embed"))
    return module.param(name, init, (vocab_size, width), param_dtype)


def embed(table: jax.Array, tokens: jax.Array, dtype) -> jax.Array:
    """Rows of the table scaled by √D (Vaswani et al. 2017, section 3.4): table [V, D], tokens [...] → [..., D]."""
    return jnp.take(table, tokens, axis=0).astype(dtype) * jnp.asarray(table.shape[-1] ** 0.5, dtype)
