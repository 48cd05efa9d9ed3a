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


class Rows(NamedTuple):
    """Outputs that are being written, one a row.

    index: [] int32, tokens written so far.
    last: [B] int32, the token that the next step reads.
    tokens: [B, L] int32, what was written; 0 behind an output's end.
    gains: [B, L] float32, log-probability of each token under the model.
    lengths: [B] int32.
    scores: [B] float32, log-probability of all tokens.
    done: [B] bool.
    leaves: the model's state.
    seen: [B, V] bool, tokens that stand in the prompt or in what was written; None where nobody asks.
    """

    index: jax.Array
    last: jax.Array
    tokens: jax.Array
    gains: jax.Array
    lengths: jax.Array
    scores: jax.Array
    done: jax.Array
    leaves: list
    seen: jax.Array | None = None

    def outputs(self) -> Outputs:
        """The outputs, one for each row."""
        return Outputs(self.tokens[:, None], self.lengths[:, None], self.scores[:, None])


def begun(first: jax.Array, done: jax.Array, leaves: list, length: int, seen: jax.Array | None = None) -> Rows:
    """Rows with nothing written yet and room for `length` tokens; first [B] is read first, done [B] are padding."""
    zeros, empty = jnp.zeros(first.shape, jnp.int32), (*first.shape, length)
    written = jnp.zeros(empty, jnp.int32), jnp.zeros(empty)
    return Rows(jnp.int32(0), first, *written, zeros, jnp.zeros(first.shape), done, leaves, seen)


def one_by_one(
    step: Step,
    rows: Rows,
    choose: Callable[[jax.Array, Rows], jax.Array],
    *,
    limits: jax.Array,
    ends: tuple[int, ...],
    steps: Steps,
) -> Rows:
    """Writes one output a row, each token chosen from the logits of the step, until an end token or its limit.

    Args:
      step: the model.
      rows: as `begun` makes them; the model's state has room for `steps.first` tokens, or L.
      choose: (logits [B, V], rows) → tokens [B] int32: `greedy`, or a draw.
      limits: [B] int32, most tokens a row may get, the end token included; 0 for rows that are padding.
      ends: the end tokens.
      steps: how long the search goes on.

    Returns:
      The rows; those that are done are what they would be with more steps.
    """

    def advance(s: Rows) -> Rows:
        logits, leaves = step(s.leaves, s.last)
        chosen = choose(logits, s)
        gained = jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        gained = jnp.where(s.done, 0.0, gained)
        tokens = s.tokens.at[:, s.index].set(jnp.where(s.done, 0, chosen))
        lengths = s.lengths + ~s.done
        done = s.done | is_end(chosen, ends) | (lengths >= limits)
        seen = None if s.seen is None else s.seen.at[jnp.arange(chosen.shape[0]), chosen].set(True)
        gains = s.gains.at[:, s.index].set(gained)
        return Rows(s.index + 1, chosen, tokens, gains, lengths, s.scores + gained, done, leaves, seen)

    return _advanced(advance, rows, limits, steps)


def is_end(tokens: jax.Array, ends: tuple[int, ...]) -> jax.Array:
    """Whether each token is one of the end tokens: bool of the shape of `tokens`."""
    found = jnp.zeros(tokens.shape, bool)
    for end in ends:
        found |= tokens == end
    return found


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


def greedy(logits: jax.Array, rows: Rows) -> jax.Array:
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
    first: jax.Array,
    ends: tuple[int, ...],
    steps: Steps,
) -> tuple[Outputs, jax.Array]:
    """The n outputs with the largest log-probability over length penalty that a beam of K finds.

    Each step extends the K likeliest unfinished outputs by every token. Extensions by an end token count if they are
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
      first: [B] int32, the token that the first step reads.
      ends: the end tokens.
      steps: how long the search goes on.

    Returns:
      The outputs, and [B] bool, whether they are what they would be with more steps.
    """
    B, K, L = limits.shape[0], beam_size, steps.length

    def advance(s: _Beams) -> _Beams:
        last = jnp.where(s.index > 0, s.tokens[:, :, jnp.maximum(s.index - 1, 0)], first[:, None])  # [B, K]
        logits, leaves = step(s.leaves, last.reshape(B * K))
        scores, origins, chosen = _extensions(logits, s.scores, 1 + len(ends))  # each [B, C]
        tokens = jnp.take_along_axis(s.tokens, origins[:, :, None], axis=1).at[:, :, s.index].set(chosen)  # [B, C, L]
        written = s.index + 1

        over = is_end(chosen, ends)
        counts = over & (jnp.arange(over.shape[1]) < K) & ~s.done[:, None]
        ended, ranks = _merge(s, tokens, jnp.where(counts, scores, -jnp.inf), written, alpha)

        lives, kept = jax.lax.top_k(jnp.where(over, -jnp.inf, scores), K)  # [B, K]
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


def _extensions(logits: jax.Array, scores: jax.Array, times: int = 2) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The C = times · K likeliest extensions of K outputs: (scores, beams they extend, tokens), each [B, C], best first.

    As each beam has times - 1 extensions by end tokens, at least K of times · K are others.
    """
    B, K = scores.shape
    count = min(times * K, logits.shape[-1])
    values, tokens = top_k(logits, count)  # [B·K, count]: no other can be among the best C of all beams
    gained = values - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    totals = (scores[:, :, None] + gained.reshape(B, K, count)).reshape(B, K * count)
    best, picked = jax.lax.top_k(totals, min(times * K, K * count))
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
