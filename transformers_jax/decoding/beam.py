"""Finding likely outputs: one token at a time, or with a beam.

Axes: B sentences, K beams, n outputs a sentence, L output length, V vocabulary.

Both loops run inside one compiled program and end when every sentence is done, or after L steps. They see the model as a
function `step`: (leaves, tokens [rows]) → (logits [rows, V] float32, leaves), and its state as a list of leaves.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Step = Callable[[list, jax.Array], tuple[jax.Array, list]]


class Outputs(NamedTuple):
    """The best outputs of each sentence, best first.

    tokens: [B, n, L] int32, without first token; the end token is included where there is one.
    lengths: [B, n] int32, the end token included.
    scores: [B, n] float32, log-probability of all of these tokens under the model, that of the end token included; -inf
      where there is no such output.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array


class Steps(NamedTuple):
    """How long a search goes on: until every sentence is done, or most are, or the steps are made.

    length: L, the most steps.
    usual: [] int32, steps after which sentences are left as they are once no more than half of them are not done; None
      for L.
    first, grow: if `first` is not 0, the model's state grows to room for L tokens after so many steps: leaves → leaves.
    together: mesh axes whose devices each hold other sentences and all make the same number of steps; () where none is
      to wait for another.
    """

    length: int
    usual: jax.Array | int | None = None
    first: int = 0
    grow: Callable[[list], list] | None = None
    together: tuple[str, ...] = ()


def length_penalty(length: jax.Array, alpha: float) -> jax.Array:
    """((5 + length) / 6)^alpha, which divides a log-probability (Wu et al. 2016, section 7, equation 14).

    length: number of tokens, the end token included.
    """
    return ((5.0 + length) / 6.0) ** alpha


