"""Class folders and lists of images: what is found, in which order, and one line for each mistake."""

import gzip
import logging

import numpy as np
import pytest
from ml_collections import ConfigDict
from real_data import shared_data

from transformers_jax.data.images.decode import decode
from transformers_jax.data.images.folders import KINDS
from transformers_jax.data.images.pillow import Image
from transformers_jax.errors import UserError


def opened(kind: str, split: str = "train", **keys):
    return KINDS[kind](ConfigDict(dict(train="", validation="", test="") | keys), split)


@pytest.fixture
def config(tmp_path):
    """train/{cat,dog}, validation/cat; 1.png is 1 pixel high, and so on."""

    def write(path: str, height: int = 1):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((height, 3, 3), np.uint8)).save(tmp_path / path)

    for number, path in enumerate(["train/dog/2.png", "train/cat/b.JPG", "train/cat/a.png", "validation/cat/1.png"]):
        write(path, number + 1)
    return dict(train=str(tmp_path / "train"), validation=str(tmp_path / "validation"))


def names(source) -> list[tuple[str, str]]:
    """(path below the split's folder, label) of all examples."""
    return [("/".join(source[i]["image"].split("/")[-2:]), source[i]["label"]) for i in range(len(source))]


def test_class_folders(config, tmp_path):
    (tmp_path / "train/cat/.DS_Store").write_text("x")
    (tmp_path / "train/dog/Thumbs.db").write_text("x")
    (tmp_path / "train/.git").mkdir()
    (tmp_path / "train/README.txt").write_text("hello")
    (tmp_path / "train/dog/1999/more").mkdir(parents=True)
    (tmp_path / "train/dog/1999/more/9.png").write_bytes((tmp_path / "train/dog/2.png").read_bytes())
    train, validation = (opened("image_folders", split, **config) for split in ("train", "validation"))
    assert names(train) == [("cat/a.png", "cat"), ("cat/b.JPG", "cat"), ("dog/2.png", "dog"), ("more/9.png", "dog")]
    assert train.classes == validation.classes == ("cat", "dog")
    assert names(validation) == [("cat/1.png", "cat")]
    assert train.where(1) == str(tmp_path / "train/cat/b.JPG")
    assert decode(train[0]["image"], where=train.where(0)).shape == (3, 3, 3)
    assert opened("image_folders", "validation", validation=config["validation"]).classes == ("cat",)


def test_an_example_is_the_callers_own(config):
    source = opened("image_folders", **config)
    source[0]["label"] = "changed"
    assert source[0]["label"] == "cat"


def spoil(tmp_path, what: str) -> None:
    if what == "empty":
        (tmp_path / "train/emu").mkdir()
    elif what == "text":
        (tmp_path / "train/cat/notes.txt").write_text("x")
    elif what == "loose":
        (tmp_path / "train/1.jpg").write_text("x")
    elif what == "unknown":
        (tmp_path / "validation/zebra").mkdir()


@pytest.mark.parametrize("what,split,message", [
    ("empty", "train", r"the class folder \S*train/emu is empty; fill or remove it"),
    ("text", "train", r"\S*train/cat/notes.txt is no image by its name .*"),
    ("loose", "train", r"\S*train/1.jpg stands outside of the class folders; .*"),
    ("unknown", "validation", r"\S*validation/zebra is a class that \S*train has not: cat, dog"),
])  # fmt: skip
def test_mistakes_are_fatal_or_counted(config, tmp_path, caplog, what, split, message):
    before = names(opened("image_folders", split, **config))
    spoil(tmp_path, what)
    with pytest.raises(UserError, match=f"^config.data.{split}: {message}$"):
        opened("image_folders", split, **config)
    with caplog.at_level(logging.WARNING):
        assert names(opened("image_folders", split, on_error="skip", **config)) == before
    assert f"config.data.{split}: 1 mistake is left out (config.data.on_error=skip); the first: " in caplog.text


