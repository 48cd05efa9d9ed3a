"""The recurrent baseline against loops in numpy: whole, packed, cached, with every score."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax import models
from transformers_jax.decoding import cache
from transformers_jax.errors import UserError
from transformers_jax.layers import scores
from transformers_jax.models.luong import additive

VOCAB, SOURCE, TARGET = 23, 12, 10
TINY = dict(name="luong", width=6, lstm_width=8, encoder_layers=2, decoder_layers=2, dropout=0.3)
VARIANTS = {
    "general, fed": {},
    "dot, fed, both ways": dict(score="dot", bidirectional=True),
    "concat, fed, deeper decoder": dict(score="concat", decoder_layers=3),
    "general, own embedding, deeper encoder": dict(input_feeding=False, share_embeddings=False, encoder_layers=3),
    "concat, one layer both ways": dict(
        score="concat", lstm_width=0, input_feeding=False, bidirectional=True, encoder_layers=1, decoder_layers=1
    ),
}


def pack(rows):
    """rows: for each row its examples (source, target ids) → a batch [len(rows), SOURCE], [len(rows), TARGET]."""

    def stream(tokens, length):
        ids, positions, segments = (np.zeros((len(rows), length), np.int32) for _ in range(3))
        for row, examples in enumerate(tokens):
            at = 0
            for number, example in enumerate(examples, start=1):
                span = slice(at, at + len(example))
                ids[row, span], positions[row, span], segments[row, span] = example, range(len(example)), number
                at += len(example)
        return ids, positions, segments

    batch = {}
    sources = stream([[s for s, _ in row] for row in rows], SOURCE)
    targets = stream([[t for _, t in row] for row in rows], TARGET)
    batch["source"], batch["source_positions"], batch["source_segments"] = sources
    batch["target_inputs"], batch["target_positions"], batch["target_segments"] = targets
    batch["targets"] = batch["target_inputs"]
    return batch


def draw_examples(draw, sizes):
    return [tuple(draw.integers(3, VOCAB, n) for n in size) for size in sizes]


def run_lstm(p, xs, h, c):
    """Equations of the cell over one example; xs [T, I] → hs [T, F], last h, last c."""
    sigmoid, hs = lambda x: 1 / (1 + np.exp(-x)), []
    for x in xs:
        i, f, g, o = (x @ p["kernel"][:, k] + h @ p["recurrent"][:, k] + p["bias"][k] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return np.array(hs), h, c


def reference(config, params, source, target):
    """The paper's equations for one example alone, without padding, in float64: h~ [T, D] and weights [T, S]."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    hidden = p["combine"].shape[0] // 2
    scale, zeros = config.width**0.5, np.zeros(hidden)
    x, states = scale * p.get("source_embedding", p["embedding"])[source], []
    for number in range(config.encoder_layers):
        layer = p[f"encoder_{number}"]
        start = zeros[: layer["recurrent"].shape[0]]
        hs, h, c = run_lstm(layer, x, start, start)
        if number == 0 and config.bidirectional:
            back, back_h, back_c = run_lstm(p["encoder_backward"], x[::-1], start, start)
            hs, h, c = np.hstack([hs, back[::-1]]), np.hstack([h, back_h]), np.hstack([c, back_c])
        x = hs
        states.append((h, c))
    memory = x
    more = config.decoder_layers - config.encoder_layers
    states = ([states[0]] * max(0, more) + states)[-config.decoder_layers :]
    fed, outputs, weights = np.zeros(config.width), [], []
    for token in target:
        x = scale * p["embedding"][token]
        for number in range(config.decoder_layers):
            layer = p[f"decoder_{number}"]
            if number == 0 and config.input_feeding:  # [x; h~] times the kernel [kernel; feed]
                layer, x = {**layer, "kernel": np.concatenate([layer["kernel"], p["feed"]])}, np.hstack([x, fed])
            _, h, c = run_lstm(layer, x[None], *states[number])
            x, states[number] = h, (h, c)
        energies = {
            "dot": lambda s: h @ s,  # noqa: B023 (called in this turn of the loop)
            "general": lambda s: h @ (s @ p["score_keys"]),  # noqa: B023
            "concat": lambda s: p["score_vector"][:, 0] @ np.tanh(h @ p["score_query"] + s @ p["score_keys"]),  # noqa: B023
        }[config.score]
        a = np.exp([energies(s) for s in memory])
        a /= a.sum()
        fed = np.tanh(np.hstack([a @ memory, h]) @ p["combine"])
        outputs.append(fed)
        weights.append(a)
    return np.array(outputs), np.array(weights)


