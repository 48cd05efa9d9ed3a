"""The perceptron against its definition in NumPy."""

import jax
import numpy as np
import pytest

from transformers_jax import models
from transformers_jax.errors import UserError


def built(**fields):
    return models.build({"name": "perceptron", "image_size": 4, "channels": 3, "width": 5, "labels": 3, **fields}, 0)


def test_it_is_what_it_says():
    model = built(layers=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = np.random.default_rng(0).integers(0, 256, [2, 4, 4, 3], np.uint8)
    params = model.init(jax.random.key(0), {"image": images})["params"]
    p = jax.tree.map(np.asarray, jax.tree.map(lambda x: getattr(x, "value", x), params, is_leaf=lambda x: hasattr(x, "value")))
    x = ((images / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.6, 0.7])).reshape(2, -1)
    for layer in "hidden_0", "hidden_1":
        x = np.maximum(x @ p[layer]["kernel"] + p[layer]["bias"], 0)
    wanted = x @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    for given in images, images.astype(np.float32):  # mixed images are float32
        np.testing.assert_allclose(model.apply({"params": params}, {"image": given}).logits, wanted, rtol=1e-4, atol=1e-5)


def test_it_tells_about_itself():
    about = built().protocol()
    assert about.reads == ("images",) and about.head == "classification" and about.labels == 3 and not about.longest
    assert about.example(B=2)["image"].shape == (2, 4, 4, 3)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"images are \(5, 4, 3\).*config.data.size"):
        built().init(jax.random.key(0), {"image": np.zeros([1, 5, 4, 3], np.uint8)})
    for field, value in ("mean", (0.5, 0.5)), ("head", "sequence"), ("activation", "step"):
        with pytest.raises(UserError, match=f"config.model.{field}"):
            built(**{field: value})
