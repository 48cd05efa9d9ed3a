"""The LSTM that continues texts: what each token sees, states after prompts, packed rows, parameters."""

import jax
import pytest
from causal import (
    VOCAB,
    build,
    check_that_no_token_sees_later_ones,
    check_that_packed_rows_equal_separate_ones,
    check_that_steps_equal_the_whole_row,
)

from transformers_jax import models
from transformers_jax.errors import UserError

TINY = dict(name="lstm", width=12, layers=2)


@pytest.fixture(scope="module")
def built():
    return build(TINY)


def test_a_token_never_sees_later_ones(built):
    check_that_no_token_sees_later_ones(*built)


def test_steps_after_prompts_equal_the_whole_row(built):
    check_that_steps_equal_the_whole_row(*built)


def test_packed_examples_equal_separate_ones(built):
    check_that_packed_rows_equal_separate_ones(*built)


def test_parameters_are_as_many_as_it_says(built):
    count = sum(x.size for x in jax.tree.leaves(built[1]))
    assert count == VOCAB * 12 + 2 * (8 * 12**2 + 4 * 12)


@pytest.mark.parametrize(("change", "words"), [({"head": "none"}, "causal_lm"), ({"layers": 0}, "1 or more")])
def test_mistakes_are_named(change, words):
    with pytest.raises(UserError, match=words):
        models.build(TINY | change, VOCAB)
