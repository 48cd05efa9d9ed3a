"""The states of an encoder's layers: those of a model with so many layers alone, scanned or shared as they may be."""

import jax
import numpy as np
import pytest

from transformers_jax import models, parameters
from transformers_jax.errors import UserError
from transformers_jax.inference.layers import Between, Layers
from transformers_jax.interchange import mapping, stacking

SIZES = dict(width=8, num_heads=2, mlp_width=16, layers=4, max_length=9, head="none", pooler=False)
KINDS = [
    dict(name="bert"), dict(name="bert", scan_layers=True), dict(name="distilbert"), dict(name="flaubert"),
    dict(name="albert", embedding_width=4, groups=2, inner=2),
    dict(name="albert", embedding_width=4, groups=1, scan_layers=True),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_states_are_those_of_a_model_with_fewer_layers(kind):
    fields = SIZES | kind
    model = models.build(fields, 11)
    batch = model.protocol().example(B=2, T=5)
    batch["tokens"] = np.arange(10, dtype=np.int32).reshape(2, 5)
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in mapping.shapes(model).items()}
    nested = parameters.nest(params)

    def hidden(chosen: str, combine: str = "concat"):
        between = Between(model, Layers(chosen, combine))
        return np.asarray(jax.jit(lambda p: between.apply({"params": p}, batch, deterministic=True).hidden)(nested))

    states = np.split(hidden(":"), 5, axis=-1)
    whole = model.apply({"params": nested}, batch, True, method="encode")
    np.testing.assert_allclose(states[-1], whole, atol=1e-5)
    if fields["name"] != "albert":
        for layers in (1, 3):
            short = models.build(fields | dict(layers=layers), 11)
            own = stacking.chosen(stacking.separate(params), range(layers))
            own = stacking.arranged(own, mapping.shapes(short))
            wanted = short.apply({"params": parameters.nest(own)}, batch, True, method="encode")
            np.testing.assert_allclose(states[layers], wanted, atol=1e-5)
    assert len({state.tobytes() for state in states}) == 5
    np.testing.assert_allclose(hidden("-2:", "sum"), states[3] + states[4], atol=1e-5)
    np.testing.assert_allclose(hidden("1:3", "mean"), (states[1] + states[2]) / 2, atol=1e-5)
    np.testing.assert_array_equal(hidden("-4"), states[1])


def test_scanned_layers_have_the_same_states():
    plain, scanned = (models.build(SIZES | kind, 11) for kind in KINDS[:2])
    rng, batch = np.random.default_rng(1), plain.protocol().example(B=1, T=4)
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in mapping.shapes(plain).items()}
    stacked = stacking.arranged(params, mapping.shapes(scanned))
    first, second = (
        Between(model, Layers(":")).apply({"params": parameters.nest(given)}, batch, deterministic=True).hidden
        for model, given in ((plain, params), (scanned, stacked))
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


NUMBERS = {"-4:": [1, 2, 3, 4], "2": [2], "-1": [4], "0": [0], "1:3": [1, 2], ":2": [0, 1]}


@pytest.mark.parametrize("chosen, numbers", NUMBERS.items())
def test_how_layers_are_written(chosen, numbers):
    assert Layers(chosen).of(4) == numbers
    assert Layers(chosen).width(8, 4) == 8 * len(numbers) and Layers(chosen, "sum").width(8, 4) == 8


@pytest.mark.parametrize("chosen", ["", "5", "-6", "a", "1-2", "3:3", "-9:", "1:2:3", "1,2"])
def test_layers_that_there_are_not(chosen):
    with pytest.raises(UserError, match=f"--layers={chosen}: "):
        Layers(chosen).of(4)
