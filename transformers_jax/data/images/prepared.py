"""Labelled images of TensorFlow Datasets, read from their files without TensorFlow: imagenet2012, cifar10, cifar100,
oxford_iiit_pet, oxford_flowers102 and others that have the features "image" and "label".

Each example is {"image": uint8 [H, W, 3], "label": the name of its class, "file": its name, where the data set tells it}.

Keys of config.data that are read here:
  tfds_name, data_dir: "cifar10" and the folder that holds it prepared.
  train, validation, test: the split's name there, slices such as "train[:90%]" too, where it is not the key's own.
  columns: names of the features, where they are others: ("image", "coarse_label") of cifar100; of a feature that has several
    labels, ("image", "real_label") of imagenet2012_real, examples have "labels", perhaps none.
"""

import operator
from collections.abc import Callable, Sequence

import numpy as np

from transformers_jax.data.tfds import open_prepared
from transformers_jax.errors import UserError

FILE = "file_name"
"""The feature that names an image's file, in the sets that have it."""


class PreparedImages:
    """Images and their labels of a prepared data set.

    Attributes:
      classes: the names of the labels, in the order of their numbers.

    Args:
      image: name of the feature that holds the images' files.
      number: features of an example → the number of its label, below 0 where nobody tells; or several, where `several`.
      name: of the set, for messages.
      times: what pixels are multiplied by.
    """

    def __init__(
        self, data: Sequence[dict], classes: Sequence[str], image: str, number: Callable, name: str, *, several: bool = False,
        times: int = 1,
    ):  # fmt: skip
        self.data, self.classes, self.image, self.number, self.name = data, tuple(classes), image, number, name
        self.several, self.times = several, times

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict:
        from transformers_jax.data.images.decode import decode

        features = self.data[i]
        file = features[FILE].decode("utf-8", "replace") if FILE in features else ""
        where = f"{self.name}, {file or f'example {i}'}"
        image, found = decode(features[self.image], where=where), self.number(features)
        example = {"image": image if self.times == 1 else image * np.uint8(self.times)}
        if self.several:
            example["labels"] = [self.classes[int(number)] for number in found]
        elif int(found) >= 0:  # -1 where nobody tells
            example["label"] = self.classes[int(found)]
        return example | ({"file": file} if file else {})


def _open(config, split: str) -> PreparedImages:
    names = tuple(config.get("columns", ())) or ("image", "label")
    if len(names) != 2:
        raise UserError(f"config.data.columns={names!r}: give the features of image and label, as in ('image', 'label')")
    image, label = names
    data, features = open_prepared(config, split, "tensorflow_datasets.image_classification", "cifar10", undecoded=True)
    for name in names:
        if name not in features:
            raise UserError(f"config.data.columns: {config.tfds_name} has {', '.join(features)}, not {name!r}")
    one = getattr(features[label], "feature", features[label])  # of a sequence of labels
    classes = getattr(one, "names", None)
    if not classes or not hasattr(features[image], "encoding_format"):
        raise UserError(f"config.data.columns={names}: {config.tfds_name} has no image and class of these names")
    several = one is not features[label]
    return PreparedImages(data, classes, image, operator.itemgetter(label), config.tfds_name, several=several)


KINDS: dict[str, Callable] = {"tfds_images": _open}
