"""The absolute width of a genome: found so that its number of parameters lies in a band (So, Liang, Le 2019, section 4.1)."""

from collections.abc import Callable

from transformers_jax.genomes.genome import Genome, InvalidGenome

LARGEST = 16
"""Units are searched up to so many times the first one tried."""


def fit_unit(
    genome: Genome, low: int, high: int, count: Callable[[Genome, int], int], *, first: int = 64
) -> int | None:
    """The width unit that brings a genome's count into the band, by binary search; None if there is none.

    Args:
      low, high: the band, both included.
      count: (genome, unit) → number of parameters, which grows with the unit; raises InvalidGenome where it is too wide.
      first: the unit tried first, usually half the model's width: if it fits, it is taken.
    """
    smallest, largest, unit = 1, LARGEST * first, first
    while smallest <= largest:
        try:
            parameters = count(genome, unit)
        except InvalidGenome:
            parameters = high + 1
        if low <= parameters <= high:
            return unit
        if parameters < low:
            smallest = unit + 1
        else:
            largest = unit - 1
        unit = (smallest + largest) // 2
    return None
