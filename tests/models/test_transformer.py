"""The Transformer: what each position may see, cached decoding, scanned layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import drawn

from transformers_jax import models
from transformers_jax.errors import UserError

VOCAB = 37
TINY = dict(name="transformer", width=16, num_heads=2, mlp_width=32, encoder_layers=2, decoder_layers=2, scan_layers=False)
VARIANTS = {
    "pre": {},
    "post": dict(norm="post"),
    "scanned": dict(scan_layers=True),
    "scanned remat": dict(scan_layers=True, remat=True),
    "learned": dict(positions="learned", max_length=16, share_embeddings=False),
    "concatenated": dict(positions="concatenated"),
    "scanned relative": dict(scan_layers=True, positions="none", relative_distance=2),
}


def make_batch(lengths, source_lengths=None, seed=0):
    """One example a row, target lengths and source lengths as given, padded to the longest."""
    source_lengths = source_lengths or [n + 1 for n in lengths]
    rng = np.random.default_rng(seed)

    def stream(sizes):
        width = max(sizes)
        segments = np.array([[int(i < n) for i in range(width)] for n in sizes], np.int32)
        positions = np.array([[i if i < n else 0 for i in range(width)] for n in sizes], np.int32)
        return rng.integers(3, VOCAB, segments.shape).astype(np.int32) * segments, positions, segments

    batch = {}
    batch["source"], batch["source_positions"], batch["source_segments"] = stream(source_lengths)
    batch["target_inputs"], batch["target_positions"], batch["target_segments"] = stream(lengths)
    batch["targets"] = np.roll(batch["target_inputs"], -1, axis=1)
    return batch


def build(**fields):
    model = models.build({**TINY, **fields}, VOCAB)
    return model, drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), make_batch([3, 4])))["params"])


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
    output = model.apply({"params": params}, batch)
    return output.hidden @ output.table.T


def logits(model, params, batch):
    return np.asarray(forward(model, params, batch))


@pytest.fixture(scope="module", params=list(VARIANTS))
def built(request):
    return build(**VARIANTS[request.param])


def test_cached_decoding_equals_the_full_forward(built):
    model, params = built
    batch = make_batch([5, 5, 5], [6, 3, 1])
    wanted = logits(model, params, batch)
    fields = {k: batch[k] for k in ("source", "source_positions", "source_segments")} | {"first": batch["target_inputs"][:, 0]}
    start = jax.jit(lambda fields: model.apply({"params": params}, fields, 8, method="start", mutable=["cache"]))
    first, state = start(fields)
    np.testing.assert_array_equal(first, fields["first"])
    step = jax.jit(lambda state, tokens: model.apply({"params": params, **state}, tokens, method="step", mutable=["cache"]))
    for t in range(5):
        got, state = step(state, batch["target_inputs"][:, t])
        np.testing.assert_allclose(got, wanted[:, t], atol=1e-4, rtol=1e-4)


def test_a_position_never_sees_later_ones(built):
    model, params = built
    batch = make_batch([6, 6])
    before = logits(model, params, batch)
    for t in range(1, 6):
        changed = {**batch, "target_inputs": batch["target_inputs"].copy()}
        changed["target_inputs"][:, t:] = (changed["target_inputs"][:, t:] + 5) % VOCAB
        after = logits(model, params, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.abs(after[:, t] - before[:, t]).max() > 1e-3


def test_padding_changes_nothing(built):
    model, params = built
    short, long = make_batch([4], [3]), make_batch([4], [3])
    for name, value in long.items():
        fill = 7 if name in ("source", "target_inputs", "targets") else 0
        long[name] = np.pad(value, ((0, 0), (0, 3)), constant_values=fill)
    np.testing.assert_allclose(logits(model, params, long)[:, :4], logits(model, params, short), atol=1e-5)


def test_packed_examples_equal_separate_ones(built):
    model, params = built
    a, b = make_batch([4], [3], seed=1), make_batch([2], [5], seed=2)
    packed = {}
    for name in a:
        second = b[name] * 2 if name.endswith("segments") else b[name]
        packed[name] = np.concatenate([a[name], second], axis=1)
    got = logits(model, params, packed)
    np.testing.assert_allclose(got[:, :4], logits(model, params, a), atol=1e-5)
    np.testing.assert_allclose(got[:, 4:], logits(model, params, b), atol=1e-5)


def test_scanned_layers_compute_what_separate_layers_do():
    model, params = build()
    scanned = models.build({**TINY, "scan_layers": True}, VOCAB)
    stacked = {k: v for k, v in params.items() if k not in ("encoder", "decoder")}
    for side in ("encoder", "decoder"):
        layers = [params[side][f"layer_{i}"] for i in range(2)]
        stacked[side] = {"layer": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    batch = make_batch([5, 3])
    np.testing.assert_allclose(logits(scanned, stacked, batch), logits(model, params, batch), atol=1e-5)

    def gradient(model, params):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, batch).hidden))))(params)

    wanted = gradient(model, params)["embedding"]
    np.testing.assert_allclose(gradient(scanned, stacked)["embedding"], wanted, atol=1e-4)
    remat = models.build({**TINY, "scan_layers": True, "remat": True}, VOCAB)
    np.testing.assert_allclose(gradient(remat, stacked)["embedding"], wanted, atol=1e-4)
    remat = models.build({**TINY, "remat": True}, VOCAB)
    np.testing.assert_allclose(gradient(remat, params)["embedding"], wanted, atol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_differs_by_key_and_is_off_by_default(scan):
    model, params = build(scan_layers=scan, dropout=0.5, attention_dropout=0.5, mlp_dropout=0.5)
    batch = make_batch([5, 3])

    @jax.jit
    def run(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, batch, deterministic=False, rngs=rngs).hidden

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    without, _ = build(scan_layers=scan, dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
    np.testing.assert_array_equal(logits(model, params, batch), logits(without, params, batch))


def test_attention_weights_are_collected_only_when_asked():
    for scan in (False, True):
        model, params = build(scan_layers=scan)
        batch = make_batch([5, 3])
        plain = logits(model, params, batch)
        output, state = jax.jit(lambda p, b, m=model: m.apply({"params": p}, b, mutable=["intermediates"]))(params, batch)
        np.testing.assert_allclose(output.hidden @ output.table.T, plain, atol=1e-4)
        weights = jax.tree.leaves(state["intermediates"])
        assert len(weights) == (3 if scan else 6)
        for w in weights:
            rows = w.sum(-1)
            assert np.all(np.isclose(rows, 1, atol=1e-5) | np.isclose(rows, 0))


def test_bfloat16_compute_keeps_float32_parameters():
    model = models.build({**TINY, "dtype": "bfloat16"}, VOCAB)
    variables = nn.unbox(model.init(jax.random.key(0), make_batch([3])))
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert model.apply(variables, make_batch([3])).hidden.dtype == jnp.bfloat16


def test_unknown_model_and_field_are_named():
    with pytest.raises(UserError, match="known models: .*transformer"):
        models.build({"name": "transfromer"}, VOCAB)
    with pytest.raises(UserError, match="config.model.widht"):
        models.build({"name": "transformer", "widht": 3}, VOCAB)
