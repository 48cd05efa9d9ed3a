"""A path that is given for a split means local files, of a form that the task reads."""

import re
from collections.abc import Mapping
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from transformers_jax.data import sources
from transformers_jax.data.text import labelled_sources

_TEXTS = ((".tokens", "tokens"), (".jsonl", "jsonl"), ("", "text"))
_LABELLED = ((".jsonl", "jsonl"), ("", "tsv"))
_IMAGES = ((".csv", "image_lists"), (".tsv", "image_lists"), ("", "image_folders"))

FORMS: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("masked_lm", "bert_pretraining", "causal_lm", "distillation"), _TEXTS),
    **dict.fromkeys(("sequence_classification", "similarity"), _LABELLED),
    "tagging": ((".jsonl", "jsonl"), ("", "conll")),
    "span_qa": ((".jsonl", "jsonl"), ("", "squad")),
    "multiple_choice": ((".jsonl", "jsonl"), ("", "swag")),
    "instruction": (("", "conversations"),),
    "translation": (("", "files"),),
    **dict.fromkeys(("image_classification", "image_distillation"), _IMAGES),
    "segmentation": (("", "image_masks"),),
    "detection": ((".json", "coco"), ("", "voc")),
}
"""Of each task (end of a file's name, config.data.source), the last one of all other files."""


def is_path(text: str) -> bool:
    """Whether what is given for a split names files or folders, and not a split of a prepared data set, "train[:90%]" say."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return any("/" in part or re.search(r"\.\w+$", part) or Path(part).exists() for part in parts)


def settle(config: ConfigDict, given: Mapping[str, object]) -> tuple[str, ...]:
    """Changes config.data to that of local files where the command line names some; returns the splits that it names so.

    The source becomes that of the files, unless it is given, too, or reads such files already. Splits that the config names
    and the command line does not are then not used: they are of other data.

    Args:
      config: with what is given in it.
      given: the keys that the command line sets, "data.train" say.
    """
    data = config.data
    before, part = data.source if sources.of_files(data) else "", data.tfds_name.partition("/")[2]
    told = [split for split in sources.SPLITS if f"data.{split}" in given and data[split]]
    named = tuple(split for split in told if before or is_path(data[split]))
    if not named or given.get("data.tfds_name"):
        return ()
    data.tfds_name = ""
    if "data.source" not in given:
        data.source = _source(config, data[named[0]], before)
        if "data.columns" not in given and data.source != before:
            data.columns = _columns(config, part) if data.source == "tsv" else ()
    for split in sources.SPLITS if "train" in named or data.source != before else ():
        if f"data.{split}" not in given and data[split]:
            logging.info("config.data.%s=%s is of other data, and not used: give it to use it", split, data[split])
            data[split] = ""
    return named


def _source(config: ConfigDict, files: str, before: str) -> str:
    """The kind of source that reads files; `before`: that of the config if it reads files, too."""
    first = files.partition(",")[0].strip().removesuffix(".gz")
    forms = FORMS.get(config.task.name, ())
    suffix, source = next((form for form in forms if first.endswith(form[0])), ("", before))
    return source if suffix or not before else before


def _columns(config: ConfigDict, part: str) -> tuple[str, ...]:
    """The columns of TSV files in place of a part of GLUE, or of other examples."""
    texts = ("first", "second")[: len(labelled_sources.GLUE.get(part, ("", ""))) if config.task.name != "similarity" else 2]
    scored = config.task.get("objective") == "regression" or not config.task.get("labels", ())
    return ("score", *texts) if scored else (*texts, "label")
