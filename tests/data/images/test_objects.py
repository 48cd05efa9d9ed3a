"""Images with boxes, of COCO and of Pascal VOC: what is found, and one line for each mistake."""

import json
import logging

import numpy as np
import pytest
import scenes
from ml_collections import ConfigDict
from real_data import shared_data

from transformers_jax.data.images.objects import KINDS
from transformers_jax.data.images.pillow import Image
from transformers_jax.errors import UserError


def opened(kind: str, split: str = "train", **keys):
    return KINDS[kind](ConfigDict(dict(train="", validation="", test="") | keys), split)


@pytest.fixture
def coco(tmp_path):
    """Two images, of which the second has no objects; the path of the JSON file and its content."""
    for name in "a.jpg", "b.jpg":
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 20, "height": 10},
                   {"id": 9, "file_name": "b.jpg", "width": 20, "height": 10}],
        "categories": [{"id": 5, "name": "owl"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3.5, 4], "area": 9, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 20, 10], "area": 150, "iscrowd": 1},
        ],
    }  # fmt: skip

    def write(**changes):
        (tmp_path / "i.json").write_text(json.dumps(content | changes))
        return f"{tmp_path}/i.json,{tmp_path}"

    return write, content


def test_coco(coco, tmp_path):
    source = opened("coco", train=coco[0]())
    assert source.classes == ("cat", "owl") and len(source) == 2
    assert source[0] == {
        "image": f"{tmp_path}/a.jpg", "size": (10, 20), "objects": [
            {"label": "owl", "box": (1, 2, 4.5, 6), "crowd": False, "area": 9},
            {"label": "cat", "box": (0, 0, 20, 10), "crowd": True, "area": 150},
        ],
    }  # fmt: skip
    assert source[1]["objects"] == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": [1, 2, 0, 4]}, r"i.json, annotation 1: bbox \[1, 2, 0, 4\] is not left, top"),
        ({"category_id": 6}, "annotation 1: no category 6"),
        ({"image_id": 6}, "annotation 1: no image 6"),
        ({"bbox": [20, 2, 3, 4]}, r"annotation 1: bbox \[20, 2, 3, 4\] is outside of a.jpg, 20 wide and 10 high"),
    ],
)
def test_annotations_with_mistakes_are_fatal_or_left_out(coco, caplog, change, message):
    write, content = coco
    path = write(annotations=[content["annotations"][0] | change, content["annotations"][1]])
    with pytest.raises(UserError, match=f"^config.data.train: .*{message}"):
        opened("coco", train=path)
    with caplog.at_level(logging.WARNING):
        assert len(opened("coco", train=path, on_error="skip")[0]["objects"]) == 1
    assert "1 mistake is left out" in caplog.text


@pytest.mark.parametrize(
    "image, message",
    [({"id": 9, "file_name": "b.jpg", "width": 20}, "i.json, image 9: no height"),
     ({"id": 9, "file_name": "b.jpg", "width": 21, "height": 10}, "")],
)  # fmt: skip
def test_images_of_another_size_than_said_are_left_out(coco, image, message):
    write, content = coco
    path = write(images=[content["images"][0], image])
    assert len(opened("coco", train=path, on_error="skip")) == 1
    if message:
        with pytest.raises(UserError, match=message):
            opened("coco", train=path)


def test_outlines_become_a_mask(coco, caplog):
    """A polygon, and run lengths below it, down the columns; the smaller object is on top."""
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    write, content = coco
    owl, crowd = content["annotations"]
    owl = owl | {"segmentation": [[2, 1, 6, 1, 6, 4, 2, 4]]}
    crowd = crowd | {"segmentation": {"size": [10, 20], "counts": [0, 100, 100]}}
    source = opened("coco_masks", train=write(annotations=[owl, crowd]))
    mask = np.asarray(source[0]["mask"])
    wanted = np.zeros((10, 20), np.uint8)
    wanted[:, :10] = 1
    wanted[1:4, 2:6] = 2
    np.testing.assert_array_equal(mask, wanted)
    assert source.classes == ("background", "cat", "owl") and not np.asarray(source[1]["mask"]).any()
    path = write(annotations=[owl, crowd | {"segmentation": {"size": [9, 20], "counts": [180]}}])
    with pytest.raises(UserError, match="i.json, annotation 2: its segmentation is neither"):
        opened("coco_masks", train=path)
    assert np.asarray(opened("coco_masks", train=path, on_error="skip")[0]["mask"]).max() == 2
    assert "1 mistake is left out" in caplog.text


