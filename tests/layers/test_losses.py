"""The chunked cross entropy against the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.layers import losses


def plain(hidden, table, targets, weights, smoothing):
    logits = hidden @ table.T
    log_probabilities = jax.nn.log_softmax(logits)
    one_hot = jax.nn.one_hot(targets, table.shape[0])
    smooth_targets = one_hot * (1 - smoothing) + smoothing / table.shape[0]
    return -jnp.sum(weights[..., None] * smooth_targets * log_probabilities)


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, table = jax.random.normal(keys[0], (3, 7, 5)), jax.random.normal(keys[1], (11, 5))
    targets = jax.random.randint(keys[2], (3, 7), 0, 11)
    weights = (jax.random.uniform(keys[3], (3, 7)) > 0.3).astype(jnp.float32)
    return hidden, table, targets, weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("elements", [1, 3 * 11 * 2, 3 * 11 * 3, 10**6])
def test_chunks_equal_the_plain_loss_and_gradient(inputs, smoothing, elements, monkeypatch):
    monkeypatch.setattr(losses, "chunk_elements", lambda: elements)
    hidden, table, targets, weights = inputs

    def ours(hidden, table):
        return losses.cross_entropy(hidden, table, targets, weights, smoothing).loss / 3.0

    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(hidden, table)
    wanted, wanted_gradients = jax.value_and_grad(lambda h, t: plain(h, t, targets, weights, smoothing) / 3.0, argnums=(0, 1))(
        hidden, table
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(hidden, table), wanted, rtol=1e-5)  # the path without gradients


@pytest.mark.parametrize("elements", [1, 10**6])
def test_a_bias_is_added_and_has_its_gradient(inputs, elements, monkeypatch):
    monkeypatch.setattr(losses, "chunk_elements", lambda: elements)
    hidden, table, targets, weights = inputs
    bias = jax.random.normal(jax.random.key(9), (11,))

    def ours(hidden, table, bias):
        return losses.cross_entropy(hidden, table, targets, weights, bias=bias).loss

    def wanted(hidden, table, bias):  # as one more input that is always 1
        ones = jnp.ones((*hidden.shape[:-1], 1))
        return plain(jnp.concatenate([hidden, ones], -1), jnp.concatenate([table, bias[:, None]], -1), targets, weights, 0.0)

    got, want = (jax.value_and_grad(f, argnums=(0, 1, 2))(hidden, table, bias) for f in (ours, wanted))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5), got, want)


def test_sums_count_what_they_say(inputs):
    hidden, table, targets, weights = inputs
    sums = losses.cross_entropy(hidden, table, targets, weights, 0.1)
    logits = np.asarray(hidden @ table.T)
    np.testing.assert_allclose(sums.weight, weights.sum())
    np.testing.assert_allclose(sums.correct, (weights * (logits.argmax(-1) == targets)).sum())
    np.testing.assert_allclose(sums.nll, plain(hidden, table, targets, weights, 0.0), rtol=1e-5)
    assert sums.loss != sums.nll


def test_masked_positions_have_no_gradient(inputs):
    hidden, table, targets, weights = inputs
    gradient = jax.grad(lambda h: losses.cross_entropy(h, table, targets, weights).loss)(hidden)
    assert np.all(np.asarray(gradient)[np.asarray(weights) == 0] == 0)
    assert np.any(np.asarray(gradient)[np.asarray(weights) == 1] != 0)
