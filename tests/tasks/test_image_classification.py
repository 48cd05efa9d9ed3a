"""Labels of images: what is read, the loss, the scores, and what is mixed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax import tasks
from transformers_jax.data.images.folders import Images
from transformers_jax.data.placed import Placed
from transformers_jax.errors import UserError
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts.metrics import average_precision, confusion, mean_average_precision

DATA = ConfigDict({"size": 4, "channels": 3, "crop": "pad", "padding": 1, "flip": 0.5})
LABELS = ("cat", "dog", "owl", "rat", "yak", "zho")
IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def task(data=DATA, **keys):
    return tasks.build({"name": "image_classification", "labels": LABELS, **keys}, None, data)


def batch_of(*labels, rows: int = 0, **keys) -> dict:
    """A batch of a task's fields for labels, and empty rows behind."""
    name = "labels" if np.ndim(labels[0]) else "label"
    values = np.array(labels, np.float32 if name == "labels" else np.int32)
    weights = np.concatenate([np.ones(len(labels)), np.zeros(rows)]).astype(np.int32)
    return {name: np.concatenate([values, np.zeros((rows, *values.shape[1:]), values.dtype)]), "row_weights": weights, **keys}


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


LOGITS = np.random.default_rng(0).normal(size=[4, 6]).astype(np.float32)


class TestExamples:
    def test_an_image_keeps_its_size_until_it_is_cut_out(self):
        fields = task().encode({"image": IMAGE, "label": "owl"})
        assert fields["label"] == 2 and np.array_equal(fields["image"], IMAGE)
        assert np.array_equal(task().unaugmented(fields)["image"], IMAGE[:, 1:5])
        drawn = [task().augment(fields, np.random.default_rng(i))["image"] for i in range(9)]
        assert {image.shape for image in drawn} == {(4, 4, 3)} and len({image.tobytes() for image in drawn}) > 4
        assert task().row_shapes == {"image": (4, 4, 3)} and task().row_fields == ("image", "label")

    def test_grey_becomes_colour_and_colour_grey(self):
        grey = task(ConfigDict({**DATA, "channels": 1}))
        assert grey.row_shapes["image"] == (4, 4, 1)
        found = grey.encode({"image": IMAGE})["image"]
        assert found.shape == (4, 6, 1) and np.abs(found[..., 0] - (IMAGE @ [0.299, 0.587, 0.114])).max() <= 1
        assert np.array_equal(task().encode({"image": IMAGE[:, :, :1]})["image"], np.repeat(IMAGE[:, :, :1], 3, axis=2))

    def test_files_are_read(self, tmp_path):
        Image = pytest.importorskip("PIL.Image")
        Image.fromarray(IMAGE).save(tmp_path / "a.png")
        assert np.array_equal(task().encode({"image": str(tmp_path / "a.png")})["image"], IMAGE)
        with pytest.raises(UserError, match="b.png: no such file"):
            task().encode({"image": str(tmp_path / "b.png")})

    def test_what_is_no_image_is_said(self):
        for wrong, says in (IMAGE[:, :, 0], r"not uint8 \[4, 6\]"), (IMAGE / 2, "not float64"), (None, "not NoneType"):
            with pytest.raises(UserError, match=f"an image is a path or uint8 .height, width, 1 or 3., {says}"):
                task().encode({"image": wrong})

    def test_several_labels_are_a_row_of_ones(self):
        several = task(objective="sigmoid")
        assert several.row_shapes["labels"] == (6,)
        assert several.encode({"image": IMAGE, "labels": ["rat", "cat"]})["labels"].tolist() == [1, 0, 0, 1, 0, 0]
        assert several.encode({"image": IMAGE, "label": "dog"})["labels"].tolist() == [0, 1, 0, 0, 0, 0]
        assert np.isnan(several.encode({"image": IMAGE})["labels"]).all() and task().encode({"image": IMAGE})["label"] == -1

    def test_labels_that_do_not_go_are_named_with_their_place(self):
        source = Images(LABELS)
        source.add({"image": "a.png", "label": "cat", "labels": ["cat"]}, "list.csv, line 2")
        assert task().examples(source) is source
        source.add({"image": "b.png", "label": "cat|dog", "labels": ["cat", "dog"]}, "list.csv, line 3")
        with pytest.raises(UserError, match="list.csv, line 3 has 2 labels: .*sigmoid.*real=True"):
            task().examples(source)
        assert task(real=True).examples(source) is task(objective="sigmoid").examples(source) is source
        source.add({"image": "c.png", "label": "emu", "labels": ["emu"]}, "list.csv, line 4")
        with pytest.raises(UserError, match="list.csv, line 4: the label 'emu' is not one of"):
            task(real=True).examples(source)


