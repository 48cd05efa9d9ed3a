"""The width unit that brings a genome into a band of parameters."""

import pytest

from transformers_jax.genomes.genome import EVOLVED_TRANSFORMER, TRANSFORMER, InvalidGenome, replace
from transformers_jax.models import with_genome
from transformers_jax.search.band import LARGEST, fit_unit

PAPER = 59_100_000, 64_100_000  # So, Liang, Le 2019, section 4


def count(genome, unit):
    return with_genome.count_parameters(genome, 512, unit, 33_288)


@pytest.mark.parametrize("genome", [TRANSFORMER, EVOLVED_TRANSFORMER])
def test_the_papers_band_keeps_the_papers_widths(genome):
    assert fit_unit(genome, *PAPER, count, first=256) == 256


def test_a_wider_genome_gets_a_smaller_unit():
    wide = replace(TRANSFORMER, {f"encoder.{block}.left.width": 10 for block in (1, 4)} | {"decoder.2.left.width": 10})
    unit = fit_unit(wide, *PAPER, count, first=256)
    assert unit < 256 and PAPER[0] <= count(wide, unit) <= PAPER[1]
    few = replace(TRANSFORMER, {"encoder_cells": 2, "decoder_cells": 2})
    unit = fit_unit(few, *PAPER, count, first=256)
    assert unit > 256 and PAPER[0] <= count(few, unit) <= PAPER[1]


def test_every_reachable_band_is_found():
    calls = []

    def square(_, unit):
        calls.append(unit)
        return unit * unit

    for unit in range(1, 64 * LARGEST + 1):
        assert fit_unit(TRANSFORMER, unit * unit, unit * unit, square) == unit
    assert len(calls) <= 64 * LARGEST * 11  # halving 1,024 units takes ten steps, and the first


def test_no_unit_fits():
    assert fit_unit(TRANSFORMER, 10, 11, lambda genome, unit: 4 * unit) is None  # between two units
    assert fit_unit(TRANSFORMER, 10, 20, lambda genome, unit: 5) is None  # never enough
    assert fit_unit(TRANSFORMER, 10, 20, lambda genome, unit: 50) is None  # never few enough


def test_too_wide_counts_as_too_large():
    def narrow(_, unit):
        if unit > 10:
            raise InvalidGenome("too wide")
        return unit

    assert fit_unit(TRANSFORMER, 7, 8, narrow) in (7, 8)
    assert fit_unit(TRANSFORMER, 11, 12, narrow) is None
