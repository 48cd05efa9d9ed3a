"""Tournament evolution on a toy fitness: what it draws, who dies, when hurdles are set, and that all of it can be replayed."""

import math
import random

import pytest

from transformers_jax.errors import UserError
from transformers_jax.genomes import genome as genomes
from transformers_jax.genomes.canonical import key
from transformers_jax.genomes.genome import check, fields
from transformers_jax.search import hurdles as hurdling
from transformers_jax.search.evolution import Evolution, EvolutionOptions

DEFAULTS = {
    "method": "evolution", "seed_genome": "transformer", "population": 8, "sample": 3, "children": 12, "steps": (10, 20, 40),
    "fixed_steps": 0, "mutation": 0.025,
}  # fmt: skip


def options(**changes):
    return EvolutionOptions(**(DEFAULTS | changes))


def anything(genome):
    return 8, 1000


def swishes(genome):
    """A toy fitness: how many activations are swish."""
    return float(sum(value == "swish" for value in fields(genome).values()))


def evolve(evolution, fitness=swishes, count=None):
    """Runs a search to its end; returns [(proposal, stages)]."""
    history = []
    for number in range(count or evolution.options.total):
        proposal = evolution.propose(number)
        trained = iter(fitness(proposal.genome) + 0.5 * i for i in range(9))  # longer training helps
        stages = hurdling.climb(lambda _, values=trained: next(values), evolution.options.schedule, evolution.hurdles)
        steps = sum(evolution.options.schedule[: len(stages)])
        evolution.absorb(number, proposal.genome, stages[-1], steps)
        history.append((proposal, stages))
    return history


def test_first_population_is_the_seed_and_its_mutants():
    history = evolve(Evolution(options(), 0, anything), count=8)
    assert history[0][0].genome == genomes.TRANSFORMER and history[0][0].parents == () == history[0][0].mutated
    for proposal, _ in history[1:]:
        check(proposal.genome)
        changed = {n for n, v in fields(proposal.genome).items() if v != fields(genomes.TRANSFORMER)[n]}
        assert changed and changed == set(proposal.mutated) and proposal.parents == (0,)
    assert len({proposal.genome for proposal, _ in history}) > 4


def test_children_come_from_living_members_and_the_population_keeps_its_size():
    evolution = Evolution(options(), 1, anything)
    evolve(evolution, count=8)
    for number in range(8, 30):
        alive = {m.number for m in evolution.members}
        proposal = evolution.propose(number)
        assert set(proposal.parents) <= alive and len(proposal.parents) == 1
        best = max(evolution.members, key=lambda m: m.fitness)
        evolution.absorb(number, proposal.genome, swishes(proposal.genome), 10)
        assert len(evolution.members) == 8 and len(alive - {m.number for m in evolution.members}) == 1
        assert any(m.fitness >= best.fitness for m in evolution.members)  # a tournament of three never kills the only best


def test_tournaments_take_the_best_and_the_worst():
    evolution = Evolution(options(sample=8), 0, anything)  # all members take part
    evolve(evolution, count=8)
    for number in range(8, 20):
        ranked = sorted(evolution.members, key=lambda m: (m.fitness, -m.number))
        proposal = evolution.propose(number)
        assert proposal.parents == (ranked[-1].number,)
        evolution.absorb(number, proposal.genome, swishes(proposal.genome), 10)
        assert ranked[0] not in evolution.members


def test_evolution_finds_more_than_random_search():
    found = {}
    for method in "evolution", "evolution_random_seed", "random":
        history = evolve(Evolution(options(method=method, children=40), 0, anything))
        found[method] = max(swishes(proposal.genome) for proposal, _ in history)
    assert found["evolution"] > 4 and found["evolution_random_seed"] > found["random"], found


def test_hurdles_are_set_after_so_many_children_and_not_after_the_last():
    evolution = Evolution(options(), 3, anything)
    history = evolve(evolution)
    assert len(history) == 8 + 3 * 12 and len(evolution.hurdles) == 2 and evolution.hurdled == [20, 32]
    lengths = [len(stages) for _, stages in history]
    assert set(lengths[:20]) == {1} and max(lengths[20:32]) == 2 and max(lengths[32:]) == 3
    for proposal, stages in history[20:32]:  # strictly above, and only then
        assert (len(stages) == 2) == (swishes(proposal.genome) > evolution.hurdles[0])


def test_a_hurdle_is_the_mean_of_the_members_trained_longest():
    evolution = Evolution(options(population=3, sample=1, children=1), 0, anything)
    for number, fitness in enumerate((1.0, 2.0, 6.0)):
        evolution.absorb(number, evolution.propose(number).genome, fitness, 10)
    assert evolution.hurdles == []  # the first population sets none
    evolution.absorb(3, evolution.propose(3).genome, 4.0, 10)
    (hurdle,) = evolution.hurdles
    assert hurdle == pytest.approx(sum(m.fitness for m in evolution.members) / 3)
    evolution.absorb(4, evolution.propose(4).genome, 7.0, 30)
    assert evolution.hurdles == [hurdle, 7.0]


