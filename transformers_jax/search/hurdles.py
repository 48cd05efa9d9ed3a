"""Progressive dynamic hurdles: only what does well is trained for long (So, Liang and Le 2019, section 3.2, algorithm 1).

A candidate trains `steps[0]` steps and is measured; where its fitness beats the first hurdle it trains `steps[1]` more with
the same weights, and so on. A hurdle is set when so many children have been measured: the mean fitness of the members
trained longest. Hurdles hold for candidates that are proposed afterwards; nobody is trained further in hindsight.

A fitness is a number, the higher the better; `stages` are the fitnesses of one candidate after each of its stages.
"""

import math
from collections.abc import Callable, Iterable, Sequence


def passes(stages: Sequence[float], hurdles: Sequence[float]) -> bool:
    """Whether a candidate with these stages behind it trains on: its last fitness is above that stage's hurdle."""
    last = len(stages) - 1
    return last < len(hurdles) and stages[last] > hurdles[last]


def climb(train: Callable[[int], float], steps: Sequence[int], hurdles: Sequence[float]) -> list[float]:
    """Trains stage after stage while the hurdles are passed, and returns the stages; the last one is the fitness.

    Args:
      train: trains so many more steps and measures.
      steps: of each stage.
      hurdles: fewer than steps.
    """
    if len(hurdles) >= len(steps):
        raise ValueError(f"{len(hurdles)} hurdles are not fewer than {len(steps)} stages")
    stages = [train(steps[0])]
    while passes(stages, hurdles):
        stages.append(train(steps[len(stages)]))
    return stages


def known(stages: Sequence[float], hurdles: Sequence[float]) -> list[float] | None:
    """What `climb` would return for a candidate of these stages, or None where it would train on beyond them."""
    for count in range(1, len(stages) + 1):
        if not passes(stages[:count], hurdles):
            return list(stages[:count])
    return None


def next_hurdle(members: Iterable[tuple[int, float]]) -> float:
    """The mean fitness of the members trained longest; infinite, so that nobody passes, where there are none.

    Args:
      members: (steps trained, fitness) of each.
    """
    members = list(members)
    longest = max((steps for steps, _ in members), default=0)
    found = [fitness for steps, fitness in members if steps == longest]
    return math.fsum(found) / len(found) if found else math.inf
