"""Masks: which query sees which key, by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.layers.masks import Mask, Place, cross_mask, lengths_mask, padding_mask, self_mask


def brute_force(queries, keys, causal, window=0):
    """The definition, position by position: [B, T], [B, S] → [B, 1, T, S]."""
    seen = np.zeros((len(queries), 1, len(queries[0]), len(keys[0])), bool)
    for b, t, s in np.ndindex(seen.shape[0], *seen.shape[2:]):
        near = not window or abs(t - s) < window
        seen[b, 0, t, s] = queries[b][t] == keys[b][s] != 0 and (not causal or s <= t) and near
    return seen


@settings(max_examples=25, deadline=None)
@given(
    queries=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    keys=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    causal=st.booleans(),
    window=st.integers(0, 3),
)
def test_dense_and_rows_follow_the_definition(queries, keys, causal, window):
    mask = Mask(np.array([queries, [1, 1, 2, 2, 0]]), np.array([keys, [1, 2, 2, 3, 3, 0, 0]]), causal, window)
    wanted = brute_force(mask.query_segments, mask.key_segments, causal, window)
    dense = np.asarray(mask.dense())
    assert dense.dtype == bool and dense.shape == (2, 1, 5, 7)
    np.testing.assert_array_equal(dense, wanted)
    np.testing.assert_array_equal(mask.rows(), wanted.any(-1)[:, 0])


def test_golden_packed_causal_row():
    """Two examples of lengths 2 and 3 and one padding position in a row: two triangles, the last row empty."""
    wanted = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    mask = self_mask(jnp.array([[1, 1, 2, 2, 2, 0]]), causal=True)
    np.testing.assert_array_equal(mask.dense()[0, 0], np.array(wanted, bool))
    np.testing.assert_array_equal(mask.rows(), [[1, 1, 1, 1, 1, 0]])


def test_cross_mask_pairs_examples():
    mask = cross_mask(jnp.array([[1, 2, 3, 0]]), jnp.array([[1, 1, 2, 0, 0]]))
    np.testing.assert_array_equal(
        mask.dense()[0, 0], np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    )
    np.testing.assert_array_equal(mask.rows(), [[1, 1, 0, 0]])


@pytest.mark.parametrize("causal", [False, True])
def test_padding_helpers_agree(causal):
    valid = jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    wanted = brute_force(valid.astype(int).tolist(), valid.astype(int).tolist(), causal)
    np.testing.assert_array_equal(padding_mask(valid, causal=causal).dense(), wanted)
    np.testing.assert_array_equal(padding_mask(valid.astype(jnp.int32), causal=causal).dense(), wanted)
    np.testing.assert_array_equal(lengths_mask(jnp.array([3, 1]), 4, causal=causal).dense(), wanted)


def test_padding_mask_with_own_queries():
    dense = padding_mask(jnp.array([[1, 0]]), jnp.array([[1, 1, 0]])).dense()
    np.testing.assert_array_equal(dense[0, 0], np.array([[1, 0], [1, 0], [0, 0]], bool))


def test_a_mask_passes_through_jit_and_causality_is_static():
    segments = jnp.array([[1, 1, 0]])
    traces = []

    @jax.jit
    def dense(mask):
        traces.append(mask.causal)
        return mask.dense()

    for causal in (False, True, True):
        mask = self_mask(segments, causal=causal)
        np.testing.assert_array_equal(dense(mask), mask.dense())
    assert traces == [False, True]


@pytest.mark.parametrize("window", [0, 1, 3])
def test_steps_see_what_the_causal_mask_of_the_whole_row_shows(window):
    """Row b's step i stands at position before[b] + i of the row that prompt and steps make together."""
    before, steps, length = np.array([4, 0, 2]), 4, 6
    whole = lengths_mask(before + steps, 8, causal=True).replace(window=window).dense()[:, 0]  # [B, T, T]
    for index in range(steps):
        place = Place(jnp.int32(index), jnp.asarray(before), window)
        np.testing.assert_array_equal(place.positions()[:, 0], before + index)
        prompt, own = np.asarray(place.prompt(5)), np.asarray(place.steps(length))
        assert prompt.shape == (3, 1, 1, 5) and own.shape == (length,)
        for b, n in enumerate(before):
            seen = whole[b, n + index]  # [T]
            np.testing.assert_array_equal(prompt[b, 0, 0, :n], seen[:n])
            assert not prompt[b, 0, 0, n:].any()
            np.testing.assert_array_equal(own[:steps], seen[n : n + steps])


def test_a_mask_of_places_has_no_part():
    for changes in (dict(window=2), dict(positions=np.zeros((1, 3), np.int32))):
        with pytest.raises(ValueError, match="no part"):
            self_mask(np.ones((1, 3), np.int32)).replace(**changes).at(np.array([[0]]))
