"""Where a position stands: sinusoids, learned vectors, relative positions, and rotations.

Axes: B batch rows, T target (query) length, S source (key) length, D model width, N heads, H head width.

Positions are int32 arrays that count from 0 within each packed example, so that a packed row holds the same vectors as
its examples alone.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.errors import UserError

STYLES = ("interleaved", "concatenated")


def frequencies(width: int, style: str = "interleaved") -> np.ndarray:
    """Angular frequency of each (sine, cosine) pair, [ceil(width / 2)] float64, from 1 down to about 1e-4.

    interleaved: 10000^(-2i/D) (Vaswani et al. 2017, section 3.5).
    concatenated: a geometric series from 1 to 1e-4 inclusive, ratio 10000^(-1/(D/2 - 1)) (tensor2tensor's
      get_timing_signal_1d, min_timescale 1, max_timescale 1e4).

    Raises:
      UserError: no such style.
    """
    pairs = (width + 1) // 2
    if style == "interleaved":
        return 10000.0 ** (-2.0 * np.arange(pairs) / width)
    if style == "concatenated":
        return 10000.0 ** (-np.arange(pairs) / max(width // 2 - 1, 1))
    raise UserError(f"positions style {style!r} is none of {', '.join(STYLES)}")


def _arrange(sines, cosines, width: int, style: str, library):
    """Sines and cosines [..., ceil(D / 2)] put together as [..., D]; an odd width leaves out the last cosine."""
    if style == "interleaved":
        both = library.stack([sines, cosines], axis=-1)
        return both.reshape(*both.shape[:-2], -1)[..., :width]
    return library.concatenate([sines, cosines[..., : width // 2]], axis=-1)


def sinusoidal(length: int, width: int, style: str = "interleaved") -> np.ndarray:
    """Sinusoidal position vectors of positions 0 to length - 1, [length, D] float32, computed in float64.

    Args:
      length: number of positions.
      width: D.
      style: "interleaved": sine at even, cosine at odd places (Vaswani et al. 2017, section 3.5); "concatenated": all
        sines, then all cosines (tensor2tensor). `frequencies` says how they differ besides.

    Raises:
      UserError: no such style.
    """
    angles = np.arange(length)[:, None] * frequencies(width, style)
    return _arrange(np.sin(angles), np.cos(angles), width, style, np).astype(np.float32)


def sinusoidal_at(
    positions: jax.Array, width: int, style: str = "interleaved", *, length: int | None = None
) -> jax.Array:
    """Sinusoidal position vectors of int positions [...], as [..., D] float32.

    Args:
      positions: e.g. [B, T] of a packed batch, or a scalar.
      width, style: as in `sinusoidal`.
      length: bound of the positions, if known: they are then looked up in a table of `length` rows, which is quicker
        than sines. A position beyond it gives NaN.
    """
    if length is not None:
        table = jnp.asarray(sinusoidal(length, width, style))
        return jnp.take(table, positions, axis=0, mode="fill", fill_value=jnp.nan)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies(width, style), jnp.float32)
    return _arrange(jnp.sin(angles), jnp.cos(angles), width, style, jnp)


class LearnedPositions(nn.Module):
    """One learned vector a position (Gehring et al. 2017, section 3.1).

    Parameter: embedding [max_length, D]. A position out of range that is known only when the program runs gives NaN,
    so that it cannot pass unnoticed.
    """

    max_length: int
    width: int
    stddev: float = 0.02
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, positions: jax.Array, *, longest: int | None = None) -> jax.Array:
        """Vectors [..., D] of int positions [...].

        Args:
          longest: length of the longest example, if known before the run; it is then compared with max_length.

        Raises:
          UserError: `longest`, or positions whose values are known while tracing, do not fit into max_length.
        """
        if not isinstance(positions, jax.core.Tracer) and np.size(positions):
            if np.min(positions) < 0:
                raise UserError(f"position {np.min(positions)} is negative")
            longest = max(longest or 0, int(np.max(positions)) + 1)
        if longest is not None and longest > self.max_length:
            raise UserError(
                f"{longest} positions do not fit into the {self.max_length} learned ones (max_length): "
                "cut the examples, or raise max_length and train anew"
            )
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), (None, "embed"))
        table = self.param("embedding", init, (self.max_length, self.width), self.param_dtype)
        return jnp.take(table.astype(self.dtype), positions, axis=0, mode="fill", fill_value=jnp.nan)


def relative_index(query_positions: jax.Array, key_positions: jax.Array, distance: int) -> jax.Array:
    """clip(key position - query position, -k, k) + k (Shaw et al. 2018, section 3.2), int32 [T, S] in 0 … 2 k.

    Args:
      query_positions: [T] ints.
      key_positions: [S] ints.
      distance: k, beyond which offsets are no longer told apart.
    """
    return jnp.clip(key_positions[None, :] - query_positions[:, None], -distance, distance) + distance


class RelativePositions(nn.Module):
    """One learned vector an offset of key and query (Shaw et al. 2018, section 3.2).

    Parameter: embedding [2 k + 1, H], shared by all heads.
    """

    distance: int
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, query_positions: jax.Array, key_positions: jax.Array, width: int) -> jax.Array:
        """Vectors [T, S, H] of every pair of query positions [T] and key positions [S]; H is `width`."""
        init = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), (None, "kv"))
        table = self.param("embedding", init, (2 * self.distance + 1, width), self.param_dtype)
        table = table if self.dtype is None else table.astype(self.dtype)
        return table[relative_index(query_positions, key_positions, self.distance)]


SCALINGS = ("", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021, section 3.2): queries and keys are turned by angles that grow with their positions,
    so that their product depends on the distance alone.

    Pair i of a head is (i, i + H/2), the layout of `transformers`; it turns by position · theta^(-2i/H).

    scaling: "" for none; "linear" divides all frequencies by `factor` (Chen et al. 2023); "llama3" (Dubey et al. 2024's
      code) those whose wavelength is longer than original_length / low_freq_factor, keeps those shorter than
      original_length / high_freq_factor, and blends between.
    original_length: positions that the model was trained on before it was scaled.
    """

    theta: float = 10000.0
    scaling: str = ""
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        if self.scaling not in SCALINGS:
            raise UserError(f"rotary scaling {self.scaling!r} is none of {', '.join(map(repr, SCALINGS))}")

    def frequencies(self, width: int) -> np.ndarray:
        """Radians a position of each pair, [H/2] float64, for heads of `width` H.

        Raises:
          UserError: an odd width, which has no pairs.
        """
        if width % 2:
            raise UserError(f"rotary positions turn pairs: the head width {width} is odd; give another head_width")
        plain = self.theta ** (-np.arange(0, width, 2) / width)
        if not self.scaling:
            return plain
        if self.scaling == "linear":
            return plain / self.factor
        waves = self.original_length * plain / (2 * math.pi)  # whole turns within the original length
        kept = np.clip((waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return kept * plain + (1 - kept) * plain / self.factor

    def rotate(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """x [B, T, N, H] turned by its positions [B, T], in float32; the result has x's dtype."""
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(self.frequencies(x.shape[-1]), jnp.float32)
        cosines, sines = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # [B, T, 1, H/2]
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # [B, T, N, H/2]
        turned = (first * cosines - second * sines, second * cosines + first * sines)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)
