"""Plain texts for pretraining: files, prepared TFDS data sets, and the Bible in 22 languages. Examples are {"text": str}.

Keys of config.data that are read here:
  train, validation, test: text: files, "a.txt,b.txt", plain or gzip; or, with tfds_name, the split's name there.
  tfds_name, data_dir: a prepared data set, "wikipedia/20230601.fr" say, whose examples have a feature `text`, or that
    which config.data.columns names. Each is a text, whatever the unit; "sentence" cuts it into its lines.
  languages: bible_text: one or several of `bible.VERSIONS`, or ("all",).
  unit: what an example is: "line" (a line of a file, a verse), "paragraph" (the lines up to a blank one, a chapter, joined
    by spaces), "document" (the same, its line ends kept), "file" (a whole file, its line ends kept), or "sentence" (a line,
    with an empty example behind each document, which a blank line ends, or chapter).
  begins: text: of the unit "document". Given, not a blank line ends one, but a line that begins so begins one, "# Title:" say.
  chunk_words: longer texts are cut into several of so many words (0: none is).
  smoothing: α. Of n languages (a file each) with shares p, each is drawn as often as p^α / Σ p^α says; the largest is as
    long as it is, others repeat. 1 (the default) leaves shares as they are; XLM-RoBERTa has 0.3 (Conneau et al. 2020).
    Of training only: in validation and test each example stands once.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from transformers_jax.data.text import bible
from transformers_jax.data.text.lines import filled, paths_of
from transformers_jax.data.tfds import open_prepared
from transformers_jax.errors import UserError

UNITS = ("line", "paragraph", "sentence", "document", "file")


class Texts:
    """Texts of several languages, those of one behind those of the other, each language as often as it shall be drawn.

    The last text of each language is its own last one, however often it repeats: no document goes on in the next language.

    Args:
      groups: the texts of each language; those of none are left out.
      smoothing: α, see above.
    """

    def __init__(self, groups: Sequence[Sequence[str]], smoothing: float = 1.0):
        self.groups = [group for group in groups if len(group)]
        sizes = np.array([len(group) for group in self.groups], np.float64)
        counts = np.rint(sizes.max() * (sizes / sizes.max()) ** smoothing) if len(sizes) else sizes
        self.ends = np.cumsum(counts.astype(np.int64))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i: int) -> dict[str, str]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self.ends, i, side="right"))
        group = self.groups[number]
        return {"text": group[(i - int(self.ends[number])) % len(group)]}  # counted from the end


class Chosen:
    """Some lines of a file, by number."""

    def __init__(self, lines: Sequence[str], numbers: Sequence[int]):
        self.lines, self.numbers = lines, np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> str:
        return self.lines[int(self.numbers[i])]


class SentenceSource:
    """The lines of a file that are not blank, stripped, and an empty one behind each run of them."""

    def __init__(self, lines: Sequence[str]):
        full = _full(lines)
        self.lines, self.numbers = lines, np.flatnonzero(np.append(full, False) | np.insert(full, 0, False))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> str:
        number = int(self.numbers[i])
        return self.lines[number].strip() if number < len(self.lines) else ""


class Paragraphs:
    """The runs of lines of a file that are not blank, each run one text."""

    def __init__(self, lines: Sequence[str]):
        self.lines = lines
        edges = np.flatnonzero(np.diff(_full(lines).astype(np.int8), prepend=0, append=0))
        self.starts, self.ends = edges[::2], edges[1::2]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> str:
        return " ".join(self.lines[k].strip() for k in range(int(self.starts[i]), int(self.ends[i])))


class Blocks:
    """Runs of lines of a file, each run one text with its line ends, but for the last.

    Args:
      begins: what the first line of each run begins with; "" for runs of lines that are not blank; None for the whole file.
    """

    def __init__(self, lines: Sequence[str], begins: str | None):
        self.lines = lines
        if begins == "":
            edges = np.flatnonzero(np.diff(_full(lines).astype(np.int8), prepend=0, append=0))
            self.starts, self.ends = edges[::2], edges[1::2]
        else:
            first = [0] + [i for i in range(1, len(lines)) if begins is not None and lines[i].startswith(begins)]
            self.starts, self.ends = np.array(first), np.array([*first[1:], len(lines)])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> str:
        return "\n".join(self.lines[k] for k in range(int(self.starts[i]), int(self.ends[i])))


class Parts:
    """Texts cut into parts, the parts of one behind those of the other: cut when they are asked for, the last one kept."""

    def __init__(self, texts: Sequence[str], cut: Callable[[str], list[str]]):
        self.texts, self.cut = texts, cut
        counts = np.fromiter((len(cut(texts[i])) for i in range(len(texts))), np.int64, len(texts))
        self.ends = np.cumsum(counts)
        self.kept: tuple[int, list[str]] = (-1, [])  # a text's number and parts

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self.ends, i, side="right"))
        kept, parts = self.kept
        if number != kept:
            parts = self.cut(self.texts[number])
            self.kept = number, parts
        return parts[i - int(self.ends[number])]  # counted from the end


class Feature:
    """One text feature of a prepared data set."""

    def __init__(self, data: Sequence[dict], name: str):
        self.data, self.name = data, name

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> str:
        return self.data[i][self.name].decode("utf-8")


def _text(config, split: str) -> Texts:
    """Files, each a language, or a prepared data set."""
    unit = _unit(config)
    if config.get("tfds_name"):
        names = tuple(config.get("columns", ())) or ("text",)
        data, features = open_prepared(config, split, "tensorflow_datasets.text", "lm1b")
        if names[0] not in features:
            raise UserError(f"config.data.columns: {config.tfds_name} has {', '.join(features)}, not {names[0]!r}")
        return Texts([_cut(Feature(data, names[0]), config)])
    groups = []
    for path in paths_of(config, split, "train.en.txt,train.fr.txt"):
        lines = filled(path, f"config.data.{split}")
        if unit == "line":
            groups.append(_cut(Chosen(lines, np.flatnonzero(_full(lines))), config))
        elif unit == "paragraph":
            groups.append(_cut(Paragraphs(lines), config))
        elif unit in ("document", "file"):
            groups.append(Blocks(lines, config.get("begins", "") if unit == "document" else None))
        else:
            groups.append(SentenceSource(lines))
    return Texts(groups, _smoothing(config, split))


def _bible_text(config, split: str) -> Texts:
    """Verses or chapters of one or several languages.

    Verse i of the canonical order is validation where i % 31 is 15, test where it is 30, training otherwise, as in the
    translations; of paragraphs and sentences, whose neighbours matter, chapter i. Training leaves out verses that are
    held-out ones word for word.
    """
    unit, groups = _unit(config), []
    languages = tuple(config.languages)
    for language in bible.VERSIONS if languages == ("all",) else languages:
        chapters = bible.chapters(language)
        if unit == "line":
            texts = _part([verse for chapter in chapters for verse in chapter], split)
        elif unit == "paragraph":
            texts = _part([" ".join(filter(None, chapter)) for chapter in chapters], split)
        elif unit == "document":
            texts = _part(["\n".join(filter(None, chapter)) for chapter in chapters], split)
        elif unit == "file":
            raise UserError("config.data.unit=file: the Bible has no files; give document for chapters")
        else:
            texts = ["\n".join(chapter) for chapter in _part(chapters, split)]
        groups.append(_cut(texts, config))
    return Texts(groups, _smoothing(config, split))


KINDS: dict[str, Callable] = {"text": _text, "bible_text": _bible_text}


def _unit(config) -> str:
    unit = config.get("unit", "line")
    if unit not in UNITS:
        raise UserError(f"config.data.unit={unit!r} is not one of {', '.join(UNITS)}")
    if unit in ("sentence", "document", "file") and config.get("chunk_words", 0):
        raise UserError(f"config.data.chunk_words: texts of config.data.unit={unit} are not cut; set it to 0")
    return unit


def _smoothing(config, split: str) -> float:
    return config.get("smoothing", 1.0) if split == "train" else 1.0


def _part(items: list, split: str) -> list:
    """What of all verses or chapters belongs to a split; see `_bible_text`."""
    held_out = {name: items[place :: bible.EVERY] for name, place in bible.PLACES.items()}
    if split != "train":
        return [item for item in held_out[split] if item]
    seen = {str(item) for part in held_out.values() for item in part}
    kept = (item for i, item in enumerate(items) if i % bible.EVERY not in bible.PLACES.values())
    return [item for item in kept if item and str(item) not in seen]


def _full(lines: Sequence[str]) -> np.ndarray:
    """[lines] whether each has more than white space."""
    return np.fromiter((bool(lines[i].strip()) for i in range(len(lines))), bool, len(lines))


def _cut(texts: Sequence[str], config) -> Sequence[str]:
    """The sentences of the texts, a line each; or the texts, longer ones than config.data.chunk_words cut."""
    if config.get("unit", "line") == "sentence":
        return Parts(texts, _sentences)
    most = config.get("chunk_words", 0)
    return Parts(texts, partial(_chunks, most=most)) if most else texts


def _sentences(text: str) -> list[str]:
    """The lines of a document that are not blank, and an empty one behind them."""
    full = [line.strip() for line in text.split("\n") if line.strip()]
    return [*full, ""] if full else []


def _chunks(text: str, most: int) -> list[str]:
    """The text, or where it has more than `most` words, parts of it of about one length."""
    words = text.split()
    count = max(1, -(-len(words) // most))
    ends = [len(words) * k // count for k in range(count + 1)]
    return [" ".join(words[a:b]) for a, b in itertools.pairwise(ends)] if count > 1 else [text]
