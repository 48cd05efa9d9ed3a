"""The kernels behind `attention.dot_product_attention`: the same numbers by different machines.

Axes: B batch rows, T target (query) length, S source (key) length, N heads, K key heads, H head width.

Every kernel takes q [B, T, N, H], k and v [B, S, K, H], K dividing N: each N / K query heads in a row share one head of keys
and values, which is never repeated in memory (Ainslie et al. 2023). It gives [B, T, N, H] in v's dtype. Scores are divided by
sqrt(H) (Vaswani et al. 2017, section 3.2.1), the softmax runs in float32, and a query that sees no key gives zeros.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from transformers_jax.layers.dropout import keep_mask
from transformers_jax.layers.masks import Mask
from transformers_jax.mesh import ROWS

MASKED = -1e30
"""Score of a key that must not be seen: finite, so that a fully masked row makes no NaN; its output is zeroed after."""

LANES = 128
"""Width of a TPU's vector registers: splash attention's blocks and heads come in multiples of it."""

HEAD_AXIS = "tensor"
"""The axis of the mesh that splits heads."""


def dense_mask(mask: Mask | jax.Array | None) -> jax.Array | None:
    """Bool mask of four axes that broadcasts to [B, N, T, S], or None where every query sees every key."""
    if isinstance(mask, Mask):
        return mask.dense()
    return None if mask is None else jnp.reshape(mask, (1,) * (4 - mask.ndim) + mask.shape)


def heads_first(x: jax.Array) -> jax.Array:
    """[B, T, N, H] ↔ [B, N, T, H]."""
    return jnp.swapaxes(x, 1, 2)


def xla(q, k, v, mask=None, *, bias=None, dropout_rate=0.0, dropout_rng=None):
    """Plain matrix products that XLA compiles for any device: (output [B, T, N, H], weights [B, N, T, S]).

    Args:
      q, k, v: as above.
      mask: `Mask`, bool broadcastable to [B, N, T, S], or None.
      bias, dropout_rate, dropout_rng: as in `product`.
    """
    options = {"bias": bias, "dropout_rate": dropout_rate, "dropout_rng": dropout_rng}
    out, weights = product(heads_first(q), heads_first(k), heads_first(v), dense_mask(mask), **options)
    return heads_first(out), weights


def product(q, k, v, seen=None, *, bias=None, dropout_rate=0.0, dropout_rng=None):
    """Attention of arrays that stand heads first, the layout in which batched products run best.

    Args:
      q: [B, N, T, H].
      k, v: [B, K, S, H].
      seen: bool broadcastable to [B, N, T, S], true where a query sees a key; None for everywhere.
      bias: added to the scaled scores, broadcastable to [B, N, T, S].
      dropout_rate: share of weights set to zero; the others are divided by 1 - rate.
      dropout_rng: key; needed if the rate is not 0.

    Returns:
      (output [B, N, T, H], weights [B, N, T, S] as they were applied, after dropout).
    """
    scores = scaled_scores(q, k)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    weights = masked_softmax(scores, seen)
    if dropout_rate:
        keep = keep_mask(dropout_rng, dropout_rate, weights.shape)
        weights = jnp.where(keep, weights * (1.0 / (1.0 - dropout_rate)), 0.0)
    weights = weights.astype(v.dtype)
    return weighted(weights, v), weights


def joined_product(q, parts):
    """Attention over keys that lie in several arrays, which are not copied together: one softmax over all of them.

    Args:
      q: [B, N, T, H].
      parts: of (k, v, seen) as in `product`. Keys and values may have fewer rows, each of them for B / rows of q side by side.

    Returns:
      [B, N, T, H].
    """
    scores = [_side_by_side(scaled_scores, q, k) for k, _, _ in parts]
    seen = [jnp.broadcast_to(seen, x.shape) for x, (_, _, seen) in zip(scores, parts, strict=True)]
    weights = masked_softmax(jnp.concatenate(scores, axis=-1), jnp.concatenate(seen, axis=-1))
    ends = np.cumsum([x.shape[-1] for x in scores])[:-1]
    of_parts = zip(jnp.split(weights, ends, axis=-1), parts, strict=True)
    return sum(_side_by_side(weighted, w.astype(v.dtype), v) for w, (_, v, _) in of_parts)


def _side_by_side(product, x, shared):
    """product(x, shared) of x [B, N, T, …] with an array of fewer rows: rows that share one become its queries.

    So the outputs of one prompt read its keys and values together, which are not copied.
    """
    rows, times = shared.shape[0], x.shape[0] // shared.shape[0]
    if times == 1:
        return product(x, shared)
    _, N, T, _ = x.shape
    queries = x.reshape(rows, times, N, T, -1).swapaxes(1, 2).reshape(rows, N, times * T, -1)
    out = product(queries, shared).reshape(rows, N, times, T, -1).swapaxes(1, 2)
    return out.reshape(x.shape[0], N, T, -1)


def scaled_scores(q, k):
    """q · k / sqrt(H) of q [B, N, T, H] and k [B, K, S, H]: [B, N, T, S] float32."""
    q = q * q.shape[-1] ** -0.5
    if q.shape[1] == k.shape[1]:
        return jnp.einsum("BNTH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32)
    rows = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # [B, K, N / K · T, H]
    scores = jnp.einsum("BKMH,BKSH->BKMS", rows, k, preferred_element_type=jnp.float32)
    return scores.reshape(*q.shape[:3], k.shape[2])  # [B, N, T, S]


def weighted(weights, v):
    """Values v [B, K, S, H] summed by weights [B, N, T, S]: [B, N, T, H]."""
    if weights.shape[1] == v.shape[1]:
        return jnp.einsum("BNTS,BNSH->BNTH", weights, v)
    rows = weights.reshape(v.shape[0], v.shape[1], -1, v.shape[2])  # [B, K, N / K · T, S]
    return jnp.einsum("BKMS,BKSH->BKMH", rows, v).reshape(*weights.shape[:3], v.shape[3])  # [B, N, T, H]


def masked_softmax(scores: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Softmax over the last axis of float32 scores; zeros where not seen, so all zeros in a row that sees nothing."""
    if seen is None:
        return jax.nn.softmax(scores, axis=-1)
    return jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1), 0.0)


