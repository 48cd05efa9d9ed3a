"""Documents: epochs without a token lost or doubled, segments, exact resumption, evaluation that counts each token once."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from given_task import Given
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from transformers_jax import batch as contract
from transformers_jax.data.documents import Document
from transformers_jax.data.pipeline import batch_shapes, eval_batches, train_iterator
from transformers_jax.errors import UserError

BOS, EOS, STREAMS = 1, 2, {"": ("tokens", "targets", "weights")}
TASK = Given(document=lambda example: Document(example["ids"], BOS, EOS), streams=STREAMS)


def make_source(sizes) -> list[dict]:
    """Documents that tell by each token which one they are, and where it stands."""
    return [{"ids": (1000 * (i + 1) + np.arange(size)).astype(np.uint16)} for i, size in enumerate(sizes)]


def config(**keys) -> ConfigDict:
    return ConfigDict(dict(batching="documents", batch_size=4, lengths={"tokens": 8}, prefetch=0, window=6) | keys)


def pieces(batch: dict) -> list[list[tuple]]:
    """(positions, tokens, targets, weights) of each segment, by row."""
    contract.check(batch)
    found = []
    for segments, *rows in zip(*(batch[n] for n in ("segments", "positions", "tokens", "targets", "weights")), strict=True):
        at = [segments == k for k in range(1, segments.max() + 1)]
        found.append([tuple(row[here] for row in rows) for here in at])
        assert not any(row[segments == 0].any() for row in rows)
    return found


def check_piece(positions, tokens, targets, source) -> tuple[int, int]:
    """(document, how many of its positions come before the piece), having compared the piece with the document."""
    assert np.array_equal(positions, np.arange(len(positions)))
    assert np.array_equal(tokens[1:], targets[:-1])
    known = [t for t in (*tokens[:1], *targets) if t >= 1000]
    if not known:  # an empty document
        assert tokens.tolist() == [BOS] and targets.tolist() == [EOS]
        return -1, 0
    number, ids = known[0] // 1000 - 1, source[known[0] // 1000 - 1]["ids"]
    framed = np.array([BOS, *ids, EOS])
    start = 0 if tokens[0] == BOS else int(tokens[0]) % 1000 + 1
    assert np.array_equal(tokens, framed[start : start + len(tokens)])
    assert np.array_equal(targets, framed[start + 1 : start + 1 + len(tokens)])
    return number, start


def whole_windows(whole: int, length: int, window: int) -> int:
    """The rows of the first windows that have an epoch between them: a window's are shuffled, and it ends with an epoch."""
    begin = rows = 0
    while rows * length < whole or rows != begin:
        rows += 1
        if rows - begin == window or rows * length // whole > begin * length // whole:
            begin = rows
    return rows


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12), length=st.integers(1, 11), window=st.integers(1, 9),
    count=st.integers(1, 3), seed=st.integers(0, 5),
)  # fmt: skip
def test_an_epoch_has_every_token_once(sizes, length, window, count, seed):
    source = make_source(sizes)
    count = min(count, len(sizes))
    for index in range(count):
        mine = range(index, len(sizes), count)
        whole = sum(sizes[i] + 1 for i in mine)
        keys = config(batch_size=count, lengths={"tokens": length}, window=window)
        iterator = train_iterator(source, TASK, keys, seed=seed, process_index=index, process_count=count)
        rows = whole_windows(whole, length, window)
        wanted = Counter((i, p) for i in mine for p in range(sizes[i] + 1))
        found = Counter()
        for batch in itertools.islice(iterator, rows):
            assert batch["segments"].all() and batch["weights"].all()  # no padding
            for positions, tokens, targets, _ in pieces(batch)[0]:
                number, start = check_piece(positions, tokens, targets, source)
                if number >= 0:
                    found.update((number, start + k) for k in range(len(tokens)))
        epochs, rest = divmod(rows * length, whole)
        for place in wanted:
            if sizes[place[0]]:
                assert epochs <= found[place] <= epochs + bool(rest), place
        assert set(found) <= set(wanted)


