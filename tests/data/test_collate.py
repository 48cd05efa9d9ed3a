"""Examples that have a row each, groups of them, and what is drawn anew in training."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from given_task import Given
from ml_collections import ConfigDict
from test_pipeline import PACKING, TASK, assert_equal, config, make_source

from transformers_jax import batch as contract
from transformers_jax.data.pipeline import batch_shapes, eval_batches, train_iterator
from transformers_jax.errors import UserError


class TestOneARow:
    OWN = Given(
        streams={"": ("tokens",)},
        row_fields=("label", "score"),
        encode=lambda e: {"tokens": np.arange(e["length"]) + 1, "label": e["number"], "score": e["number"] / 2},
    )
    GROUPS = Given(
        streams={"": ("tokens",)},
        row_fields=("label",),
        groups=2,
        encode=lambda e: {"tokens": [np.full(e["length"], 7), np.full(2, e["number"])], "label": 1},
    )
    SOURCE = [{"number": i, "length": 1 + i % 9} for i in range(37)]

    @staticmethod
    def keys(**keys):
        return config(**{"batching": "rows", "batch_size": 8, "lengths": {"tokens": 10}, **keys})

    @pytest.mark.parametrize("batching", ["rows", "buckets"])
    def test_each_example_has_a_row_with_its_values(self, batching):
        keys = self.keys(batching=batching)
        iterator = train_iterator(self.SOURCE, self.OWN, keys, seed=0)
        seen = Counter()
        for batch in itertools.islice(iterator, 30):
            contract.check(batch)
            real = batch["row_weights"] > 0
            assert np.array_equal(real, batch["segments"].any(axis=1))
            assert np.array_equal(batch["segments"].sum(axis=1)[real], 1 + batch["label"][real] % 9)
            assert np.array_equal(batch["score"], batch["label"] / 2)
            seen.update(batch["label"][real].tolist())
        assert set(seen) == set(range(37)) and max(seen.values()) - min(seen.values()) <= 1

    def test_evaluation_goes_in_order_and_marks_what_is_empty(self):
        for keys in self.keys(), self.keys(batching="buckets", boundaries=(5, 9, 12), tokens_per_batch=72):
            batches = list(eval_batches(self.SOURCE, self.OWN, keys))
            rows = {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}
            assert rows["tokens"].shape == (40, 10 if keys.batching == "rows" else 9)
            assert rows["row_weights"].tolist() == [1] * 37 + [0] * 3
            assert rows["label"].tolist() == [*range(37), 0, 0, 0]

    def test_evaluation_batches_of_all_processes_are_those_of_one(self):
        shares = [eval_batches(self.SOURCE, self.OWN, self.keys(), process_index=i, process_count=2) for i in range(2)]
        together = [{k: np.concatenate([b[k] for b in parts]) for k in parts[0]} for parts in zip(*shares, strict=True)]
        assert_equal(together, list(eval_batches(self.SOURCE, self.OWN, self.keys())))

    def test_members_of_a_group_lie_beside_each_other(self):
        batch = contract.check(next(iter(eval_batches(self.SOURCE, self.GROUPS, self.keys()))))
        assert batch["tokens"].shape == batch["segments"].shape == (8, 2, 10)
        assert batch["tokens"][3].tolist() == [[7] * 4 + [0] * 6, [3, 3] + [0] * 8]
        assert batch["positions"][3].tolist() == [[0, 1, 2, 3] + [0] * 6, [0, 1] + [0] * 8]
        assert batch["segments"][3].sum(axis=1).tolist() == [4, 2]
        assert batch["label"].tolist() == [1] * 8
        with pytest.raises(UserError, match="an example has 2 members where the task reads 3"):
            eval_batches(self.SOURCE, Given(**{**vars(self.GROUPS), "groups": 3}), self.keys())

    @pytest.mark.parametrize("task", [OWN, GROUPS, TASK], ids=["values", "groups", "translation"])
    def test_shapes_are_told_in_advance(self, task):
        keys, source = self.keys(), self.SOURCE
        if task is TASK:
            keys, source = PACKING, make_source(20)
        batch = next(train_iterator(source, task, keys, seed=0))
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == batch_shapes(keys, task)

    def test_packing_is_refused(self):
        with pytest.raises(UserError, match="config.data.batching=packing: each example of this task needs a row"):
            train_iterator(self.SOURCE, self.OWN, self.keys(batching="packing"), seed=0)

    def test_a_task_without_values_may_have_rows_too(self):
        task = Given(streams={"": ("tokens",)}, encode=lambda e: {"tokens": np.arange(e["length"])})
        batch = next(train_iterator(self.SOURCE, task, self.keys(), seed=0))
        assert set(batch) == {"tokens", "positions", "segments"} and batch["segments"].max() == 1


class TestAugmentation:
    TASK = Given(
        streams={"": ("tokens",)},
        encode=lambda e: {"tokens": np.full(4, e["number"]), "only for this": e["number"]},
        augment=lambda fields, rng: {"tokens": fields["tokens"] * 1000 + rng.integers(1, 999, 4)},
    )
    SOURCE = [{"number": i} for i in range(20)]
    KEYS = config(lengths={"tokens": 8}, window=7)

    def batches(self, count, **process):
        iterator = train_iterator(self.SOURCE, self.TASK, self.KEYS, seed=3, **process)
        return [(json.dumps(iterator.get_state()), next(iterator)) for _ in range(count)]

    def test_an_example_differs_each_time_and_repeats_after_resuming(self):
        batches = self.batches(12)
        drawn = [tuple(row[i : i + 4]) for _, batch in batches for row in batch["tokens"].tolist() for i in (0, 4) if row[i]]
        assert len(drawn) > 60 and len(set(drawn)) == len(drawn)
        for state, batch in batches:
            fresh = train_iterator(self.SOURCE, self.TASK, self.KEYS, seed=3)
            fresh.set_state(json.loads(state))
            assert_equal([next(fresh)], [batch])

    def test_processes_draw_differently(self):
        noise = [[b["tokens"] % 1000 for _, b in self.batches(3, process_index=i, process_count=2)] for i in range(2)]
        assert not np.array_equal(*noise)

    def test_evaluation_is_as_encoded(self):
        batch = next(iter(eval_batches(self.SOURCE, self.TASK, self.KEYS)))
        assert batch["tokens"][:2].tolist() == [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4]


class TestImages:
    """Examples without streams: their fields are arrays of one shape, and batches are made of them by number alone."""

    SOURCE = [{"number": i} for i in range(37)]

    @staticmethod
    def task(calls: Counter | None = None, **hooks) -> Given:
        def encode(example):
            if calls is not None:
                calls[example["number"]] += 1
            return {"image": np.full([6, 6, 3], example["number"], np.uint8), "labels": np.eye(37)[example["number"]]}

        def augment(fields, rng):
            return {**fields, "image": fields["image"][1:5, 1:5] + rng.integers(100, 200, [4, 4, 3], np.uint8)}

        def middle(fields):
            return {**fields, "image": fields["image"][1:5, 1:5]}

        shapes = {"image": (4, 4, 3), "labels": (37,)}
        own = dict(encode=encode, augment=augment, unaugmented=middle, row_fields=("image", "labels"), row_shapes=shapes)
        return Given(**own | hooks)

    KEYS = config(batching="rows", batch_size=8, lengths={}, cache=False)

    def batches(self, count: int, seed: int = 3, task=None, **keys):
        process = {name: keys.pop(name) for name in ("process_index", "process_count") if name in keys}
        config = {**self.KEYS, **keys}
        iterator = train_iterator(self.SOURCE, task or self.task(), ConfigDict(config), seed=seed, **process)
        found = list(itertools.islice(iterator, count))
        iterator.close()
        return found

    def test_fields_have_the_shapes_of_the_task(self):
        for batch in self.batches(3):
            contract.check(batch)
            assert {name: (value.shape, value.dtype) for name, value in batch.items()} == batch_shapes(self.KEYS, self.task())
            assert set(batch) == {"image", "labels", "row_weights"} and batch["row_weights"].all()
        with pytest.raises(ValueError, match="'image' of an example has the shape .*, and the task says"):
            self.batches(1, task=self.task(augment=lambda fields, rng: {**fields, "image": fields["image"][:1]}))

    def test_an_epoch_has_every_example_once_in_an_order_of_its_own(self):
        numbers = np.concatenate([batch["labels"].argmax(axis=1) for batch in self.batches(20)])
        first, second = numbers[:37].tolist(), numbers[37:74].tolist()
        assert sorted(first) == sorted(second) == list(range(37)) and first != second

    def test_examples_are_encoded_when_their_batch_is_made(self):
        calls = Counter()
        self.batches(1, task=self.task(calls))
        assert calls.total() == 8
        evaluated = eval_batches(self.SOURCE, self.task(calls), self.KEYS)
        assert calls.total() == 8 and len(evaluated) == 5
        for _ in range(2):
            next(iter(evaluated))
        assert calls.total() == 8 + 2 * 8
        calls.clear()
        self.batches(20, task=self.task(calls), cache=True)
        assert set(calls.values()) == {1}

    @pytest.mark.parametrize("prefetch", [0, 3])
    def test_a_fresh_iterator_goes_on_from_any_state(self, prefetch):
        keys, wanted = ConfigDict({**self.KEYS, "prefetch": prefetch}), self.batches(20)
        iterator, states = train_iterator(self.SOURCE, self.task(), keys, seed=3), []
        for batch in wanted:
            states.append(json.dumps(iterator.get_state()))
            assert_equal([next(iterator)], [batch])
        iterator.close()
        for step in 0, 1, 4, 13:
            calls = Counter()
            fresh = train_iterator(self.SOURCE, self.task(calls), keys, seed=3)
            fresh.set_state(json.loads(states[step]))
            assert_equal(list(itertools.islice(fresh, 5)), wanted[step : step + 5])
            fresh.close()
            assert prefetch or calls.total() == 5 * 8  # those before are not encoded

    def test_an_example_differs_each_time_and_processes_and_seeds_differ(self):
        seen = {}
        for batch in self.batches(20):
            for image, labels in zip(batch["image"], batch["labels"], strict=True):
                seen.setdefault(labels.argmax(), set()).add(image.tobytes())
        assert {len(images) for images in seen.values()} <= {4, 5}
        shares = [self.batches(4, process_index=i, process_count=2) for i in range(2)]
        assert not np.intersect1d(*(np.concatenate([b["labels"].argmax(axis=1) for b in share]) for share in shares)).size
        assert not np.array_equal(self.batches(1)[0]["labels"], self.batches(1, seed=4)[0]["labels"])

    @pytest.mark.parametrize("count", [1, 2])
    def test_evaluation_is_unaugmented_in_order_and_marks_what_is_empty(self, count):
        shares = [eval_batches(self.SOURCE, self.task(), self.KEYS, process_index=i, process_count=count) for i in range(count)]
        rows = {k: np.concatenate([b[k] for parts in zip(*shares, strict=True) for b in parts]) for k in self.batches(1)[0]}
        assert rows["row_weights"].tolist() == [1] * 37 + [0] * 3
        assert rows["image"][:, 0, 0, 0].tolist() == [*range(37), 0, 0, 0] and rows["image"].shape == (40, 4, 4, 3)
        assert (rows["labels"][:37] == np.eye(37)).all() and not rows["labels"][37:].any()

    @pytest.mark.parametrize("batching", ["packing", "buckets"])
    def test_only_rows_will_do(self, batching):
        with pytest.raises(UserError, match=f"config.data.batching={batching}: .*give rows"):
            self.batches(1, batching=batching)
