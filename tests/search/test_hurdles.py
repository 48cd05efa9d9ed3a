"""Progressive dynamic hurdles: who trains on, for how long, and where the next hurdle is."""

import math

import pytest

from transformers_jax.search import hurdles


def climb(values, steps, bars):
    """(stages, steps that were trained) of a candidate whose fitness is values[i] after stage i."""
    trained, values = [], iter(values)

    def train(count):
        trained.append(count)
        return next(values)

    return hurdles.climb(train, steps, bars), trained


@pytest.mark.parametrize(
    "values, bars, stages",
    [
        ([5.0], [], [5.0]),  # no hurdle yet: nobody trains on
        ([5.0, 6.0], [4.0], [5.0, 6.0]),
        ([4.0], [4.0], [4.0]),  # strictly above, not at
        ([5.0, 3.0], [4.0, 3.0], [5.0, 3.0]),
        ([5.0, 3.5, 9.0], [4.0, 3.0], [5.0, 3.5, 9.0]),
        ([5.0], [math.inf], [5.0]),
        ([-2.0, -3.0], [-2.5, -2.9], [-2.0, -3.0]),  # falls below the second hurdle, and keeps the last fitness
    ],
)
def test_climb(values, bars, stages):
    assert climb(values, (10, 20, 40), bars) == (stages, [10, 20, 40][: len(stages)])


def test_more_hurdles_than_stages_allow():
    with pytest.raises(ValueError, match="2 hurdles"):
        climb([1.0], (10, 20), [0.0, 0.0])


def test_known_stages_are_enough_or_not():
    assert hurdles.known([5.0], []) == [5.0]
    assert hurdles.known([5.0], [5.0]) == [5.0]
    assert hurdles.known([5.0], [4.0]) is None  # would train on
    assert hurdles.known([5.0, 3.0], [4.0]) == [5.0, 3.0]
    assert hurdles.known([5.0, 3.0], []) == [5.0]  # proposed before there was a hurdle
    assert hurdles.known([5.0, 3.0], [4.0, 2.0]) is None


def test_known_agrees_with_climb():
    values, steps = [3.0, 2.0, 4.0], (1, 1, 1)
    for bars in ([], [2.5], [3.0], [2.5, 1.0], [2.5, 2.0], [9.0, 0.0]):
        stages, _ = climb(values, steps, bars)
        assert hurdles.known(values, bars) == stages


def test_next_hurdle_is_the_mean_of_those_trained_longest():
    assert hurdles.next_hurdle([(10, 1.0), (10, 2.0)]) == 1.5
    assert hurdles.next_hurdle([(10, 9.0), (30, 2.0), (30, 4.0), (10, 8.0)]) == 3.0
    assert hurdles.next_hurdle([]) == math.inf
