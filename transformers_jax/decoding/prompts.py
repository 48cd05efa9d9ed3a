"""Going on from prompts of different lengths: sorted by length, batched, each continued from its own last token.

A prompt is read once, whatever number of outputs it gets, and they share its keys and values. Outputs are written a few steps
a call of one compiled program, and the cache stays on the devices between calls, so that text can be shown, and stop strings
found, while it is written.

Axes: G prompts of a batch, P prompt length, B rows, which are outputs: G times the outputs of a prompt; V vocabulary.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformers_jax.decoding import beam, requests, sampling
from transformers_jax.decoding import cache as caches
from transformers_jax.decoding.requests import END, LENGTH, Continuation
from transformers_jax.errors import UserError
from transformers_jax.mesh import ROWS, row_sharding

METHODS = ("greedy", "beam", "sample")
STEPS = 32
"""Steps of a call, at most."""

SMALLEST = 16
"""Prompts, and the room for outputs, are filled up to this length, twice it, four times …: each is compiled once."""


class PromptDecoder:
    """Continues prompts with one model of the decoding protocol (see `decoding/cache.py`).

    What a prompt gets depends on no other prompt, rounding apart.

    Args:
      model: a Flax module with methods `start`, which reads prompts, and `step`.
      params: its parameters, unboxed or not; or None if each call brings its own.
      ends: the end tokens.
      pad_id: what prompts are filled up with.
      longest: tokens of prompt and output together, see `decoding.requests`; 0 for no limit.
      slide: whether an output goes on beyond that: the prompt is then read anew, as the last half of what there is.
      vocab_size: tokens from there on are never written, the rows of an embedding that stand for nothing; 0 for all.
      method: "greedy", "beam" or "sample".
      options: of "sample".
      repetition_penalty: of "greedy" and "sample", see `sampling.penalised`; 1 for none.
      beam_size, alpha, n_best: of "beam", see `beam.beam_search`.
      batch_size: rows the model sees at a time.
      mesh: rows are split over its axes data and fsdp; all processes call `decode` with the same prompts.

    Raises:
      UserError: a method or number that is not possible.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Any,
        *,
        ends: Sequence[int],
        pad_id: int = 0,
        longest: int = 0,
        slide: bool = False,
        vocab_size: int = 0,
        method: str = "greedy",
        options: sampling.Sampling | None = None,
        repetition_penalty: float = 1.0,
        beam_size: int = 4,
        alpha: float = 0.6,
        n_best: int = 1,
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ):
        beam_size = beam_size if method == "beam" else 1
        for possible, what in (
            (method in METHODS, f"method is {method!r}; it is one of {', '.join(METHODS)}"),
            (beam_size >= 1, f"beam_size is {beam_size}; it must be positive"),
            (1 <= n_best <= beam_size or method != "beam", f"n_best is {n_best}; it must be 1 … beam_size ({beam_size})"),
            (alpha >= 0, f"alpha is {alpha}; it must not be negative"),
            (repetition_penalty > 0, f"repetition_penalty is {repetition_penalty}; it must be positive"),
            (repetition_penalty == 1 or method != "beam", "repetition_penalty is for the methods greedy and sample"),
            (not slide or method != "beam", "slide is for the methods greedy and sample"),
            (longest != 1, "longest is 1: the model has no room for an output"),
        ):
            if not possible:
                raise UserError(f"decoding.{what}")
        self.model, self.params = model, params
        self.mesh = mesh if mesh is not None and mesh.size > 1 else None
        self.ends, self.pad_id, self.longest, self.slide, self.vocab_size = tuple(ends), pad_id, longest, slide, vocab_size
        self.method, self.options, self.penalty = method, options or sampling.Sampling(), repetition_penalty
        self.beam_size, self.alpha, self.n_best, self.batch_size = beam_size, alpha, n_best, batch_size
        self.compilations = 0
        self._found_layout: caches.CacheLayout | None = None
        out = {} if self.mesh is None else {"out_shardings": (NamedSharding(self.mesh, PartitionSpec()), None)}
        self._start = jax.jit(self._start_rows, static_argnames=("samples", "room"))
        self._write = jax.jit(self._write_rows, donate_argnums=1, **out)
        self._beam = jax.jit(self._beam_rows, static_argnames="room", **out)

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        params: Any = None,
        *,
        limits: int | Sequence[int],
        samples: int = 1,
        seed: int = 0,
        first: int = 0,
        watch: Callable[[Continuation], None] | None = None,
        every: int = STEPS,
    ) -> list[list[Continuation]]:
        """The outputs of each prompt, in the order of the prompts; of a beam the n best, best first.

        Args:
          prompts: token ids, one or more each.
          params: parameters to use in place of those given at the start.
          limits: most tokens of an output, the end token included; of all, or of each prompt.
          samples: outputs of each prompt; for methods other than "beam".
          seed: of method "sample"; a draw depends on it, on the numbers of prompt and sample, and on the step.
          first: number of the first prompt, where these are a part of more.
          watch: called with each output that has new tokens, after every call of the program; it may end it by `cut`.
          every: steps of a call.
        """
        params = nn.unbox(self.params if params is None else params)
        limits = [limits] * len(prompts) if isinstance(limits, int) else list(limits)
        count = 1 if self.method == "beam" else samples
        if not all(len(ids) for ids in prompts):
            raise ValueError("a prompt has no tokens: put the token in front that begins texts")
        groups = [
            [Continuation(list(ids), limit, first + i, k) for k in range(count)]
            for i, (ids, limit) in enumerate(zip(prompts, limits, strict=True))
        ]
        lengths = [len(ids) for ids in prompts]
        kept = [requests.shared(n, limit, self.longest)[0] for n, limit in zip(lengths, limits, strict=True)]
        requests.warn_of_cut(lengths, kept, self.longest, first)
        if self.method == "beam":
            return self._decoded_by_beams(params, groups, watch)
        waiting = groups
        while waiting:
            for batch in self._batches(waiting):
                self._decode_batch(params, batch, np.uint32(seed % 2**32), watch, max(1, min(every, STEPS)))
            waiting = [[one] for group in groups for one in group if not one.finish]  # those that slide on, one by one
        return groups

    def _batches(self, groups: list[list[Continuation]]) -> list[list[list[Continuation]]]:
        """Groups of like length together, the longest first; groups of outputs of one prompt stay together."""
        order = sorted(groups, key=lambda group: -len(group[0].prompt) - len(group[0].ids))  # stable
        size = max(1, self.batch_size // (len(order[0]) * self.beam_size))
        shards = 1 if self.mesh is None else int(np.prod([self.mesh.shape[axis] for axis in ROWS]))
        size = -(-size // shards) * shards
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _arranged(self, groups: list[list[Continuation]]) -> tuple[dict, list[int]]:
        """(the batch that `start` reads, of G prompts filled up to a power of two; most new tokens of each group)."""
        tokens = [[*group[0].prompt, *group[0].ids] for group in groups]
        wanted = [group[0].limit - len(group[0].ids) for group in groups]
        fits = [requests.shared(len(ids), limit, self.longest) for ids, limit in zip(tokens, wanted, strict=True)]
        shards = 1 if self.mesh is None else int(np.prod([self.mesh.shape[axis] for axis in ROWS]))
        rows = -(-_power(len(groups)) // shards) * shards
        width = _bucket(max(kept for kept, _ in fits), self.longest)
        batch = {name: np.zeros((rows, width), np.int32) for name in ("tokens", "positions", "segments")}  # [G, P]
        batch["tokens"] += self.pad_id
        batch["segments"][:, 0] = 1  # rows that are padding read one token
        for row, (ids, (kept, _)) in enumerate(zip(tokens, fits, strict=True)):
            batch["tokens"][row, :kept], batch["segments"][row, :kept] = ids[-kept:], 1
            batch["positions"][row, :kept] = range(kept)
        return batch, [limit for _, limit in fits]

    def _decode_batch(self, params, groups: list[list[Continuation]], seed, watch, every: int) -> None:
        """Writes the outputs of some prompts until each has ended or has to be begun again further on."""
        samples, outputs = len(groups[0]), [one for group in groups for one in group]
        batch, rooms = self._arranged(groups)
        room = _bucket(max(rooms), self.longest)
        size = len(batch["tokens"]) * samples  # B
        left = np.zeros(size, np.int32)  # [B] tokens that may still come
        left[: len(outputs)] = np.repeat(rooms, samples)
        numbers = np.zeros((3, size), np.int32)  # of prompt, of sample, tokens written
        numbers[:, : len(outputs)] = np.transpose([(one.number, one.sample, len(one.ids)) for one in outputs])
        done = left < 1
        with self._in_mesh():
            state, constant = self._start(params, self._place(batch), samples=samples, room=room)
            while not done.all():
                rows = self._place({"left": left, "done": done, "numbers": numbers.T.copy()})
                found, state = self._write(params, state, constant, rows, seed, np.int32(every))
                tokens, gains, lengths, over = jax.device_get(found)
                done = np.array(over)
                for b, one in enumerate(outputs):
                    if lengths[b]:
                        one.take(tokens[b, : lengths[b]].tolist(), gains[b, : lengths[b]].tolist(), self.ends)
                        if watch:
                            watch(one)
                        done[b] |= bool(one.finish)
                left, numbers[2] = left - lengths, numbers[2] + lengths
        for one in outputs:
            if not one.finish and (not self.slide or one.limit < 1):
                one.finish = LENGTH  # the model's

    def _decoded_by_beams(self, params, groups, watch) -> list[list[Continuation]]:
        found = {}
        for batch in self._batches(groups) if groups else ():
            arranged, rooms = self._arranged(batch)
            limits = np.zeros(len(arranged["tokens"]), np.int32)  # [G]
            limits[: len(rooms)] = rooms
            room = _bucket(max(rooms), self.longest)
            with self._in_mesh():
                outputs, _ = self._beam(params, self._place(arranged), self._place({"limits": limits}), room=room)
            outputs = jax.device_get(outputs)
            for b, [asked] in enumerate(batch):
                found[asked.number] = [self._of_beam(asked, k, outputs, b) for k in range(self.n_best)]
                found[asked.number] = [one for one in found[asked.number] if np.isfinite(one.score)] or [asked]
                asked.finish = LENGTH
                for one in found[asked.number] if watch else ():
                    watch(one)
        return [found[asked.number] for [asked] in groups]

    def _of_beam(self, asked: Continuation, k: int, outputs: beam.Outputs, b: int) -> Continuation:
        """The k-th best output of the b-th prompt."""
        ids = outputs.tokens[b, k, : outputs.lengths[b, k]].tolist()
        ended = bool(ids) and ids[-1] in self.ends
        score, finish = float(outputs.scores[b, k]), END if ended else LENGTH
        return Continuation(asked.prompt, asked.limit, asked.number, k, ids[:-1] if ended else ids, [], score, finish)

    def _in_mesh(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _place(self, arrays: dict[str, np.ndarray]) -> dict:
        if self.mesh is None:
            return arrays
        rows = row_sharding(self.mesh)
        return {n: jax.make_array_from_callback(x.shape, rows, x.__getitem__) for n, x in arrays.items()}

    # -- Compiled -------------------------------------------------------------------------------------------------------------

    def _start_rows(self, params, batch, *, samples: int, room: int):
        """Reads G prompts: ((leaves that change, the tokens that come first [B], those seen [B, V] or None), other leaves)."""
        self.compilations += 1  # runs when this is traced, not when it is executed
        first, cache = self._start_model(params, batch, room)
        layout = self._layout(params)
        moving, constant = layout.split(cache)
        moving = layout.repeat_moving(moving, samples)
        seen = None
        if self.penalty != 1:
            size = jax.eval_shape(self._step_model, params, cache, first)[0].shape[-1]
            real = batch["segments"] > 0  # [G, P]
            tokens = jnp.where(real, batch["tokens"], size)  # padding falls outside
            seen = jnp.zeros((len(first), size), bool).at[jnp.arange(len(first))[:, None], tokens].set(True, mode="drop")
            seen = jnp.repeat(seen, samples, axis=0)
        return (moving, jnp.repeat(first, samples), seen), constant

    def _write_rows(self, params, state, constant, rows, seed, count):
        """Up to `count` steps of B rows: ((tokens [B, STEPS], log-probabilities [B, STEPS], lengths [B], done [B]), state)."""
        self.compilations += 1
        moving, last, seen = state
        layout = self._layout(params)

        def step(moving, tokens):
            logits, cache = self._step_model(params, layout.join(moving, constant), tokens)
            return logits, layout.split(cache)[0]

        def choose(logits, s: beam.Rows):
            if s.seen is not None:
                logits = sampling.penalised(logits, s.seen, self.penalty)
            if self.method == "greedy":
                return beam.greedy(logits, s)
            key = jax.random.key(seed, impl="threefry2x32")  # rbg's draws for many keys at once depend on one another
            numbers = rows["numbers"] + s.index * jnp.array([0, 0, 1])  # [B, 3]
            return sampling.sample(logits, sampling.output_keys(key, numbers), self.options)

        new = beam.begun(last, rows["done"], moving, STEPS, seen)
        new = beam.one_by_one(step, new, choose, limits=rows["left"], ends=self.ends, steps=beam.Steps(count))
        return (new.tokens, new.gains, new.lengths, new.done), (new.leaves, new.last, new.seen)

    def _beam_rows(self, params, batch, limits, *, room: int):
        """(the n best outputs of G prompts, which of them are done [G])."""
        self.compilations += 1
        first, cache = self._start_model(params, batch, room)
        layout = self._layout(params)
        moving, constant = layout.split(cache)
        moving = layout.repeat_moving(moving, self.beam_size)

        def step(moving, tokens):
            logits, cache = self._step_model(params, layout.join(moving, constant), tokens)
            return logits, layout.split(cache)[0]

        kind = {"beam_size": self.beam_size, "n_best": self.n_best, "alpha": self.alpha}
        common = {"limits": limits["limits"], "first": first, "ends": self.ends, "steps": beam.Steps(room)}
        return beam.beam_search(step, moving, layout.take, **kind, **common)

    def _layout(self, params) -> caches.CacheLayout:
        """Where things are in the model's cache; found by tracing, once."""

        def start(rows, length):
            batch = dict.fromkeys(("tokens", "positions", "segments"), jnp.ones((rows, 3), jnp.int32))
            return self._start_model(params, batch, length)[1]

        if self._found_layout is None:
            self._found_layout = caches.layout(start, functools.partial(self._step_model, params))
        return self._found_layout

    def _start_model(self, params, batch, length: int):
        first, changed = self.model.apply({"params": params}, batch, length, method="start", mutable=["cache"])
        return first, changed["cache"]

    def _step_model(self, params, cache, tokens):
        variables = {"params": params, "cache": cache}
        logits, changed = self.model.apply(variables, tokens, method="step", mutable=["cache"])
        if self.vocab_size and self.vocab_size < logits.shape[-1]:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < self.vocab_size, logits, -jnp.inf)
        return logits, changed["cache"]


def _power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _bucket(length: int, longest: int) -> int:
    """The length that prompts, or the room for outputs, of this length are filled up to."""
    found = max(SMALLEST, _power(length))
    return min(found, -(-longest // caches.BLOCK) * caches.BLOCK) if longest else found
