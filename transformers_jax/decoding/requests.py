"""What is asked of a decoder of prompts and what comes of it: prompts, limits, stops.

Prompt and output share the model's longest input. Where they do not fit, the prompt loses its beginning, but never more than
is needed, and never so much that less than half of the longest input is left of it: then the output is shorter.
"""

import dataclasses
from collections.abc import Callable, Sequence

from absl import logging

END, STOP, LENGTH = "end", "stop", "length"
"""Why an output ended: at an end token, at a stop string, at its limit or that of the model."""

_BEFORE = 8
"""Tokens of the prompt that are decoded with an output's: a token's text may depend on the one before it."""


@dataclasses.dataclass
class Continuation:
    """One output of one prompt; grows while it is written.

    prompt: its tokens, one or more.
    limit: most tokens of the output, the end token included.
    number, sample: of the prompt and of the output among those of its prompt; with the seed they decide on draws.
    ids: what was written, without end token.
    logprobs: log-probability of each of `ids` under the model; empty where a beam wrote them.
    score: log-probability of all, that of the end token included.
    finish: END, STOP or LENGTH; "" while it is written.
    """

    prompt: list[int]
    limit: int
    number: int = 0
    sample: int = 0
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    score: float = 0.0
    finish: str = ""

    def take(self, tokens: Sequence[int], logprobs: Sequence[float], ends: Sequence[int]) -> None:
        """Adds tokens with their log-probabilities; the last one may be an end token."""
        self.score += sum(logprobs)
        if len(tokens) and tokens[-1] in ends:
            tokens, logprobs, self.finish = tokens[:-1], logprobs[:-1], END
        self.ids += tokens
        self.logprobs += logprobs
        if not self.finish and len(self.ids) >= self.limit:
            self.finish = LENGTH

    def cut(self, count: int) -> None:
        """Ends the output behind its first `count` tokens, as a stop string does."""
        self.ids, self.logprobs = self.ids[:count], self.logprobs[:count]
        self.score, self.finish = sum(self.logprobs), STOP


def shared(length: int, limit: int, longest: int) -> tuple[int, int]:
    """How `longest` tokens are shared: (tokens of the prompt that are read, its last ones; most tokens of the output).

    Args:
      length: tokens of the prompt.
      limit: most tokens of the output that are wanted.
      longest: of the model, 2 or more; 0 for no limit.
    """
    if not longest or length + limit <= longest:
        return length, limit
    kept = min(length, max(longest - limit, longest // 2))
    return kept, min(limit, longest - kept)


def warn_of_cut(lengths: Sequence[int], kept: Sequence[int], longest: int, first: int = 0) -> None:
    """One warning where prompts lose their beginnings.

    Args:
      lengths, kept: of each prompt, its tokens and those that are read.
      first: number of the first prompt, from 0.
    """
    over = [i for i, (length, left) in enumerate(zip(lengths, kept, strict=True)) if left < length]
    if over:
        logging.warning(
            "%d of %d prompts are too long for the model, which reads and writes %d tokens, and lose their beginnings; the "
            "first is number %d: of its %d tokens the last %d are read",
            len(over), len(lengths), longest, first + over[0] + 1, lengths[over[0]], kept[over[0]],
        )  # fmt: skip


class OutputText:
    """The text of an output while it grows, and where a stop string ends it.

    Args:
      decode: token ids → text.
      prompt: the tokens before the output.
      stops: strings that end it; they are no part of it.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stops: Sequence[str] = ()):
        self.decode, self.stops = decode, tuple(stop for stop in stops if stop)
        self.before = list(prompt[-_BEFORE:])
        self.known = decode(self.before)

    def __call__(self, ids: Sequence[int]) -> str:
        """The text of the output's tokens."""
        whole = self.decode([*self.before, *ids])
        return whole[len(self.known) :] if whole.startswith(self.known) else self.decode(list(ids))

    def settled(self, ids: Sequence[int]) -> str:
        """The part of the text that stays, whatever comes next: without half a character, or half a stop string."""
        text = self(ids).rstrip("\ufffd")
        held = (n for stop in self.stops for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n]))
        return text[: len(text) - max(held, default=0)]

    def stop(self, output: Continuation, seen: int) -> str | None:
        """The text before the first stop string, where the output has one: it ends with the token that completes the string.

        Args:
          seen: tokens of the output that were looked at before.
        """
        text = self(output.ids)
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if not places:
            return None
        count = next(
            (n for n in range(seen + 1, len(output.ids)) if any(stop in self(output.ids[:n]) for stop in self.stops)),
            len(output.ids),
        )
        output.cut(count)
        return text[: min(places)]
