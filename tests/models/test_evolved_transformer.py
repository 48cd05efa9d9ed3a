"""The Evolved Transformer: its blocks against plain numpy, what each position may see, cached decoding, beams."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_transformer import logits, make_batch

from transformers_jax import models
from transformers_jax.decoding import cache as caches
from transformers_jax.decoding.decoder import Decoder
from transformers_jax.errors import UserError
from transformers_jax.layers.masks import cross_mask, self_mask
from transformers_jax.models.evolved_transformer import DecoderBlock, EncoderBlock

VOCAB = 37
TINY = dict(name="evolved_transformer", width=16, num_heads=2, encoder_layers=1, decoder_layers=2, scan_layers=False)
VARIANTS = {
    "plain": {},
    "scanned": dict(scan_layers=True, remat=True),
    "learned and relative": dict(
        positions="learned", max_length=32, relative_distance=3, share_embeddings=False, attention_bias=True, decoder_layers=1
    ),
}


def drawn(abstract, seed=1):
    """Parameters of these shapes, none of them one or zero, so that a forgotten one shows."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        middle, size = (1.0, 0.2) if path[-1].key == "scale" else (0.0, 0.3 if x.ndim > 1 else 0.2)
        return jnp.asarray(middle + size * rng.standard_normal(x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(abstract))


@functools.cache
def build(variant):
    model = models.build({**TINY, **VARIANTS[variant]}, VOCAB)
    return model, drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), make_batch([3, 4])))["params"])


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

    block, params = one_block(EncoderBlock, x, self_mask(segments))
    got = jax.jit(block.apply, static_argnums=3)({"params": params}, x, self_mask(segments), True)[0]
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    np.testing.assert_allclose(got, np.concatenate([encoder_reference(p, x[0, s]) for s in spans]), atol=1e-4, rtol=1e-5)

    masks = self_mask(segments, causal=True), cross_mask(segments, segments)
    block, params = one_block(DecoderBlock, x, encoded, *masks)
    assert params["wide_attention"]["query"]["kernel"].shape == (16, 4, 4)  # twice the heads
    got = jax.jit(block.apply, static_argnums=5)({"params": params}, x, encoded, *masks, True)[0]
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    wanted = [decoder_reference(p, x[0, s], encoded[0, s]) for s in spans]
    np.testing.assert_allclose(got, np.concatenate(wanted), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("heads, wide", [(1, 2), (4, 8), (8, 16), (16, 16), (32, 32)])
def test_the_first_attention_has_twice_the_heads_up_to_sixteen(heads, wide):
    x, segments = jnp.ones((1, 2, 64)), jnp.ones((1, 2), jnp.int32)
    block = DecoderBlock(width=64, num_heads=heads)
    arguments = x, x, self_mask(segments, causal=True), cross_mask(segments, segments), True
    params = jax.eval_shape(lambda: block.init(jax.random.key(0), *arguments))["params"]
    assert nn.unbox(params)["wide_attention"]["query"]["kernel"].shape[1] == wide


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_decoding_equals_the_full_forward(variant):
    model, params = build(variant)
    length = 20  # longer than a window by more than another window
    batch = make_batch([length] * 3, [6, 3, 1])
    wanted = logits(model, params, batch)
    fields = [batch[k] for k in ("source", "source_positions", "source_segments")]
    state = jax.jit(lambda params: model.apply({"params": params}, *fields, 24, method="start", mutable=["cache"])[1])(params)

    @jax.jit
    def step(params, state, tokens):
        return model.apply({"params": params, **state}, tokens, method="step", mutable=["cache"])

    for t in range(length):
        got, state = step(params, state, batch["target_inputs"][:, t])
        np.testing.assert_allclose(got, wanted[:, t], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 13), st.integers(0, 2**16))
def test_a_position_never_sees_later_ones(variant, t, seed):
    model, params = build(variant)
    batch = make_batch([14, 14], [4, 2], seed=seed)
    changed = {**batch, "target_inputs": batch["target_inputs"].copy()}
    changed["target_inputs"][:, t:] = (changed["target_inputs"][:, t:] + 1 + seed % (VOCAB - 1)) % VOCAB
    before, after = logits(model, params, batch), logits(model, params, changed)
    np.testing.assert_array_equal(after[:, :t], before[:, :t])
    assert np.all(np.abs(after[:, t] - before[:, t]).max(axis=-1) > 1e-4)


SOURCE, TARGET = 12, 16


