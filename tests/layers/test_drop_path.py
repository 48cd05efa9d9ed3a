"""Stochastic depth and layer scale."""

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.layers.drop_path import DropPath, LayerScale


def run(rate, layer, layers, rows=20_000):
    x = jnp.ones((rows, 2, 3))
    return np.asarray(DropPath(rate, layers).apply({}, x, layer, deterministic=False, rngs={"dropout": jax.random.key(0)}))


def test_whole_examples_are_dropped_and_means_stay():
    y = run(0.4, 3, 4)
    rows = y[:, 0, 0]
    assert (y == rows[:, None, None]).all()
    np.testing.assert_allclose(np.unique(rows), [0, 1 / 0.6], rtol=1e-6)
    np.testing.assert_allclose(rows.mean(), 1, atol=0.03)
    np.testing.assert_allclose((rows == 0).mean(), 0.4, atol=0.02)


def test_the_rate_grows_from_none_in_the_first_layer():
    assert (run(0.9, 0, 4) == 1).all()
    shares = [(run(0.6, jnp.int32(layer), 4)[:, 0, 0] == 0).mean() for layer in range(4)]
    np.testing.assert_allclose(shares, [0, 0.2, 0.4, 0.6], atol=0.02)


def test_nothing_is_dropped_without_training():
    x = jnp.ones((4, 2))
    assert DropPath(0.9, 2).apply({}, x, 1, deterministic=True) is x


def test_layer_scale_begins_small():
    x = jnp.arange(6.0).reshape(2, 3)
    y, variables = LayerScale(0.1).init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, 0.1 * x, rtol=1e-6)
    assert variables["params"]["scale"].value.shape == (3,)
