"""Batches: whole examples, static shapes, exact resumption, fair shares of processes."""

import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from given_task import Given
from ml_collections import ConfigDict
from real_data import REPOSITORY, shared_data

from transformers_jax import batch as contract
from transformers_jax.data import sources
from transformers_jax.data.collate import BatchShape, EncodedExamples, assemble
from transformers_jax.data.pipeline import batch_shapes, eval_batches, fill, train_iterator
from transformers_jax.errors import UserError

STREAMS = {"source": ("source",), "target": ("target_inputs", "targets")}
ROW = 16


def make_source(count: int, longest: int = ROW) -> list[dict]:
    """Examples that tell by each of their tokens which one they are."""
    lengths = np.random.default_rng(0).integers(1, longest + 1, [count, 2])
    return [{"number": i, "lengths": pair} for i, pair in enumerate(lengths.tolist())]


def encode(example: dict) -> dict[str, np.ndarray]:
    source, target = (100 * example["number"] + np.arange(length) for length in example["lengths"])
    return {"source": source, "target_inputs": target + 10_000, "targets": target + 20_000}


def config(**keys) -> ConfigDict:
    packing = dict(batching="packing", batch_size=6, lengths={"source": ROW, "target": ROW}, max_length=0)
    buckets = dict(tokens_per_batch=64, boundaries=(8, 12, ROW), rows_multiple=2)
    return ConfigDict({**packing, **buckets, "cache": True, "workers": 0, "prefetch": 0, **keys})


TASK = Given(encode=encode, streams=STREAMS)
PACKING, BUCKETS = config(), config(batching="buckets")
both = pytest.mark.parametrize("batching", ["packing", "buckets"])


def unpacked(batch: dict, source: list[dict], limit: int = ROW) -> list[int]:
    """The numbers of a batch's examples, row by row, all of which have been compared with the source."""
    contract.check(batch)
    numbers = []
    for row in range(len(batch["source"])):
        segments = {name: batch[f"{name}_segments"][row] for name in STREAMS}
        count = segments["source"].max()
        for segment in range(1, count + 1):
            number = int(batch["source"][row][segments["source"] == segment][0]) // 100
            wanted = encode(source[number])
            for name, fields in STREAMS.items():
                at = segments[name] == segment
                length = min(len(wanted[fields[0]]), limit)
                assert np.array_equal(batch[f"{name}_positions"][row][at], np.arange(length))
                for field in fields:
                    assert np.array_equal(batch[field][row][at], wanted[field][:limit])
            numbers.append(number)
        for name, fields in STREAMS.items():
            assert segments[name].max() == count
            padding = segments[name] == 0
            assert not any(batch[f][row][padding].any() for f in (*fields, f"{name}_positions"))
    return numbers


