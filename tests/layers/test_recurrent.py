"""The LSTM layer against a loop in numpy, and the late weight gradients against plain differentiation of the scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.layers import recurrent
from transformers_jax.layers.recurrent import LSTM

ROWS, TIMES, INPUTS, HIDDEN = 3, 7, 5, 4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loop(params, x, reset, initial, *, reverse=False):
    """The cell's equations, one row and one time after the other, in float64; x [B, T, I] → h, c [B, T, F]."""
    kernel, recurrent_kernel, bias = (np.asarray(params[n], np.float64) for n in ("kernel", "recurrent", "bias"))
    hs = np.zeros((*x.shape[:2], recurrent_kernel.shape[0]))
    cs = np.zeros_like(hs)
    for row in range(x.shape[0]):
        h, c = np.zeros(hs.shape[2]), np.zeros(hs.shape[2])
        for time in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
            if reset[row, time]:
                h, c = (np.zeros_like(h), np.zeros_like(c)) if initial is None else (s[row, time] for s in initial)
            i, f, g, o = (x[row, time] @ kernel[:, k] + h @ recurrent_kernel[:, k] + bias[k] for k in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            hs[row, time], cs[row, time] = h, c
    return hs, cs


@pytest.fixture(scope="module")
def case():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(ROWS, TIMES, INPUTS)).astype(np.float32)
    initial = tuple(draw.normal(size=(ROWS, TIMES, HIDDEN)).astype(np.float32) for _ in range(2))
    reset = draw.random((ROWS, TIMES)) < 0.3
    params = nn.unbox(LSTM(INPUTS, HIDDEN).init(jax.random.key(0), x, reset))["params"]
    params = jax.tree.map(lambda p: p + 0.1 * draw.normal(size=p.shape).astype(np.float32), params)
    return params, x, reset, initial


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_equals_a_loop(case, reverse, started):
    params, x, reset, initial = case
    initial = initial if started else None
    assert reset.any() and not reset.all()
    h, c = LSTM(INPUTS, HIDDEN).apply({"params": params}, x, reset, initial, reverse=reverse)
    want_h, want_c = loop(params, x, reset, initial, reverse=reverse)
    np.testing.assert_allclose(h, want_h, atol=1e-5)
    np.testing.assert_allclose(c, want_c, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_those_of_the_plain_scan(case, reverse, monkeypatch):
    params, x, reset, initial = case

    def loss(params, x, initial):
        h, c = LSTM(INPUTS, HIDDEN).apply({"params": params}, x, reset, initial, reverse=reverse)
        return jnp.sum(h**2) + jnp.sum(jnp.sin(c))

    late = jax.grad(loss, (0, 1, 2))(params, x, initial)
    monkeypatch.setattr(recurrent, "recurrence", lambda *arguments: recurrent._scan(*arguments, None)[0])
    plain = jax.grad(loss, (0, 1, 2))(params, x, initial)
    assert all(np.abs(g).max() > 1e-2 for g in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), late, plain)


def test_weights_of_each_row_and_shared_arrays_get_gradients():
    """A matrix [B, I, O] a row, one [I, O] for all, a shared array, the first carry and xs: all as in a plain scan."""
    draw = np.random.default_rng(1)
    weights = {"all": draw.normal(size=(4, 3)), "own": draw.normal(size=(2, 3, 4))}
    arguments = (weights, draw.normal(size=4), draw.normal(size=(2, 4)), draw.normal(size=(5, 2, 4)))
    arguments = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), arguments)

    def step(multiply, shared, carry, x):
        middle = jnp.tanh(multiply("all", carry) + 1)
        carry = jnp.tanh(multiply("own", middle) + shared * x)
        return carry, (carry, middle)

    def loss(scan):
        def total(arguments):
            carry, ys = scan(*arguments)
            return jnp.sum(carry**2) + sum(jnp.sum(jnp.cos(y)) for y in ys)

        return jax.grad(total)(arguments)

    late = loss(lambda *a: recurrent.recurrence(step, False, *a))
    plain = loss(lambda *a: recurrent._scan(step, False, *a, None)[0])
    assert all(np.abs(g).max() > 1e-2 for g in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), late, plain)


def test_computes_in_bfloat16_but_keeps_the_cell_in_float32(case):
    params, x, reset, initial = case
    h, c = LSTM(INPUTS, HIDDEN, dtype="bfloat16").apply({"params": params}, x, reset, initial)
    assert (h.dtype, c.dtype) == (jnp.bfloat16, jnp.float32)
    want_h, _ = loop(params, x, reset, initial)
    np.testing.assert_allclose(h.astype(jnp.float32), want_h, atol=0.05)


def test_parameters_have_names_of_axes_and_the_forget_gate_starts_open():
    variables = LSTM(INPUTS, HIDDEN).init(jax.random.key(0), jnp.zeros((1, 2, INPUTS)), jnp.zeros((1, 2), bool))
    names = {name: box.names for name, box in variables["params"].items()}
    assert names == {
        "kernel": ("embed", None, "mlp"),
        "recurrent": ("embed", None, "mlp"),
        "bias": (None, "mlp"),
    }
    np.testing.assert_array_equal(nn.unbox(variables)["params"]["bias"], np.eye(4)[1][:, None] * np.ones(HIDDEN))
