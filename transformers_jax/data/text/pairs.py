"""Two texts as an encoder reads them: what is cut away where they are too long, and where their tokens stand."""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformers_jax.errors import UserError


class Joined(NamedTuple):
    """One text or two as an encoder reads them.

    ids, types: [T] tokens, and 0 in the first text with what surrounds it, 1 in the second with what ends it; all 0 where
      texts are separated as RoBERTa does, which knows no types.
    starts: position of each text's first token.
    """

    ids: list[int]
    types: list[int]
    starts: tuple[int, ...]

    def fields(self) -> dict[str, np.ndarray]:
        """The batch fields `tokens` and `token_types`, int32 [T]."""
        return {"tokens": np.asarray(self.ids, np.int32), "token_types": np.asarray(self.types, np.int32)}


def grouped(members: Sequence[Joined]) -> dict[str, list[np.ndarray]]:
    """The same fields of a group: a list of an array for each member."""
    fields = [member.fields() for member in members]
    return {name: [field[name] for field in fields] for name in ("tokens", "token_types")}


def truncated(texts: Sequence[Sequence[int]], room: int, truncation: str) -> list[list[int]]:
    """The texts' first tokens, at most `room` in all.

    Args:
      truncation: "longest_first" takes tokens from whichever is longer, "only_second" keeps the first text whole.

    Raises:
      UserError: no room, or the first text alone takes it all.
    """
    if len(texts) == 1 or truncation == "longest_first":
        if room < len(texts):
            raise UserError(f"config.task.max_length leaves {max(room, 0)} tokens for {len(texts)} texts: raise it")
        if len(texts) == 1:
            return [list(texts[0][:room])]
        first, second = map(len, texts)
        if first <= second:  # the shorter one keeps half of the room, and what the other leaves
            first = min(first, max(room // 2, room - second))
            second = min(second, room - first)
        else:
            second = min(second, max(room // 2, room - first))
            first = min(first, room - second)
        return [list(texts[0][:first]), list(texts[1][:second])]
    if truncation != "only_second":
        raise UserError(f"config.task.truncation={truncation!r} is not one of longest_first, only_second")
    if len(texts[0]) >= room:
        raise UserError(f"the first text of a pair has {len(texts[0])} tokens: raise config.task.max_length")
    return [list(texts[0]), list(texts[1][: room - len(texts[0])])]


def place(text: str, start: int, end: int) -> tuple[int, int]:
    """text[start:end] without white space around it."""
    token = text[start:end]
    start += len(token) - len(token.lstrip())
    return start, max(start, start + len(token.strip()))


def with_marks(text: str, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places, in order, each drawn out over the combining marks behind it that belong to no token."""
    found = []
    for i, (start, end) in enumerate(places):
        limit = places[i + 1][0] if i + 1 < len(places) else len(text)
        while start < end < limit and unicodedata.category(text[end]).startswith("M"):
            end += 1
        found.append((start, end))
    return found
