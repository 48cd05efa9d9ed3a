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


@pytest.mark.parametrize("kind", ["swin", "convnext"])
def test_objects_are_looked_for_on_coarser_maps(kind):
    model = build(kind, head="detection", decoder_width=6, decoder_layers=1, drop_path=0.0)
    given, stride = variables(model), 2 * model.config.patch_size
    out = apply(model, given, image(64, 48))
    sides = [(-(-64 // s), -(-48 // s)) for s in (stride, 2 * stride, 4 * stride)]
    count = sum(height * width for height, width in sides)
    assert out.logits.shape == (2, count, LABELS) and out.distances.shape == (2, count, 4) and out.middle.shape == (2, count)
    assert out.centres.shape == (count, 2) and np.unique(out.strides).tolist() == [stride, 2 * stride, 4 * stride]
    assert (np.asarray(out.distances) > 0).all() and out.logits.dtype == np.float32

    @jax.jit
    @jax.grad
    def gradient(params):
        found = model.apply({"params": params}, {"image": image(64, 48)})
        return jnp.mean(found.logits**2) + jnp.mean(found.distances) / 1e3 + jnp.mean(found.middle**2)

    for name, found in parameters.flat(gradient(given["params"])).items():
        assert np.isfinite(found).all() and (np.abs(found).max() > 0 or name.endswith("key/bias")), name


def test_before_training_nothing_is_likely():
    model = build("convnext", head="detection", decoder_width=6, decoder_layers=1)
    init = jax.jit(model.init)(jax.random.key(0), {"image": image(32, 32)})
    probabilities = jax.nn.sigmoid(apply(model, init, image(32, 32)).logits)
    np.testing.assert_allclose(probabilities, 0.01, rtol=0.5)