class TestLoss:
    def test_of_one_label(self):
        batch = batch_of(2, 0, -1, rows=1)  # the third is not known, the fourth row is empty
        loss, weight, sums = task(label_smoothing=0.1).loss(LabelOutput(LOGITS), batch, train=False)
        wanted = log_softmax(LOGITS)
        assert weight == 2 and np.isclose(loss, -wanted[0, 2] - wanted[1, 0], rtol=1e-5)
        assert sums["correct"] == (LOGITS[:2].argmax(1) == [2, 0]).sum()
        loss, _, _ = task(label_smoothing=0.1).loss(LabelOutput(LOGITS), batch, train=True)
        smooth = [-0.9 * wanted[i, k] - 0.1 * wanted[i].mean() for i, k in ((0, 2), (1, 0))]
        assert np.isclose(loss, sum(smooth), rtol=1e-5)

    def test_of_one_hot_labels_it_is_the_same(self):
        batch, rows = batch_of(2, 0, 5, 1), batch_of(*np.eye(6)[[2, 0, 5, 1]])
        for train in False, True:
            one = task(label_smoothing=0.2).loss(LabelOutput(LOGITS), batch, train=train)
            other = task(label_smoothing=0.2).loss(LabelOutput(LOGITS), rows, train=train)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)

    def test_several_right_labels_share_it_and_none_does_not_count(self):
        batch = batch_of([1, 0, 1, 0, 0, 0], [0] * 6, [np.nan] * 6, [0, 0, 0, 0, 0, 1])
        loss, weight, _ = task(real=True).loss(LabelOutput(LOGITS), batch, train=False)
        wanted = log_softmax(LOGITS)
        assert weight == 2 and np.isclose(loss, -(wanted[0, 0] + wanted[0, 2]) / 2 - wanted[3, 5], rtol=1e-5)

    def test_each_label_for_itself(self):
        labels = np.array([[1, 0, 1, 0, 0, 0], [0] * 6, [np.nan] * 6])
        loss, weight, _ = task(objective="sigmoid").loss(LabelOutput(LOGITS), batch_of(*labels, rows=1), train=True)
        p = 1 / (1 + np.exp(-LOGITS[:2].astype(np.float64)))
        assert weight == 2 and np.isclose(loss, -np.log(np.where(labels[:2] > 0, p, 1 - p)).sum(), rtol=1e-5)

    def test_rows_are_mixed_in_training_only_if_wanted(self):
        images = np.random.default_rng(0).integers(0, 256, [4, 4, 4, 3], np.uint8)
        batch = batch_of(2, 0, 5, 1, image=images)
        assert task().mix(batch, jax.random.key(0)) is batch
        mixed = task(mixup=0.8, cutmix=1.0).mix(batch, jax.random.key(0))
        assert mixed["labels"].shape == (4, 6) and np.allclose(mixed["labels"].sum(axis=1), 1)
        assert mixed["image"].shape == images.shape and not np.array_equal(mixed["image"], images)
        loss, weight, _ = task(mixup=0.8).loss(LabelOutput(LOGITS), mixed, train=True)
        assert np.isclose(weight, 4) and np.isclose(loss, -(mixed["labels"] * log_softmax(LOGITS)).sum(), rtol=1e-5)