def batches_of(source, keys, count: int, seed: int = 1, **process) -> list[dict]:
    iterator = train_iterator(source, TASK, keys, seed=seed, **process)
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_equal(batches: list[dict], others: list[dict]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        assert all(np.array_equal(batch[name], other[name]) for name in batch)


class TestTraining:
    @both
    @pytest.mark.parametrize("window", [0, 7])
    def test_batches_hold_whole_examples_each_as_often_as_any_other(self, batching, window):
        source = make_source(50)
        batches = batches_of(source, config(batching=batching, window=window), 60)
        seen = Counter(number for batch in batches for number in unpacked(batch, source))
        assert set(seen) == set(range(50)) and min(seen.values()) > 2
        assert max(seen.values()) - min(seen.values()) <= (2 if window else 1)

    def test_packed_batches_have_one_shape(self):
        shapes = {tuple(map(np.shape, batch.values())) for batch in batches_of(make_source(50), PACKING, 20)}
        assert shapes == {((6, ROW),) * 7}

    def test_rows_may_differ_in_length_between_streams(self):
        source = make_source(50, 8)
        batches = batches_of(source, config(lengths={"source": 8, "target": 24}), 5)
        assert all(len(unpacked(batch, source)) >= 6 for batch in batches)
        assert batches[0]["source"].shape == (6, 8) and batches[0]["targets"].shape == (6, 24)

    def test_bucketed_batches_have_a_shape_a_boundary_and_an_example_a_row(self):
        source = make_source(200)
        batches = batches_of(source, BUCKETS, 120)
        assert {batch["source"].shape for batch in batches} == {(8, 8), (4, 12), (4, 16)}
        for batch in batches:
            assert batch["source"].shape == batch["targets"].shape
            assert max(batch["source_segments"].max(), batch["target_segments"].max()) == 1
        full = [batch for batch in batches if len(unpacked(batch, source)) == len(batch["source"])]
        assert len(full) > 0.9 * len(batches)

    @both
    def test_epochs_and_seeds_differ_and_a_seed_repeats(self, batching):
        source, keys = make_source(40), config(batching=batching, window=10)

        def epochs(seed):
            numbers = [n for batch in batches_of(source, keys, 40, seed) for n in unpacked(batch, source)]
            return numbers[:40], numbers[40:80]

        first, second = epochs(1)
        assert (first, second) == epochs(1)
        assert sorted(first) == sorted(second) == list(range(40))
        others = [first, second, *epochs(2)]  # nor is the second epoch of a seed the first of the next
        assert len({tuple(sorted(other[:10])) for other in others}) == 4

    def test_epochs_group_examples_anew(self):
        source = make_source(60, 7)
        rows = [row for batch in batches_of(source, PACKING, 40) for row in batch["source"].tolist()]
        assert len({tuple(sorted({token // 100 for token in row})) for row in rows}) > len(rows) / 2

    @both
    def test_an_encoded_example_is_kept_if_wanted(self, batching):
        source, calls = make_source(20), Counter()

        def counted(example):
            calls[example["number"]] += 1
            return encode(example)

        for cache in True, False:
            calls.clear()
            keys = config(batching=batching, cache=cache)
            list(itertools.islice(train_iterator(source, Given(encode=counted, streams=STREAMS), keys, seed=0), 30))
            assert len(calls) == 20
            assert (max(calls.values()) == 1) == cache

    def test_a_single_example_is_enough(self):
        source = make_source(1, 5)
        assert set(unpacked(batches_of(source, PACKING, 3)[2], source)) == {0}


class TestState:
    @both
    @pytest.mark.parametrize("prefetch", [0, 3])
    @pytest.mark.parametrize("window", [0, 11])
    def test_a_fresh_iterator_goes_on_from_any_state(self, batching, prefetch, window):
        source, keys = make_source(40), config(batching=batching, prefetch=prefetch, window=window)
        iterator = train_iterator(source, TASK, keys, seed=4)
        states, batches = [], []
        for _ in range(30):  # several epochs of 40 examples
            states.append(json.dumps(iterator.get_state()))
            batches.append(next(iterator))
        assert sum(len(unpacked(batch, source)) for batch in batches) > 2 * 40
        assert max(map(len, states)) < 40
        for step in 0, 1, 2, 5, 9, 17, 24:
            fresh = train_iterator(source, TASK, keys, seed=4)
            fresh.set_state(json.loads(states[step]))
            assert json.dumps(fresh.get_state()) == states[step]
            assert_equal(list(itertools.islice(fresh, 6)), batches[step : step + 6])
            fresh.close()
        iterator.set_state(json.loads(states[3]))  # back, in the iterator that has gone on
        assert_equal(list(itertools.islice(iterator, 27)), batches[3:])
        iterator.close()

    @both
    def test_a_thread_in_advance_changes_nothing(self, batching):
        source = make_source(40)
        assert_equal(
            batches_of(source, config(batching=batching), 20),
            batches_of(source, config(batching=batching, prefetch=4), 20),
        )


class TestProcesses:
    def test_packing_gives_each_process_every_nth_example(self):
        source = make_source(50)
        keys = config(batch_size=12)
        for index in range(3):
            batches = batches_of(source, keys, 15, process_index=index, process_count=3)
            assert {batch["source"].shape for batch in batches} == {(4, ROW)}
            numbers = [number for batch in batches for number in unpacked(batch, source)]
            assert set(numbers) == set(range(index, 50, 3))

    def test_bucketed_batches_of_all_processes_are_that_of_one(self):
        source = make_source(100)
        keys = config(batching="buckets", tokens_per_batch=96)
        shares = [batches_of(source, keys, 20, process_index=i, process_count=2) for i in range(2)]
        together = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*shares, strict=True)]
        assert len({batch["source"].shape for batch in together}) == 3
        assert_equal(together, batches_of(source, keys, 20))

    @both
    @pytest.mark.parametrize("count", [2, 3])
    def test_evaluation_batches_of_all_processes_are_those_of_one(self, batching, count):
        source, keys = make_source(31), config(batching=batching, rows_multiple=6, tokens_per_batch=96)
        shares = [eval_batches(source, TASK, keys, process_index=i, process_count=count) for i in range(count)]
        assert len({len(share) for share in shares}) == 1 and len(shares[0]) > 1
        together = [{k: np.concatenate([b[k] for b in parts]) for k in parts[0]} for parts in zip(*shares, strict=True)]
        assert_equal(together, list(eval_batches(source, TASK, keys)))

    def test_a_process_without_examples_is_refused(self):
        with pytest.raises(UserError, match="config.data.train: 2 examples are too few for 3 processes"):
            train_iterator(make_source(2), TASK, PACKING, seed=0, process_index=2, process_count=3)


class TestEvaluation:
    @both
    @pytest.mark.parametrize("count", [1, 5, 64])
    def test_every_example_once_and_in_order_as_often_as_wanted(self, batching, count):
        source = make_source(count)
        batches = eval_batches(source, TASK, config(batching=batching))
        for _ in range(2):
            assert len(list(batches)) == len(batches)
            assert [number for batch in batches for number in unpacked(batch, source)] == list(range(count))
        assert {batch["source"].shape for batch in batches} == {(6 if batching == "packing" else 4, ROW)}

    def test_packing_needs_fewer_batches(self):
        source = make_source(64, 4)
        batches = list(eval_batches(source, TASK, PACKING))
        assert len(batches) < 64 / 6 / 3
        assert fill(batches[-1]) < fill(batches[0])

    def test_longer_examples_are_cut_with_one_warning(self, caplog):
        source = [{"number": i, "lengths": (8, 8 + 2 * i)} for i in range(5)]
        batches = list(eval_batches(source, TASK, config(max_length=12)))
        assert [number for batch in batches for number in unpacked(batch, source, 12)] == list(range(5))
        assert [r.getMessage() for r in caplog.records] == ["evaluation cuts 2 of 5 examples to source 12, target 12 tokens"]


def test_buckets_of_batch_size_rows_are_as_wide_as_their_examples():
    source = make_source(90, 12)
    keys = config(batching="buckets", tokens_per_batch=0, boundaries=(4, 8, 64), lengths={"source": 12, "target": 10})
    batches = batches_of(source, keys, 15)  # one pass
    assert sorted(number for batch in batches for number in unpacked(batch, source)) == list(range(90))
    assert {batch["source"].shape for batch in batches} == {(6, 4), (6, 8), (6, 12)}
    assert batch_shapes(keys, TASK)["source"][0] == (6, 12)


class TestLongExamples:
    @both
    @pytest.mark.parametrize("max_length", [0, 10])
    def test_training_drops_them_and_says_how_many(self, batching, max_length, caplog):
        source, keys = make_source(60, 24), config(batching=batching, max_length=max_length, window=30)
        short = {e["number"] for e in source if max(e["lengths"]) <= (max_length or ROW)}
        assert 5 < len(short) < 55
        batches = batches_of(source, keys, 30)
        assert {number for batch in batches for number in unpacked(batch, source)} == short
        said, limit = [record.getMessage() for record in caplog.records], max_length or ROW
        assert len(said) == 2
        assert said[1].endswith(f"over source {limit}, target {limit} tokens: {60 - len(short)} of 60 so far")

    @both
    @pytest.mark.parametrize("prefetch", [0, 2])
    def test_nothing_left_is_an_error(self, batching, prefetch):
        source = [{"number": i, "lengths": (2, 17)} for i in range(9)]
        iterator = train_iterator(source, TASK, config(batching=batching, prefetch=prefetch), seed=0)
        with pytest.raises(UserError, match="all training examples are over .*raise config.data.max_length"):
            next(iterator)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"batching": "pack"}, "config.data.batching='pack' is not one of packing, buckets, rows"),
        ({"batch_size": 0}, "config.data.batch_size=0"),
        ({"batch_size": 7, "process_count": 2}, "config.data.batch_size=7 does not divide by 2 processes"),
        ({"lengths": {"source": 8}}, "config.data.lengths.target=0"),
        ({"batching": "buckets", "tokens_per_batch": 0, "batch_size": 0}, "config.data.batch_size=0"),
        ({"batching": "buckets", "tokens_per_batch": 0, "lengths": {"source": 8}}, "config.data.lengths.target=0"),
        ({"batching": "buckets", "boundaries": ()}, "config.data.boundaries"),
        ({"batching": "buckets", "boundaries": (16, 8)}, "config.data.boundaries"),
        ({"batching": "buckets", "tokens_per_batch": 30}, "config.data.tokens_per_batch=30: 2 rows of 16 need 32"),
    ],
)
def test_keys_that_do_not_fit_are_named(keys, message):
    processes = {"process_count": keys.pop("process_count", 1)}
    for make in (lambda *a, **k: train_iterator(*a, seed=0, **k)), eval_batches:
        with pytest.raises(UserError, match=message):
            make(make_source(9), TASK, config(**keys), **processes)


