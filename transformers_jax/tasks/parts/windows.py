"""Long texts cut into windows that overlap. A position that several windows hold belongs to one of them: the one in which it
is farthest from an edge, and so has the most context."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers_jax.errors import UserError


class Window(NamedTuple):
    """Items start … end - 1 of a text are in the window; of them own_start … own_end - 1 belong to it."""

    start: int
    end: int
    own_start: int
    own_end: int


def windows(sizes: Sequence[int], room: int, overlap: int) -> list[Window]:
    """The windows over items, words or tokens, of such sizes; every item belongs to exactly one.

    Args:
      sizes: tokens of each item; one that is larger than the room has a window to itself.
      room: tokens that a window holds.
      overlap: tokens, at most, that a window shares with the next one; half of them belong to either.

    Raises:
      UserError: no room.
    """
    if room < 1:
        raise UserError("config.task.max_length leaves no room for the text: raise it")
    places, start = [], 0
    while True:
        end, used = start, 0
        while end < len(sizes) and (used + sizes[end] <= room or end == start):
            used += sizes[end]
            end += 1
        places.append((start, end))
        if end >= len(sizes):
            break
        following, shared = end, 0
        while following - 1 > start and shared + sizes[following - 1] <= overlap:
            following -= 1
            shared += sizes[following]
        start = following
    borders = [0, *((following + end) // 2 for (_, end), (following, _) in zip(places, places[1:], strict=False)), len(sizes)]
    return [Window(*place, *own) for place, own in zip(places, zip(borders, borders[1:], strict=False), strict=True)]


class Remembered:
    """Makes something of a source once: the windows of a split are needed for training, prediction and score."""

    def __init__(self, make: Callable[[Sequence[dict]], list[dict]], most: int = 3):
        self.make, self.most = make, most
        self.known: list[tuple[Sequence[dict], list[dict]]] = []

    def __call__(self, source: Sequence[dict]) -> list[dict]:
        for known, made in self.known:
            if known is source:
                return made
        made = self.make(source)
        self.known = [*self.known[1 - self.most :], (source, made)]
        return made
