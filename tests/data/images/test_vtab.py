"""VTAB's table, its rules for labels, and labels that are several, on data sets of the test's own."""

import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax.data.images import vtab
from transformers_jax.data.sources import open_source
from transformers_jax.errors import UserError

COUNT = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with small data sets of the features that CLEVR, KITTI, dSprites, flowers and ImageNet's ReaL labels have."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder, f = tmp_path_factory.mktemp("tfds"), tfds.features
    place = f.Tensor(shape=(3,), dtype=np.float32)
    coordinates = f.Sequence({"size": f.ClassLabel(names=["small", "large"]), "pixel_coords": place})
    things = f.Sequence({"type": f.ClassLabel(num_classes=8), "location": place})
    kinds = f.ClassLabel(names=["cat", "dog", "owl"])
    sets = {
        "clevr": ({"objects": coordinates}, ("train", "validation"), lambda i: {"objects": objects(3 + i % 8, 7.6 + 0.5 * i)}),
        "kitti": ({"objects": things}, ("train", "validation", "test"), lambda i: {"objects": vehicles(i)}),
        "dsprites": ({"label_x_position": f.ClassLabel(num_classes=32)}, ("train",), lambda i: {"label_x_position": 3 * i}),
        "oxford_flowers102": ({"label": kinds}, ("train", "validation", "test"), lambda i: {"label": i % 3}),
        "imagenet2012_real": ({"real_label": f.Sequence(kinds)}, ("validation",), lambda i: {"real_label": list(range(i % 4))}),
    }
    for name, (features, splits, values) in sets.items():
        build(tfds, name, features, splits, values, folder)
    assert "tensorflow" not in sys.modules
    return str(folder)


def objects(count: int, nearest: float) -> list[dict]:
    return [{"size": "small", "pixel_coords": np.array([0, 0, nearest + j], np.float32)} for j in range(count)]


def vehicles(i: int) -> list[dict]:
    """A pedestrian right before the camera, and i times six metres away a car; none at 0."""
    found = [{"type": 3, "location": np.array([0, 0, 1], np.float32)}]
    return found + ([{"type": i % 3, "location": np.array([0, 0, 6 * i], np.float32)}] if i else [])


def build(tfds, name, features, splits, values, folder):
    from PIL import Image

    path = folder / f"{name}.png"
    Image.fromarray(np.full([4, 5], 1, np.uint8)).save(path)
    image = tfds.features.Image(shape=(None, None, 1))

    def examples(self):
        return ((i, {"image": str(path), **values(i)}) for i in range(COUNT))

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"image": image, **features}))

    methods = {
        "VERSION": tfds.core.Version("1.0.0"), "name": name, "_info": info, "_generate_examples": examples,
        "_split_generators": lambda self, manager: {split: self._generate_examples() for split in splits},
    }  # fmt: skip
    kind = type(name, (tfds.core.GeneratorBasedBuilder,), methods, skip_registration=True)
    kind(data_dir=folder, file_format="array_record").download_and_prepare()


def labels(folder, name: str, split: str = "train", source: str = "vtab", **keys) -> list:
    config = ConfigDict({"source": source, "tfds_name": name, "data_dir": folder, "columns": (), **keys})
    opened = open_source(config, split)
    return [opened[i].get("label", opened[i].get("labels")) for i in range(len(opened))]


def test_labels_of_scenes(folder):
    assert sorted(labels(folder, "clevr_count", "test")) == sorted(str(3 + i % 8) for i in range(COUNT))
    found = labels(folder, "clevr_distance", "test")
    wanted = ["up to 8", "up to 8.5", "up to 9", "up to 9.5", "up to 10", *["up to 100"] * 5]
    assert sorted(found) == sorted(wanted)
    assert sorted(labels(folder, "kitti", "test")) == sorted(["none", "up to 8", "up to 20", "up to 20", *["farther"] * 6])


def test_positions_are_grouped_and_pixels_bright(folder):
    config = ConfigDict({"source": "vtab", "tfds_name": "dsprites_location", "data_dir": folder})
    sources = [open_source(config, split) for split in ("train", "validation", "test")]
    assert [len(source) for source in sources] == [8, 1, 1] and sources[0].classes == tuple(map(str, range(16)))
    found = [source[i] for source in sources for i in range(len(source))]
    assert sorted(example["label"] for example in found) == sorted(str(3 * i // 2) for i in range(COUNT))
    assert all((example["image"] == 255).all() for example in found)


def test_so_many_examples_of_several_splits(folder):
    assert len(labels(folder, "flowers102", train="train800+validation200")) == 2 * COUNT
    assert len(labels(folder, "flowers102", train="train4+validation3")) == 7
    with pytest.raises(UserError, match="config.data.train=half: give train, validation or test"):
        labels(folder, "flowers102", train="half")


def test_several_right_labels(folder):
    found = labels(folder, "imagenet2012_real", "validation", "tfds_images", columns=("image", "real_label"))
    assert sorted(map(len, found)) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3] and ["cat", "dog"] in found


def test_the_table():
    assert len(vtab.TABLE) == 19 and len({entry.tfds_name for entry in vtab.TABLE.values()}) == 16
    assert {len(vtab.TABLE[name].classes) for name in ("clevr_count", "clevr_distance", "kitti")} == {8, 6, 4}
    with pytest.raises(UserError, match="config.data.tfds_name='mnist' is none of VTAB's: caltech101"):
        labels("", "mnist")