def test_no_examples_are_an_error():
    with pytest.raises(UserError, match="config.data.train: 0 examples"):
        train_iterator([], TASK, PACKING, seed=0)
    with pytest.raises(UserError, match="no examples to evaluate"):
        eval_batches([], TASK, PACKING)


def test_the_unnamed_stream_has_plain_names():
    task = Given(encode=lambda e: e, streams={"": ("ids",)})
    examples = EncodedExamples([{"ids": [7, 8]}], task, cache=False)
    batch = assemble([[examples[0], examples[0]], []], streams={"": ("ids",)}, shape=BatchShape(3, (5,)))
    assert {name: value.tolist() for name, value in batch.items()} == {
        "ids": [[7, 8, 7, 8, 0], [0] * 5, [0] * 5],
        "positions": [[0, 1, 0, 1, 0], [0] * 5, [0] * 5],
        "segments": [[1, 1, 2, 2, 0], [0] * 5, [0] * 5],
    }
    assert fill(batch) == 4 / 15


class TestMulti30k:
    """Real captions. Words are cut into tokens of up to five letters: 14 tokens in English, 17 in German."""

    @pytest.fixture(scope="class")
    @staticmethod
    def source():
        files = ",".join(str(shared_data(f"multi30k/train.{language}.gz")) for language in ("en", "de"))
        return sources.open_source(ConfigDict(dict(source="files", languages=("en", "de"), train=files)), "train")

    @staticmethod
    def encode(example: dict) -> dict[str, list[int]]:
        source, target = ([len(token) for token in re.findall(r"\w{1,8}|\S", example[k])] for k in ("source", "target"))
        return {"source": [*source, 2], "target_inputs": [1, *target], "targets": [*target, 2]}

    def test_nineteen_of_twenty_positions_are_real(self, source):
        keys = config(batch_size=64, lengths={"source": 64, "target": 64})
        iterator = train_iterator(source, Given(encode=self.encode, streams=STREAMS), keys, seed=0)
        batches = [contract.check(next(iterator)) for _ in range(40)]
        assert {batch["source"].shape for batch in batches} == {(64, 64)}
        assert np.mean([fill(batch) for batch in batches]) > 0.95
        assert min(fill(batch) for batch in batches) > 0.9