def draw_parameters(model):
    """Parameters of the model's shapes, all of them random, also those that start at 0 or 1."""
    batch = pack([draw_examples(np.random.default_rng(0), [(2, 2)])])
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))["params"]
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: draw.normal(0, 0.5, x.shape).astype(np.float32), shapes)


class Built:
    """A model with parameters, and one compiled form for all tests."""

    def __init__(self, fields):
        self.model = models.build({**TINY, **fields}, VOCAB)
        self.params = draw_parameters(self.model)
        self.pictured = jax.jit(lambda p, b: self.model.apply({"params": p}, b, mutable=["intermediates"]))

    def run(self, batch):
        """Hidden states [B, T, D] and weights [B, T, S]."""
        output, variables = self.pictured(self.params, batch)
        (weights,) = variables["intermediates"]["weights"]
        assert weights.shape == (2, 1, TARGET, SOURCE)
        return np.asarray(output.hidden), np.asarray(weights[:, 0])


@pytest.fixture(scope="module", params=list(VARIANTS))
def built(request):
    return Built(VARIANTS[request.param])


sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=3)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(rows=st.tuples(sizes, sizes), seed=st.integers(0, 1000))
def test_packed_rows_equal_each_example_alone(built, rows, seed):
    draw = np.random.default_rng(seed)

    def fitting(row):
        n = len(row)
        while sum(s for s, _ in row[:n]) > SOURCE or sum(t for _, t in row[:n]) > TARGET:
            n -= 1
        return row[:n]

    rows = [draw_examples(draw, fitting(row)) for row in rows]
    hidden, weights = built.run(pack(rows))
    for row, examples in enumerate(rows):
        s = t = 0
        for source, target in examples:
            want_hidden, want_weights = reference(built.model.config, built.params, source, target)
            here = slice(t, t + len(target))
            np.testing.assert_allclose(hidden[row, here], want_hidden, atol=1e-5)
            np.testing.assert_allclose(weights[row, here, s : s + len(source)], want_weights, atol=1e-5)
            np.testing.assert_allclose(weights[row, here].sum(-1), 1, atol=1e-5)  # so nothing lies elsewhere
            s, t = s + len(source), t + len(target)


def test_padding_changes_nothing(built):
    """Other tokens where padding stands, and other positions: not one bit of a real position changes."""
    draw = np.random.default_rng(3)
    batch = pack([draw_examples(draw, [(3, 4), (2, 2)]), draw_examples(draw, [(5, 1)])])
    other = dict(batch)
    for stream, fields in {"source": ["source", "source_positions"], "target": ["target_inputs"]}.items():
        padding = batch[f"{stream}_segments"] == 0
        assert padding.any()
        for name in fields:
            other[name] = np.where(padding, draw.integers(0, VOCAB, padding.shape), batch[name]).astype(np.int32)
    real = batch["target_segments"] > 0
    np.testing.assert_array_equal(built.run(batch)[0][real], built.run(other)[0][real])


