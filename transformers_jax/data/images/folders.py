"""Labelled images from class folders and from lists in CSV or TSV.

Each example is {"image": path, "label": name}; an image is read when it is needed. Lists also give "labels", all of them.

Keys of config.data that are read here:
  train, validation, test: image_folders: a folder that has one folder a class, as in train/cat/1.jpg. image_lists: files,
    "a.csv,b.csv", plain or gzip, whose first line names the columns: `path`, relative to the list's folder, and `label`
    or `labels`, several being parted by "|"; other columns are not read. Under `labels` a cell may be empty.
  on_error: "fatal" (the default) ends at the first mistake in the data. "skip" leaves out what is wrong, says how much it
    was, and opens every file once at the start to find those that are no image or were cut short.

The classes are those of training, in the order of their names.
"""

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from transformers_jax.data.placed import Placed
from transformers_jax.data.text.lines import filled, paths_of
from transformers_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
NO_MATTER = ("thumbs.db", "desktop.ini")
"""What file managers leave behind, beside names that begin with a dot."""
ON_ERROR = ("fatal", "skip")


class Images(Placed):
    """Paths of images with their labels, as a source.

    Attributes:
      classes: the names of the classes of training, sorted.
    """

    def __init__(self, classes: tuple[str, ...]):
        self.classes = classes
        self.examples: list[dict] = []
        self.places: list[str] = []

    def add(self, example: dict, where: str) -> None:
        self.examples.append(example)
        self.places.append(where)

    def where(self, i: int) -> str:
        """An image's path, or the list and line that name it, for messages."""
        return self.places[i]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict:
        return dict(self.examples[i])


class Mistakes:
    """Mistakes in the data of a split: the first one is raised, or all are counted, as config.data.on_error says."""

    def __init__(self, config, split: str):
        self.key, on_error = f"config.data.{split}", config.get("on_error", "fatal")
        if on_error not in ON_ERROR:
            raise UserError(f"config.data.on_error={on_error!r} is not one of {', '.join(ON_ERROR)}")
        self.skip, self.count, self.first = on_error == "skip", 0, ""

    def met(self, message: str) -> None:
        """A mistake; `message` says where it is and what to do.

        Raises:
          UserError: mistakes are fatal.
        """
        if not self.skip:
            raise UserError(f"{self.key}: {message}")
        self.count += 1
        self.first = self.first or message

    def image_is_fine(self, path: str, where: str) -> bool:
        """Whether a file may stay. Where mistakes are fatal it is not opened, as that is found when it is decoded."""
        if self.skip:
            from transformers_jax.data.images.decode import check

            try:
                check(path, where=where)
            except UserError as error:
                self.met(str(error))
                return False
        return True

    def told(self) -> None:
        """One warning, if there is something to warn of."""
        if self.count:
            what = "1 mistake is" if self.count == 1 else f"{self.count} mistakes are"
            logging.warning("%s: %s left out (config.data.on_error=skip); the first: %s", self.key, what, self.first)


# -- class folders -----------------------------------------------------------------------------------------------------


def _folders(config, split: str) -> Images:
    mistakes = Mistakes(config, split)
    names, loose = _classes_in(config, split)
    for path in loose:
        mistakes.met(f"{path} stands outside of the class folders; move it into one, as in {config[split]}/cat/1.jpg")
    classes = names
    if split == "train":
        _need_two(classes, mistakes.key, config[split])
    elif config.get("train"):
        classes = _classes_in(config, "train")[0]
    source, known = Images(classes), set(classes)
    for name in names:
        folder = os.path.join(config[split], name)
        if name not in known:
            mistakes.met(f"{folder} is a class that {config.train} has not: {_some(classes)}")
            continue
        found = 0
        for path in files_in(folder, mistakes.key):
            found += 1
            if not path.lower().endswith(SUFFIXES):
                mistakes.met(f"{path} is no image by its name ({', '.join(SUFFIXES)}); remove or rename it")
            elif mistakes.image_is_fine(path, path):
                source.add({"image": path, "label": name}, path)
        if not found:
            mistakes.met(f"the class folder {folder} is empty; fill or remove it")
    mistakes.told()
    return source


