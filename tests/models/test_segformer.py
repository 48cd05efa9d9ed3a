"""SegFormer: its maps, its keys, and the running statistics of its decoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from models.images import apply, build, image, variables

from transformers_jax.models.segformer import EfficientAttention


def test_pyramid_rounds_sides_up():
    model = build("segformer")
    maps = jax.eval_shape(lambda v: model.apply(v, {"image": image(33, 46)}, method="pyramid"), variables(model))
    assert [m.shape for m in maps] == [(2, 9, 12, 4), (2, 5, 6, 6)]


def test_keys_are_fewer():
    """With a reduction of 2 a query sees one key for four positions; its weights over them add up to 1."""
    layer, x = EfficientAttention(build("segformer").config, 0), np.ones((1, 6, 8, 4), np.float32)
    init = jax.jit(layer.init, static_argnums=2)(jax.random.key(0), x, True)
    _, seen = layer.apply(init, x, True, mutable="intermediates")
    (weights,) = seen["intermediates"]["attention"]["weights"]
    assert weights.shape == (1, 1, 48, 12)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


def test_running_statistics_move_in_training_alone():
    model = build("segformer", head="segmentation", drop_path=0.0, classifier_dropout=0.0)
    given, picture = variables(model), image(32, 32)
    before = given["batch_stats"]["decode_head"]["norm"]["mean"]

    @functools.partial(jax.jit, static_argnums=0)
    def run(deterministic):
        _, changed = model.apply(given, {"image": picture}, deterministic=deterministic, mutable=["batch_stats"])
        return changed["batch_stats"]["decode_head"]["norm"]["mean"]

    np.testing.assert_array_equal(run(True), before)
    decoder, maps = given["params"]["decode_head"], apply(model, given, picture, "pyramid")
    fine, coarse = (m @ decoder[f"project_{i}"]["kernel"] + decoder[f"project_{i}"]["bias"] for i, m in enumerate(maps))
    fused = jnp.concatenate([jax.image.resize(coarse, fine.shape, "linear"), fine], axis=-1) @ decoder["fuse"]["kernel"][0, 0]
    np.testing.assert_allclose(run(False), 0.9 * before + 0.1 * fused.mean(axis=(0, 1, 2)), atol=1e-4)


def test_zeros_around_the_map_tell_where_a_position_is():
    """There are no positions: of one colour all inner positions are alike, and those at the border are not."""
    model = build("segformer", depths=(1, 1), reductions=(1, 1))
    maps = apply(model, variables(model), np.full((1, 64, 64, 3), 77, np.uint8), "pyramid")
    first = np.asarray(maps[0][0])  # [16, 16, D]
    np.testing.assert_allclose(first[3:-3, 3:-3], np.broadcast_to(first[8, 8], (10, 10, 4)), atol=1e-5)
    assert np.abs(first[0, 0] - first[8, 8]).max() > 1e-3
