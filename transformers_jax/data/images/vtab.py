"""The 19 sets of VTAB (Zhai et al. 2019, "A Large-scale Study of Representation Learning with the Visual Task Adaptation
Benchmark", table 1), from TensorFlow Datasets: their splits, and how a label comes about where the set has none of its own.

Splits and rules are those of the authors' code. Each example is {"image": uint8 [H, W, 3], "label": the name of its class}.

Keys of config.data that are read here:
  tfds_name: one of `TABLE`, "clevr_count" say; data_dir holds what `Set.tfds_name` names, prepared.
  train, validation, test: "train", "validation" or "test" of the set, "train800" and "validation200" for their first 800 and
    200 examples, or several joined by "+": VTAB-1k trains on "train800+validation200" and is tested on "test".
"""

import operator
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from transformers_jax.data.images.prepared import PreparedImages
from transformers_jax.data.tfds import open_prepared
from transformers_jax.errors import UserError

PART = re.compile(r"(train|validation|test)(\d*)")
PACKAGE = "tensorflow_datasets.image_classification, tensorflow_datasets.image"


class Set(NamedTuple):
    """tfds_name: of the data set.
    train, validation, test: splits of TFDS, or slices of them.
    label: the feature that is the label, or a function of all features.
    classes: names of what a function gives; with `group`, so many classes that a feature's are grouped into.
    times: what pixels are multiplied by.
    """

    tfds_name: str
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    label: str | Callable[[dict], int] = "label"
    classes: tuple[str, ...] = ()
    group: int = 0
    times: int = 1


def count(features: dict) -> int:
    """How many objects there are, from three on."""
    return len(features["objects"]["size"]) - 3


def distance(features: dict, bounds: tuple[float, ...]) -> int:
    """How far the closest object is: the number of the last bound below it."""
    nearest = np.asarray(features["objects"]["pixel_coords"], np.float64)[:, 2].min()
    return int(np.flatnonzero(np.array(bounds) < nearest).max())


def vehicle(features: dict, bounds: tuple[float, ...]) -> int:
    """How far the closest car, van or truck is, in metres: the number of the last bound below it; the last is for none."""
    kinds = np.asarray(features["objects"]["type"])
    places = np.asarray(features["objects"]["location"], np.float64).reshape(-1, 3)
    nearest = min([*places[kinds < 3, 2], 1000.0])
    return int(np.flatnonzero(np.array(bounds) < nearest).max())


def _shares(first: int, second: int) -> dict[str, str]:
    """Splits of a set that has training examples alone, in percent."""
    both = first + second
    return {"train": f"train[:{first}%]", "validation": f"train[{first}%:{both}%]", "test": f"train[{both}%:]"}


def _cut(percent: int) -> dict[str, str]:
    """Splits of a set whose validation examples are cut off those of training."""
    return {"train": f"train[:{percent}%]", "validation": f"train[{percent}%:]"}


def _between(bounds: tuple[float, ...], last: str) -> tuple[str, ...]:
    return (*(f"up to {bound:g}" for bound in bounds[1:]), last)


CLEVR, KITTI = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0), (-100.0, 8.0, 20.0, 999.0)
NORB = {"validation": "test[:50%]", "test": "test[50%:]"}

TABLE = {
    # natural
    "caltech101": Set("caltech101", **_cut(90)),
    "cifar100": Set("cifar100", **_cut(90)),
    "dtd": Set("dtd"),
    "flowers102": Set("oxford_flowers102"),
    "pets": Set("oxford_iiit_pet", **_cut(80)),
    "sun397": Set("sun397/tfds"),
    "svhn": Set("svhn_cropped", **_cut(90)),
    # specialised
    "camelyon": Set("patch_camelyon"),
    "eurosat": Set("eurosat/rgb", **_shares(60, 20)),
    "resisc45": Set("resisc45", **_shares(60, 20)),
    "retinopathy": Set("diabetic_retinopathy_detection/btgraham-300"),
    # structured
    "clevr_count": Set("clevr", **_cut(90), test="validation", label=count, classes=tuple(map(str, range(3, 11)))),
    "clevr_distance": Set(
        "clevr", **_cut(90), test="validation", label=partial(distance, bounds=CLEVR), classes=_between(CLEVR[:-1], "up to 100")
    ),
    "dmlab": Set("dmlab"),
    "dsprites_location": Set("dsprites", **_shares(80, 10), label="label_x_position", group=16, times=255),
    "dsprites_orientation": Set("dsprites", **_shares(80, 10), label="label_orientation", group=16, times=255),
    "kitti": Set("kitti", label=partial(vehicle, bounds=KITTI), classes=("up to 8", "up to 20", "farther", "none")),
    "norb_azimuth": Set("smallnorb", **NORB, label="label_azimuth"),
    "norb_elevation": Set("smallnorb", **NORB, label="label_elevation"),
}


def _grouped(features: dict, label: str, group: int, of: int) -> int:
    """The number of a label among `of`, those beside each other in one of `group` classes."""
    return int(features[label]) * group // of


def _labels(entry: Set, features: dict) -> tuple[Callable, Sequence[str]]:
    """(features of an example → number, names of the classes)."""
    if callable(entry.label):
        return entry.label, entry.classes
    names = features[entry.label].names
    if not entry.group:
        return operator.itemgetter(entry.label), names
    rule = partial(_grouped, label=entry.label, group=entry.group, of=len(names))
    return rule, tuple(map(str, range(entry.group)))


class _Joined(Sequence):
    """The first so many examples of several splits, one after the other."""

    def __init__(self, parts: Sequence[tuple[Sequence, int]]):
        self.places = [(data, i) for data, most in parts for i in range(min(most or len(data), len(data)))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> dict:
        data, number = self.places[i]
        return data[number]


def _open(config, split: str) -> PreparedImages:
    if config.tfds_name not in TABLE:
        raise UserError(f"config.data.tfds_name={config.tfds_name!r} is none of VTAB's: {', '.join(TABLE)}")
    entry, parts, wanted = TABLE[config.tfds_name], [], config.get(split, "") or split
    for part in wanted.split("+"):
        if not (found := PART.fullmatch(part.strip())):
            raise UserError(f"config.data.{split}={wanted}: give train, validation or test, as in train800+validation200")
        fields = {"tfds_name": entry.tfds_name, "data_dir": config.data_dir, split: getattr(entry, found[1])}
        data, features = open_prepared(ConfigDict(fields), split, PACKAGE, "cifar100", undecoded=True)
        parts.append((data, int(found[2] or 0)))
    number, classes = _labels(entry, features)
    return PreparedImages(_Joined(parts), classes, "image", number, config.tfds_name, times=entry.times)


KINDS: dict[str, Callable] = {"vtab": _open}
