"""Tournament evolution without aging, and what it is compared with (So, Liang and Le 2019, section 3.2; Real et al. 2019).

A child is a mutant of the best of a sample of the population; when it has been measured, the worst of another sample dies
and the child joins. The first population is the seed and its mutants. With several workers children are proposed from
whoever is measured at that moment.

Nothing here trains, and nothing is remembered elsewhere: the state follows from the candidates in the order in which they
ended, and what is drawn for a candidate is a function of seed, method and its number.
"""

import dataclasses
import difflib
import zlib
from collections.abc import Callable, Collection

import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.genomes import genome as genomes
from transformers_jax.genomes.canonical import key
from transformers_jax.genomes.genome import Genome, InvalidGenome
from transformers_jax.search import hurdles as hurdling
from transformers_jax.search.mutation import mutate

METHODS = {
    "evolution": "from config.search.seed_genome, with hurdles",
    "evolution_no_hurdles": "the same, each candidate trained for fixed_steps",
    "evolution_random_seed": "with hurdles, from a population of random genomes",
    "random": "random genomes, with hurdles",
}
DRAWS = 1000
"""Genomes that are drawn for one candidate before the band is said to fit nobody."""

Fits = Callable[[Genome], tuple[int, int] | None]
"""genome → (width unit, parameters), or None where no unit brings it into the band."""


@dataclasses.dataclass(frozen=True)
class EvolutionOptions:
    """What a search is; keys of config.search by the same names.

    method: one of METHODS.  seed_genome: a genome's name, text or JSON file, or "random".
    population: members; as many candidates make the first one.  sample: members in a tournament.
    children: measured before each hurdle is set, and after the last.  steps: of training by stage; one hurdle fewer.
    fixed_steps: of a candidate where there are no hurdles; 0 is the sum of steps.  mutation: probability of each field.
    """

    method: str
    seed_genome: str
    population: int
    sample: int
    children: int
    steps: tuple[int, ...]
    fixed_steps: int
    mutation: float

    def __post_init__(self):
        if self.method not in METHODS:
            near = difflib.get_close_matches(self.method, METHODS, 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"config.search.method is {self.method!r}; known methods: {', '.join(METHODS)}{hint}")
        for name in ("population", "sample", "children"):
            if getattr(self, name) < 1:
                raise UserError(f"config.search.{name} is {getattr(self, name)}; give 1 or more")
        if not self.steps or any(type(n) is not int or n < 1 for n in self.steps):
            raise UserError(f"config.search.steps is {self.steps}; give the steps of each stage, as in (60, 120)")
        if not 0.0 < self.mutation <= 1.0:
            raise UserError(f"config.search.mutation is {self.mutation}; give a probability above 0, at most 1")

    @property
    def schedule(self) -> tuple[int, ...]:
        """The steps by stage that this method trains."""
        return (self.fixed_steps or sum(self.steps),) if self.method == "evolution_no_hurdles" else self.steps

    @property
    def total(self) -> int:
        """The candidates of the whole search."""
        return self.population + self.children * len(self.steps)

    @property
    def mutates(self) -> bool:
        return self.method != "random"

    @property
    def random_start(self) -> bool:
        return self.method in ("random", "evolution_random_seed") or self.seed_genome == "random"


@dataclasses.dataclass(frozen=True)
class Member:
    """A measured candidate: its number, genome and fitness, and the steps that its fitness is worth."""

    number: int
    genome: Genome
    fitness: float
    steps: int


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A genome to be measured; its origin, parents by number; how many draws were thrown away before it; its band."""

    genome: Genome
    key: str
    parents: tuple[int, ...]
    mutated: tuple[str, ...]
    rejected: int
    unit: int
    parameters: int


class Evolution:
    """One search as far as it has come.

    Args:
      options: what is searched how.
      seed: of all that is drawn.
      fits: the band.

    Raises:
      UserError: the seed genome is none, or the band does not fit it.
    """

    def __init__(self, options: EvolutionOptions, seed: int, fits: Fits):
        self.options, self.seed, self.fits = options, seed, fits
        self.members: list[Member] = []
        self.hurdles: list[float] = []
        self.hurdled: list[int] = []  # how many candidates had ended when each was set
        self.ended = self.children = 0
        self.start = None
        if not options.random_start:
            self.start = genomes.load(options.seed_genome)
            if fits(self.start) is None:
                raise UserError("config.search.parameters: no width brings config.search.seed_genome into that band; move it")

    def ready(self, number: int) -> bool:
        """Whether candidate `number` can be proposed: the first population at once, a child when there is a parent."""
        return number < self.options.population or bool(self.members) or not self.options.mutates

    def propose(self, number: int, busy: Collection[str] = ()) -> Proposal:
        """Candidate `number`.

        Args:
          busy: keys of candidates that are being measured; their like is drawn again.

        Raises:
          UserError: no genome fits the band.
        """
        rng = self._rng(0, number)
        draw, parents = self._source(number, rng)
        for rejected in range(DRAWS):
            try:
                genome, mutated = draw()
            except InvalidGenome:
                continue
            place = self.fits(genome)
            found = key(genome) if place else ""
            if found and found not in busy:
                return Proposal(genome, found, parents, tuple(mutated), rejected, *place)
        raise UserError(
            f"config.search.parameters: none of {DRAWS} genomes drawn for candidate {number} fits the band; widen it, or "
            "change config.model.width"
        )

    def absorb(self, number: int, genome: Genome, fitness: float | None, steps: int) -> None:
        """Candidate `number` has ended, with a fitness or failed (None)."""
        options, first = self.options, number < self.options.population
        if fitness is not None:
            if len(self.members) >= options.population:
                sample = self._sample(self._rng(1, number))
                self.members.remove(min(sample, key=lambda m: (m.fitness, -m.number)))
            self.members.append(Member(number, genome, fitness, steps))
        self.ended += 1
        self.children += not first
        due = not first and self.children % options.children == 0
        if due and len(self.hurdles) < len(options.schedule) - 1:
            self.hurdles.append(hurdling.next_hurdle((m.steps, m.fitness) for m in self.members))
            self.hurdled.append(self.ended)

    def _source(self, number: int, rng: np.random.Generator) -> tuple[Callable, tuple[int, ...]]:
        """What draws candidate `number`: () → (genome, fields that were mutated), and the parents' numbers."""
        first, options = number < self.options.population, self.options
        if not options.mutates or (first and self.start is None):
            return lambda: (genomes.random_genome(rng), ()), ()
        if first:
            return lambda: mutate(self.start, rng, options.mutation) if number else (self.start, ()), (0,) * (number > 0)
        parent = max(self._sample(rng), key=lambda m: (m.fitness, -m.number))
        return lambda: mutate(parent.genome, rng, options.mutation), (parent.number,)

    def _sample(self, rng: np.random.Generator) -> list[Member]:
        chosen = rng.choice(len(self.members), min(self.options.sample, len(self.members)), replace=False)
        return [self.members[i] for i in sorted(chosen)]

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed % 2**32, zlib.crc32(self.options.method.encode()), purpose, number])