WORKERS = """
import json, multiprocessing.context, sys, time
from absl import app
sys.path[:0] = {paths!r}
from test_pipeline import TASK, assert_equal, config, make_source
from transformers_jax.data.pipeline import train_iterator
def main(argv):
    source, batches = make_source(300), {{}}
    for workers in 0, 2:
        iterator = train_iterator(source, TASK, config(workers=workers, window=40), seed=5)
        batches[workers] = [next(iterator) for _ in range(30)]
        state = json.dumps(iterator.get_state())
        following = [next(iterator) for _ in range(5)]
        iterator.close()
    assert_equal(batches[0], batches[2])
    iterator = train_iterator(source, TASK, config(window=40), seed=5)
    iterator.set_state(json.loads(state))
    assert_equal([next(iterator) for _ in range(5)], following)
    waits = []
    join = multiprocessing.context.SpawnProcess.join
    multiprocessing.context.SpawnProcess.join = lambda self, timeout=None: (waits.append(timeout), join(self, timeout))
    iterator = train_iterator(make_source(4000), TASK, config(workers=2, window=4000), seed=5)
    next(iterator)
    time.sleep(3)  # until they wait with what comes next
    iterator.close()
    assert waits and max(wait or 0 for wait in waits) < 1, waits  # no timeout that is waited for to its end
    print("equal")
if __name__ == "__main__":
    app.run(main)
"""


@pytest.mark.slow
def test_worker_processes_change_neither_batches_nor_state(tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS.format(paths=[str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "tests/data")]))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.split()[-1:] == ["equal"], done.stderr[-2000:]
