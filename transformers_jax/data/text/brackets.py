r"""Tagged text as people write it: "[ORG U.N.] official [PER Ekeus] heads for [LOC Baghdad] ." A line is a sentence, its words
have blanks between them, and what stands in brackets behind its type is an entity of one word or several.

A bracket or a backslash that belongs to a word has a backslash before it: \[ 1 \].
"""

import re
from collections.abc import Collection, Sequence

from transformers_jax.data.text.labelled_sources import Table
from transformers_jax.data.text.lines import filled, paths_of
from transformers_jax.errors import UserError

_SPECIAL = re.compile(r"[\[\]\\]")
_PARTS = re.compile(r"(\[)?((?:[^\[\]\\]|\\.)*)(\])?")
"""One of the parts between blanks: does an entity begin with it, the text, does one end."""


def written(words: Sequence[str], entities: Collection[tuple[int, int, str]]) -> str:
    """The line of a sentence.

    Args:
      entities: (first word, behind the last, type) of each; none overlap.
    """
    begins, ends = {start: kind for start, _, kind in entities}, {end - 1 for _, end, _ in entities}
    parts = []
    for i, word in enumerate(words):
        before = f"[{begins[i]} " if i in begins else ""
        parts.append(before + _SPECIAL.sub(r"\\\g<0>", word) + ("]" if i in ends else ""))
    return " ".join(parts)


def read(line: str) -> tuple[list[str], list[str]]:
    """The words of a line, and a tag for each: "O", "B-ORG" for an entity's first word, "I-ORG" for the others.

    Raises:
      ValueError: brackets that do not go together.
    """
    words, tags, kind, first = [], [], "", False
    for part in filter(None, line.split(" ")):
        match = _PARTS.fullmatch(part)
        if not match:
            raise ValueError(rf"{part!r} has a bracket inside: write \[ or \] for one that belongs to a word")
        opens, text, closes = match.groups()
        if opens:
            if kind or closes or not text:
                raise ValueError(rf"{part!r} begins no entity: write [TYPE word word], and \[ for a bracket that is a word")
            kind, first = text, True
            continue
        if closes and not kind:
            raise ValueError(rf"{part!r} ends an entity that has not begun: write \] for a bracket that is a word")
        if text:
            words.append(re.sub(r"\\(.)", r"\1", text))
            tags.append(f"{'B' if first else 'I'}-{kind}" if kind else "O")
            first = False
        if closes:
            if first:
                raise ValueError(f"[{kind} has no word")
            kind = ""
    if kind:
        raise ValueError(f"[{kind} does not end: write ] behind its last word")
    return words, tags


def _brackets(config, split: str) -> Table:
    """{"words": [str], "tags": [str]} of each line of the files of a split."""
    table = Table()
    for path in paths_of(config, split, f"{split}.txt"):
        lines = filled(path, f"config.data.{split}")
        for number in range(len(lines)):
            try:
                words, tags = read(lines[number])
            except ValueError as error:
                raise UserError(f"{path}, line {number + 1}: {error}") from error
            if words:
                table.add({"words": words, "tags": tags}, path, number + 1)
    return table


KINDS = {"brackets": _brackets}
