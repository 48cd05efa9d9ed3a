"""Decoding any number of sentences: sorted by length, batched, one output list for each, in the order given.

Axes: B sentences of a batch, S source length, n outputs a sentence, L output length.
"""

import bisect
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformers_jax.decoding import beam
from transformers_jax.decoding import cache as caches
from transformers_jax.decoding import sampling as samplers
from transformers_jax.errors import UserError

METHODS = ("greedy", "beam", "sample")
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Source lengths that batches are padded to; each is compiled once."""


class Hypothesis(NamedTuple):
    """One output: its tokens without the end token, and its log-probability, which counts the end token if it came.

    It came if there are fewer tokens than `Decoder.limit` of the source's length; otherwise the limit cut the output.
    """

    ids: list[int]
    score: float


class Decoder:
    """Decodes with one model; compiled once for each source length and number of rows that occur.

    A model of the decoding protocol (see `decoding/cache.py`) with parameters that may change from call to call: they are
    arguments of the compiled function. What a sentence gets depends on no other sentence, rounding apart.

    Args:
      model: a Flax module with methods `start` and `step`.
      params: its parameters, unboxed or not; or None if each call brings its own.
      bos_id, eos_id, pad_id: what outputs begin with, what ends them, what sources are filled up with.
      method: "greedy", "beam" or "sample".
      beam_size: beams of method "beam"; 1 is greedy.
      alpha: of the length penalty (Wu et al. 2016), see `beam.length_penalty`; ranks the outputs of a beam.
      n_best: outputs a sentence, at most beam_size; fewer are found sooner. 1 for the other methods.
      batch_size: rows the model sees at a time; a beam takes beam_size of them for a sentence.
      max_ratio, extra_length: an output has at most max_ratio · source length + extra_length tokens (Vaswani et al. 2017,
        section 6.1: source length + 50), the end token included.
      max_length: no output is longer, whatever its source; None for no such limit.
      lengths: source lengths to pad to, ascending; a longer source is cut to the last one.
      temperature, top_k, top_p: of method "sample", see `sampling.Sampling`.
      mesh: sentences are split over its axes data and fsdp, so that each device needs all parameters, but for the axis
        tensor; all processes call `decode` with the same sentences.

    Raises:
      UserError: a method or number that is not possible.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Any,
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
        method: str = "beam",
        beam_size: int = 4,
        alpha: float = 0.6,
        n_best: int = 1,
        batch_size: int = 256,
        max_ratio: float = 1.0,
        extra_length: int = 50,
        max_length: int | None = None,
        lengths: Sequence[int] = LENGTHS,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        mesh: Mesh | None = None,
    ):
        beam_size = beam_size if method == "beam" else 1
        ascending = len(lengths) > 0 and lengths[0] > 1 and sorted(set(lengths)) == list(lengths)
        for possible, what in (
            (method in METHODS, f"method is {method!r}; it is one of {', '.join(METHODS)}"),
            (beam_size >= 1, f"beam_size is {beam_size}; it must be positive"),
            (1 <= n_best <= max(beam_size, 1), f"n_best is {n_best}; it must be 1 … beam_size ({beam_size})"),
            (alpha >= 0, f"alpha is {alpha}; it must not be negative"),
            (batch_size >= beam_size, f"batch_size is {batch_size}; it must hold one beam of {beam_size} rows or more"),
            (max_ratio >= 0, f"max_ratio is {max_ratio}; it must not be negative"),
            (extra_length >= 0, f"extra_length is {extra_length}; it must not be negative"),
            (max_length is None or max_length >= 1, f"max_length is {max_length}; it must be positive"),
            (ascending, f"lengths are {lengths}; they must be above 1 and ascending"),
        ):
            if not possible:
                raise UserError(f"decoding.{what}")
        self.model, self.params, self.mesh = model, params, mesh
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.method, self.beam_size, self.alpha, self.n_best = method, beam_size, alpha, n_best
        self.max_ratio, self.extra_length, self.max_length = max_ratio, extra_length, max_length
        self.lengths, self.sampling = tuple(lengths), samplers.Sampling(temperature, top_k, top_p)
        self.sizes = _sizes(batch_size // beam_size, 1 if mesh is None else _shards(mesh))
        self.compilations = 0
        self._layout: caches.CacheLayout | None = None
        out = {} if mesh is None else {"out_shardings": NamedSharding(mesh, PartitionSpec())}
        self._search = jax.jit(self._search_rows, **out)

    def limit(self, source_length: int) -> int:
        """The most tokens an output may have, the end token included."""
        longest = max(1, int(self.max_ratio * source_length) + self.extra_length)
        return longest if self.max_length is None else min(longest, self.max_length)

    def decode(
        self, sources: Sequence[Sequence[int]], params: Any = None, *, seed: int = 0, first: int = 0
    ) -> list[list[Hypothesis]]:
        """The outputs of each source, best first, in the order of the sources.

        Args:
          sources: token ids of each sentence, as the model is to read them (with an end token if it was trained so).
            A source that is too long is cut, and keeps its end token; one without tokens gets one output without tokens.
          params: parameters to use in place of those given at the start.
          seed: of method "sample"; a draw depends on it, the number of the source and the step.
          first: number of the first source, where these are a part of more.

        Returns:
          For each source a list of 1 … n_best hypotheses.
        """
        params = nn.unbox(self.params if params is None else params)
        sources = self._cut(sources, first)
        results: list[list[Hypothesis]] = [[Hypothesis([], 0.0)] for _ in sources]
        waiting = sorted((i for i, ids in enumerate(sources) if ids), key=lambda i: -len(sources[i]))  # stable
        for patient in (False, True):
            unfinished = []
            for i in range(0, len(waiting), self.sizes[-1]):
                batch = waiting[i : i + self.sizes[-1]]
                outputs, done = self._decode_batch(params, batch, sources, seed, first, patient)
                for b, number in enumerate(batch):
                    if done[b]:
                        results[number] = self._hypotheses(outputs, b)
                    else:
                        unfinished.append(number)
            waiting = unfinished
        return results

    def _usual_steps(self, source_length: int) -> int:
        """Steps in which nearly all outputs end. The few others start again together and go up to their limits: so one
        output that never ends does not keep its whole batch waiting, and caches are no longer than they need be. Where
        most of a batch does not end, as with a model that is hardly trained, the batch goes on.
        """
        usual, limit = source_length + max(8, source_length // 4), self.limit(source_length)
        return usual if usual < 0.75 * limit else limit

    def _first_room(self, source_length: int) -> int:
        """Steps after which caches grow to their full length, 0 for never: a step reads all of a cache, written or not."""
        room, usual = _rounded(self.limit(source_length)), _rounded(self._usual_steps(source_length))
        if usual < room:
            return usual
        return _rounded(room // 2) if room >= 4 * caches.BLOCK and jax.default_backend() == "cpu" else 0

    def _cut(self, sources, first: int) -> list[list[int]]:
        longest = self.lengths[-1]
        over = [i for i, ids in enumerate(sources) if len(ids) > longest]
        if over:
            logging.warning(
                "%d of %d sources have more than %d tokens and are cut there; the first is number %d, of %d tokens",
                len(over), len(sources), longest, first + over[0] + 1, len(sources[over[0]]),
            )  # fmt: skip

        def cut(ids):
            last = ids[-1] if ids[-1] == self.eos_id else ids[longest - 1]
            return [*ids[: longest - 1], last]

        return [cut(ids) if len(ids) > longest else list(ids) for ids in sources]

    def _decode_batch(self, params, batch: list[int], sources: list[list[int]], seed: int, first: int, patient: bool):
        """The outputs of one batch of sources, by their numbers, and whether each is done: NumPy arrays."""
        size = self.sizes[bisect.bisect_left(self.sizes, len(batch))]
        length = self.lengths[bisect.bisect_left(self.lengths, max(len(sources[i]) for i in batch))]
        source = np.full((size, length), self.pad_id, np.int32)  # [B, S]
        segments = np.zeros((size, length), np.int32)  # [B, S]
        limits = np.zeros(size, np.int32)  # [B]
        numbers = np.zeros(size, np.int32)  # [B]
        for row, number in enumerate(batch):
            ids = sources[number]
            source[row, : len(ids)], segments[row, : len(ids)] = ids, 1
            limits[row], numbers[row] = self.limit(len(ids)), first + number
        arrays = [self._place(x) for x in (source, segments, limits, numbers)]
        usual = self.limit(length) if patient else self._usual_steps(length)
        found = self._search(params, *arrays, np.uint32(seed % 2**32), np.int32(usual))
        return jax.tree.map(np.asarray, found)

    def _place(self, x: np.ndarray):
        if self.mesh is None:
            return x
        sharding = NamedSharding(self.mesh, PartitionSpec(_row_axes(self.mesh)))
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def _search_rows(self, *arguments) -> tuple[beam.Outputs, jax.Array]:
        """The compiled function: each device searches for its own sentences, see `_together`."""
        if self.mesh is None:
            return self._search_batch(*arguments)
        rows, copied = PartitionSpec(_row_axes(self.mesh)), PartitionSpec()
        own = {axis for axis in self.mesh.axis_names if axis not in _split_axes(self.mesh)}
        specs = (copied, rows, rows, rows, rows, copied, copied)
        one = jax.shard_map(
            self._search_batch, mesh=self.mesh, in_specs=specs, out_specs=rows, axis_names=own, check_vma=False
        )
        return one(*arguments)

    def _together(self) -> tuple[str, ...]:
        """The mesh axes over which the search goes on until the last sentence of all devices is done.

        None where each device has the whole model: it waits for no other's sentences. Where devices share the model, what
        they exchange at a step is an operation of the whole mesh (a collective permute, say, has one meeting point for all
        devices, even if it is among neighbours only): all must come to it equally often, or they wait for ever.
        """
        return _row_axes(self.mesh) if self.mesh is not None and _split_axes(self.mesh) else ()

    def _search_batch(self, params, source, segments, limits, numbers, seed, usual) -> tuple[beam.Outputs, jax.Array]:
        """source, segments [B, S], limits, numbers [B] → the outputs of these sentences; `usual` as in `beam.Steps`."""
        self.compilations += 1  # runs when this is traced, not when it is executed
        start = functools.partial(self._start_model, params)
        step = functools.partial(self._step_model, params)
        layout = self._layout = self._layout or caches.layout(
            lambda rows, length: start(*(jnp.ones((rows, 3), jnp.int32),) * 2, length)[1], step
        )
        room = _rounded(self.limit(source.shape[1]))
        first = 0 if set(layout.positions) == {None} else self._first_room(source.shape[1])  # an LSTM's state has none
        begin, cache = start(source, segments, first or room)
        if self.beam_size > 1:
            cache = layout.repeat(cache, self.beam_size)
        moving, constant = layout.split(cache)

        def step_leaves(moving, tokens):
            logits, cache = step(layout.join(moving, constant), tokens)
            return logits, layout.split(cache)[0]

        steps = beam.Steps(room, usual, first, functools.partial(layout.grow, length=room), self._together())
        common = {"limits": limits, "ends": (self.eos_id,), "steps": steps}
        if self.beam_size > 1:
            kind = {"beam_size": self.beam_size, "n_best": self.n_best, "alpha": self.alpha}
            return beam.beam_search(step_leaves, moving, layout.take, first=begin, **kind, **common)

        def draw(logits, rows):
            key = jax.random.key(seed, impl="threefry2x32")  # rbg's draws for many keys at once depend on one another
            return samplers.sample(logits, samplers.row_keys(key, numbers, rows.index), self.sampling)

        rows = beam.begun(begin, limits < 1, moving, room)
        rows = beam.one_by_one(step_leaves, rows, draw if self.method == "sample" else beam.greedy, **common)
        return rows.outputs(), rows.done

    def _start_model(self, params, source, segments, length):
        positions = jnp.broadcast_to(jnp.arange(source.shape[1], dtype=jnp.int32), source.shape)
        batch = {"source": source, "source_positions": positions, "source_segments": segments}
        batch["first"] = jnp.full(source.shape[:1], self.bos_id, jnp.int32)
        first, changed = self.model.apply({"params": params}, batch, length, method="start", mutable=["cache"])
        return first, changed["cache"]

    def _step_model(self, params, cache, tokens):
        variables = {"params": params, "cache": cache}
        logits, changed = self.model.apply(variables, tokens, method="step", mutable=["cache"])
        return logits, changed["cache"]

    def _hypotheses(self, outputs: beam.Outputs, b: int) -> list[Hypothesis]:
        """Those of sentence b, without their end tokens; one of probability 0 if there are none (the model gives NaN)."""
        found = []
        for tokens, length, score in zip(*(x[b] for x in outputs), strict=True):
            ids = tokens[:length].tolist()
            if np.isfinite(score):
                found.append(Hypothesis(ids[:-1] if ids and ids[-1] == self.eos_id else ids, float(score)))
        return found or [Hypothesis([], -np.inf)]


def _rounded(length: int) -> int:
    return -(-length // caches.BLOCK) * caches.BLOCK


def _sizes(full: int, shards: int) -> list[int]:
    """Numbers of sentences that batches are filled up to: a full one, a quarter of it, and so on; multiples of shards."""
    sizes = {max(1, full // shards) * shards}
    while min(sizes) > shards:
        sizes.add(-(-min(sizes) // (4 * shards)) * shards)
    return sorted(sizes)


def _row_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)


def _split_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes over which devices share one model's parameters and hold the same sentences."""
    return tuple(axis for axis, size in mesh.shape.items() if size > 1 and axis not in _row_axes(mesh))


def _shards(mesh: Mesh) -> int:
    return int(np.prod([mesh.shape[axis] for axis in _row_axes(mesh)]))
