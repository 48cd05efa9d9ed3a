"""The lecture's attention: each score against its formula in plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.layers import scores
from transformers_jax.layers.scores import Concat, General, attention, dot, hardmax, scaled_dot, softmax

T, S, D, E = 3, 4, 5, 6


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def by_loops(query, keys, score):
    return np.array([[score(q, k) for k in np.asarray(keys)] for q in np.asarray(query)])


def test_dot_and_scaled_dot():
    query, keys = arrays((T, D), (S, D))
    np.testing.assert_allclose(dot(query, keys), by_loops(query, keys, np.dot), atol=1e-5)
    wanted = by_loops(query, keys, lambda q, k: np.dot(q, k) / np.sqrt(D))
    np.testing.assert_allclose(scaled_dot(query, keys), wanted, atol=1e-5)


def test_general_is_bilinear_between_widths():
    query, keys = arrays((T, D), (S, E))
    module = General()
    variables = module.init(jax.random.key(0), query, keys)
    kernel = np.asarray(variables["params"]["kernel"].value)
    assert kernel.shape == (D, E)
    wanted = by_loops(query, keys, lambda q, k: q @ kernel @ k)
    np.testing.assert_allclose(module.apply(variables, query, keys), wanted, atol=1e-5)


def test_general_with_the_identity_is_dot():
    query, keys = arrays((T, D), (S, D))
    np.testing.assert_allclose(
        General().apply({"params": {"kernel": jnp.eye(D)}}, query, keys), dot(query, keys), atol=1e-6
    )


def test_concat_scores_the_joined_vectors():
    query, keys = arrays((T, D), (S, E))
    module = Concat(width=7)
    variables = module.init(jax.random.key(0), query, keys)
    kernel, vector = (np.asarray(variables["params"][name].value) for name in ("kernel", "vector"))
    assert kernel.shape == (D + E, 7) and vector.shape == (7,)
    wanted = by_loops(query, keys, lambda q, k: vector @ np.tanh(np.concatenate([q, k]) @ kernel))
    np.testing.assert_allclose(module.apply(variables, query, keys), wanted, atol=1e-5)


@pytest.mark.parametrize("distribution", [softmax, hardmax])
def test_attention_is_a_mean_of_values_by_the_distribution(distribution):
    query, keys, values = arrays((2, T, D), (2, S, D), (2, S, 3))
    mask = jnp.array([[True, True, False, True]] * T)
    context, weights = attention(query, keys, values, compatibility=dot, distribution=distribution, mask=mask)
    query, keys, values, mask = (np.asarray(x) for x in (query, keys, values, mask))
    for b, t in np.ndindex(2, T):
        points = np.array([np.dot(query[b, t], keys[b, s]) if mask[t, s] else -np.inf for s in range(S)])
        powers = np.exp(points - points.max()) if distribution is softmax else (points == points.max()).astype(float)
        wanted = powers / powers.sum()
        np.testing.assert_allclose(weights[b, t], wanted, atol=1e-5)
        np.testing.assert_allclose(context[b, t], sum(w * v for w, v in zip(wanted, values[b], strict=True)), atol=1e-5)


@pytest.mark.parametrize("distribution", [softmax, hardmax])
def test_a_query_that_sees_nothing_gets_zeros_in_value_and_gradient(distribution):
    query, keys, values = arrays((T, D), (S, D), (S, 3))
    mask = jnp.ones((T, S), bool).at[1].set(False)

    def total(query, keys, values):
        context, _ = attention(query, keys, values, compatibility=scaled_dot, distribution=distribution, mask=mask)
        return context[1].sum(), context

    (_, context), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(query, keys, values)
    np.testing.assert_array_equal(context[1], 0)
    assert np.isfinite(context).all() and np.abs(context[0]).min() > 0
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)


def test_softmax_survives_large_scores_and_half_precision():
    large = jnp.array([[1e4, 1e4 - 1, -1e4]])
    np.testing.assert_allclose(softmax(large)[0, :2], [0.731059, 0.268941], atol=1e-5)
    half = softmax(jnp.array([[1.0, 2.0]], jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_any_score_fits_in_and_is_learned():
    """attention() takes a bound module for its compatibility; gradients reach the score's parameters."""
    query, keys, values = arrays((2, T, D), (2, S, D), (2, S, 3))
    for module in (General(), Concat(4)):
        variables = module.init(jax.random.key(1), query, keys)

        def total(variables, module=module):
            score = lambda q, k: module.apply(variables, q, k)  # noqa: E731
            return attention(query, keys, values, compatibility=score, distribution=scores.softmax)[0].sum()

        for grad in jax.tree.leaves(jax.jit(jax.grad(total))(variables)):
            assert np.isfinite(grad).all() and np.abs(grad).max() > 0
