"""Classes of pixels: what is read, the windows of large images, the loss, and the scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from transformers_jax import tasks
from transformers_jax.errors import UserError
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import scenes
from transformers_jax.tasks.parts.tiles import tiles
from transformers_jax.tasks.segmentation import classes_of

DATA = ConfigDict({"size": (4, 6), "channels": 3, "scale": (0.5, 2.0)})
RANDOM = np.random.default_rng(0)


def task(data=DATA, **keys):
    return tasks.build({"name": "segmentation", "labels": ("a", "b", "c"), **keys}, None, data)


def example(height: int, width: int) -> dict:
    return {
        "image": RANDOM.integers(0, 256, (height, width, 3), np.uint8),
        "mask": RANDOM.choice(np.array([0, 1, 2, 255], np.uint8), (height, width)),
    }


class TestExamples:
    def test_numbers_of_masks_become_those_of_labels(self):
        mask = np.array([[0, 1, 2, 3]], np.uint8)
        assert task(void=3)._mask(mask).tolist() == [[0, 1, 2, 255]]
        assert task(void=0, first=1)._mask(mask).tolist() == [[255, 0, 1, 2]]
        for keys in {}, {"first": 1}:
            with pytest.raises(UserError, match="the mask of the example has the class [03]: config.task.labels are"):
                task(**keys)._mask(mask)

    def test_a_mask_of_another_size_is_none(self):
        with pytest.raises(UserError, match="has 3×4 pixels and its image has 5×7"):
            task().encode({"image": example(5, 7)["image"], "mask": example(3, 4)["mask"]})

    def test_training_sees_whole_images_and_evaluation_windows(self):
        source, own = [example(5, 7), example(4, 6)], task()
        assert own.to_train(source) is source
        found = own.examples(source)
        assert [found[i]["example"] for i in range(len(found))] == [0] * 4 + [1]
        for i in range(len(found)):
            fields = own.unaugmented(own.encode(found[i]))
            assert fields["image"].shape == (4, 6, 3) and fields["mask"].shape == (4, 6)

    def test_each_pixel_is_in_one_window(self):
        source, own = [example(11, 17)], task()
        counts = np.zeros(3, int)
        for i in range(len(own.examples(source))):
            mask = own.unaugmented(own.encode(own.examples(source)[i]))["mask"]
            counts += np.bincount(mask[mask != 255], minlength=3)
        assert counts.tolist() == np.bincount(source[0]["mask"][source[0]["mask"] != 255], minlength=3).tolist()

    def test_without_a_mask_nothing_is_known(self):
        fields = task().unaugmented(task().encode({"image": example(4, 6)["image"]}))
        assert (fields["mask"] == 255).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 20), st.integers(2, 20), st.floats(0, 0.9))
def test_windows_cover_an_image_and_share_its_pixels_out(height, width, high, wide, overlap):
    owned = np.zeros([height, width], int)
    for tile in tiles(height, width, (high, wide), overlap):
        assert 0 <= tile.top <= tile.rows[0] < tile.rows[1] <= min(tile.top + high, height)
        assert 0 <= tile.left <= tile.columns[0] < tile.columns[1] <= min(tile.left + wide, width)
        owned[slice(*tile.rows), slice(*tile.columns)] += 1
    assert (owned == 1).all()


def batch_of(mask, rows=None) -> dict:
    mask = np.asarray(mask, np.int32)
    return {"mask": mask, "row_weights": np.ones(len(mask), np.int32) if rows is None else np.array(rows, np.int32)}


class TestLossAndScores:
    mask = RANDOM.choice([0, 1, 2, 255], (3, 4, 6))
    logits = RANDOM.normal(size=(3, 4, 6, 3)).astype(np.float32)
    rows = (1, 1, 0)

    def test_loss_is_over_pixels_with_a_class(self):
        loss, weight, sums = task().loss(LabelOutput(self.logits), batch_of(self.mask, self.rows), train=True)
        known = (self.mask != 255) & (np.array(self.rows) > 0)[:, None, None]
        probabilities = jax.nn.softmax(self.logits)
        wanted = -np.log(probabilities[known, self.mask[known]]).sum()
        assert weight == known.sum() and np.isclose(loss, wanted, rtol=1e-5)
        assert sums["correct"] == (self.logits.argmax(-1) == self.mask)[known].sum()
        gradient = jax.grad(lambda x: task().loss(LabelOutput(x), batch_of(self.mask, self.rows), train=True)[0])(self.logits)
        assert (np.asarray(gradient)[~known] == 0).all() and (np.asarray(gradient)[known] != 0).all()

    def test_logits_of_a_coarse_map_are_made_as_fine_as_the_mask(self):
        coarse = np.zeros([1, 1, 2, 3], np.float32)
        coarse[0, 0, 0, 1] = coarse[0, 0, 1, 2] = 9.0
        mask = np.repeat([[[1, 1, 1, 2, 2, 2]]], 4, axis=1)
        confusion = task().sums(LabelOutput(jnp.array(coarse)), batch_of(mask))["confusion"]
        assert confusion.tolist() == [[0, 0, 0], [0, 12, 0], [0, 0, 12]]

    def test_confusion_is_counted_by_row_and_added_up(self):
        batch, found = batch_of(self.mask, self.rows), self.logits.argmax(-1)
        rows = task().predict(LabelOutput(self.logits), batch)["confusion"]
        for i in range(3):
            known = self.mask[i] != 255
            wanted = np.zeros([3, 3], int)
            np.add.at(wanted, (self.mask[i][known], found[i][known]), self.rows[i])
            assert rows[i].tolist() == wanted.tolist()
        assert task().sums(LabelOutput(self.logits), batch)["confusion"].tolist() == rows.sum(axis=0).tolist()

    def test_scores(self):
        confusion = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
        scores = tasks.build({"name": "segmentation", "labels": "abcd"}, None, DATA).score_sums({"confusion": confusion})
        assert scores == {
            "mean_iou": pytest.approx((6 / 9 + 3 / 7 + 0) / 3), "pixel_accuracy": pytest.approx(9 / 13),
            "mean_class_accuracy": pytest.approx((6 / 8 + 3 / 4 + 0) / 3),
        }  # fmt: skip
        assert np.isnan(scenes.intersection_over_union(confusion)[2])
        assert task().score_sums({"confusion": np.zeros([3, 3], int)}) == {}

    def test_samples_begin_with_the_worst_image(self):
        source, own = [example(4, 6), example(5, 7), example(4, 6)], task()
        confusion = np.zeros([6, 3, 3], int)
        confusion[0, 0, 0] = confusion[1:5, 1, 2] = confusion[2, 1, 1] = 5
        found = own.samples(source, {"confusion": confusion})
        assert [sample.get("mean_iou") for sample in found] == [pytest.approx(0.1), 1.0, None]
        assert found[0]["pixels"] == {"b": {"b": 5, "c": 20}} and found[2]["pixels"] == {}


def test_windows_are_put_together_again():
    source, own = [example(11, 17), example(3, 2)], task()
    drawn, _ = own.answering(None, top=1)
    seen = []
    for i in range(len(own.examples(source))):
        mask = np.full([4, 6], 9, np.uint8)
        tile = own.examples(source)[i]["tile"]
        part = source[own.examples(source)[i]["example"]]["mask"][tile.top : tile.top + 4, tile.left : tile.left + 6]
        mask[: part.shape[0], : part.shape[1]] = part
        seen.append(mask)
    for example_, classes in zip(source, classes_of(drawn, source, {"classes": np.stack(seen)}), strict=True):
        assert np.array_equal(classes, example_["mask"])


def test_colours_are_pascals_and_lie_half_over_an_image():
    assert scenes.colours(5).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert len({tuple(colour) for colour in scenes.colours(256)}) == 256
    image = np.full([1, 2, 1], 100, np.uint8)
    assert scenes.blended(image, np.array([[0, 1]], np.uint8)).tolist() == [[[50, 50, 50], [114, 50, 50]]]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"labels": ("a",)}, "config.task.labels has 1 names"),
        ({"void": 256}, "config.task.void=256"),
        ({"overlap": 1.0}, "config.task.overlap=1.0"),
        ({"first": -1}, "config.task.first=-1"),
    ],
)
def test_keys_that_make_no_sense_are_named(keys, message):
    with pytest.raises(UserError, match=message):
        task(**keys)