def test_coco_that_is_none(coco, tmp_path):
    with pytest.raises(UserError, match="give a JSON file and the folder of its images"):
        opened("coco", train="a.json")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match="x.json has no images: give a file of instances"):
        opened("coco", train=f"{tmp_path}/x.json,{tmp_path}")
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(UserError, match="i.json: no file .*b.jpg"):
        opened("coco", train=coco[0]())


def test_voc(tmp_path):
    scenes.write_voc(tmp_path, {"train": 4, "val": 2})
    train = opened("voc", train=f"{tmp_path}/ImageSets/Main/train.txt")
    assert train.classes == ("blue", "red") and len(train) == 4
    assert train[0]["objects"] == [] and len(train[1]["objects"]) == 2 and train[1]["size"] == (24, 32)
    text = scenes.annotation("x.jpg", (24, 32), [("red", 0, 3, 5, 24), ("blue", 4, 4, 32, 9)]).replace("t>0<", "t>1<", 1)
    (tmp_path / "Annotations/train_2.xml").write_text(text)
    assert opened("voc", train=f"{tmp_path}/ImageSets/Main/train.txt")[2]["objects"] == [
        {"label": "red", "box": (0, 3, 5, 24), "crowd": True, "area": 105},
        {"label": "blue", "box": (4, 4, 32, 9), "crowd": False, "area": 140},
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("<annotation>", "train_2.xml is no annotation of Pascal VOC"),
        (scenes.annotation("x.jpg", (24, 32), [("red", 5, 3, 5, 24)]), "a box from 6, 4 to 5, 24 has no area within"),
        (scenes.annotation("x.jpg", (24, 32), [("red", 40, 3, 50, 24)]), "a box from 41, 4 to 50, 24 has no area within"),
        ("<annotation></annotation>", "train_2.xml is no annotation .* no size/width in <annotation>"),
        (scenes.annotation("x.jpg", (24, 32), [("", 0, 3, 5, 24)]), "no name in <object>"),
    ],
)
def test_voc_with_mistakes(tmp_path, text, message):
    scenes.write_voc(tmp_path, {"train": 4})
    (tmp_path / "Annotations/train_2.xml").write_text(text)
    path = f"{tmp_path}/ImageSets/Main/train.txt"
    with pytest.raises(UserError, match=message):
        opened("voc", train=path)
    assert len(opened("voc", train=path, on_error="skip")) == 3
    with pytest.raises(UserError, match="give a list of names, as in VOC2012"):
        opened("voc", train=f"{tmp_path}/train.txt")


def test_real_cells():
    folder = shared_data("bccd") / "BCCD/ImageSets/Main"
    train, validation = (opened("voc", s, train=f"{folder}/train.txt", validation=f"{folder}/val.txt") for s in
                         ("train", "validation"))  # fmt: skip
    assert train.classes == validation.classes == ("Platelets", "RBC", "WBC") and len(train) == 205


def test_real_photographs():
    folder = shared_data("coco_mini")
    source = opened("coco", train=f"{folder}/annotations/instances_train2017.json,{folder}/train2017")
    objects = [thing for i in range(len(source)) for thing in source[i]["objects"]]
    assert len(source) == 80 and len(objects) == 739 and sum(thing["crowd"] for thing in objects) == 8
    masks = opened("coco_masks", train=f"{folder}/annotations/instances_train2017.json,{folder}/train2017")
    for i in range(5):
        mask = np.asarray(masks[i]["mask"])
        assert mask.shape == masks[i]["size"]
        found = {masks.classes[number] for number in np.unique(mask)} - {"background"}
        assert found <= {thing["label"] for thing in source[i]["objects"]} and (found or not source[i]["objects"])
