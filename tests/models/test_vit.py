"""ViT: what it knows of where patches are, its stems, and other blocks."""

import jax
import numpy as np
import pytest
from models.images import apply, build, image, variables

from transformers_jax.errors import UserError
from transformers_jax.genomes.genome import EVOLVED_TRANSFORMER, replace
from transformers_jax.layers.resnet import GroupNorm, ResNetStem


def permuted(picture: np.ndarray) -> np.ndarray:
    """The patches of 4 × 4 pixels in another order."""
    rows, height, width, channels = picture.shape
    cut = picture.reshape(rows, height // 4, 4, width // 4, 4, channels).swapaxes(2, 3).reshape(rows, -1, 4, 4, channels)
    cut = cut[:, np.random.default_rng(3).permutation(cut.shape[1])]
    return cut.reshape(rows, height // 4, width // 4, 4, 4, channels).swapaxes(2, 3).reshape(picture.shape)


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal_2d"])
def test_positions_tell_patches_apart(positions, pooling):
    model = build("vit", positions=positions, pooling=pooling)
    given, picture = variables(model), image(16, 16)
    one, other = (apply(model, given, x).logits for x in (picture, permuted(picture)))
    assert np.allclose(one, other, atol=1e-5) == (positions == "none")
    assert ("class_token" in given["params"]) == (pooling == "class")
    assert ("positions" in given["params"]) == (positions == "learned")


def test_interpolated_positions():
    model = build("vit")
    given = variables(model)

    def places(table, down, across):
        return np.asarray(model.apply({"params": given["params"] | {"positions": table}}, down, across, method="places"))

    table = np.array(given["params"]["positions"])
    np.testing.assert_array_equal(places(table, 4, 4), table)
    wide = places(table, 4, 8)
    assert wide.shape == (1 + 32, 12) and np.abs(wide[1:5] - table[1:5]).max() > 1e-2
    np.testing.assert_array_equal(wide[0], table[0])  # the class token's
    by_row = np.repeat(table[1:5], 4, axis=0)  # the same in all columns: so it stays
    wide = places(np.concatenate([table[:1], by_row]), 4, 8)[1:].reshape(4, 8, 12)
    np.testing.assert_allclose(wide, np.broadcast_to(table[1:5, None], wide.shape), atol=1e-5)
    assert apply(model, given, image(16, 32)).logits.shape == (2, 3)


def test_pooler():
    model = build("vit", head="none", pooler=True)
    given = variables(model)
    out = apply(model, given, image(16, 16))
    pooler = given["params"]["pooler"]
    np.testing.assert_allclose(out.pooled, np.tanh(out.hidden[:, 0] @ pooler["kernel"] + pooler["bias"]), atol=1e-5)
    plain = apply(build("vit", head="none"), given, image(16, 16))
    np.testing.assert_array_equal(plain.pooled, plain.hidden[:, 0])


def test_few_channels_are_normed_by_twos():
    """A channel that is even over the image still says whether it is stronger than its neighbour."""
    x = np.broadcast_to(np.array([0.0, 2.0, 5.0, 9.0], np.float32), (1, 3, 3, 4))
    y, _ = GroupNorm().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, np.broadcast_to([-1.0, 1.0, -1.0, 1.0], (1, 3, 3, 4)), atol=1e-4)


def test_a_resnet_takes_the_place_of_patches():
    model = build("vit", stem="resnet", stem_depths=(1, 1), stem_width=4, image_size=32, head="none")
    given = variables(model)
    assert given["params"]["patches"]["kernel"].shape == (1, 1, 32, 12)
    assert model.config.stride() == 8 and apply(model, given, image(32, 32)).hidden.shape == (2, 17, 12)
    stem = jax.eval_shape(lambda: ResNetStem((3, 4, 9)).init_with_output(jax.random.key(0), np.zeros((1, 224, 224, 3)))[0])
    assert stem.shape == (1, 14, 14, 1024)


def test_layer_scale_is_on_both_branches():
    model = build("vit", layer_scale=1e-3, head="none")
    given = variables(model)
    scales = [given["params"]["encoder"]["layer_0"]["block"][f"{name}_scale"]["scale"] for name in ("attention", "feed")]
    assert [s.shape for s in scales] == [(12,), (12,)]
    off = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if "_scale" in path[-2].key else x, given)
    embedded = model.apply(given, {"image": image(16, 16)}, True, method="embedded")
    alone = model.apply(given, embedded, method=lambda model, x: model.final_norm(x))
    np.testing.assert_allclose(apply(model, off, image(16, 16)).hidden, alone, atol=1e-5)


def test_a_genome_is_a_block():
    genome = replace(EVOLVED_TRANSFORMER, {"encoder_cells": 1}).text()
    model = build("vit", genome=genome, width=16, num_heads=4)
    given = variables(model)
    assert set(given["params"]["encoder"]) == {"layer_0"} and np.isfinite(apply(model, given, image(16, 16)).logits).all()
    with pytest.raises(UserError, match="drop_path and layer_scale"):
        build("vit", genome=genome, drop_path=0.1)


def test_wrong_fields_are_named():
    for fields, says in (
        (dict(positions="rotary"), "config.model.positions is 'rotary'.*sinusoidal_2d"),
        (dict(pooling="max"), "config.model.pooling"),
        (dict(stem="vgg"), "config.model.stem"),
        (dict(layers=0), "config.model.layers is 0"),
        (dict(image_size=2), "smaller than a patch of 4"),
    ):
        with pytest.raises(UserError, match=says):
            build("vit", **fields)
