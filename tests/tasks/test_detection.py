"""Objects: what is read, the loss, what is found, and COCO's scores."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax import tasks
from transformers_jax.data.images.views import whole
from transformers_jax.errors import UserError
from transformers_jax.layers import boxes
from transformers_jax.outputs import DetectionOutput
from transformers_jax.tasks.parts import average_precision

DATA = ConfigDict({"size": (32, 48), "channels": 3, "scale": (1.0, 1.0), "flip": 0.0})
CENTRES, STRIDES = boxes.places([(4, 6), (2, 3)], [8, 16])
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


def task(**keys):
    return tasks.build({"name": "detection", "labels": ("cat", "dog"), "most_objects": 4, **keys}, None, DATA)


def thing(label: str, *box: float, crowd: bool = False) -> dict:
    return {"label": label, "box": box, "crowd": crowd}


def batch_of(*rows, weights=None) -> dict:
    own = task()
    fields = [own.unaugmented(own.encode({"image": np.zeros((32, 48, 3), np.uint8), "objects": row})) for row in rows]
    batch = {name: np.stack([field[name] for field in fields]) for name in own.row_fields}
    return batch | {"row_weights": np.array(weights or [1] * len(rows), np.int32)}


def right_output(batch: dict, sure: float = 8.0) -> DetectionOutput:
    """What a model says that knows the targets."""
    logits, distances, middle = [], [], []
    for corners, labels in zip(batch["boxes"], batch["box_labels"], strict=True):
        found, sides = boxes.targets(corners, labels, CENTRES, STRIDES)
        logits.append(np.where(np.arange(2) == np.asarray(found)[:, None], sure, -sure))
        distances.append(np.maximum(sides, 0.1))
        share = np.clip(boxes.centerness(sides), 1e-3, 1 - 1e-3)
        middle.append(np.log(share / (1 - share)))
    parts = (jnp.array(np.stack(part), jnp.float32) for part in (logits, distances, middle))
    return DetectionOutput(*parts, jnp.array(CENTRES), jnp.array(STRIDES))


OBJECTS = [thing("dog", 2, 2, 22, 30), thing("cat", 26, 8, 46, 24)]


class TestExamples:
    def test_boxes_come_onto_the_canvas_with_their_image(self):
        own = task()
        fields = own.encode({"image": IMAGE, "objects": [thing("dog", 1, 2, 5, 8), thing("cat", 0, 0, 24, 16, crowd=True)]})
        seen = own.unaugmented(fields)
        assert seen["boxes"].tolist() == [[2, 4, 10, 16], [0, 0, 48, 32], [0] * 4, [0] * 4]
        assert seen["box_labels"].tolist() == [1, boxes.CROWD, -1, -1] and seen["image"].shape == (32, 48, 3)
        drawn = own.augment(fields, np.random.default_rng(0))
        assert drawn["image"].shape == (32, 48, 3) and (drawn["box_labels"] >= -2).all()

    def test_further_objects_are_not_learned(self):
        fields = task(most_objects=1).encode({"image": IMAGE, "objects": [thing("dog", 1, 2, 5, 8)] * 3})
        assert task(most_objects=1).unaugmented(fields)["box_labels"].tolist() == [1]

    def test_mistakes_are_named(self):
        with pytest.raises(UserError, match="'owl' is not one of config.task.labels: cat, dog"):
            task().encode({"image": IMAGE, "objects": [thing("owl", 1, 2, 5, 8)]})
        with pytest.raises(UserError, match="16×24 pixels, and 20×24 by its annotations"):
            task().encode({"image": IMAGE, "size": (20, 24), "objects": []})
        for keys, says in (({"least": 0.0}, "config.task.least=0.0"), ({"most_objects": 0}, "config.task.most_objects=0")):
            with pytest.raises(UserError, match=says):
                task(**keys)


class TestLoss:
    def test_what_is_right_costs_little(self):
        batch = batch_of(OBJECTS, [])
        loss, count, parts = task().loss(right_output(batch), batch, train=True)
        assert count > 4 and parts["box_loss"] < 1e-3 and parts["label_loss"] < 1e-2
        wrong = right_output(batch)._replace(logits=-right_output(batch).logits)
        assert task().loss(wrong, batch, train=True)[0] > 20 * loss

    def test_empty_rows_and_crowds_do_not_count(self):
        batch, crowd = batch_of(OBJECTS, OBJECTS), [thing("dog", 0, 0, 48, 32, crowd=True)]
        output = right_output(batch, sure=1.0)
        one = task().loss(output, batch | {"row_weights": np.array([1, 0])}, train=True)
        both = task().loss(output, batch, train=True)
        np.testing.assert_allclose(both[0], 2 * one[0], rtol=1e-4)
        assert both[1] == 2 * one[1]
        loss, count, _ = task().loss(output, batch_of(crowd, crowd), train=True)
        assert count == 0 and loss == 0
        empty = task().loss(output, batch_of([], []), train=True)
        assert empty[1] == 0 and np.isfinite(empty[0]) and empty[0] > 0


class TestAnswers:
    def test_what_is_found_is_in_the_images_own_pixels(self):
        own, batch = task(), batch_of(OBJECTS, [])
        found = {name: np.asarray(value) for name, value in own.predict(right_output(batch), batch).items()}
        source = [{"image": IMAGE, "objects": []}, {"image": np.zeros((64, 96, 3), np.uint8)}]  # half and twice the canvas
        answers = own.answers(source, found)
        assert [a["label"] for a in sorted(answers[0]["objects"], key=lambda a: a["box"])] == ["dog", "cat"]
        for answer, wanted in zip(sorted(answers[0]["objects"], key=lambda a: a["box"]), OBJECTS, strict=True):
            np.testing.assert_allclose(answer["box"], np.array(wanted["box"]) / 2, atol=0.02)
        assert answers[1]["objects"] == []
        sample = own.samples([{"image": "a.png", "size": (16, 24), "objects": OBJECTS}], found)[0]
        assert sample["image"] == "a.png" and len(sample["truth"]) == 2

    def test_the_view_of_an_answer_is_that_of_its_image(self):
        view = whole(100, 50, (32, 48))
        assert view.size == (32, 16) and view.boxes([[0, 0, 50, 100]])[0].tolist() == [[0, 0, 16, 32]]


class TestAveragePrecision:
    SIZE = (100, 200)

    def scores(self, truth, found):
        pytest.importorskip("pycocotools", reason="needs pycocotools")
        evaluation = self.measured(truth, found)
        return average_precision.scores(evaluation) if evaluation else {}

    def measured(self, truth, found):
        return average_precision.measured([(self.SIZE, row) for row in truth], found, ("cat", "dog"))

    def test_all_and_half(self):
        truth = [[thing("cat", 0, 0, 50, 50), thing("dog", 60, 0, 120, 90)], []]
        right = [[one | {"score": 0.9} for one in truth[0]], []]
        assert self.scores(truth, right)["ap"] == pytest.approx(1)
        half = self.scores(truth, [right[0][:1], []])
        assert half["ap"] == pytest.approx(0.5) and half["ap50"] == pytest.approx(0.5)
        assert set(self.scores(truth, [[], []]).values()) == {0.0}

    def test_what_is_found_in_an_image_without_objects_is_wrong(self):
        truth = [[thing("cat", 0, 0, 50, 50)], []]
        found = [[thing("cat", 0, 0, 50, 50) | {"score": 0.5}], [thing("cat", 0, 0, 50, 50) | {"score": 0.9}]]
        assert self.scores(truth, found)["ap"] == pytest.approx(0.5)

    def test_what_is_found_in_a_crowd_is_not_wrong(self):
        truth = [[thing("cat", 0, 0, 40, 40), thing("cat", 60, 0, 160, 90, crowd=True)]]
        found = [[thing("cat", 70, 10, 90, 40) | {"score": 0.9}, thing("cat", 100, 10, 120, 50) | {"score": 0.8},
                  thing("cat", 0, 0, 40, 40) | {"score": 0.5}]]  # fmt: skip
        assert self.scores(truth, found)["ap"] == pytest.approx(1)
        assert self.scores([truth[0][1:]], found) == {}

    def test_overlap_decides(self):
        truth, found = [[thing("cat", 0, 0, 100, 60)]], [[thing("cat", 0, 0, 72, 60) | {"score": 0.9}]]
        scores = self.scores(truth, found)  # IoU 0.72: right at 0.5, 0.55, …, 0.7
        assert (scores["ap50"], scores["ap75"]) == (pytest.approx(1), 0) and scores["ap"] == pytest.approx(0.5)

    def test_each_label_and_each_image(self):
        pytest.importorskip("pycocotools", reason="needs pycocotools")
        cat, dog, crowd = thing("cat", 0, 0, 50, 50), thing("dog", 60, 0, 120, 90), thing("dog", 130, 0, 190, 90, crowd=True)
        truth = [[cat, dog, crowd], [cat], []]
        wrong = thing("cat", 100, 0, 150, 50)
        found = [[cat | {"score": 0.9}, dog | {"score": 0.5}, crowd | {"score": 0.8}],
                 [wrong | {"score": 0.7}, cat | {"score": 0.6}], [wrong | {"score": 0.3}]]  # fmt: skip
        evaluation = self.measured(truth, found)
        of_labels, whole = average_precision.of_labels(evaluation, ("cat", "dog")), average_precision.scores(evaluation)
        assert of_labels["ap50_dog"] == pytest.approx(1) and of_labels["ap50_cat"] == pytest.approx((51 + 50 * 2 / 3) / 101)
        assert whole["ap"] == pytest.approx((of_labels["ap_cat"] + of_labels["ap_dog"]) / 2)
        of_images = average_precision.of_images(evaluation)
        assert of_images[:2] == [pytest.approx(1), pytest.approx(0.5)] and np.isnan(of_images[2])
