"""The canonical form against the definition: two cells are equal when they are the same expression up to parameters' names.

The reference reads a cell into an expression, block by block as `genome.py` says what a cell computes, with a name for each
parameter, and compares expressions by trying every renaming. It shares nothing with `canonical.py`.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from transformers_jax.genomes.canonical import canonical, key
from transformers_jax.genomes.genome import (
    EVOLVED_TRANSFORMER,
    TRANSFORMER,
    Branch,
    Genome,
    GenomeBlock,
    cell_text,
    check,
    choices,
    fields,
    parse_cell,
    random_genome,
    replace,
    unused_states,
)
from transformers_jax.search.mutation import mutate

Cell = tuple[GenomeBlock, ...]

# ---- the reference: expressions and their comparison ----


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """kind and label say what is computed from the parts; parameter is the name of its parameters, if it has any."""

    kind: str
    label: tuple = ()
    parameter: tuple | None = None
    parts: tuple["Expression", ...] = ()

    def __post_init__(self):
        """shape: a number that expressions which are equal up to names and to the order of sums and products share."""
        shapes = [part.shape for part in self.parts]
        object.__setattr__(self, "shape", hash((self.kind, self.label, *(sorted(shapes) if self.any_order else shapes))))

    @property
    def any_order(self) -> bool:
        return self.kind in ("add", "multiply", "output")


def never_negative(x: Expression) -> bool:
    """By construction, whatever the input and the parameters."""
    if x.kind in ("add", "multiply", "concat", "dropout"):
        return all(never_negative(part) for part in x.parts)
    return x.kind == "activation" and x.label == ("relu",)


def branch_expression(branch: Branch, state: Expression, name: tuple, alone: bool) -> Expression:
    x = state
    if branch.norm == "layer_norm":
        x = Expression("norm", (), ("norm", branch.input), (x,))  # one per hidden state
    if branch.layer != "id":
        x = Expression("layer", (branch.layer, branch.width), name, (x,))
    if branch.activation != "none" and not (branch.activation in ("relu", "leaky_relu") and never_negative(x)):
        x = Expression("activation", (branch.activation,), None, (x,))
    return x if branch.layer == "id" else Expression("dropout", (alone,), None, (x,))


def expression(cell: Cell) -> Expression:
    """The output of the cell."""
    states = [Expression("input")]
    for number, block in enumerate(cell, 1):
        sides = [(side, branch) for side, branch in (("left", block.left), ("right", block.right)) if branch.layer != "dead"]
        parts = tuple(branch_expression(b, states[b.input], (number, side), len(sides) == 1) for side, b in sides)
        states.append(parts[0] if len(parts) == 1 else Expression(block.combiner, (), None, parts))
    read = {b.input for block in cell for b in (block.left, block.right) if b.layer != "dead"}
    return Expression("output", (), None, tuple(x for number, x in enumerate(states) if number not in read))


def renamings(one: Expression, other: Expression, names: dict) -> Iterator[dict]:
    """All extensions of `names`, a one-to-one renaming of parameters, under which the two expressions are equal."""
    if one.shape != other.shape:
        return
    if one.parameter is not None:
        if one.parameter in names:
            if names[one.parameter] == other.parameter:
                yield names
            return
        if other.parameter in names.values():
            return
        names = {**names, one.parameter: other.parameter}
    yield from part_renamings(one.parts, other.parts, names, one.any_order)


def part_renamings(parts: tuple, others: tuple, names: dict, any_order: bool) -> Iterator[dict]:
    if not parts:
        yield names
        return
    for i in range(len(others) if any_order else 1):
        for found in renamings(parts[0], others[i], names):
            yield from part_renamings(parts[1:], others[:i] + others[i + 1 :], found, any_order)


def same(one: Cell, other: Cell) -> bool:
    return next(renamings(expression(one), expression(other), {}), None) is not None


def same_genome(one: Genome, other: Genome) -> bool:
    cells = (one.encoder_cells, one.decoder_cells) == (other.encoder_cells, other.decoder_cells)
    return cells and same(one.encoder, other.encoder) and same(one.decoder, other.decoder)


# ---- cells in which equal ones are frequent ----

SMALL = {"norm": ("none", "layer_norm"), "layer": ("id", "id", "conv1", "dead"), "activation": ("none", "none", "none", "relu")}


def small_branch(rng: np.random.Generator, number: int, widths: int = 2) -> Branch:
    norm, layer, activation = (values[rng.integers(len(values))] for values in SMALL.values())
    return Branch(int(rng.integers(number)), norm, layer, int(rng.integers(widths)) + 1, activation)


def small_cell(rng: np.random.Generator, blocks: int, widths: int = 2) -> Cell:
    """Few layers, many identities and dead branches: chains, shared norms and twins abound."""
    cell = []
    while len(cell) < blocks:
        branches = [small_branch(rng, len(cell) + 1, widths) for _ in range(2)]
        block = GenomeBlock(*branches, ("add", "concat")[rng.integers(4) // 3])
        if block.branches:
            cell.append(block)
    return tuple(cell)


def genome_of(cell: Cell) -> Genome:
    return Genome(cell, TRANSFORMER.decoder, 1, 1)


def canonical_cell(cell: Cell) -> Cell:
    return canonical(genome_of(cell)).encoder


def lineage(rng: np.random.Generator, length: int) -> Iterator[tuple[Genome, Genome]]:
    """(parent, child) down a line of mutations, begun anew at a random genome or a known one now and then."""
    for i in range(length):
        if i % 20 == 0:
            parent = (TRANSFORMER, EVOLVED_TRANSFORMER, random_genome(rng))[i // 20 % 3]
        child = mutate(parent, rng)[0]
        yield parent, child
        parent = child


# ---- the canonical form computes the same ----


@pytest.mark.parametrize("genome", [TRANSFORMER, EVOLVED_TRANSFORMER])
def test_known_genomes_are_their_own_canonical_form(genome):
    assert canonical(genome) == genome
    assert same_genome(genome, genome)


def test_valid_genomes_keep_their_function_and_stay_valid():
    rng, moved = np.random.default_rng(0), 0
    drawn = [random_genome(rng) for _ in range(150)] + [child for _, child in lineage(rng, 250)]
    for genome in drawn:
        form = canonical(genome)
        check(form)
        assert same_genome(genome, form), genome.text()
        assert canonical(form) == form
        moved += form != genome
    assert moved > 200


def test_small_cells_keep_their_function():
    rng, moved = np.random.default_rng(1), 0
    for _ in range(1000):
        cell = small_cell(rng, 6)
        form = canonical_cell(cell)
        assert len(form) == 6
        assert same(cell, form), cell_text(cell)
        assert canonical_cell(form) == form
        moved += form != cell
    assert moved > 600


# ---- equal keys are equal functions, and the other way round ----


@pytest.mark.parametrize("blocks", [2, 3])
def test_keys_tell_small_cells_apart_exactly(blocks):
    """Every pair among 1,500 cells: one canonical form, or different expressions."""
    rng = np.random.default_rng(2)
    groups: dict[Cell, list[Cell]] = {}
    for _ in range(1500):
        cell = small_cell(rng, blocks, widths=1)
        groups.setdefault(canonical_cell(cell), []).append(cell)
    assert 200 < len(groups) < 1480
    for cells in groups.values():
        assert all(same(cells[0], cell) for cell in cells[1:])
    shapes: dict[int, list[Cell]] = {}
    for form in groups:
        shapes.setdefault(expression(form).shape, []).append(form)
    compared = 0
    for forms in shapes.values():  # expressions of different shapes are different
        for i, one in enumerate(forms):
            for other in forms[:i]:
                assert not same(one, other), f"{cell_text(one)} and {cell_text(other)} are the same"
                compared += 1
    assert compared >= 5


def test_neighbouring_small_cells_have_equal_keys_exactly_when_they_are_equal():
    rng, seen = np.random.default_rng(3), Counter()
    while sum(seen.values()) < 800:
        cell = small_cell(rng, 6)
        number = int(rng.integers(6))
        block = GenomeBlock(small_branch(rng, number + 1), cell[number].right, cell[number].combiner)
        other = (*cell[:number], block, *cell[number + 1 :])
        if other != cell and block.branches:
            equal = same(cell, other)
            assert (canonical_cell(cell) == canonical_cell(other)) == equal, f"{cell_text(cell)} and {cell_text(other)}"
            seen[equal] += 1
    assert min(seen.values()) > 50


def test_parents_and_children_have_equal_keys_exactly_when_they_are_equal():
    rng, seen = np.random.default_rng(4), Counter()
    for parent, child in lineage(rng, 300):
        equal = same_genome(parent, child)
        assert (key(parent) == key(child)) == equal, f"{parent.text()} and {child.text()}"
        seen[equal] += 1
    assert seen[True] > 10 and seen[False] > 100


# ---- a genome written in another way has the same key ----


def shuffled(cell: Cell, rng: np.random.Generator) -> Cell:
    """The same cell in another order of blocks, sides swapped where they may be, with other fields where nobody looks."""
    order: list[int] = []  # old numbers in new places
    while len(order) < len(cell):
        placed = {0, *order}
        free = [n for n, b in enumerate(cell, 1) if n not in placed and all(x.input in placed for x in b.branches)]
        order.append(int(rng.choice(free)))
    blocks = []
    for old in order:
        block, here = cell[old - 1], len(blocks) + 1

        def moved(branch: Branch, here=here) -> Branch:
            if not branch.live:
                return dataclasses.replace(small_branch(rng, here), layer="dead")
            input = 0 if branch.input == 0 else order.index(branch.input) + 1
            width = int(rng.integers(1, 11)) if branch.layer == "id" else branch.width
            return dataclasses.replace(branch, input=input, width=width)

        sides, one = [moved(block.left), moved(block.right)], len(block.branches) == 1
        if (one or block.combiner != "concat") and rng.integers(2):
            sides.reverse()
        combiner = ("add", "concat", "multiply")[rng.integers(3)] if one else block.combiner
        blocks.append(GenomeBlock(*sides, combiner))
    return tuple(blocks)


def test_rewritten_genomes_have_the_same_key():
    rng, moved = np.random.default_rng(5), 0
    drawn = [random_genome(rng) for _ in range(80)] + [child for _, child in lineage(rng, 80)]
    drawn += [Genome(small_cell(rng, 6), small_cell(rng, 8), 1, 1) for _ in range(200)]
    for genome in drawn:
        other = dataclasses.replace(genome, encoder=shuffled(genome.encoder, rng), decoder=shuffled(genome.decoder, rng))
        assert key(other) == key(genome), f"{genome.text()} and {other.text()}"
        moved += other != genome
    assert moved > 300


# ---- the rules one by one ----

EQUAL = {
    "fields of a dead branch": (
        "0*conv1 2 | dead ; 1:id | 0:conv1 2",
        "0*conv1 2 | 0*dead 9 swish | multiply ; 1:id | 0:conv1 2",
    ),
    "side of a dead branch": ("0*conv1 2 | dead", "dead | 0*conv1 2"),
    "width of id": ("0*conv1 2 | 0:id", "0*conv1 2 | 0:id 7"),
    "swapped sum": ("0*conv1 2 | 0:id", "0:id | 0*conv1 2"),
    "swapped product": ("0*conv1 2 | 0:att4 4 | multiply", "0:att4 4 | 0*conv1 2 | multiply"),
    "relu of a relu": ("0:conv1 2 relu | dead ; 1:id relu | 0:id", "0:conv1 2 relu | dead ; 1:id | 0:id"),
    "leaky relu of a sum of relus": (
        "0:conv1 2 relu | 0:id relu ; 1:id leaky_relu | 0:id",
        "0:conv1 2 relu | 0:id relu ; 1:id | 0:id",
    ),
    "a chain and where it hangs": ("0:id | dead ; 1*conv1 2 | 1:id", "0*conv1 2 | 0:id ; 1:id | dead"),
    "a normalised chain": ("0*id | dead ; 1:conv1 2 | 0:id", "0*conv1 2 | 0:id ; 1:id | dead"),
    "a chain read by two": ("0:id | dead ; 1:conv1 2 | 0:id", "0:id | dead ; 0:conv1 2 | 1:id"),
    "an activated chain": ("0:id swish | dead ; 1:conv1 2 | 0:id swish", "0:id swish | dead ; 1:conv1 2 | 1:id"),
    "an activated norm": ("0*id swish | dead ; 1:conv1 2 | 0*id swish", "0*id swish | dead ; 1:conv1 2 | 1:id"),
    "a sum made twice": (
        "0:id | 0*id ; 0:conv1 2 | 1:id ; 0*id | 0:id ; 3:conv1 2 | 2:id",
        "0:id | 0*id ; 0:conv1 2 | 1:id ; 1:conv1 2 | 2:id ; 3:id | dead",
    ),
    "a sum added twice": (
        "0:id | 0*id ; 0*id | 0:id ; 1:id | dead",
        "0:id | 0*id ; 0*id | 0:id ; 2:id | dead",
    ),
    "order of blocks": ("0:conv1 2 | dead ; 0:att4 2 | dead ; 1:id | 2*id", "0:att4 2 | dead ; 0:conv1 2 | dead ; 2:id | 1*id"),
}
DIFFERENT = {
    "swapped concatenation": ("0*conv1 2 | 0:att4 4 | concat", "0:att4 4 | 0*conv1 2 | concat"),
    "width": ("0*conv1 2 | dead", "0*conv1 3 | dead"),
    "relu of what may be negative": ("0:conv1 2 swish | dead ; 1:id relu | 0:id", "0:conv1 2 swish | dead ; 1:id | 0:id"),
    "swish of a relu": ("0:conv1 2 relu | dead ; 1:id swish | 0:id", "0:conv1 2 relu | dead ; 1:id | 0:id"),
    "a dropout between layer and activation": (
        "0:conv1 2 | dead ; 1:id relu | dead",
        "0:conv1 2 relu | dead ; 1:id | dead",
    ),
    "an unread chain is added": ("0:conv1 2 | dead ; 0:id | dead", "0:conv1 2 | dead ; 1:id | dead"),
    "a chain added twice": ("0:id | dead ; 0:id | dead", "0:id | dead ; 1:id | dead"),
    "two norms of one value": (
        "0:id | dead ; 0*conv1 2 | 1*att4 2",
        "0*conv1 2 | 0*att4 2 ; 1:id | dead",
    ),
    "two equal layers and one layer twice": (
        "0:conv1 2 | dead ; 0:conv1 2 | dead ; 1:id | 2:id",
        "0:conv1 2 | dead ; 1:id | 1:id ; 2:id | dead",
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal(name):
    one, other = map(parse_cell, EQUAL[name])
    assert same(one, other)
    assert canonical_cell(one) == canonical_cell(other)
    assert key(genome_of(one)) == key(genome_of(other))


@pytest.mark.parametrize("name", DIFFERENT)
def test_different(name):
    one, other = map(parse_cell, DIFFERENT[name])
    assert not same(one, other)
    assert canonical_cell(one) != canonical_cell(other)
    assert key(genome_of(one)) != key(genome_of(other))


def test_every_field_of_a_full_cell_counts():
    """No dead branch, no identity, no swap: each change of one field changes the function."""
    names = fields(TRANSFORMER)
    full = {name: "sep7" for name in names if name.endswith("layer")} | {n: "concat" for n in names if n.endswith("combiner")}
    full = replace(TRANSFORMER, full)
    for name, old in fields(full).items():
        value = next((v for v in choices(name) if v != old), old)
        assert (key(replace(full, {name: value})) == key(full)) == (value == old), name


def test_unread_states_are_all_terms_of_the_output():
    cell = parse_cell("0:conv1 2 | dead ; 0:conv1 2 | dead ; 0:conv1 2 | 0:conv3 2")
    assert unused_states(canonical_cell(cell)) == (1, 2, 3)


def test_a_key_is_short_and_stable():
    assert key(TRANSFORMER) == key(canonical(TRANSFORMER)) != key(EVOLVED_TRANSFORMER)
    assert len(key(TRANSFORMER)) == 32
    assert key(replace(TRANSFORMER, {"encoder_cells": 4})) != key(TRANSFORMER)
