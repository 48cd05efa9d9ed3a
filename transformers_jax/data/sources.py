"""Where raw examples come from. A source has a length and random access, which is all that Grain asks of it.

A new kind of data is one more function, in `KINDS`. The examples of each:

    files, bible, tfds   {"source": str, "target": str}, two languages
    text, bible_text     {"text": str}, see `text_sources`
    conversations        {"messages": [{"role": str, "content": str}]}, or of two other forms, see `conversations`
    tokens               {"ids": array}, documents that are encoded already, see `token_files`
    tsv, glue            {"first": str, "second": str, "label": str} or "score": float, see `labelled_sources`
    conll, brackets      {"words": [str], "tags": [str]}; of the latter see `brackets`
    squad                {"id": str, "question": str, "context": str, "answers": [{"text": str, "start": int}]}
    swag                 {"context": str, "choices": [str], "label": str}
    jsonl                any of these, one JSON object a line
    image_folders, image_lists, tfds_images, vtab, mnist_5k, digits_8x8
                         {"image": path, or uint8 [H, W, C], "label": str} and of lists "labels": [str], see `data.images`
    image_masks          {"image": path, "mask": path, "size": (height, width)}
    coco_masks           {"image": path, "size", "mask": outlines that become an array}, see there
    coco, voc            {"image": path, "size": (height, width), "objects": [...]}, see `data.images.objects`

Sources of images have `classes`, the names of all labels in the order of their numbers.
"""

from collections.abc import Sequence

import numpy as np
from absl import logging

from transformers_jax.data.images import digits, folders, masks, objects, prepared, vtab
from transformers_jax.data.text import bible, brackets, conversations, labelled_sources, text_sources, token_files
from transformers_jax.data.text.lines import Lines
from transformers_jax.data.tfds import open_prepared
from transformers_jax.errors import UserError

SPLITS = ("train", "validation", "test")
FILES = (
    "files", "text", "tokens", "conversations", "tsv", "jsonl", "conll", "brackets", "squad", "swag", "image_folders",
    "image_lists", "image_masks", "coco", "voc",
)  # fmt: skip
"""Kinds whose splits are files, or folders of them."""



def open_source(config, split: str) -> Sequence[dict]:
    """The examples of one split.

    Args:
      config: config.data, of which these keys are read:
        source: one of the kinds above; those of images read more keys, see their modules in `data.images`.
        languages: (source, target), ("en", "de") say.
        train, validation, test: for files, "corpus.en,corpus.de", plain or gzip; for tfds, the name of the split there,
          slices such as "train[:90%]" too, where it is not the key's own name.
        tfds_name, data_dir: for tfds, "wmt14_translate/de-en" and the folder that holds it prepared. text, conll, squad
          and swag are read from there too, instead of from files, where tfds_name is given.
        max_words, max_words_evaluation: files and bible leave out longer pairs in training, in validation and test; 0
          (the default) leaves out none.
      split: "train", "validation" or "test".

    Raises:
      UserError: a missing, empty or damaged file, files that are not aligned, a data set that is not there.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    kinds = _kinds()
    if config.source not in kinds:
        raise UserError(f"config.data.source={config.source!r} is not one of {', '.join(kinds)}")
    if config.source in ("files", "bible", "tfds") and len(config.languages) != 2:
        raise UserError(f"config.data.languages={config.languages!r}: give two, as in ('en', 'de')")
    source = kinds[config.source](config, split)
    if len(source) == 0:
        raise UserError(f"config.data.{split}: no examples of {config.source} are left after filtering")
    return source


def names() -> tuple[str, ...]:
    """What config.data.source may be."""
    return tuple(_kinds())


def _kinds() -> dict:
    """Each kind of source with what opens it."""
    kinds = {"files": _files, "bible": _bible, "tfds": _tfds}
    texts = text_sources, token_files, conversations, labelled_sources, brackets
    for room in *texts, folders, digits, prepared, vtab, masks, objects:
        kinds |= room.KINDS
    return kinds


def has(config, split: str) -> bool:
    """Whether config.data names such a split: files are given one by one, digits say which they have, others have all."""
    if config.source in digits.KINDS:
        return digits.has(config, split)
    return not of_files(config) or bool(config.get(split))


def of_files(config) -> bool:
    """Whether the splits of config.data are files, or folders of them."""
    return config.source in FILES and not (config.source != "files" and config.get("tfds_name"))


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


def _bible(config, split: str) -> Pairs:
    """31,102 aligned verses.

    Verse i of the canonical order is validation where i % 31 is 15, test where it is 30, training otherwise, in every
    pair of languages alike. Some verses stand in several books: training leaves out those whose text, on either side,
    is also a held-out verse.
    """
    verses = bible.verses(tuple(config.languages))
    held_out = {name: verses[place :: bible.EVERY] for name, place in bible.PLACES.items()}
    if split == "train":
        sources, targets = map(set, zip(*held_out["validation"], *held_out["test"], strict=True))
        verses = [v for i, v in enumerate(verses) if i % bible.EVERY not in bible.PLACES.values()]
        verses = [v for v in verses if v[0] not in sources and v[1] not in targets]
    else:
        verses = held_out[split]
    verses = [v for v in verses if all(v)]  # Matthew 23:14 is empty in some
    return select([v[0] for v in verses], [v[1] for v in verses], config, split)


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
    data, features = open_prepared(config, split, "tensorflow_datasets.translate", "wmt14_translate/de-en")
    for language in config.languages:
        if language not in features:
            raise UserError(f"config.data.languages: {config.tfds_name} has {', '.join(features)}, not {language!r}")
    return Translations(data, config.languages)
