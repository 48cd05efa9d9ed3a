"""Tiny decoders without an encoder: their batches, and the properties that all of them have.

Axes: B rows, T length, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from draws import drawn

from transformers_jax import models

VOCAB = 37
QUICK = {"xla_backend_optimization_level": 0}
"""Compiled quickly rather than well."""


def make_batch(lengths, seed=0, width=0):
    """One example a row, of these lengths, padded to the longest or to `width`."""
    positions = np.tile(np.arange(max(width, *lengths), dtype=np.int32), (len(lengths), 1))
    segments = (positions < np.array(lengths)[:, None]).astype(np.int32)
    tokens = np.random.default_rng(seed).integers(3, VOCAB, segments.shape).astype(np.int32)
    return {"tokens": tokens * segments, "positions": positions * segments, "segments": segments}


def build(fields):
    """A model and parameters for it, none of them zero or one."""
    model = models.build(fields, VOCAB)
    return model, drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), make_batch([3, 4])))["params"])


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def forward(model, params, batch):
    """Logits [B, T, V]."""
    output = model.apply({"params": params}, batch)
    return output.hidden @ output.table.T


def check_that_no_token_sees_later_ones(model, params, length=8):
    """Changing token t changes no logits before t, and those of t."""
    batch = make_batch([length, length])
    before = np.asarray(forward(model, params, batch))
    for t in range(1, length):
        changed = batch | {"tokens": batch["tokens"].copy()}
        changed["tokens"][:, t:] = (changed["tokens"][:, t:] + 5) % VOCAB
        after = np.asarray(forward(model, params, changed))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.abs(after[:, t] - before[:, t]).max() > 1e-3


def check_that_packed_rows_equal_separate_ones(model, params):
    parts = make_batch([4], seed=1), make_batch([5], seed=2)
    packed = {name: np.concatenate([parts[0][name], parts[1][name]], axis=1) for name in parts[0]}
    packed["segments"][:, 4:] = 2
    packed = {name: np.pad(x, ((0, 0), (0, 2))) for name, x in packed.items()}
    found = forward(model, params, packed)
    np.testing.assert_allclose(found[:, :4], forward(model, params, parts[0]), atol=1e-5)
    np.testing.assert_allclose(found[:, 4:9], forward(model, params, parts[1]), atol=1e-5)


def check_that_steps_equal_the_whole_row(model, params, prompts=(5, 1, 3), steps=5):
    """`start` and `step` after prompts of different lengths, one of a single token, give the full forward's logits."""
    whole = make_batch([n - 1 + steps for n in prompts])
    wanted = np.asarray(forward(model, params, whole))  # [B, T, V]
    rows, ends = np.arange(len(prompts)), np.array(prompts) - 1
    width = max(prompts) + 1  # with a column of padding
    inside = np.arange(width) < np.array(prompts)[:, None]
    prompt = {name: (x[:, :width] * inside).astype(np.int32) for name, x in whole.items()}

    def start(batch):
        return model.apply({"params": params}, batch, steps + 3, method="start", mutable=["cache"])  # more than is used

    first, cache = jax.jit(start, compiler_options=QUICK)(prompt)
    assert first.dtype == jnp.int32
    np.testing.assert_array_equal(first, whole["tokens"][rows, ends])
    step = jax.jit(
        lambda cache, tokens: model.apply({"params": params, **cache}, tokens, method="step", mutable=["cache"]),
        compiler_options=QUICK,
    )
    shapes = jax.tree.map(jnp.shape, cache)
    for i in range(steps):
        logits, cache = step(cache, whole["tokens"][rows, ends + i])
        assert logits.dtype == jnp.float32 and jax.tree.map(jnp.shape, cache) == shapes
        np.testing.assert_allclose(logits, wanted[rows, ends + i], atol=1e-4, rtol=1e-4)


def stacked(params, layers):
    """Parameters of separate layers as those of scanned ones."""
    parts = [params["decoder"][f"layer_{i}"] for i in range(layers)]
    return params | {"decoder": {"layer": jax.tree.map(lambda *x: jnp.stack(x), *parts)}}
