"""Mutation of a genome (So, Liang & Le 2019, section 3.2): each field changes by itself with a small probability."""

import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.genomes.genome import Genome, InvalidGenome, check, choices, fields, replace

LIMIT = 1000  # draws before giving up; from the Transformer's genome about one draw in three is a valid child


def alternatives(name: str, value: int | str) -> tuple:
    """What the field may mutate to: its choices but `value`; a norm never to none. Empty where there is nothing else."""
    return tuple(v for v in choices(name) if v != value and not (name.endswith(".norm") and v == "none"))


def mutate(genome: Genome, rng: np.random.Generator, probability: float = 0.025) -> tuple[Genome, tuple[str, ...]]:
    """A valid child that differs from the genome, and the names of the fields that changed (as in `genome.fields`).

    Each of the 156 fields is drawn with `probability` and then takes another of its values, all equally likely. A child that
    equals its parent or that `check` rejects is drawn anew. The child is a function of the genome and of the state of rng.

    Raises UserError when the probability is not in (0, 1], or when none of `LIMIT` draws gives a valid child.
    """
    if not 0 < probability <= 1:
        raise UserError(f"mutation probability {probability}: it must be above 0 and at most 1")
    flat = fields(genome)
    reason = "no field changed"
    for _ in range(LIMIT):
        drawn = rng.random(len(flat)) < probability
        changes = {}
        for (name, value), hit in zip(flat.items(), drawn, strict=True):
            others = alternatives(name, value) if hit else ()
            if others:
                changes[name] = others[int(rng.integers(len(others)))]
        if not changes:
            continue
        child = replace(genome, changes)
        try:
            check(child)
        except InvalidGenome as error:
            reason = str(error)
            continue
        return child, tuple(changes)
    raise UserError(
        f"mutation probability {probability}: no valid child in {LIMIT} draws (the last: {reason}); "
        f"the usual probability is 0.025"
    )