def test_a_search_without_hurdles_trains_all_alike():
    evolution = Evolution(options(method="evolution_no_hurdles"), 0, anything)
    history = evolve(evolution)
    assert evolution.options.schedule == (70,) and evolution.hurdles == [] and {len(s) for _, s in history} == {1}
    assert options(method="evolution_no_hurdles", fixed_steps=25).schedule == (25,)
    assert history[0][0].genome == genomes.TRANSFORMER


def test_random_search_has_no_parents():
    history = evolve(Evolution(options(method="random"), 0, anything), count=30)
    assert all(proposal.parents == () == proposal.mutated for proposal, _ in history)
    assert len({proposal.genome for proposal, _ in history}) == 30
    mixed = evolve(Evolution(options(seed_genome="random"), 0, anything), count=12)
    assert [len(proposal.parents) for proposal, _ in mixed] == [0] * 8 + [1] * 4


def test_a_search_can_be_replayed_from_any_point():
    whole = Evolution(options(), 5, anything)
    history = evolve(whole)
    for cut in 0, 1, 5, 8, 20, 33, len(history):
        again = Evolution(options(), 5, anything)
        for number, (proposal, stages) in enumerate(history[:cut]):
            again.absorb(number, proposal.genome, stages[-1], sum(DEFAULTS["steps"][: len(stages)]))
        rest = [again.propose(n) for n in range(cut, min(cut + 1, len(history)))]
        assert rest == [proposal for proposal, _ in history[cut : cut + 1]]
    assert evolve(Evolution(options(), 6, anything)) != history  # another seed


def test_several_at_a_time_and_in_any_order():
    evolution, waiting, ended, number, order = Evolution(options(), 0, anything), [], 0, 0, random.Random(0)
    while ended < evolution.options.total:
        while len(waiting) < 3 and number < evolution.options.total and evolution.ready(number):
            busy = {proposal.key for _, proposal in waiting}
            proposal = evolution.propose(number, busy)
            assert proposal.key not in busy
            waiting.append((number, proposal))
            number += 1
        place, proposal = waiting.pop(order.randrange(len(waiting)))
        evolution.absorb(place, proposal.genome, swishes(proposal.genome), 10)
        ended += 1
    assert len(evolution.members) == 8 and len(evolution.hurdles) == 2 and evolution.ended == number == 44


def test_failed_candidates_count_but_do_not_join():
    evolution = Evolution(options(population=3, sample=2, children=2), 0, anything)
    assert evolution.ready(2) and not evolution.ready(3)
    for number in range(3):
        evolution.absorb(number, evolution.propose(number).genome, None, 0)
    assert not evolution.members and not evolution.ready(3)  # nobody to be a parent
    evolution = Evolution(options(population=3, sample=2, children=2), 0, anything)
    for number, fitness in enumerate((1.0, None, 3.0, None, 2.0)):
        evolution.absorb(number, evolution.propose(number).genome, fitness, 10)
    assert [m.number for m in evolution.members] == [0, 2, 4] and len(evolution.hurdles) == 1


def test_band_rejects_and_resamples():
    def short(genome):
        return (8, 1000 * genome.encoder_cells) if genome.encoder_cells <= 3 else None

    history = evolve(Evolution(options(method="random"), 0, short), count=20)
    assert all(proposal.genome.encoder_cells <= 3 for proposal, _ in history)
    assert sum(proposal.rejected for proposal, _ in history) > 5
    assert {proposal.parameters for proposal, _ in history} <= {1000, 2000, 3000}


def test_a_band_that_nobody_fits():
    with pytest.raises(UserError, match="config.search.parameters: no width brings"):
        Evolution(options(), 0, lambda genome: None)
    evolution = Evolution(options(), 0, lambda genome: (8, 9) if genome == genomes.TRANSFORMER else None)
    evolution.absorb(0, evolution.propose(0).genome, 1.0, 10)
    with pytest.raises(UserError, match="none of 1000 genomes drawn for candidate 1"):
        evolution.propose(1)


def test_ties_go_to_the_first():
    evolution = Evolution(options(sample=8), 0, anything)
    evolve(evolution, fitness=lambda genome: 1.0, count=8)
    proposal = evolution.propose(8)
    assert proposal.parents == (0,)
    evolution.absorb(8, proposal.genome, 1.0, 10)
    assert 7 not in {m.number for m in evolution.members}


def test_keys_are_canonical():
    proposal = Evolution(options(), 0, anything).propose(3)
    assert proposal.key == key(proposal.genome)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"method": "evolutoin"}, "config.search.method is 'evolutoin'; known methods: .*; did you mean evolution?"),
        ({"population": 0}, "config.search.population is 0"),
        ({"sample": 0}, "config.search.sample is 0"),
        ({"children": -1}, "config.search.children is -1"),
        ({"steps": ()}, r"config.search.steps is \(\)"),
        ({"steps": (10, 0)}, "config.search.steps"),
        ({"mutation": 0.0}, "config.search.mutation is 0.0"),
        ({"mutation": math.nan}, "config.search.mutation is nan"),
    ],
)
def test_mistakes(changes, says):
    with pytest.raises(UserError, match=says):
        options(**changes)


def test_seed_genome_that_is_none():
    with pytest.raises(UserError, match="no such file"):
        Evolution(options(seed_genome="transformr"), 0, anything)