def top_k(x: jax.Array, k: int, chunk: int = 64) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` over the last axis of x [R, V], the same to the last tie, three times as fast on CPUs.

    The k largest values lie in the k chunks whose maxima are largest: each chunk left out has k others whose maxima come
    before all that it holds. So one pass finds the maxima of chunks, and only k chunks are searched.
    """
    rows, size = x.shape
    chunks = -(-size // chunk)
    if jax.default_backend() != "cpu" or chunks < 2 * k:
        return jax.lax.top_k(x, k)
    x = jnp.pad(x, ((0, 0), (0, chunks * chunk - size)), constant_values=-jnp.inf).reshape(rows, chunks, chunk)
    best = jnp.sort(jax.lax.top_k(jnp.max(x, axis=-1), k)[1], axis=-1)  # [R, k], in order: ties go to the first index
    values, places = jax.lax.top_k(jnp.take_along_axis(x, best[:, :, None], axis=1).reshape(rows, k * chunk), k)
    return values, jnp.take_along_axis(best, places // chunk, axis=-1) * chunk + places % chunk


class _Rows(NamedTuple):
    index: jax.Array  # [] int32: tokens written so far
    last: jax.Array  # [B] int32: the token written last
    tokens: jax.Array  # [B, L]
    lengths: jax.Array  # [B]
    scores: jax.Array  # [B]
    done: jax.Array  # [B] bool
    leaves: list


def one_by_one(
    step: Step,
    leaves: list,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    limits: jax.Array,
    bos_id: int,
    eos_id: int,
    steps: Steps,
) -> tuple[Outputs, jax.Array]:
    """Writes one output a sentence, each token chosen from the logits of the step, until its end token or limit.

    Args:
      step: the model, and `leaves` its state, with room for `steps.first` tokens, or L.
      choose: (logits [B, V], index []) → tokens [B] int32: `greedy`, or a draw.
      limits: [B] int32, most tokens a sentence may get, the end token included; 0 for rows that are padding.
      steps: how long the search goes on.

    Returns:
      The outputs, and [B] bool, whether they are what they would be with more steps.
    """
    rows = limits.shape[0]

    def advance(s: _Rows) -> _Rows:
        logits, leaves = step(s.leaves, s.last)
        chosen = choose(logits, s.index)
        gained = jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        tokens = s.tokens.at[:, s.index].set(jnp.where(s.done, 0, chosen))
        lengths = s.lengths + ~s.done
        scores = s.scores + jnp.where(s.done, 0.0, gained)
        done = s.done | (chosen == eos_id) | (lengths >= limits)
        return _Rows(s.index + 1, chosen, tokens, lengths, scores, done, leaves)

    zeros, tokens = jnp.zeros(rows, jnp.int32), jnp.zeros((rows, steps.length), jnp.int32)
    state = _Rows(jnp.int32(0), zeros + bos_id, tokens, zeros, jnp.zeros(rows), limits < 1, leaves)
    state = _advanced(advance, state, limits, steps)
    return Outputs(state.tokens[:, None], state.lengths[:, None], state.scores[:, None]), state.done


def _advanced(advance: Callable, state, limits, steps: Steps):
    """The state at the end of the search."""
    usual = steps.length if steps.usual is None else steps.usual

    def count(sentences: jax.Array) -> jax.Array:
        return jax.lax.psum(jnp.sum(sentences), steps.together) if steps.together else jnp.sum(sentences)

    few = count(limits > 0) // 2

    def until(end: int, state):
        def goes_on(s):
            waiting = count(~s.done)
            return (s.index < end) & (waiting > jnp.where(s.index < usual, 0, few))

        return jax.lax.while_loop(goes_on, advance, state)

    if steps.first:
        state = until(steps.first, state)
        state = state._replace(leaves=steps.grow(state.leaves))
    return until(steps.length, state)


def greedy(logits: jax.Array, index: jax.Array) -> jax.Array:
    """The likeliest token of each row, the first of equals."""
    return top_k(logits, 1)[1][:, 0]


class _Beams(NamedTuple):
    index: jax.Array  # [] int32: tokens written so far
    tokens: jax.Array  # [B, K, L]: what lives, best first
    scores: jax.Array  # [B, K]: its log-probability
    ended: Outputs  # n outputs that ended, best first
    ranks: jax.Array  # [B, n]: what they are ranked by, log-probability over length penalty
    done: jax.Array  # [B] bool
    leaves: list


def beam_search(
    step: Step,
    leaves: list,
    take: Callable[[list, jax.Array, jax.Array], list],
    *,
    limits: jax.Array,
    beam_size: int,
    n_best: int,
    alpha: float,
    bos_id: int,
    eos_id: int,
    steps: Steps,
) -> tuple[Outputs, jax.Array]:
    """The n outputs with the largest log-probability over length penalty that a beam of K finds.

    Each step extends the K likeliest unfinished outputs by every token. Extensions by the end token count if they are
    among the K likeliest of all; the K likeliest others live on. A sentence is done when no output that lives can still
    beat the n-th best that ended, even if it lost no more probability up to the limit; the result is then what it
    would be at the limit. If fewer than n have ended there, those that live, which the limit cuts, come after them.

    Args:
      step: the model over B·K rows, and `leaves` its state, with room for `steps.first` tokens, or L.
      take: (leaves, origins [B, K], last position that is written []) → leaves, reordered.
      limits: [B] int32, most tokens a sentence may get, the end token included; 0 for rows that are padding.
      beam_size: K.
      n_best: n, at most K.
      alpha: of the length penalty, 0 or more; 0 ranks by log-probability.
      steps: how long the search goes on.

    Returns:
      The outputs, and [B] bool, whether they are what they would be with more steps.
    """
    B, K, L = limits.shape[0], beam_size, steps.length

    def advance(s: _Beams) -> _Beams:
        last = jnp.where(s.index > 0, s.tokens[:, :, jnp.maximum(s.index - 1, 0)], bos_id)  # [B, K]
        logits, leaves = step(s.leaves, last.reshape(B * K))
        scores, origins, chosen = _extensions(logits, s.scores)  # each [B, C]
        tokens = jnp.take_along_axis(s.tokens, origins[:, :, None], axis=1).at[:, :, s.index].set(chosen)  # [B, C, L]
        written = s.index + 1

        ends = chosen == eos_id
        counts = ends & (jnp.arange(ends.shape[1]) < K) & ~s.done[:, None]
        ended, ranks = _merge(s, tokens, jnp.where(counts, scores, -jnp.inf), written, alpha)

        lives, kept = jax.lax.top_k(jnp.where(ends, -jnp.inf, scores), K)  # [B, K]
        origins = jnp.take_along_axis(origins, kept, axis=1)
        tokens = jnp.take_along_axis(tokens, kept[:, :, None], axis=1)
        lives = jnp.where(s.done[:, None], s.scores, lives)  # what is done stays as it was
        tokens = jnp.where(s.done[:, None, None], s.tokens, tokens)
        hopeless = lives[:, 0] / length_penalty(limits, alpha) <= ranks[:, -1]
        done = s.done | hopeless | (written >= limits)
        return _Beams(written, tokens, lives, ended, ranks, done, take(leaves, origins, s.index))

    none = jnp.full((B, n_best), -jnp.inf)
    ended = Outputs(jnp.zeros((B, n_best, L), jnp.int32), jnp.zeros((B, n_best), jnp.int32), none)
    alone = jnp.where(jnp.arange(K) > 0, -jnp.inf, jnp.zeros((B, K)))  # beams are equal at first: one of them counts
    state = _Beams(jnp.int32(0), jnp.zeros((B, K, L), jnp.int32), alone, ended, none, limits < 1, leaves)
    state = _advanced(advance, state, limits, steps)
    return _fill(state, limits), state.done


def _extensions(logits: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The C = 2 K likeliest extensions of K outputs: (scores, beams they extend, tokens), each [B, C], best first.

    As each beam has one extension by the end token, at least K of 2 K are others.
    """
    B, K = scores.shape
    count = min(2 * K, logits.shape[-1])
    values, tokens = top_k(logits, count)  # [B·K, count]: no other can be among the best 2 K of all beams
    gained = values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    totals = (scores[:, :, None] + gained.reshape(B, K, count)).reshape(B, K * count)
    best, picked = jax.lax.top_k(totals, min(2 * K, K * count))
    return best, picked // count, jnp.take_along_axis(tokens.reshape(B, K * count), picked, axis=1)


def _merge(s: _Beams, tokens, scores, length, alpha) -> tuple[Outputs, jax.Array]:
    """The n best of what ended before and the extensions [B, C] that end now (score -inf: does not count)."""
    old = s.ended
    new = Outputs(tokens, jnp.broadcast_to(length, scores.shape), scores)
    ranks = jnp.concatenate([s.ranks, scores / length_penalty(length, alpha)], axis=1)
    ranks, places = jax.lax.top_k(ranks, s.ranks.shape[1])
    return _pick(old, new, places), ranks


def _fill(s: _Beams, limits) -> Outputs:
    """What ended, then what lives where too little ended."""
    n = s.ranks.shape[1]
    lives = Outputs(s.tokens, jnp.broadcast_to(limits[:, None], s.scores.shape), s.scores)
    count = jnp.sum(s.ranks > -jnp.inf, axis=1, keepdims=True)  # [B, 1]
    slot = jnp.arange(n)
    return _pick(s.ended, lives, jnp.where(slot < count, slot, n + slot - count))


def _pick(first: Outputs, second: Outputs, places: jax.Array) -> Outputs:
    """Outputs at places [B, n] of the two, one after the other."""

    def pick(a, b):
        both = jnp.concatenate([a, b], axis=1)
        return jnp.take_along_axis(both, places.reshape(*places.shape, *(1,) * (both.ndim - 2)), axis=1)

    return Outputs(*map(pick, first, second))
