"""Which query may look at which key.

Axes: B batch rows, T target (query) length, S source (key) length.

A row of a batch may hold several packed examples: `segments` say which position belongs to which (1, 2, …; 0 is
padding). A query sees the keys of its own segment, and in a causal mask only those whose index in the row is not
larger than its own. A segment stands without gaps in its row, so that index-causal within a segment is causal, and
distances within it are differences of indices.
"""

import jax
import jax.numpy as jnp
from flax import struct

from transformers_jax.layers.gather import gather


@struct.dataclass
class Mask:
    """Segments of queries and keys, kept apart so that kernels can use them without the [T, S] square.

    query_segments: [B, T] int32, 0 is padding.
    key_segments: [B, S] int32, 0 is padding.
    causal: static; a query sees no key with a larger index in the row.
    window: static; a query sees no key that is `window` positions away or more (Beltagy et al. 2020; Jiang et al. 2023).
      0 is no window. Self-attention only.
    positions: [B, T] int32, of a row that attends to itself, for layers that rotate queries and keys by them; None
      where nothing asks for them. They have no part in which key is seen.
    """

    query_segments: jax.Array
    key_segments: jax.Array
    causal: bool = struct.field(pytree_node=False, default=False)
    window: int = struct.field(pytree_node=False, default=0)
    positions: jax.Array | None = None

    def dense(self) -> jax.Array:
        """Bool [B, 1, T, S], true where a query sees a key. Rows of padding queries are all false."""
        seen = same_segment(self.query_segments, self.key_segments, self.causal)
        return (seen & near_square(*seen.shape[1:], self.window) if self.window else seen)[:, None]

    def at(self, positions: jax.Array) -> "Mask":
        """The mask of queries at positions [B, M] of their rows alone.

        Raises:
          ValueError: the mask is causal or has a window or positions, which tell queries by their place in the array.
        """
        if self.causal or self.window or self.positions is not None:
            raise ValueError("a causal mask has no part: its queries stand where they stand in the row")
        return self.replace(query_segments=gather(self.query_segments, positions))

    def rows(self) -> jax.Array:
        """Bool [B, T], true where a query sees at least one key; compiled as one reduction, without the square."""
        return jnp.any(self.dense()[:, 0], axis=-1)


@struct.dataclass
class Place:
    """Where a step of decoding stands, of rows that begin with prompts of different lengths: step i of row b is position
    before[b] + i, and sees the first before[b] positions of its prompt and the steps up to its own.

    index: [] int32, i.
    before: [B] int32, how many positions of the row's prompt are read: all but its last token, which is step 0's.
    window: as in `Mask`.
    """

    index: jax.Array
    before: jax.Array
    window: int = struct.field(pytree_node=False, default=0)

    def positions(self) -> jax.Array:
        """The position of each row's token, [B, 1]."""
        return (self.before + self.index)[:, None]

    def prompt(self, length: int) -> jax.Array:
        """Which of `length` positions of the prompts are seen, bool [B, 1, 1, length]."""
        keys, before = jnp.arange(length), self.before[:, None]  # [length], [B, 1]
        seen = keys < before
        return (seen & (before + self.index - keys < self.window) if self.window else seen)[:, None, None]

    def steps(self, length: int) -> jax.Array:
        """Which of `length` steps are seen, bool [length]."""
        steps = jnp.arange(length)
        seen = steps <= self.index
        return seen & (self.index - steps < self.window) if self.window else seen


def same_segment(query_segments: jax.Array, key_segments: jax.Array, causal: bool = False) -> jax.Array:
    """Bool [B, T, S]: query and key belong to one example, neither is padding, and if causal no key comes later."""
    queries, keys = query_segments[:, :, None], key_segments[:, None, :]
    seen = (queries == keys) & (queries > 0)
    return seen & causal_square(queries.shape[1], keys.shape[2]) if causal else seen


def causal_square(query_length: int, key_length: int) -> jax.Array:
    """Bool [T, S], true where key index <= query index."""
    return jnp.arange(query_length)[:, None] >= jnp.arange(key_length)[None, :]


def near_square(query_length: int, key_length: int, window: int) -> jax.Array:
    """Bool [T, S], true where query index and key index are less than `window` apart."""
    return jnp.abs(jnp.arange(query_length)[:, None] - jnp.arange(key_length)[None, :]) < window


def self_mask(segments: jax.Array, *, causal: bool = False) -> Mask:
    """The mask of a row that attends to itself; segments [B, T]."""
    return Mask(segments, segments, causal)


def cross_mask(query_segments: jax.Array, key_segments: jax.Array) -> Mask:
    """The mask of a decoder's rows [B, T] over an encoder's rows [B, S]: example 1 reads source 1, and so on."""
    return Mask(query_segments, key_segments)


def padding_mask(key_valid: jax.Array, query_valid: jax.Array | None = None, *, causal: bool = False) -> Mask:
    """The mask of rows without packing, from where there are real tokens.

    Args:
      key_valid: [B, S] bool or 0/1, true at real keys.
      query_valid: [B, T] likewise; the keys' where not given (self-attention).
      causal: as in `Mask`.
    """
    keys = key_valid.astype(jnp.int32)
    return Mask(keys if query_valid is None else query_valid.astype(jnp.int32), keys, causal)


def lengths_mask(key_lengths: jax.Array, key_length: int, *, causal: bool = False) -> Mask:
    """The self-attention mask of rows of `key_length` positions of which the first `key_lengths` [B] are real."""
    return padding_mask(jnp.arange(key_length)[None, :] < key_lengths[:, None], causal=causal)
