"""Rates that fall from layer to layer, by names of layers apart, stacked and in stages."""

import jax
import numpy as np
import optax
import pytest

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.training.layer_decay import scales
from transformers_jax.training.optimizers import make_optimizer

APART = {
    "embeddings/word": 0, "encoder/layer_0/block/x": 1, "encoder/layer_1/block/x": 2, "encoder/layer_10/block/x": 11,
    "final_norm/scale": 12, "classifier/kernel": 12,
}  # fmt: skip
STAGES = {
    "stem/kernel": 0, "stage_0/layer_0/block/x": 1, "down_0/kernel": 2, "down_norm_0/scale": 2, "stage_1/layer_0/block/x": 2,
    "stage_1/layer_1/block/x": 3, "merge_1/reduction/kernel": 4, "patches_2/bias": 4, "stage_norm_1/scale": 4,
    "stage_2/layer_0/x": 4, "stage_norm_2/scale": 5, "classifier/bias": 5,
}  # fmt: skip


@pytest.mark.parametrize("layers", [APART, STAGES])
def test_each_layer_has_its_rate(layers):
    found = scales(dict.fromkeys(layers, (3, 4)), 0.5)
    assert found == {name: 0.5 ** (max(layers.values()) - layer) for name, layer in layers.items()}


def test_stacked_layers_have_the_rates_of_separate_ones():
    stacked = scales({"stage_0/layer/block/x": (2, 3, 4), "stage_1/layer/block/x": (3, 5), "head/kernel": (2, 2)}, 0.7)
    np.testing.assert_allclose(stacked["stage_0/layer/block/x"], 0.7 ** np.array([5, 4]).reshape(2, 1, 1), rtol=1e-6)
    np.testing.assert_allclose(stacked["stage_1/layer/block/x"], 0.7 ** np.array([3, 2, 1]).reshape(3, 1), rtol=1e-6)
    assert stacked["head/kernel"] == 1


def test_updates_and_weight_decay_are_scaled():
    names = {"patches/kernel": (3, 2), "encoder/layer/block/kernel": (2, 2, 2), "classifier/kernel": (2,)}
    draw = np.random.default_rng(0)
    params, gradients = (
        parameters.nest({n: draw.normal(size=s).astype(np.float32) for n, s in names.items()}) for _ in range(2)
    )
    options = {"name": "adamw", "schedule": "constant", "learning_rate": 0.1, "weight_decay": 0.3}
    found = []
    for decay in 1.0, 0.5:
        tx, _ = make_optimizer(options | {"layer_decay": decay}, 10)
        state = tx.init(params)
        updates, _ = jax.jit(tx.update)(gradients, state, params)
        assert jax.tree.structure(optax.apply_updates(params, updates)) == jax.tree.structure(params)
        found.append(parameters.flat(updates))
    plain, scaled = found
    np.testing.assert_allclose(scaled["patches/kernel"], plain["patches/kernel"] / 8, rtol=1e-6)
    np.testing.assert_allclose(scaled["classifier/kernel"], plain["classifier/kernel"])
    for layer, share in enumerate((4, 2)):
        name = "encoder/layer/block/kernel"
        np.testing.assert_allclose(scaled[name][layer], plain[name][layer] / share, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_rate_that_would_rise_is_refused(decay):
    with pytest.raises(UserError, match=f"config.optimizer.layer_decay is {decay}"):
        make_optimizer({"schedule": "constant", "learning_rate": 0.1, "layer_decay": decay}, 10)