@st.composite
def packings(draw):
    """One row of 2 … 3 examples and, mostly, padding: the sizes of their sources and targets."""
    count = draw(st.integers(2, 3))
    sizes = [draw(st.lists(st.integers(1, limit // 3), min_size=count, max_size=count)) for limit in (SOURCE, TARGET)]
    return list(zip(*sizes, strict=True))


def pack(sizes, seed=0):
    rng, batch = np.random.default_rng(seed), {}
    for stream, length, lengths in zip(("source", "target"), (SOURCE, TARGET), zip(*sizes, strict=True), strict=True):
        segments = np.repeat(np.arange(1, len(sizes) + 1), lengths)
        positions = np.concatenate([np.arange(n) for n in lengths])
        rest = (0, length - len(segments))
        name = "source" if stream == "source" else "target_inputs"
        batch[name] = rng.integers(3, VOCAB, (1, length)).astype(np.int32)  # padding holds pieces too
        batch[f"{stream}_positions"] = np.pad(positions, rest)[None].astype(np.int32)
        batch[f"{stream}_segments"] = np.pad(segments, rest)[None].astype(np.int32)
    return batch


@pytest.mark.parametrize("variant", ["plain", "scanned"])
@settings(max_examples=15, deadline=None)
@given(packings(), st.data())
def test_packed_examples_and_padding_never_leak(variant, sizes, data):
    """Other pieces in one example, or in the padding, change the outputs of no other example."""
    model, params = build(variant)
    batch = pack(sizes)
    chosen = data.draw(st.integers(0, len(sizes)))  # 0 is padding
    changed = dict(batch)
    for name, segments in ("source", "source_segments"), ("target_inputs", "target_segments"):
        where = batch[segments] == chosen
        changed[name] = np.where(where, (batch[name] + 7) % VOCAB, batch[name])
    before, after = logits(model, params, batch), logits(model, params, changed)
    target = batch["target_segments"]
    others = (target > 0) & (target != chosen)
    np.testing.assert_array_equal(after[others], before[others])
    if chosen:
        assert np.abs(after[target == chosen] - before[target == chosen]).max() > 1e-4


@pytest.mark.parametrize("variant", ["plain", "scanned"])
def test_packed_examples_equal_separate_ones(variant):
    model, params = build(variant)
    sizes = [(4, 5), (3, 5), (4, 4)]
    packed = pack(sizes)
    got = logits(model, params, packed)
    for number in range(1, 4):
        alone = {}
        for name, value in packed.items():
            stream = "source" if name.startswith("source") else "target"
            here = packed[f"{stream}_segments"][0] == number
            value = np.where(value == number, 1, 0) if name.endswith("segments") else value
            alone[name] = np.pad(value[:, here], ((0, 0), (0, 6 - here.sum())))
        here = packed["target_segments"][0] == number
        np.testing.assert_allclose(logits(model, params, alone)[0, : here.sum()], got[0, here], atol=1e-4)


def test_scanned_layers_compute_what_separate_layers_do():
    model, params = build("plain")
    scanned = models.build({**TINY, "scan_layers": True}, VOCAB)
    stacked = dict(params)
    for side in ("encoder", "decoder"):
        stacked[side] = {"layer": jax.tree.map(lambda *x: jnp.stack(x), *params[side].values())}
    batch = make_batch([13, 3])
    np.testing.assert_allclose(logits(scanned, stacked, batch), logits(model, params, batch), atol=1e-4)

    def gradient(model, params):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, batch).hidden))))(params)

    remat = models.build({**TINY, "scan_layers": True, "remat": True}, VOCAB)
    wanted = gradient(model, params)["embedding"]
    np.testing.assert_allclose(gradient(remat, stacked)["embedding"], wanted, atol=1e-3, rtol=1e-3)


def test_dropout_is_off_by_default_and_differs_by_key():
    model = models.build({**TINY, "dropout": 0.5, "hidden_dropout": 0.5, "attention_dropout": 0.5}, VOCAB)
    params, batch = build("plain")[1], make_batch([5, 3])

    @jax.jit
    def run(params, key):
        return model.apply({"params": params}, batch, deterministic=False, rngs={"dropout": key}).hidden

    first, again, other = (run(params, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(logits(model, params, batch), logits(build("plain")[0], params, batch))


def test_what_the_architecture_fixes_is_no_key():
    for key in ("hidden", "norm", "activation"):
        with pytest.raises(UserError, match=f"config.model.{key} is not a field of evolved_transformer"):
            models.build({**TINY, key: 1}, VOCAB)
    odd = models.build({**TINY, "width": 18, "num_heads": 6}, VOCAB)
    with pytest.raises(UserError, match="num_heads 12 does not divide the model width 18"):
        jax.eval_shape(lambda: odd.init(jax.random.key(0), make_batch([3])))


# Decoding.


class Uncached(nn.Module):
    """The same model without any window: each step reads all pieces written so far from the start."""

    model: nn.Module

    def start(self, source, source_positions, source_segments, max_length):
        fields = dict(source=source, source_positions=source_positions, source_segments=source_segments)
        for name, value in fields.items():
            self.put_variable("cache", name, value)
        self.put_variable("cache", "written", jnp.zeros((source.shape[0], max_length), jnp.int32))
        self.put_variable("cache", "index", jnp.zeros((), jnp.int32))

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


def decode(model, params, sources, **changes):
    options = dict(bos_id=1, eos_id=2, pad_id=0, max_ratio=0.0, extra_length=16, batch_size=16, lengths=(8,))
    return Decoder(model, params, **options | changes).decode(sources)


def sources():
    rng = np.random.default_rng(3)
    return [rng.integers(3, VOCAB, n).tolist() for n in (5, 8, 1, 3)]


@pytest.mark.parametrize("variant", ["plain", "scanned"])
@pytest.mark.parametrize("options", [dict(method="greedy"), dict(beam_size=4, n_best=3)], ids=["greedy", "beam"])
def test_decoding_finds_what_it_finds_without_a_cache(variant, options):
    model, params = build(variant)
    found = decode(model, params, sources(), **options)
    wanted = decode(Uncached(model), {"model": params}, sources(), **options)
    assert [[ids for ids, _ in one] for one in found] == [[ids for ids, _ in one] for one in wanted]
    scores = [[[score for _, score in one] for one in outputs] for outputs in (found, wanted)]
    np.testing.assert_allclose(*scores, atol=1e-3)
    assert max(len(ids) for one in found for ids, _ in one) > 11  # the windows were full


def test_windows_go_with_their_beams(monkeypatch):
    model, params = build("plain")
    right = decode(model, params, sources(), beam_size=4)
    take = caches.Layout.take

    def forgetful(self, moving, origins, index):
        """Leaves without target positions, such as windows, stay with the place they had."""
        changed = take(self, moving, origins, index)
        positions = self._of(True, self.positions)
        return [old if axis is None else new for old, new, axis in zip(moving, changed, positions, strict=True)]

    monkeypatch.setattr(caches.Layout, "take", forgetful)
    assert decode(model, params, sources(), beam_size=4) != right
