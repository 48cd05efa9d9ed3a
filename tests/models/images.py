"""Tiny models of images for tests, with parameters of which none is one or zero."""

import functools

import jax
import numpy as np
from flax.core import meta
from models.draws import drawn

from transformers_jax import models

TINY = {
    "vit": dict(width=12, num_heads=2, mlp_width=20, layers=2, patch_size=4, image_size=16),
    "convnext": dict(widths=(4, 6), depths=(1, 2), layer_scale=0.5, image_size=32),
    "swin": dict(width=4, depths=(2, 1), num_heads=(1, 2), window=4, patch_size=2, image_size=32),
    "segformer": dict(
        widths=(4, 6), depths=(1, 2), num_heads=(1, 2), reductions=(2, 1), mlp_ratios=(4, 2), patch_sizes=(7, 3),
        strides=(4, 2), decoder_width=8, image_size=32,
    ),
}  # fmt: skip
LABELS = 3


def build(name: str, **fields):
    return models.build(TINY[name] | dict(name=name, labels=LABELS) | fields, 0)


@functools.cache
def variables(model, seed: int = 1) -> dict:
    """Drawn parameters; running variances are positive."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), model.protocol().example(B=1)))
    found = drawn(meta.unbox(shapes), seed)
    return found | {"batch_stats": jax.tree.map(abs, found["batch_stats"])} if "batch_stats" in found else found


def image(height: int, width: int, seed: int = 0, rows: int = 2, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, height, width, channels), np.uint8)


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, variables, image, method="__call__"):
    return model.apply(variables, {"image": image}, method=method)