class Files(Placed):
    """Images that are not read."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"image": None, "label": "cat"}

    def where(self, i):
        return f"{i}.png"


class Scorer:
    """Gives predictions of logits for a batch, without a model."""

    def __init__(self, task, batch, logits):
        self.predicted = jax.device_get(task.predict(LabelOutput(jnp.array(logits, jnp.float32)), batch))

    def predictions(self, split, **model):
        return {"loss": 0.5}, self.predicted

    def source(self, split):
        return Files()


class TestScores:
    def evaluated(self, batch, logits, **keys):
        own = task(**keys)
        return own.evaluate(Scorer(own, batch, logits), "test", {})

    def test_of_one_label(self):
        logits = np.zeros([4, 6])
        logits[[0, 1, 2, 3], [2, 3, 1, 4]] = [5, 2, 9, 1]
        logits[1, 0] = -3  # the truth is the least likely one
        scores, samples = self.evaluated(batch_of(2, 0, 2, -1), logits)
        assert scores == {
            "loss": 0.5, "accuracy": pytest.approx(1 / 3), "top5_accuracy": pytest.approx(2 / 3), "examples": 3,
            "mean_class_accuracy": 0.25,
        }  # fmt: skip
        assert [sample["image"] for sample in samples] == ["2.png", "1.png", "0.png", "3.png"]  # the worst mistake first
        assert samples[0]["label"] == "owl" and samples[0]["prediction"] == "dog" and "label" not in samples[3]
        assert len(samples[0]["probabilities"]) == 5 and next(iter(samples[0]["probabilities"])) == "dog"

    def test_any_of_several_right_labels_will_do(self):
        logits = 9 * np.eye(6)[[0, 2, 1, 3]]
        batch = batch_of([1, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [0] * 6)
        scores, samples = self.evaluated(batch, logits, real=True)
        assert scores == {"loss": 0.5, "real_accuracy": pytest.approx(2 / 3), "top5_accuracy": 1.0, "examples": 3}
        assert samples[0]["image"] == "2.png" and task(real=True).main_metric == "real_accuracy"

    def test_of_several_labels(self):
        logits = np.array([[3, -3, 1, -3, -3, -3], [-3, 3, -3, -3, -3, -3], [1, 2, -1, -3, -3, -3], [0.0] * 6])
        labels = np.array([[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [np.nan] * 6])
        scores, samples = self.evaluated(batch_of(*labels), logits, objective="sigmoid")
        assert scores == {"loss": 0.5, "mean_average_precision": 1.0, "f1": pytest.approx(2 * 4 / (5 + 5)), "examples": 3}
        assert samples[0]["image"] in ("2.png",) and samples[0]["labels"] == ["dog", "owl"]
        assert samples[0]["prediction"] == ["dog", "cat"] and samples[-1]["image"] == "3.png"

    def test_without_labels_there_are_no_scores(self):
        assert self.evaluated(batch_of(-1, -1, -1, -1), LOGITS)[0] == {"loss": 0.5}
        assert self.evaluated(batch_of(*np.full([4, 6], np.nan)), LOGITS, objective="sigmoid")[0] == {"loss": 0.5}


def test_average_precision_is_the_area_under_the_steps():
    truth, scores = np.array([0, 1, 0, 1, 1], bool), np.array([0.9, 0.8, 0.5, 0.5, 0.1])
    # of the likeliest 1, 2, 4 (two are equal) and 5: precision 0, 1/2, 2/4, 3/5
    assert average_precision(truth, scores) == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    both = np.stack([truth, np.zeros(5, bool)], axis=1)
    assert mean_average_precision(both, np.stack([scores, scores], axis=1)) == average_precision(truth, scores)


def test_confusion_counts_pairs():
    assert confusion(np.array([0, 0, 2]), np.array([0, 1, 1]), 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"labels": ()}, "config.task.labels"),
        ({"labels": ("cat",)}, "needs two or more"),
        ({"objective": "hinge"}, "config.task.objective='hinge' is not one of softmax, sigmoid"),
        ({"objective": "sigmoid", "label_smoothing": 0.1}, "config.task.label_smoothing=0.1 does not go with"),
        ({"objective": "sigmoid", "real": True}, "config.task.real=True does not go with"),
        ({"label_smoothing": 1.0}, "config.task.label_smoothing=1.0 is not from 0 to below 1"),
        ({"cutmix": -0.5}, "config.task.cutmix=-0.5 is below 0"),
    ],
)
def test_keys_that_make_no_sense_are_named(keys, message):
    with pytest.raises(UserError, match=message):
        task(**keys)