def test_files_that_are_no_image(config, tmp_path, caplog):
    """They are found when they are decoded, or at once where they are to be skipped."""
    (tmp_path / "train/cat/a.png").write_text("no image")
    whole = (tmp_path / "train/cat/b.JPG").read_bytes()
    (tmp_path / "train/cat/b.JPG").write_bytes(whole[: len(whole) // 2])
    source = opened("image_folders", **config)
    assert len(source) == 3
    for i in 0, 1:
        with pytest.raises(UserError, match=f"^{source.where(i)} .*replace or remove it$"):
            decode(source[i]["image"], where=source.where(i))
    with caplog.at_level(logging.WARNING):
        assert names(opened("image_folders", on_error="skip", **config)) == [("dog/2.png", "dog")]
    assert "2 mistakes are left out (config.data.on_error=skip); the first: " in caplog.text
    assert "cat/a.png is no image that can be read" in caplog.text


def test_folders_that_are_none(tmp_path, config):
    with pytest.raises(UserError, match="^config.data.train='' names no folder; .* config.data.train=photos/train$"):
        opened("image_folders")
    with pytest.raises(UserError, match="^config.data.test: no folder nowhere$"):
        opened("image_folders", "test", **config | {"test": "nowhere"})
    with pytest.raises(UserError, match="^config.data.train: .*train/cat has no class folders; a class is a folder, as in"):
        opened("image_folders", train=f"{config['train']}/cat")
    with pytest.raises(UserError, match="^config.data.train: .*validation has one class only, cat; a classifier needs two"):
        opened("image_folders", train=config["validation"])
    with pytest.raises(UserError, match="^config.data.on_error='ignore' is not one of fatal, skip$"):
        opened("image_folders", on_error="ignore", **config)


# -- lists -------------------------------------------------------------------------------------------------------------


def listed(tmp_path, content: str, name: str = "list.csv") -> str:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return str(path)


def test_csv_and_tsv(config, tmp_path):
    csv = listed(tmp_path, 'path,author,label\r\ntrain/cat/a.png,"me, myself",cat\r\n\r\ntrain/dog/2.png,,"dog"\r\n')
    source = opened("image_lists", train=csv)
    assert [source[i]["label"] for i in range(len(source))] == ["cat", "dog"]
    assert source[0] == {"image": str(tmp_path / "train/cat/a.png"), "label": "cat", "labels": ["cat"]}
    assert source.classes == ("cat", "dog") and source.where(1) == f"{csv}, line 4"
    tsv = listed(tmp_path, f"labels\tpath\n\ttrain/cat/b.JPG\ndog | cat\t{tmp_path}/train/dog/2.png\n", "list.tsv.gz")
    source = opened("image_lists", "validation", train=f"{csv},{tsv}", validation=tsv)
    assert source.classes == ("cat", "dog")
    assert [source[i]["labels"] for i in range(2)] == [[], ["dog", "cat"]]
    assert source[1]["label"] == "dog|cat" and source[1]["image"] == str(tmp_path / "train/dog/2.png")


@pytest.mark.parametrize("line,message", [
    ("train/cat/a.png", "line 3 has 1 columns where line 1 has 2"),
    ("train/cat/x.png,cat", r"line 3: no file \S*/train/cat/x.png"),
    ("train/cat/a.png,", "line 3: path 'train/cat/a.png', label '': one is empty, or twice the same"),
    (",cat", "line 3: path '', label 'cat': one is empty, or twice the same"),
    ("train/cat/a.png,cat|cat", "line 3: path 'train/cat/a.png', label 'cat|cat': one is empty, or twice the same"),
])  # fmt: skip
def test_a_line_with_a_mistake(config, tmp_path, caplog, line, message):
    path = listed(tmp_path, f"path,label\ntrain/cat/a.png,cat\n{line}\ntrain/dog/2.png,dog\n")
    with pytest.raises(UserError, match=f"^config.data.train: {path}, {message.replace('|', '[|]')}$"):
        opened("image_lists", train=path)
    with caplog.at_level(logging.WARNING):
        assert names(opened("image_lists", train=path, on_error="skip")) == [("cat/a.png", "cat"), ("dog/2.png", "dog")]
    assert "1 mistake is left out" in caplog.text


def test_lists_that_are_none(config, tmp_path):
    path = listed(tmp_path, "file,class\na.png,cat\n")
    with pytest.raises(UserError, match=r"^config.data.train: .*list.csv, line 1 names the columns \['file', 'class'\]"):
        opened("image_lists", train=path)
    path = listed(tmp_path, "path,label\ntrain/cat/a.png,cat\n")
    with pytest.raises(UserError, match="^config.data.train: .*list.csv has one class only, cat"):
        opened("image_lists", train=path)
    path = listed(tmp_path, 'path,label\ntrain/cat/a.png,"cat\n')
    with pytest.raises(UserError, match="^config.data.train: .*list.csv, line 2 is not csv: "):
        opened("image_lists", train=path)
    train = listed(tmp_path, "path,label\ntrain/cat/a.png,cat\ntrain/dog/2.png,dog\n", "train.csv")
    validation = listed(tmp_path, "path,label\ntrain/cat/a.png,zebra\n", "validation.csv")
    with pytest.raises(UserError, match="^config.data.validation: .*validation.csv, line 2: 'zebra' is a class that .*train"):
        opened("image_lists", "validation", train=train, validation=validation)


# -- real data ---------------------------------------------------------------------------------------------------------


def test_cifar10():
    folder = shared_data("cifar10")
    paths = dict(train=f"{folder}/train", test=f"{folder}/test")
    train, test = (opened("image_folders", split, **paths) for split in paths)
    assert (len(train), len(test)) == (5000, 1000) and train.classes == test.classes and len(train.classes) == 10
    for i in range(0, 5000, 700):
        image = decode(train[i]["image"], where=train.where(i))
        assert image.shape == (32, 32, 3) and image.std() > 5
    assert len(opened("image_folders", "test", on_error="skip", **paths)) == 1000
