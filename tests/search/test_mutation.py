"""Mutation: how often, to what, and when it is drawn again."""

import numpy as np
import pytest

from transformers_jax.errors import UserError
from transformers_jax.genomes.genome import (
    EVOLVED_TRANSFORMER,
    TRANSFORMER,
    InvalidGenome,
    check,
    choices,
    fields,
    random_genome,
)
from transformers_jax.search import mutation
from transformers_jax.search.mutation import alternatives, mutate


@pytest.fixture(scope="module")
def lineage():
    """(parent, child, names) of 800 mutations, each of the last child, from the Transformer on."""
    rng = np.random.default_rng(0)
    parent, steps = TRANSFORMER, []
    for _ in range(800):
        child, names = mutate(parent, rng)
        steps.append((parent, child, names))
        parent = child
    return steps


def test_children_are_valid_and_differ_in_the_named_fields(lineage):
    for parent, child, names in lineage:
        check(child)
        before, after = fields(parent), fields(child)
        assert names == tuple(name for name in before if before[name] != after[name])
        assert names


def test_a_norm_is_never_taken_away_and_may_be_added(lineage):
    moves = {(fields(one)[name], fields(child)[name]) for one, child, names in lineage for name in names if "norm" in name}
    assert moves == {("none", "layer_norm")}


def test_most_values_of_a_field_are_reached(lineage):
    flat = [fields(child) for _, child, _ in lineage]
    for name in ("encoder.3.left.layer", "decoder.5.left.layer", "decoder.6.right.width", "decoder.7.left.input"):
        assert len({values[name] for values in flat}) > len(choices(name)) / 2, name


def test_alternatives():
    assert alternatives("encoder.0.left.norm", "none") == ("layer_norm",)
    assert alternatives("encoder.0.left.norm", "layer_norm") == ()
    assert alternatives("encoder.0.left.input", 0) == ()
    assert alternatives("encoder_cells", 3) == (1, 2, 4, 5, 6)
    assert alternatives("decoder.0.combiner", "concat") == ("add", "multiply")


def test_each_field_is_drawn_with_the_probability(monkeypatch):
    monkeypatch.setattr(mutation, "check", lambda genome: None)  # no rejections: the bare distribution
    flat, rng, draws = fields(EVOLVED_TRANSFORMER), np.random.default_rng(1), 2000
    counts = dict.fromkeys(flat, 0)
    for _ in range(draws):
        for name in mutate(EVOLVED_TRANSFORMER, rng)[1]:
            counts[name] += 1
    free = [name for name in flat if alternatives(name, flat[name])]
    assert {name for name, count in counts.items() if count} == set(free)
    rate = 0.025 / (1 - 0.975 ** len(free))  # unchanged children are drawn again
    spread = np.sqrt(draws * rate * (1 - rate))
    assert abs(sum(counts.values()) / len(free) - draws * rate) < 4 * spread / np.sqrt(len(free))
    assert all(abs(counts[name] - draws * rate) < 5 * spread for name in free)


def test_alternatives_are_equally_likely(monkeypatch):
    monkeypatch.setattr(mutation, "check", lambda genome: None)
    rng, draws = np.random.default_rng(2), 500
    layers = [fields(mutate(TRANSFORMER, rng, probability=1.0)[0])["decoder.0.left.layer"] for _ in range(draws)]
    counts = {layer: layers.count(layer) for layer in alternatives("decoder.0.left.layer", "att8")}
    assert sum(counts.values()) == draws and len(counts) == 25
    assert all(5 <= count <= 40 for count in counts.values()), counts


def test_the_child_is_a_function_of_the_generator():
    parent = random_genome(np.random.default_rng(3))
    children = [mutate(parent, np.random.default_rng(4)) for _ in range(2)]
    assert children[0] == children[1] != mutate(parent, np.random.default_rng(5))


def test_unchanged_children_are_drawn_again():
    rng = np.random.default_rng(6)
    for _ in range(20):
        child, names = mutate(TRANSFORMER, rng, probability=0.001)  # five in six draws change nothing
        assert child != TRANSFORMER and names


def test_it_gives_up_with_the_last_reason(monkeypatch):
    def refuse(genome):
        raise InvalidGenome("decoder: no branch attends to the encoder")

    monkeypatch.setattr(mutation, "check", refuse)
    with pytest.raises(UserError, match="no valid child in 1000 draws .*no branch attends to the encoder"):
        mutate(TRANSFORMER, np.random.default_rng(0))


@pytest.mark.parametrize("probability", [0, -0.1, 1.5, float("nan")])
def test_a_probability_is_one(probability):
    with pytest.raises(UserError, match="mutation probability .* above 0"):
        mutate(TRANSFORMER, np.random.default_rng(0), probability)