def test_cached_decoding_equals_the_full_forward(built):
    draw = np.random.default_rng(4)
    batch = pack([draw_examples(draw, [(7, TARGET)]), draw_examples(draw, [(2, TARGET)])])
    hidden, _ = built.run(batch)
    want = hidden @ np.asarray(built.params["embedding"]).T
    fields = {name: batch[name] for name in ("source", "source_positions", "source_segments")}
    fields["first"] = batch["target_inputs"][:, 0]
    first, state = built.model.apply({"params": built.params}, fields, TARGET, method="start", mutable=["cache"])
    assert first is fields["first"] and all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(state))
    step = jax.jit(lambda p, s, t: built.model.apply({"params": p, **s}, t, method="step", mutable=["cache"]))
    for time in range(TARGET):
        logits, state = step(built.params, state, batch["target_inputs"][:, time])
        assert (logits.shape, logits.dtype) == ((2, VOCAB), jnp.float32)
        np.testing.assert_allclose(logits, want[:, time], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields, moving", [({}, "c_0 c_1 fed h_0 h_1"), (dict(input_feeding=False), "c_0 c_1 h_0 h_1")])
def test_a_step_leaves_what_was_read_of_the_source_untouched(fields, moving):
    """So that a beam search neither copies nor reorders it."""
    model = models.build({**TINY, **fields}, VOCAB)
    params = draw_parameters(model)

    def start(rows, length):
        source = jnp.ones((rows, 4), jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(4), source.shape)
        batch = {"source": source, "source_positions": positions, "source_segments": source, "first": source[:, 0]}
        return model.apply({"params": params}, batch, length, method="start", mutable=["cache"])[1]["cache"]

    def step(state, tokens):
        variables = {"params": params, "cache": state}
        logits, after = model.apply(variables, tokens, method="step", mutable=["cache"])
        return logits, after["cache"]

    found = cache.layout(start, step)
    assert set(found.rows) == {0} and set(found.positions) == {None}
    names = jax.tree.unflatten(found.structure, found.moving)
    assert sorted(name for name, moves in names.items() if moves) == moving.split()


@pytest.mark.parametrize("score", ["general", "concat"])
def test_scores_are_those_of_layers_scores(score):
    draw = np.random.default_rng(5)
    query, keys = draw.normal(size=(2, 3, 4)), draw.normal(size=(2, 5, 4))
    of_query, of_keys, vector = draw.normal(size=(4, 4)), draw.normal(size=(4, 4)), draw.normal(size=(4, 1))
    if score == "general":
        got = query @ np.swapaxes(keys @ of_keys, 1, 2)
        want = scores.General().apply({"params": {"kernel": of_keys.T}}, query, keys)
    else:
        got = additive(query @ of_query, keys @ of_keys, vector)
        params = {"kernel": np.concatenate([of_query, of_keys]), "vector": vector[:, 0]}
        want = scores.Concat(4).apply({"params": params}, query, keys)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("feeding", [True, False])
def test_learns_and_drops_out_only_while_training(feeding):
    """One gradient step lowers the loss; dropout moves the loss with its key, and not at all when deterministic."""
    model = models.build({**TINY, "encoder_layers": 1, "input_feeding": feeding}, VOCAB)
    draw = np.random.default_rng(6)
    batch = pack([draw_examples(draw, [(4, 5), (3, 3)]), draw_examples(draw, [(2, 6)])])
    params = draw_parameters(model)

    def loss(params, key=None):
        rngs = None if key is None else {"dropout": key}
        output = model.apply({"params": params}, batch, deterministic=key is None, rngs=rngs)
        nll = -jax.nn.log_softmax(output.hidden @ output.table.T)
        nll = jnp.take_along_axis(nll, jnp.asarray(batch["targets"])[..., None], axis=-1)[..., 0]
        return jnp.sum(nll * (batch["target_segments"] > 0))

    exact, dropped = jax.jit(jax.value_and_grad(loss)), jax.jit(loss)
    value, gradient = exact(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
    assert exact(jax.tree.map(lambda p, g: p - 0.001 * g, params, gradient))[0] < value
    one, same, other = (dropped(params, jax.random.key(k)) for k in (1, 1, 2))
    assert one == same and one != other and one != value


def test_says_what_does_not_fit():
    batch = pack([draw_examples(np.random.default_rng(0), [(2, 2)])])
    for fields, words in [
        (dict(score="cosine"), "cosine"),
        (dict(decoder_layers=0), "decoder_layers"),
        (dict(bidirectional=True, lstm_width=7), "even"),
    ]:
        with pytest.raises(UserError, match=words):
            jax.eval_shape(models.build({**TINY, **fields}, VOCAB).init, jax.random.key(0), batch)
    with pytest.raises(UserError, match="num_heads"):
        models.build({**TINY, "num_heads": 2}, VOCAB)


def test_every_parameter_has_names_of_axes_and_nothing_is_sown_unless_wanted():
    model = models.build({**TINY, "score": "concat"}, VOCAB)
    batch = pack([draw_examples(np.random.default_rng(0), [(2, 2)])])
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    assert set(variables) == {"params"}
    boxes = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert boxes and all(isinstance(b, nn.LogicallyPartitioned) and len(b.names) == b.value.ndim for b in boxes)
    output, sown = jax.eval_shape(lambda p: model.apply(p, batch, mutable=["cache"]), nn.unbox(variables))
    assert output.hidden.shape == (1, TARGET, 6) and output.table.shape == (VOCAB, 6)
    assert not sown


def test_computes_in_bfloat16():
    model = models.build({**TINY, "dtype": "bfloat16"}, VOCAB)
    batch = pack([draw_examples(np.random.default_rng(0), [(4, 5), (3, 4)])])
    params = draw_parameters(model)

    @jax.jit
    def both(params):
        def loss(params):
            hidden = model.apply({"params": params}, batch).hidden
            return jnp.sum(hidden.astype(jnp.float32) ** 2), hidden

        return jax.grad(loss, has_aux=True)(params)

    gradient, hidden = both(params)
    assert hidden.dtype == jnp.bfloat16
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    source, target = batch["source"][0, :4], batch["target_inputs"][0, :5]
    want, _ = reference(model.config, params, source, target)
    np.testing.assert_allclose(hidden[0, :5].astype(jnp.float32), want, atol=0.1)
