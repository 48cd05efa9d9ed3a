"""Cross entropy with label smoothing over a large vocabulary, without ever holding all logits.

The logits of 4,096 positions and 8,000 pieces are 131 MB, those of a pretraining batch gigabytes. The loss therefore takes
hidden states and the output embedding, walks over the positions in chunks, and forms each chunk's gradient while its logits
are still in the cache: three matrix products in all, and memory for one chunk.

Axes: B batch rows, T target length, C length of a chunk, D model width, V vocabulary.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


def chunk_elements() -> int:
    """Logits held at once: what stays in a CPU's last-level cache (16 MB in float32), more on accelerators (512 MB)."""
    return 2**22 if jax.default_backend() == "cpu" else 2**27


class Sums(NamedTuple):
    """Sums over positions, each weighted, as float32 scalars: divide by `weight` for means.

    loss: cross entropy with the smoothed targets, nats.
    nll: cross entropy with the true targets, nats: exp(nll / weight) is the perplexity.
    correct: positions whose most probable piece is the target.
    weight: sum of the weights.
    """

    loss: jax.Array
    nll: jax.Array
    correct: jax.Array
    weight: jax.Array


def cross_entropy(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, label_smoothing: float = 0.0
) -> Sums:
    """Softmax cross entropy of logits `hidden @ table.T`, in float32.

    With smoothing ε the target distribution is 1 - ε on the true piece plus ε / V on every piece (Szegedy et al. 2016,
    section 7; Vaswani et al. 2017, section 5.4).

    Chunks run along T, so that rows may be spread over devices.

    Args:
      hidden: [B, T, D] final hidden states.
      table: [V, D] output embedding.
      targets: [B, T] int, the true pieces.
      weights: [B, T] float or bool; positions of weight 0 do not count.
      label_smoothing: ε in [0, 1).

    Returns:
      Sums; only `loss` has a gradient, with respect to `hidden` and `table`.
    """
    rows, length = targets.shape
    chunk = min(length, max(1, chunk_elements() // (rows * table.shape[0])))
    chunks = -(-length // chunk)
    chunk = -(-length // chunks)

    def split(x):  # [B, T, …] → [chunks, B, C, …]
        x = jnp.pad(x, [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, chunks, chunk, *x.shape[2:]), 1, 0)

    weights = weights.astype(jnp.float32)
    return Sums(*_chunked(label_smoothing, split(hidden), table, split(targets), split(weights)))


def _chunk(label_smoothing, table, hidden, targets, weights):
    """One chunk's sums, and a function that gives the gradient of its logits. hidden [B, C, D], targets, weights [B, C]."""
    logits = jnp.einsum("bcd,vd->bcv", hidden, table, preferred_element_type=jnp.float32)  # [B, C, V]
    top = jnp.max(logits, axis=-1, keepdims=True)  # [B, C, 1]
    true = jnp.take_along_axis(logits, targets[..., None], axis=-1)  # [B, C, 1]
    exponentials = jnp.exp(logits - top)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    log_total = jnp.log(total) + top  # [B, C, 1]
    nll = (log_total - true)[..., 0]
    smooth = log_total[..., 0] - jnp.mean(logits, axis=-1) if label_smoothing else nll
    loss = (1.0 - label_smoothing) * nll + label_smoothing * smooth
    sums = tuple(jnp.sum(weights * x) for x in (loss, nll, (true == top)[..., 0], jnp.ones_like(nll)))

    def gradient():
        uniform = label_smoothing / table.shape[0]
        one_hot = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
        dlogits = exponentials / total - jnp.where(one_hot, 1.0 - label_smoothing + uniform, uniform)
        return (dlogits * weights[..., None]).astype(hidden.dtype)

    return sums, gradient


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(label_smoothing, hidden, table, targets, weights):
    def step(sums, chunk):
        new, _ = _chunk(label_smoothing, table, *chunk)
        return jax.tree.map(jnp.add, sums, new), None

    sums, _ = jax.lax.scan(step, (jnp.zeros(()),) * 4, (hidden, targets, weights))
    return sums


def _chunked_forward(label_smoothing, hidden, table, targets, weights):
    def step(carry, chunk):
        sums, dtable = carry
        new, gradient = _chunk(label_smoothing, table, *chunk)
        dlogits = gradient()  # [B, C, V]
        dhidden = jnp.einsum("bcv,vd->bcd", dlogits, table)
        dtable += jnp.einsum("bcv,bcd->vd", dlogits, chunk[0], preferred_element_type=jnp.float32)
        return (jax.tree.map(jnp.add, sums, new), dtable), dhidden

    start = ((jnp.zeros(()),) * 4, jnp.zeros(table.shape, jnp.float32))
    (sums, dtable), dhidden = jax.lax.scan(step, start, (hidden, targets, weights))
    return sums, (dhidden, dtable.astype(table.dtype))


def _chunked_backward(label_smoothing, saved, cotangents):
    dhidden, dtable = saved
    scale = cotangents[0]
    return (dhidden * scale.astype(dhidden.dtype), dtable * scale.astype(dtable.dtype), None, None)


_chunked.defvjp(_chunked_forward, _chunked_backward)
