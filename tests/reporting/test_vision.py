"""What pictures of models of images are made of, against values that are known, and the pictures themselves."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from transformers_jax import models
from transformers_jax.reporting import vision
from transformers_jax.reporting import vision_pictures as pictures
from transformers_jax.reporting.vision import Shown

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def drawn(path):
    """Checks that a file is a picture on which something is drawn."""
    picture = Image.open(path)
    assert 150 <= picture.width <= 4000 and 150 <= picture.height <= 4000
    assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def photograph(size: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, channels), np.uint8)


def test_rollout_multiplies_layers_with_their_residuals():
    draw = np.random.default_rng(0)
    weights = draw.dirichlet(np.ones(5), size=(3, 2, 4, 5))  # [L, B, N, T, T]
    found = vision.rollout(weights)
    np.testing.assert_allclose(found.sum(axis=-1), 1)
    one, two, three = (0.5 * layer.mean(axis=1)[1] + 0.5 * np.eye(5) for layer in weights)
    np.testing.assert_allclose(found[1], three @ two @ one)
    shares = vision.looked_at(weights, (2, 2))
    np.testing.assert_allclose(shares[1].reshape(-1), found[1, 0, 1:] / found[1, 0, 1:].sum())
    without = draw.dirichlet(np.ones(4), size=(3, 2, 4, 4))
    np.testing.assert_allclose(vision.looked_at(without, (2, 2))[0].reshape(-1), vision.rollout(without)[0].mean(axis=0))


def test_distances_are_in_pixels_and_without_the_class_token():
    sizes, patches = (3, 4), 12
    itself = np.eye(patches)
    right = np.roll(itself, 1, axis=1)[None]  # to the next patch, and from a row's last to the next row's first
    weights = np.zeros((1, 2, 2, patches + 1, patches + 1))  # [L, B, N, T, T]
    weights[..., 0] = 0.5
    weights[:, :, 0, 1:, 1:], weights[:, :, 1, 1:, 1:] = 0.5 * itself, 0.5 * right
    found = vision.distances(weights, sizes, 8)
    wide = [1] * 3 + [np.hypot(1, 3)]
    far = 8 * np.mean([*wide, *wide, 1, 1, 1, np.hypot(2, 3)])
    np.testing.assert_allclose(found, [[0, far]])


def test_distances_within_windows():
    model = models.build(dict(name="swin", width=4, depths=(2, 1), num_heads=(1, 2), window=2, patch_size=4, labels=2), 0)
    images = np.stack([photograph(32, seed) for seed in range(2)])
    variables = model.init(jax.random.key(0), {"image": images})
    run = SimpleNamespace(model=model)
    found = vision.window_distances(run, {"params": variables["params"], "model_state": {}}, images)
    assert found.shape == (3, 2) and np.isnan(found).tolist() == [[False, True], [False, True], [False, False]]
    assert 0 < found[0, 0] < 4 * 2**0.5 and 0 < found[2].min() and found[2].max() < 8 * 2**0.5
    vit = models.build(dict(name="vit", width=4, num_heads=1, mlp_width=4, layers=1), 0)
    assert vision.window_distances(SimpleNamespace(model=vit), {}, images) is None


def test_positions_are_compared_without_the_class_token():
    table = np.random.default_rng(0).normal(size=(10, 6))
    near = vision.position_similarity({"positions": table})
    assert near.shape == (3, 3, 3, 3)
    wanted = table[2] @ table[9] / np.linalg.norm(table[2]) / np.linalg.norm(table[9])
    np.testing.assert_allclose(near[0, 1, 2, 2], wanted, rtol=1e-5)
    assert vision.position_similarity({}) is None


def test_filters_are_the_directions_in_which_kernels_differ():
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, 4, 4, 3, 1))
    kernel = 10 * first * draw.normal(size=40) + second * draw.normal(size=40)  # [P, P, C, D]
    found = vision.filters({"patches": {"kernel": kernel}})
    assert found.shape == (28, 4, 4, 3) and found.min() >= 0 and found.max() <= 1
    likeness = np.corrcoef((found[0] - 0.5).reshape(-1), first.reshape(-1))[0, 1]
    assert abs(likeness) > 0.98
    assert vision.filters({"patches": {"kernel": np.zeros((1, 1, 64, 8))}}) is None


def test_receptive_fields_grow_around_the_middle():
    import jax

    fields = dict(name="convnext", widths=(4, 6), depths=(1, 1), patch_size=2, layer_scale=0.5, labels=3, image_size=32)
    model = models.build(fields, 0)
    images = np.stack([photograph(32, seed) for seed in range(2)])
    params = jax.jit(model.init)(jax.random.key(0), {"image": images})["params"]
    run = SimpleNamespace(model=model)
    import flax.linen as nn

    found = vision.receptive_fields(run, {"params": nn.unbox(params), "model_state": {}}, images)
    assert [field.shape for field in found] == [(32, 32)] * 2 and all(field.max() == 1 for field in found)
    rows, columns = np.nonzero(found[0])
    assert rows.min() >= 16 - 2 * 3 and rows.max() <= 17 + 2 * 3 and columns.max() <= 17 + 2 * 3  # 7 × 7 positions of 2 pixels
    assert (found[1] > 0).sum() > (found[0] > 0).sum()
    assert vision.receptive_fields(SimpleNamespace(model=object()), {"params": {}, "model_state": {}}, images) == []


def test_pictures_are_drawn(tmp_path):
    draw = np.random.default_rng(0)
    shown = [Shown(photograph(16, i), f"class {i}, of a rather long name indeed") for i in range(4)]
    grey = [Shown(photograph(12, 0, 1), "one\ntaken for two")] * 7
    for name, function in {
        "images": functools.partial(pictures.draw_images, shown),
        "grey": functools.partial(pictures.draw_images, grey),
        "rollout": functools.partial(pictures.draw_rollout, shown, draw.random((4, 4, 4))),
        "distances": functools.partial(pictures.draw_distances, draw.random((12, 3)), 224),
        "similarity": functools.partial(pictures.draw_similarity, draw.random((10, 10, 10, 10))),
        "filters": functools.partial(pictures.draw_filters, draw.random((28, 4, 4, 3))),
        "fields": functools.partial(pictures.draw_fields, [draw.random((16, 16)) for _ in range(4)]),
    }.items():
        function(tmp_path / f"{name}.png")
        drawn(tmp_path / f"{name}.png")
