"""Embeddings: of tokens, BERT's sum of embeddings, and the transform in front of a masked language model's softmax.

Axes: B batch rows, T length, D model width, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.feedforward import ACTIVATIONS
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.places import TablePlace, given, note
from transformers_jax.layers.positions import LearnedPositions
from transformers_jax.layers.projections import Linear
from transformers_jax.layers.quantized import is_quantized, product


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


def lookup(table: Any, tokens: jax.Array, dtype) -> jax.Array:
    """Rows of the table as they are: table [V, D], or a kernel [D, V] in blocks; tokens [...] → [..., D]."""
    if is_quantized(table):
        return table.columns(tokens).astype(dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if "tensor" in mesh.axis_names and not mesh.manual_axes:  # gather the table's columns, not the looked-up rows
        table = jax.lax.with_sharding_constraint(table, PartitionSpec("tensor", None))
    return jnp.take(table, tokens, axis=0).astype(dtype)


def token_scores(hidden: jax.Array, table: Any) -> jax.Array:
    """Products of hidden [n, D] with the rows of a table [V, D], or of a kernel [D, V] in blocks: [n, V] float32."""
    if is_quantized(table):
        return product(hidden.astype(jnp.float32), table)
    return jnp.einsum("nd,vd->nv", hidden, table, preferred_element_type=jnp.float32)


def held_table(module: nn.Module, name: str, vocab_size: int, width: int, param_dtype, stddev: float) -> Any:
    """`embedding_table`, or what stands in its place in blocks: a kernel [D, V]."""
    note(module, name, TablePlace((vocab_size, width)))
    found = given(module, name)
    return found if is_quantized(found) else embedding_table(module, name, vocab_size, width, param_dtype, stddev)


class Embeddings(nn.Module):
    """Tokens, positions and kinds of tokens, added up, normalised and dropped out (Devlin et al. 2019, figure 2).

    Parameters: word [V, D], position/embedding [max_length, D], token_type [token_types, D], norm.

    max_length: rows of the table of positions.
    token_types: how many kinds there are; 0 for none, with 1 all tokens are of that kind.
    position_offset: row of position 0; those before it are never looked up.
    """

    vocab_size: int
    width: int
    max_length: int
    token_types: int
    position_offset: int
    dropout: float
    norm_epsilon: float
    stddev: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    def setup(self):
        self.word = embedding_table(self, "word", self.vocab_size, self.width, self.param_dtype, self.stddev)
        self.position = LearnedPositions(self.max_length, self.width, self.stddev, self.dtype, self.param_dtype)
        if self.token_types:
            init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), (None, "embed"))
            self.token_type = self.param("token_type", init, (self.token_types, self.width), self.param_dtype)
        self.norm = LayerNorm(self.norm_epsilon, self.dtype, self.param_dtype)
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        token_types: jax.Array | None = None,
        more: jax.Array | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """Vectors [B, T, D] of tokens, positions and token types [B, T].

        Args:
          token_types: None for all 0.
          more: [B, T, D] that is added before the norm.
        """
        x = lookup(self.word, tokens, self.dtype) + self.position(positions + self.position_offset)
        if self.token_types:
            x = x + self.kinds(token_types)
        x = self.norm(x if more is None else x + more)
        return self.drop(x, deterministic=deterministic)

    def kinds(self, token_types: jax.Array | None) -> jax.Array:
        """Vectors of token types [B, T], as [B, T, D] or [D]. A product: so few rows would all collect the gradient."""
        table = self.token_type.astype(self.dtype)
        if self.token_types == 1 or token_types is None:
            return table[0]
        chosen = jax.nn.one_hot(token_types, self.token_types, dtype=self.dtype)
        return jnp.matmul(chosen, table, precision="highest")

    def table(self) -> jax.Array:
        """The tokens' vectors [V, D], for the softmax that shares them."""
        return self.word.astype(self.dtype)


class TokenTransform(nn.Module):
    """Dense layer, activation and norm before the softmax over tokens: [..., D] → [..., width] (Devlin et al. 2019's code)."""

    width: int
    activation: str
    norm_epsilon: float
    stddev: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = Linear(self.width, ("embed", None), stddev=self.stddev, name="dense", **types)(x)
        return LayerNorm(self.norm_epsilon, name="norm", **types)(ACTIVATIONS[self.activation](x))
