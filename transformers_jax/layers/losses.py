"""Cross entropy with label smoothing over a large vocabulary, without ever holding all logits.

The logits of 4,096 positions and 8,000 tokens are 131 MB, those of a pretraining batch gigabytes. The loss therefore takes
hidden states and the output embedding, walks over the positions in chunks, and forms each chunk's gradient while its logits
are still in the cache: three matrix products in all, and memory for one chunk.

Axes: B batch rows, T target length, C length of a chunk, P = B * C its positions, D model width, V vocabulary. Over P at
once CPUs take the products of matrices as they are; over [B, C] they copy the largest of them into another order first.
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
    correct: positions whose most probable token is the target.
    weight: sum of the weights.
    """

    loss: jax.Array
    nll: jax.Array
    correct: jax.Array
    weight: jax.Array


def cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    label_smoothing: float = 0.0,
    bias: jax.Array | None = None,
) -> Sums:
    """Softmax cross entropy of logits `hidden @ table.T + bias`, in float32.

    With smoothing ε the target distribution is 1 - ε on the true token plus ε / V on every token (Szegedy et al. 2016,
    section 7; Vaswani et al. 2017, section 5.4).

    Chunks run along T, so that rows may be spread over devices.

    Args:
      hidden: [B, T, D] final hidden states.
      table: [V, D] output embedding.
      targets: [B, T] int, the true tokens.
      weights: [B, T] float or bool; positions of weight 0 do not count.
      label_smoothing: ε in [0, 1).
      bias: [V], or None for none.

    Returns:
      Sums; only `loss` has a gradient, with respect to `hidden`, `table` and `bias`.
    """
    hidden, targets, weights = in_chunks(table.shape[0], hidden, targets, weights.astype(jnp.float32))
    return Sums(*_chunked(label_smoothing, hidden, (table, bias), targets, weights))


def token_nll(hidden: jax.Array, table: jax.Array, targets: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """The unsmoothed loss of each position by itself, [B, T] float32, nats; arguments as of `cross_entropy`. For scores: what
    it would keep for a gradient are all logits."""

    def chunk(of):  # hidden [P, D], targets [P] → [P]
        states, true = of
        logits = _logits(states, table, bias)
        return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, true[:, None], axis=-1)[:, 0]

    B, T = targets.shape
    found = jax.lax.map(chunk, tuple(in_chunks(table.shape[0], hidden, targets)))  # [chunks, B * C]
    return jnp.moveaxis(found.reshape(len(found), B, -1), 0, 1).reshape(B, -1)[:, :T]


def in_chunks(logits: int, *arrays: jax.Array) -> list[jax.Array]:
    """Each array [B, T, …] as [chunks, P, …] with P = B * C, filled with zeros behind.

    Args:
      logits: numbers that are held for each position of a chunk.
    """
    rows, length = arrays[0].shape[:2]
    chunk = min(length, max(1, chunk_elements() // (rows * logits)))
    chunks = -(-length // chunk)
    chunk = -(-length // chunks)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, chunks * chunk - length)] + [(0, 0)] * (x.ndim - 2))
        x = jnp.moveaxis(x.reshape(rows, chunks, chunk, *x.shape[2:]), 1, 0)
        return x.reshape(chunks, rows * chunk, *x.shape[3:])

    return list(map(split, arrays))


def label_sums(logits: jax.Array, targets: jax.Array, weights: jax.Array, label_smoothing: float = 0.0) -> Sums:
    """Softmax cross entropy over few labels, in float32; smoothing as in `cross_entropy`.

    Args:
      logits: […, L]; targets, weights: […]. A target of -1 is not known, and does not count.
    """
    weights = weights * (targets >= 0)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    nll = -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    smooth = -jnp.mean(log_probabilities, axis=-1) if label_smoothing else nll
    loss = (1.0 - label_smoothing) * nll + label_smoothing * smooth
    weights, correct = weights.astype(jnp.float32), jnp.argmax(logits, axis=-1) == targets
    return Sums(*(jnp.sum(weights * x) for x in (loss, nll, correct, jnp.ones_like(nll))))


def squared_error(found: jax.Array, scores: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ weight · (found - score)² and Σ weight, in float32. All are [B]; a score of NaN is not known, and does not count."""
    known = ~jnp.isnan(scores)
    weights = weights.astype(jnp.float32) * known
    return jnp.sum(weights * (found.astype(jnp.float32) - jnp.where(known, scores, 0.0)) ** 2), jnp.sum(weights)


def _logits(hidden: jax.Array, table: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Of a chunk's positions, hidden [P, D]: [P, V] float32."""
    logits = jnp.einsum("pd,vd->pv", hidden, table, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias.astype(jnp.float32)


def _chunk(label_smoothing, softmax, hidden, targets, weights):
    """One chunk's sums, and a function that gives the gradient of its logits. hidden [P, D], targets, weights [P].

    softmax: (table, bias or None).
    """
    table, bias = softmax
    logits = _logits(hidden, table, bias)
    top = jnp.max(logits, axis=-1, keepdims=True)  # [P, 1]
    true = jnp.take_along_axis(logits, targets[:, None], axis=-1)  # [P, 1]
    exponentials = jnp.exp(logits - top)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    log_total = jnp.log(total) + top  # [P, 1]
    nll = (log_total - true)[:, 0]
    smooth = log_total[:, 0] - jnp.mean(logits, axis=-1) if label_smoothing else nll
    loss = (1.0 - label_smoothing) * nll + label_smoothing * smooth
    sums = tuple(jnp.sum(weights * x) for x in (loss, nll, (true == top)[:, 0], jnp.ones_like(nll)))

    def gradient():
        uniform = label_smoothing / table.shape[0]
        one_hot = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
        dlogits = exponentials / total - jnp.where(one_hot, 1.0 - label_smoothing + uniform, uniform)
        return dlogits * weights[:, None]  # [P, V] float32

    return sums, gradient


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(label_smoothing, hidden, softmax, targets, weights):
    def step(sums, chunk):
        new, _ = _chunk(label_smoothing, softmax, *chunk)
        return jax.tree.map(jnp.add, sums, new), None

    sums, _ = jax.lax.scan(step, (jnp.zeros(()),) * 4, (hidden, targets, weights))
    return sums


def _chunked_forward(label_smoothing, hidden, softmax, targets, weights):
    table, bias = softmax

    def step(carry, chunk):
        sums, dtable, dbias = carry
        new, gradient = _chunk(label_smoothing, softmax, *chunk)
        exact = gradient()  # [P, V]
        dlogits = exact.astype(hidden.dtype)
        dhidden = jnp.einsum("pv,vd->pd", dlogits, table)
        dtable += jnp.einsum("pv,pd->vd", dlogits, chunk[0], preferred_element_type=jnp.float32)
        dbias = None if bias is None else dbias + jnp.sum(exact, axis=0)
        return (jax.tree.map(jnp.add, sums, new), dtable, dbias), dhidden

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), softmax)
    (sums, *gradients), dhidden = jax.lax.scan(step, ((jnp.zeros(()),) * 4, *zeros), (hidden, targets, weights))
    return sums, (dhidden, jax.tree.map(lambda g, x: g.astype(x.dtype), tuple(gradients), softmax))


def _chunked_backward(label_smoothing, saved, cotangents):
    scale = cotangents[0]
    return (*jax.tree.map(lambda x: x * scale.astype(x.dtype), saved), None, None)


_chunked.defvjp(_chunked_forward, _chunked_backward)
