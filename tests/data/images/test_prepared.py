"""Images of TensorFlow Datasets, prepared in a folder of the test's own, read without TensorFlow."""

import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax.data.sources import open_source
from transformers_jax.errors import UserError

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the data set "animals", as oxford_iiit_pet is: 6 images to train on, of which the last is cut short."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")

    class Animals(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=CLASSES),
                "file_name": tfds.features.Text(),
                "mask": tfds.features.Image(shape=(None, None, 1)),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            from PIL import Image

            for i in range(count):
                path = folder / f"{i}.png"
                Image.fromarray(np.full([4 + i, 5, 3], 40 * i, np.uint8)).save(path)
                label = CLASSES[i % 3] if i < 5 else -1
                yield i, {"image": str(path), "label": label, "file_name": f"{i}.png", "mask": str(path)}

    Animals(data_dir=folder, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return str(folder)


def config(folder, **keys):
    return ConfigDict({"source": "tfds_images", "tfds_name": "animals", "data_dir": folder, "columns": (), **keys})


def test_images_and_names_of_their_classes(folder):
    source = open_source(config(folder), "train")
    assert source.classes == ("cat", "dog", "owl") and len(source) == 6
    for example in sorted((source[i] for i in range(6)), key=lambda example: example["file"]):
        i = int(example["file"][0])
        assert example["image"].shape == (4 + i, 5, 3) and example["image"].dtype == np.uint8
        assert (example["image"] == 40 * i).all() and example.get("label") == (CLASSES[i % 3] if i < 5 else None)
        assert set(example) <= {"image", "label", "file"}
    assert len(open_source(config(folder, validation="test"), "validation")) == 2
    assert "tensorflow" not in sys.modules


def test_a_damaged_image_is_named(folder):
    source = open_source(config(folder), "train")
    source.data = [{"image": b"no image", "label": 1, "file_name": b"9.png"}]
    with pytest.raises(UserError, match="animals, 9.png is no image"):
        source[0]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"tfds_name": ""}, "config.data.tfds_name is empty; give one, as in cifar10"),
        ({"tfds_name": "cifar10"}, "cifar10 is not prepared in .*image_classification; .*download_and_prepare"),
        ({"columns": ("image", "coarse_label")}, "config.data.columns: animals has .*, not 'coarse_label'"),
        ({"columns": ("label", "image")}, "animals has no image and class of these names"),
        ({"columns": ("image",)}, "give the features of image and label"),
        ({"train": "dev"}, "config.data.train: animals: Unknown split 'dev'"),
    ],
)
def test_what_is_not_there_is_said(folder, keys, message):
    with pytest.raises(UserError, match=message):
        open_source(config(folder, **keys), "train")