def test_rows_across_windows_are_one_stream():
    """The rows of a window, put in order again, go on where the last window ended."""
    source = make_source([5, 40, 0, 17])
    iterator = train_iterator(source, TASK, config(batch_size=1, window=1), seed=3)
    stream = [p for batch in itertools.islice(iterator, 30) for p in pieces(batch)[0]]
    for (_, _, targets, _), (_, tokens, _, _) in itertools.pairwise(stream):
        assert tokens[0] == (BOS if targets[-1] == EOS else targets[-1])


def test_epochs_differ_and_seeds_repeat():
    source = make_source([3] * 40)
    first, again, other = (train_iterator(source, TASK, config(), seed=seed) for seed in (1, 1, 2))
    first, again, other = ([next(it)["tokens"].tolist() for _ in range(12)] for it in (first, again, other))
    assert first == again != other and first[:5] != first[5:10]


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("taken", [0, 1, 4, 9])
def test_resumed_from_a_small_dict(prefetch, taken):
    source = make_source([7, 50, 3, 20, 11])
    keys = config(prefetch=prefetch)
    iterator = train_iterator(source, TASK, keys, seed=0)
    for _ in range(taken):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    wanted = [next(iterator) for _ in range(6)]
    iterator.close()
    again = train_iterator(source, TASK, keys, seed=0)
    next(again)
    again.set_state(state)
    for batch in wanted:
        other = next(again)
        assert all(np.array_equal(batch[name], other[name]) for name in batch)
    again.close()


def test_across_documents_a_row_is_one_segment():
    source = make_source([3, 5, 9])
    batch = next(train_iterator(source, TASK, config(across_documents=True), seed=0))
    assert (batch["segments"] == 1).all() and (batch["positions"] == np.arange(8)).all()
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == batch_shapes(config(), TASK)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=9), length=st.integers(1, 11), stride=st.integers(0, 11),
    count=st.integers(1, 3), across=st.booleans(),
)  # fmt: skip
def test_evaluation_counts_every_token_once(sizes, length, stride, count, across):
    source, keys = make_source(sizes), config(batch_size=2 * count, lengths={"tokens": length})
    keys.update(stride=min(stride, length), across_documents=across)
    places = [{"process_index": i, "process_count": count} for i in range(count)]
    batches = [eval_batches(source, TASK, keys, **place) for place in places]
    assert len({len(b) for b in batches}) == 1
    targets, context = Counter(), []
    for batch in itertools.chain(*batches):
        contract.check(batch)
        counted = batch["weights"] > 0
        targets.update(batch["targets"][counted].tolist())
        late = counted & (batch["targets"] % 1000 >= length) & (batch["targets"] >= 1000)
        context += (batch["positions"][late]).tolist()
    wanted = Counter(int(t) for example in source for t in example["ids"])
    assert targets == wanted + Counter({EOS: len(sizes)})
    if not across:  # a token that stands behind a first window has so many in front, at least
        assert not context or min(context) >= length - (keys.stride or length)


@pytest.mark.parametrize("across", [False, True])
def test_a_document_that_fits_is_one_window(across):
    batches = eval_batches(make_source([3, 2]), TASK, config(stride=4, across_documents=across))
    (batch,) = batches
    assert batch["segments"][0].tolist() == ([1] * 7 + [0] if across else [1] * 4 + [2] * 3 + [0])
    assert np.array_equal(batch["weights"], batch["segments"] > 0)


@pytest.mark.parametrize(
    "keys, says",
    [
        ({"max_length": 8}, "max_length=8: documents are cut"),
        ({"stride": 9}, "stride=9 is not between 0 and"),
        ({"workers": 2}, "config.data.workers"),
        ({"lengths": {"tokens": 0}}, "config.data.lengths.tokens=0"),
    ],
)
def test_keys_that_do_not_fit(keys, says):
    with pytest.raises(UserError, match=says):
        train_iterator(make_source([3]), TASK, config(**keys), seed=0)


def test_a_task_without_documents_says_so():
    with pytest.raises(UserError, match="examples of config.task.name=given_task are not cut"):
        next(train_iterator([{}], Given(streams=STREAMS), config(), seed=0))


def test_fewer_documents_than_processes():
    with pytest.raises(UserError, match="1 documents are too few for 2 processes"):
        train_iterator(make_source([3]), TASK, config(), seed=0, process_index=1, process_count=2)
