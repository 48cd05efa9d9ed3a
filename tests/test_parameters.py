"""The matcher of parameter names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from transformers_jax import parameters
from transformers_jax.errors import UserError

TREE = {"encoder": {"attention": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}}, "embedding": 4}
NAMES = ["embedding", "encoder/attention/bias", "encoder/attention/kernel", "encoder/norm/scale"]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ("kernel$", NAMES[2:3]),
        ("^encoder/", NAMES[1:]),
        ("bias|scale", [NAMES[1], NAMES[3]]),
        (("embedding", "norm"), [NAMES[0], NAMES[3]]),
        (".", NAMES),
        ("^kernel", []),
        ("", []),
        ((), []),
    ],
)
def test_patterns_are_searched_for_in_names(patterns, found):
    assert parameters.matching(NAMES, patterns) == set(found)
    assert {n for n, hit in parameters.flat(parameters.mask(TREE, patterns)).items() if hit} == set(found)
    matched, rest = parameters.split(TREE, patterns)
    assert sorted(parameters.flat(matched)) == found
    assert sorted([*parameters.flat(matched), *parameters.flat(rest)]) == NAMES
    assert parameters.merge(matched, rest) == TREE == parameters.merge(rest, matched)


def test_flat_and_nest_are_inverse():
    flat = parameters.flat(TREE)
    assert list(flat) == NAMES and flat["encoder/norm/scale"] == 3
    assert parameters.nest(flat) == TREE


def test_boxed_leaves_keep_their_names_and_boxes():
    init = nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
    boxed = nn.Dense(3, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert parameters.flat(boxed)["kernel"].names == ("embed", "mlp")
    assert parameters.mask(boxed, "kernel") == {"kernel": True, "bias": False}


def test_merging_trees_that_share_a_leaf_is_refused():
    for other in ({"embedding": 5}, {"encoder": {"norm": 5}}, {"embedding": {"kernel": 5}}):
        with pytest.raises(ValueError, match="both trees have"):
            parameters.merge(TREE, other)


def test_the_first_rule_that_matches_holds():
    rules = [("norm", "a"), ("^encoder", "b")]
    assert [parameters.lookup(name, rules, "c") for name in NAMES] == ["c", "b", "b", "a"]


def test_mistakes_name_the_key_and_what_there_is():
    with pytest.raises(
        UserError, match="config.trainable: 'head' matches no parameter; there are embedding, encoder/attention/bias"
    ):
        parameters.split(TREE, ("embedding", "head"), key="config.trainable")
    with pytest.raises(UserError, match="is not a regular expression"):
        parameters.matching(NAMES, "*kernel")
