"""The Evolved Transformer: its blocks against plain numpy, what each position may see, cached decoding, beams."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transformer import logits, make_batch

from transformers_jax import models
from transformers_jax.decoding import cache as caches
from transformers_jax.decoding.decoder import Decoder
from transformers_jax.errors import UserError
from transformers_jax.layers.masks import cross_mask, self_mask
from transformers_jax.models.evolved_transformer import EvolvedDecoderBlock, EvolvedEncoderBlock

VOCAB = 37
ROWS, SOURCE, TARGET = 3, 12, 20  # all batches have this shape, so that a model is compiled once; 20 is more than a window
QUICK = {"xla_backend_optimization_level": 0}  # what runs once or twice is compiled quickly rather than well
TINY = dict(name="evolved_transformer", width=16, num_heads=2, encoder_layers=1, decoder_layers=1, scan_layers=False)
VARIANTS = {
    "plain": {},
    "scanned": dict(scan_layers=True, remat=True, decoder_layers=2),
    "learned and relative": dict(
        positions="learned", max_length=32, relative_distance=3, share_embeddings=False, attention_bias=True
    ),
}


@functools.cache
def build(variant):
    model = models.build({**TINY, **VARIANTS[variant]}, VOCAB)
    return model, drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), make_batch([3, 4])))["params"])


def full_batch(seed=0):
    """One example a row, all targets full, the sources of three lengths."""
    return make_batch([TARGET] * ROWS, [SOURCE, 3, 1], seed=seed)


# The blocks, written down once more.


def normalise(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def attend(p, x, context=None, causal=False):
    """x [T, D] to context [S, D], heads one by one."""
    source, out = x if context is None else context, 0
    for n in range(p["query"]["kernel"].shape[1]):
        q, k, v = x @ p["query"]["kernel"][:, n], source @ p["key"]["kernel"][:, n], source @ p["value"]["kernel"][:, n]
        scores = q @ k.T / np.sqrt(q.shape[1])
        weights = np.exp(np.where(np.tri(*scores.shape) > 0, scores, -np.inf) if causal else scores)
        out = out + weights / weights.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][n]
    return out


def separable(p, x, before, after):
    taps, padded = p["taps"]["kernel"], np.pad(x, ((before, after), (0, 0)))
    return dense(p["pointwise"], sum(padded[j : j + len(x)] * taps[j] for j in range(len(taps))))


def widen(x, width):
    return np.pad(x, ((0, 0), (0, width - x.shape[1])))


def encoder_reference(p, x):
    """One example x [S, D]."""
    d = x.shape[1]
    h = normalise(p["gate_norm"], x)
    x = x + dense(p["gate_values"], h) * sigmoid(dense(p["gates"], h))
    h = normalise(p["branches_norm"], x)
    padded = np.pad(h, ((1, 1), (0, 0)))
    three = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)
    h = relu(dense(p["left"], h)) + widen(relu(dense(p["right"]["product"], three)), 4 * d)
    x = x + widen(separable(p["close"], normalise(p["close_norm"], h), 4, 4), d)
    x = x + attend(p["self_attention"], normalise(p["attention_norm"], x))
    return x + dense(p["contract"], relu(dense(p["expand"], normalise(p["feed_norm"], x))))


def decoder_reference(p, x, encoded):
    """One example x [T, D], encoded [S, D]."""
    h = normalise(p["wide_norm"], x)
    x = x + attend(p["wide_attention"], h, causal=True) + attend(p["cross_attention_1"], h, encoded)
    h = normalise(p["branches_norm"], x)
    h = relu(separable(p["left"], h, 10, 0)) + widen(separable(p["right"], h, 6, 0), 2 * x.shape[1])
    x = x + separable(p["close"], normalise(p["close_norm"], h), 6, 0)
    x = x + attend(p["self_attention"], normalise(p["attention_norm"], x), causal=True)
    x = x + attend(p["cross_attention_2"], normalise(p["cross_norm"], x), encoded)
    h = dense(p["expand"], normalise(p["feed_norm"], x))
    return x + dense(p["contract"], normalise(p["contract_norm"], h * sigmoid(h)))


def one_block(kind, *arguments):
    block = kind(width=16, num_heads=2)
    return block, drawn(jax.eval_shape(lambda: block.init(jax.random.key(0), *arguments, True))["params"])


def test_blocks_equal_plain_numpy():
    rng, sizes = np.random.default_rng(0), (9, 14)
    x, encoded = (rng.standard_normal((1, 23, 16)).astype(np.float32) for _ in range(2))
    segments = jnp.asarray(np.repeat([1, 2], sizes))[None]
    spans = slice(0, 9), slice(9, 23)

    block, params = one_block(EvolvedEncoderBlock, x, self_mask(segments))
    got = jax.jit(block.apply, static_argnums=3)({"params": params}, x, self_mask(segments), True)[0]
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    np.testing.assert_allclose(got, np.concatenate([encoder_reference(p, x[0, s]) for s in spans]), atol=1e-4, rtol=1e-5)

    masks = self_mask(segments, causal=True), cross_mask(segments, segments)
    block, params = one_block(EvolvedDecoderBlock, x, encoded, *masks)
    assert params["wide_attention"]["query"]["kernel"].shape == (16, 4, 4)  # twice the heads
    got = jax.jit(block.apply, static_argnums=5)({"params": params}, x, encoded, *masks, True)[0]
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    wanted = [decoder_reference(p, x[0, s], encoded[0, s]) for s in spans]
    np.testing.assert_allclose(got, np.concatenate(wanted), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("heads, wide", [(1, 2), (4, 8), (8, 16), (16, 16), (32, 32)])
def test_the_first_attention_has_twice_the_heads_up_to_sixteen(heads, wide):
    x, segments = jnp.ones((1, 2, 64)), jnp.ones((1, 2), jnp.int32)
    block = EvolvedDecoderBlock(width=64, num_heads=heads)
    arguments = x, x, self_mask(segments, causal=True), cross_mask(segments, segments), True
    params = jax.eval_shape(lambda: block.init(jax.random.key(0), *arguments))["params"]
    assert nn.unbox(params)["wide_attention"]["query"]["kernel"].shape[1] == wide


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_decoding_equals_the_full_forward(variant):
    model, params = build(variant)
    batch = full_batch()
    wanted = logits(model, params, batch)
    fields = {k: batch[k] for k in ("source", "source_positions", "source_segments")} | {"first": batch["target_inputs"][:, 0]}
    @functools.partial(jax.jit, compiler_options=QUICK)
    def start(params):
        return model.apply({"params": params}, fields, 24, method="start", mutable=["cache"])[1]

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state, tokens):
        return model.apply({"params": params, **state}, tokens, method="step", mutable=["cache"])

    state = start(params)
    for t in range(TARGET):
        got, state = step(params, state, batch["target_inputs"][:, t])
        np.testing.assert_allclose(got, wanted[:, t], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, TARGET - 1), st.integers(0, 2**16))
def test_a_position_never_sees_later_ones(variant, t, seed):
    model, params = build(variant)
    batch = full_batch(seed)
    changed = {**batch, "target_inputs": batch["target_inputs"].copy()}
    changed["target_inputs"][:, t:] = (changed["target_inputs"][:, t:] + 1 + seed % (VOCAB - 1)) % VOCAB
    before, after = logits(model, params, batch), logits(model, params, changed)
    np.testing.assert_array_equal(after[:, :t], before[:, :t])
    assert np.all(np.abs(after[:, t] - before[:, t]).max(axis=-1) > 1e-4)


@st.composite
def packings(draw):
    """Rows of 2 … 3 examples and, mostly, padding: the sizes of their sources and targets."""

    def row():
        count = draw(st.integers(2, 3))
        sizes = [draw(st.lists(st.integers(1, limit // 3), min_size=count, max_size=count)) for limit in (SOURCE, TARGET)]
        return list(zip(*sizes, strict=True))

    return [row() for _ in range(ROWS)]


def pack(rows):
    """rows: for each row the sizes (source, target) of its examples → a batch, with tokens in the padding too."""
    rng, batch = np.random.default_rng(0), {}
    for number, (stream, length) in enumerate((("source", SOURCE), ("target", TARGET))):
        segments, positions = np.zeros((2, ROWS, length), np.int32)
        for row, sizes in enumerate(rows):
            lengths = [size[number] for size in sizes]
            segments[row, : sum(lengths)] = np.repeat(np.arange(1, len(sizes) + 1), lengths)
            positions[row, : sum(lengths)] = np.concatenate([np.arange(n) for n in lengths])
        batch[f"{stream}_positions"], batch[f"{stream}_segments"] = positions, segments
    batch["source"], batch["target_inputs"] = (rng.integers(3, VOCAB, (ROWS, n)).astype(np.int32) for n in (SOURCE, TARGET))
    return batch | {"targets": batch["target_inputs"]}


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(packings(), st.integers(0, 3))
def test_packed_examples_and_padding_never_leak(variant, rows, chosen):
    """Other tokens in one example (0: in the padding) change the outputs of no other example."""
    model, params = build(variant)
    batch = pack(rows)
    changed = dict(batch)
    for name, segments in ("source", "source_segments"), ("target_inputs", "target_segments"):
        changed[name] = np.where(batch[segments] == chosen, (batch[name] + 7) % VOCAB, batch[name])
    before, after = logits(model, params, batch), logits(model, params, changed)
    target = batch["target_segments"]
    others = (target > 0) & (target != chosen)
    np.testing.assert_array_equal(after[others], before[others])
    if chosen in (1, 2):
        assert np.abs(after[target == chosen] - before[target == chosen]).max() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_examples_equal_separate_ones(variant):
    model, params = build(variant)
    packed = pack([[(4, 8), (3, 5), (5, 7)]] * ROWS)
    apart = {name: np.zeros_like(value) for name, value in packed.items()}
    for name, value in packed.items():
        stream = "source" if name.startswith("source") else "target"
        for row in range(ROWS):  # example 1 goes to row 0, and so on
            found = value[0, packed[f"{stream}_segments"][0] == row + 1]
            apart[name][row, : len(found)] = 1 if name.endswith("segments") else found
    together, alone = logits(model, params, packed), logits(model, params, apart)
    for row in range(ROWS):
        here = packed["target_segments"][0] == row + 1
        np.testing.assert_allclose(alone[row, : here.sum()], together[0, here], atol=1e-4, rtol=1e-4)


def test_scanned_layers_compute_what_separate_layers_do():
    scanned, params = build("scanned")
    apart = dict(params)
    for side, count in ("encoder", 1), ("decoder", 2):
        apart[side] = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], params[side]["layer"]) for i in range(count)}
    separate = models.build({**TINY, "decoder_layers": 2}, VOCAB)
    batch = full_batch()
    np.testing.assert_allclose(logits(separate, apart, batch), logits(scanned, params, batch), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_gradients_are_slopes():
    model, params = build("scanned")
    batch = pack([[(4, 8), (3, 5)], [(5, 7)], [(1, 2), (2, 1), (5, 6)]])

    def loss(params):
        real = batch["target_segments"][..., None] > 0
        return jnp.sum(jnp.where(real, jnp.sin(model.apply({"params": params}, batch).hidden), 0))

    run, gradient = (jax.jit(f, compiler_options=QUICK) for f in (loss, jax.grad(loss)))
    gradient = gradient(params)
    for seed in range(3):
        way = drawn(params, seed)
        ahead, behind = (run(jax.tree.map(lambda p, w, s=s: p + s * w, params, way)) for s in (1e-3, -1e-3))
        slope = sum(jnp.vdot(g, w) for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
        assert float(ahead - behind) / 2e-3 == pytest.approx(float(slope), rel=0.02, abs=0.1)


def test_dropout_is_off_by_default_and_differs_by_key():
    model = models.build({**TINY, "dropout": 0.5, "mlp_dropout": 0.5, "attention_dropout": 0.5}, VOCAB)
    params, batch = build("plain")[1], full_batch()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, key):
        return model.apply({"params": params}, batch, deterministic=False, rngs={"dropout": key}).hidden

    first, again, other = (run(params, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(logits(model, params, batch), logits(build("plain")[0], params, batch))


def test_what_the_architecture_fixes_is_no_key():
    for key in ("mlp_width", "norm", "activation"):
        with pytest.raises(UserError, match=f"config.model.{key} is not a field of evolved_transformer"):
            models.build({**TINY, key: 1}, VOCAB)
    odd = models.build({**TINY, "width": 18, "num_heads": 6}, VOCAB)
    with pytest.raises(UserError, match="num_heads 12 does not divide the model width 18"):
        jax.eval_shape(lambda: odd.init(jax.random.key(0), make_batch([3])))


# Decoding.


class Uncached(nn.Module):
    """The same model without any window: each step reads all tokens written so far from the start."""

    model: nn.Module

    def start(self, batch, length):
        for name in "source", "source_positions", "source_segments":
            self.put_variable("cache", name, batch[name])
        self.put_variable("cache", "written", jnp.zeros((len(batch["first"]), length), jnp.int32))
        self.put_variable("cache", "index", jnp.zeros((), jnp.int32))
        return batch["first"]

    def step(self, tokens):
        index, written = self.get_variable("cache", "index"), self.get_variable("cache", "written")
        written = jax.lax.dynamic_update_slice_in_dim(written, tokens[:, None], index, axis=1)
        self.put_variable("cache", "written", written)
        self.put_variable("cache", "index", index + 1)
        batch = {name: self.get_variable("cache", name) for name in ("source", "source_positions", "source_segments")}
        places = jnp.broadcast_to(jnp.arange(written.shape[1]), written.shape)
        batch |= dict(target_inputs=written, target_positions=places, target_segments=jnp.ones_like(written))
        output = self.model(batch)
        hidden = jax.lax.dynamic_index_in_dim(output.hidden, index, axis=1, keepdims=False)
        return hidden @ output.table.T


def decode(model, params, **changes):
    rng = np.random.default_rng(3)
    sources = [rng.integers(3, VOCAB, n).tolist() for n in (5, 8, 1, 3)]
    options = dict(bos_id=1, eos_id=2, pad_id=0, max_ratio=0.0, extra_length=16, batch_size=16, lengths=(8,))
    return Decoder(model, params, **options | changes).decode(sources)


BEAM = dict(beam_size=4, n_best=3)


@functools.cache
def beams():
    return decode(*build("plain"), **BEAM)


@pytest.mark.parametrize("variant, method", [("scanned", "greedy"), ("plain", "beam")])
def test_decoding_finds_what_it_finds_without_a_cache(variant, method):
    model, params = build(variant)
    found = beams() if method == "beam" else decode(model, params, method="greedy")
    wanted = decode(Uncached(model), {"model": params}, **(BEAM if method == "beam" else {"method": "greedy"}))
    assert [[ids for ids, _ in one] for one in found] == [[ids for ids, _ in one] for one in wanted]
    scores = [[[score for _, score in one] for one in outputs] for outputs in (found, wanted)]
    np.testing.assert_allclose(*scores, atol=1e-3)
    assert max(len(ids) for one in found for ids, _ in one) > 11  # the windows were full


def test_windows_go_with_their_beams(monkeypatch):
    take = caches.CacheLayout.take

    def forgetful(self, moving, origins, index):
        """Leaves without target positions, such as windows, stay with the place they had."""
        changed = take(self, moving, origins, index)
        positions = self._of(True, self.positions)
        return [old if axis is None else new for old, new, axis in zip(moving, changed, positions, strict=True)]

    right = beams()
    monkeypatch.setattr(caches.CacheLayout, "take", forgetful)
    assert decode(*build("plain"), **BEAM) != right
