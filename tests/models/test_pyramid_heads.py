"""Heads on pyramids: a label for each position of the finest map, of what all maps say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.images import LABELS, apply, build, image, variables

from transformers_jax import parameters
from transformers_jax.layers.resize import resize


@pytest.mark.parametrize("kind, size", [("swin", 32), ("convnext", 32)])
def test_every_map_has_a_say(kind, size):
    model = build(kind, head="segmentation", decoder_width=6)
    given, picture = variables(model), image(size, size, rows=1)
    logits = apply(model, given, picture).logits
    maps = apply(model, given, picture, "pyramid")
    assert logits.shape == (*maps[0].shape[:3], LABELS) and "final_norm" not in given["params"]
    head, wide = given["params"]["decode_head"], 0.0

    def normed(x, name):
        x = (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(x.var(axis=-1, keepdims=True) + model.config.norm_epsilon)
        return x * head[name]["scale"] + head[name]["bias"]

    for i, x in enumerate(maps):
        projected = normed(x, f"norm_{i}") @ head[f"project_{i}"]["kernel"] + head[f"project_{i}"]["bias"]
        wide = wide + resize(projected, maps[0].shape[1:3], "bilinear")
    fused = jax.nn.gelu(normed(wide, "fused_norm"))
    wanted = fused @ head["classifier"]["kernel"] + head["classifier"]["bias"]
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_all_parameters_learn(kind):
    model = build(kind, head="segmentation", decoder_width=6, drop_path=0.0)
    given = variables(model)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.mean(model.apply({"params": params}, {"image": image(32, 32)}).logits ** 2)

    for name, found in parameters.flat(gradient(given["params"])).items():
        assert np.abs(found).max() > 0 or name.endswith("key/bias"), name