def cudnn(q, k, v, mask=None):
    """cuDNN's fused attention on NVIDIA GPUs; segments and window are an additive [B, 1, T, S] mask, causality is a flag."""
    causal = isinstance(mask, Mask) and mask.causal and q.shape[1] == k.shape[1]
    seen = dense_mask(mask.replace(causal=False) if causal else mask)
    if seen is not None:  # cuDNN wants the whole square, not its broadcast form
        seen = jnp.broadcast_to(seen, (*seen.shape[:2], q.shape[1], k.shape[1]))
    out = jax.nn.dot_product_attention(q, k, v, mask=seen, is_causal=causal, implementation="cudnn")
    return zero_unseeing(out, mask)


def splash(q, k, v, mask=None, *, interpret: bool = False):
    """Pallas splash attention on TPUs: segments, window and causality inside the kernel, no [T, S] square in memory.

    Heads are padded with zeros to a multiple of 128. Under a mesh in context (`jax.set_mesh`) the kernel runs once a
    device, on its share of rows (axes "data", "fsdp") and heads (axis "tensor").

    Args:
      interpret: run the kernel's program on any device, slowly; for tests.
    """
    width = q.shape[-1]
    mask = Mask(*_ones(q, k)) if mask is None else mask
    padding = ((0, 0), (0, 0), (0, 0), (0, -width % LANES))
    padded = [heads_first(jnp.pad(x, padding)) for x in (q * width**-0.5, k, v)]
    run = functools.partial(_splash, causal=mask.causal, window=mask.window, interpret=interpret)
    out = _over_mesh(run)(*padded, mask.query_segments, mask.key_segments)
    return zero_unseeing(heads_first(out)[..., :width].astype(v.dtype), mask)


def _splash(q, k, v, query_segments, key_segments, *, causal, window, interpret):
    """Splash attention over q [B, N, T, H], k, v [B, K, S, H] and segments [B, T], [B, S] of one device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    shape = (q.shape[2], k.shape[2])
    block_q, block_kv = (next(b for b in (512, 256, 128) if n % b == 0) for n in shape)
    if window:
        seen = library.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)
    else:
        seen = (library.CausalMask if causal else library.FullMask)(shape)
    heads = library.MultiHeadMask([seen] * q.shape[1])
    kernel = library.make_splash_mha_single_device(
        heads,
        block_sizes=library.BlockSizes(
            block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv,
            block_q_dkv=block_q, block_kv_dkv=block_kv, block_kv_dkv_compute=block_kv,
            block_q_dq=block_q, block_kv_dq=block_kv,
        ),
        interpret=interpret,
    )  # fmt: skip
    return jax.vmap(kernel)(q, k, v, library.SegmentIds(query_segments, key_segments))


def shares() -> tuple[int, int] | None:
    """Into how many shares the mesh in context splits (rows, heads); None for several devices without such a mesh.

    (1, 1) on one device, and under pmap or shard_map, where the program is already that of one device; None where
    shard_map leaves an axis to be split automatically.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return (1, 1) if jax.device_count() == 1 else None
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    split = {axis for axis, size in sizes.items() if size > 1}
    if split <= set(mesh.manual_axes):
        return 1, 1
    if set(mesh.axis_types) != {AxisType.Auto}:
        return None
    return math.prod(sizes.get(axis, 1) for axis in ROWS), sizes.get(HEAD_AXIS, 1)


def _over_mesh(run):
    """`run` on every device of the mesh in context, each with its share of rows and heads."""
    if shares() in ((1, 1), None):
        return run
    names = jax.sharding.get_abstract_mesh().axis_names
    rows = tuple(axis for axis in ROWS if axis in names) or None
    square, segments = PartitionSpec(rows, HEAD_AXIS if HEAD_AXIS in names else None), PartitionSpec(rows)
    return jax.shard_map(run, in_specs=(square,) * 3 + (segments,) * 2, out_specs=square, check_vma=False)


def _ones(q, k):
    """Segments of rows without padding: one example each."""
    return jnp.ones(q.shape[:2], jnp.int32), jnp.ones(k.shape[:2], jnp.int32)


def zero_unseeing(out: jax.Array, mask: Mask | jax.Array | None) -> jax.Array:
    """`out` [B, T, N, H] with zeros where the query sees no key; gradients through those rows are zero too."""
    if mask is None:
        return out
    rows = mask.rows()[:, None] if isinstance(mask, Mask) else jnp.any(dense_mask(mask), axis=-1)  # [B, 1 or N, T or 1]
    return jnp.where(jnp.swapaxes(rows, 1, 2)[..., None], out, 0)
