"""Digits inside packages: as a package of the test's own has them, and as the real ones do where they are installed."""

import gzip
import importlib.util
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax.data.images import digits
from transformers_jax.errors import UserError


@pytest.fixture(autouse=True)
def fresh():
    digits._read.cache_clear()
    yield
    digits._read.cache_clear()


def opened(kind: str, split: str) -> digits.Digits:
    return digits.KINDS[kind](ConfigDict(dict(source=kind)), split)


@pytest.mark.parametrize("kind,sizes", [("mnist_5k", (4000, 1000)), ("digits_8x8", (1437, 360))])
def test_what_the_packages_have(kind, sizes):
    package, _, size, _, _ = digits.BUNDLED[kind]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which is not installed")
    train, validation = (opened(kind, split) for split in digits.SPLITS)
    assert (len(train), len(validation)) == sizes
    assert not set(train.numbers) & set(validation.numbers)
    for source in train, validation:
        labels = [source[i]["label"] for i in range(len(source))]
        counts = [labels.count(name) for name in source.classes]
        assert min(counts) > 0.75 * len(labels) / 10 and sum(counts) == len(labels)
        image = source[0]["image"]
        assert image.shape == (size, size, 1) and image.dtype == np.uint8
        corners, brightest = zip(*((source[i]["image"][0, 0], source[i]["image"].max()) for i in range(50)), strict=True)
        assert np.max(corners) < 100 and np.min(brightest) > 200
    # The means of the classes tell the digits of validation apart.
    images = np.stack([train[i]["image"] for i in range(len(train))]).reshape(len(train), -1).astype(float)
    truth = np.array([int(train[i]["label"]) for i in range(len(train))])
    means = np.stack([images[truth == digit].mean(0) for digit in range(10)])
    right = [
        np.square(means - validation[i]["image"].reshape(-1)).sum(1).argmin() == int(validation[i]["label"]) for i in range(200)
    ]
    assert np.mean(right) > 0.75


def test_which_are_validation_never_changes(monkeypatch):
    monkeypatch.setattr(digits, "_read", lambda kind: (np.zeros((5000, 1, 1, 1)), np.zeros(5000)))
    assert opened("mnist_5k", "train").numbers[:5].tolist() == [398, 3833, 4836, 4572, 636]


def package(tmp_path, monkeypatch, rows: int, brightest: int = 16) -> np.ndarray:
    """Writes what `sklearn` has, found before any that is installed; gives the table."""
    table = np.random.default_rng(0).integers(0, 17, (rows, 65))
    table[:, -1] %= 10
    table[0, 0] = brightest
    (tmp_path / "sklearn/datasets/data").mkdir(parents=True)
    (tmp_path / "sklearn/__init__.py").write_text("raise ImportError('not to be imported')")
    lines = "\n".join(",".join(map(str, row)) for row in table) + "\n"
    (tmp_path / "sklearn/datasets/data/digits.csv.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    return table


def test_pixels_labels_and_places(tmp_path, monkeypatch):
    table = package(tmp_path, monkeypatch, 1500)
    source = opened("digits_8x8", "validation")
    assert len(source) == 63
    row = int(source.where(5).removeprefix("digits_8x8, line ")) - 1
    expected = np.round(table[row, :-1].reshape(8, 8, 1) * 255 / 16)
    assert np.abs(source[5]["image"] - expected).max() <= 1  # halves are rounded
    assert source[5]["image"].max() == 255 and source[5]["label"] == str(table[row, -1])
    source[5]["image"][:] = 0
    assert source[5]["image"].any()


def test_what_goes_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind in digits.KINDS:
        with pytest.raises(UserError, match=rf"^config.data.source={kind} needs .*: pip install transformers_jax\[images\]$"):
            opened(kind, "train")
    monkeypatch.undo()
    with pytest.raises(UserError, match="^config.data.source=mnist_5k has the splits train and validation, not 'test'$"):
        opened("mnist_5k", "test")
    package(tmp_path, monkeypatch, 20, brightest=17)
    with pytest.raises(UserError, match="^config.data.source=digits_8x8: cannot read .*digits.csv.gz: a value is out of range"):
        opened("digits_8x8", "train")
    (tmp_path / "sklearn/datasets/data/digits.csv.gz").write_bytes(b"\x1f\x8bjunk")
    with pytest.raises(UserError, match="^config.data.source=digits_8x8: cannot read .*; reinstall its package$"):
        opened("digits_8x8", "train")
