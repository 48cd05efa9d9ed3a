"""Plans over lengths: every example once, no row over its room, little room left."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.data import packing
from transformers_jax.data.packing import bucket, pack_in_order

ROOM = (16, 12)
examples = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 12)), max_size=60)


def pack(lengths, room, seed=0) -> list[list[int]]:
    return packing.pack(lengths, room, np.random.default_rng(seed))


def array(lengths) -> np.ndarray:
    return np.array(lengths, np.int64).reshape(-1, 2)


@settings(deadline=None)
@given(examples)
@pytest.mark.parametrize("packer", [pack, pack_in_order])
def test_rows_hold_every_example_once_and_no_more_than_their_room(packer, lengths):
    lengths = array(lengths)
    rows = packer(lengths, ROOM)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row and (lengths[row].sum(axis=0) <= ROOM).all() for row in rows)


@settings(deadline=None)
@given(examples)
def test_packing_in_order_keeps_the_order_and_opens_a_row_only_when_it_must(lengths):
    lengths = array(lengths)
    rows = pack_in_order(lengths, ROOM)
    assert [i for row in rows for i in row] == list(range(len(lengths)))
    for row, following in zip(rows, rows[1:], strict=False):
        assert (lengths[[*row, following[0]]].sum(axis=0) > ROOM).any()


@settings(deadline=None)
@given(examples.filter(len))
def test_no_two_rows_could_be_one(lengths):
    lengths = array(lengths)
    sums = np.array([lengths[row].sum(axis=0) for row in pack(lengths, ROOM)])  # [rows, streams]
    together = (sums[:, None] + sums <= ROOM).all(axis=2)
    assert np.count_nonzero(together & ~np.eye(len(sums), dtype=bool)) == 0


def test_examples_that_complete_each_other_share_a_row():
    lengths = array([(16, 2), (9, 5), (0, 10), (7, 7)])
    assert sorted(map(sorted, pack(lengths, ROOM))) == [[0, 2], [1, 3]]


def test_rows_of_one_stream_and_of_three():
    rng = np.random.default_rng(0)
    for streams in 1, 3:
        lengths = rng.integers(1, 20, [500, streams])
        rows = pack(lengths, [40] * streams)
        assert sorted(i for row in rows for i in row) == list(range(500))
        assert len(rows) < (1.02 if streams == 1 else 1.25) * lengths.sum(axis=0).max() / 40 + 1


def test_other_seeds_give_other_rows():
    lengths = array([(i, j) for i in range(1, 8) for j in range(1, 7)])  # no two alike
    rows = [{frozenset(row) for row in pack(lengths, ROOM, seed)} for seed in (1, 1, 2)]
    assert rows[0] == rows[1]
    assert len(rows[0] & rows[2]) < len(rows[0]) / 2


def test_an_example_over_a_row_is_refused():
    for packer in pack, pack_in_order:
        with pytest.raises(ValueError, match="is over"):
            packer(array([(3, 3), (3, 13)]), ROOM)


@settings(deadline=None)
@given(examples)
def test_buckets_hold_every_example_once_in_batches_of_which_one_is_not_full(lengths):
    lengths, widths, counts = array(lengths), (4, 8, 16), (8, 4, 2)
    batches = bucket(lengths, widths, counts)
    assert sorted(i for _, batch in batches for i in batch) == list(range(len(lengths)))
    assert all(lengths[batch].max() <= widths[i] and 0 < len(batch) <= counts[i] for i, batch in batches)
    assert all(len(batch) == counts[i] for i, batch in batches[:-1])


def test_examples_go_into_the_narrowest_bucket_and_left_overs_into_the_next():
    lengths = array([(3, 4), (7, 2), (4, 4), (2, 8), (1, 1), (16, 1)])
    assert bucket(lengths, (4, 8, 16), (2, 2, 2)) == [(0, [0, 2]), (1, [4, 1]), (2, [3, 5])]
    assert bucket(lengths[:3], (4, 8, 16), (2, 2, 2)) == [(0, [0, 2]), (1, [1])]