def _classes_in(config, split: str) -> tuple[tuple[str, ...], list[str]]:
    """The names of a split's class folders, sorted, and the images that stand beside them."""
    key, root = f"config.data.{split}", config.get(split, "")
    if not root:
        raise UserError(f"{key}={root!r} names no folder; give one with a folder for each class, as in {key}=photos/{split}")
    if not Path(root).is_dir():
        raise UserError(f"{key}: no folder {root}")
    try:
        entries = sorted(entry for entry in os.listdir(root) if _counts(entry))
    except OSError as error:
        raise UserError(f"{key}: cannot read {root}: {error.strerror}") from error
    paths = {entry: os.path.join(root, entry) for entry in entries}
    names = tuple(entry for entry in entries if os.path.isdir(paths[entry]))
    if not names:
        raise UserError(f"{key}: {root} has no class folders; a class is a folder, as in {root}/cat/1.jpg")
    return names, [path for entry, path in paths.items() if entry not in names and path.lower().endswith(SUFFIXES)]


def files_in(folder: str, key: str) -> Iterator[str]:
    """The files of a folder and of those in it, in the order of their names."""

    def failed(error: OSError):
        raise UserError(f"{key}: cannot read {error.filename}: {error.strerror}") from error

    for at, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        folders[:] = sorted(filter(_counts, folders))  # the order in which os.walk goes on
        yield from (os.path.join(at, name) for name in sorted(filter(_counts, files)))


def images_in(path: str, key: str) -> list[str]:
    """The images of a folder and of those in it, in the order of their names; of a file the file.

    Args:
      key: what gave the path, for messages.

    Raises:
      UserError: there is no such file or folder, or no image in it.
    """
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise UserError(f"{key}: no file or folder {path}")
        return [path]
    found = [file for file in files_in(path, key) if file.lower().endswith(SUFFIXES)]
    if not found:
        raise UserError(f"{key}: {path} has no images ({', '.join(SUFFIXES)})")
    return found


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in NO_MATTER


def _need_two(classes: tuple[str, ...], key: str, where: str) -> None:
    if len(classes) < 2:
        raise UserError(f"{key}: {where} has one class only, {_some(classes)}; a classifier needs two or more")


def _some(classes: tuple[str, ...], most: int = 10) -> str:
    return ", ".join(classes[:most]) + (f" … ({len(classes)} in all)" if len(classes) > most else "")


# -- lists -------------------------------------------------------------------------------------------------------------


def _lists(config, split: str) -> Images:
    mistakes = Mistakes(config, split)
    rows = list(_rows(config, split, mistakes))
    classes = _classes_of(rows)
    if split == "train":
        _need_two(classes, mistakes.key, config[split])
    elif config.get("train"):  # whose mistakes are told when it is opened itself
        classes = _classes_of(_rows(config, "train", Mistakes(config, "train")))
    source, known = Images(classes), set(classes)
    for path, labels, where in rows:
        if unknown := [label for label in labels if label not in known]:
            mistakes.met(f"{where}: {unknown[0]!r} is a class that {config.train} has not: {_some(classes)}")
        elif not os.path.isfile(path):
            mistakes.met(f"{where}: no file {path}")
        elif mistakes.image_is_fine(path, where):
            source.add({"image": path, "label": "|".join(labels), "labels": labels}, where)
    mistakes.told()
    return source


def _classes_of(rows) -> tuple[str, ...]:
    return tuple(sorted({label for _, labels, _ in rows for label in labels}))


def _rows(config, split: str, mistakes: Mistakes) -> Iterator[tuple[str, list[str], str]]:
    """Path, labels, and where they stand, of each line of a split's lists."""
    for name in paths_of(config, split, f"{split}.csv"):
        lines = filled(name, f"config.data.{split}")
        delimiter = "\t" if "\t" in lines[0] else ","
        reader = csv.reader((lines[i] + "\n" for i in range(len(lines))), delimiter=delimiter, strict=True)
        try:
            header = [column.strip() for column in next(reader)]
            label = next((column for column in ("label", "labels") if column in header), None)
            if "path" not in header or label is None:
                raise UserError(f"config.data.{split}: {name}, line 1 names the columns {header}, not path and label or labels")
            for cells in reader:
                where = f"{name}, line {reader.line_num}"
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    mistakes.met(f"{where} has {len(cells)} columns where line 1 has {len(header)}")
                    continue
                row = dict(zip(header, map(str.strip, cells), strict=True))
                labels = [part.strip() for part in row[label].split("|")] if row[label] or label == "label" else []
                if not row["path"] or "" in labels or len(set(labels)) < len(labels):
                    mistakes.met(f"{where}: path {row['path']!r}, {label} {row[label]!r}: one is empty, or twice the same")
                    continue
                yield os.path.join(os.path.dirname(name), row["path"]), labels, where
        except csv.Error as error:
            raise UserError(f"config.data.{split}: {name}, line {reader.line_num} is not csv: {error}") from error


KINDS: dict[str, Callable] = {"image_folders": _folders, "image_lists": _lists}
