"""What models of images share: fields of their configs, how pixels are normalised, and what they tell about themselves.

Axes: B batch rows, H height, W width, C channels, T positions, D model width, L labels.

A batch has `image`, [B, H, W, C] uint8; rescaling and normalising happen on the device, inside the model. Parameters do not
depend on H and W of a batch.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.feedforward import ACTIVATIONS
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.projections import Linear
from transformers_jax.layers.resize import resize
from transformers_jax.models.protocol import ENCODES, IMAGES, Protocol

HALF, IMAGENET_MEAN, IMAGENET_STD = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Means and deviations of pixels between 0 and 1: those that bring them to -1 … 1, and ImageNet's own."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of `config.model` that all models of images have.

    image_size: H and W of the images that it is made for; others may be given.  channels: C.
    mean, std: a pixel, divided by 255, less `mean`, over `std`; one number a channel, or one for all. The defaults are those of
      the family's processor in `transformers`; published weights often come with ImageNet's.
    head: one of the model's `heads`.  labels: of the head.
    dropout: where the paper drops elements; attention_dropout on attention's weights; classifier_dropout before the labels.
    drop_path: rate of stochastic depth in the last layer; it grows from 0 in the first.
    activation: a name of `layers.feedforward.ACTIVATIONS`.
    norm_epsilon: of the layer norms.  stddev: of the initial numbers.
    scan_layers: one compiled layer for all of a stage; without it the program is larger, and faster on CPUs.
    remat: keep each layer's input alone for the backward pass.
    attention: which kernel; "auto" chooses by shape and dtype.
    """

    image_size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    head: str = "classification"
    labels: int = 1000
    dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.0
    drop_path: float = 0.0
    activation: str = "gelu"
    norm_epsilon: float = 1e-6
    stddev: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    attention: str = "auto"
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):  # lists, as configs and JSON have them, cannot be hashed
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise UserError(
                    f"config.model.{name} is {getattr(self, name)}: give {self.channels} numbers, one a channel, or one for all"
                )
        if self.activation not in ACTIVATIONS:
            raise UserError(f"config.model.activation is {self.activation!r}; it is one of {', '.join(ACTIVATIONS)}")

    def numbers(self) -> dict:
        """How a linear map or a convolution starts and computes."""
        return {"stddev": self.stddev, "dtype": self.dtype, "param_dtype": self.param_dtype}

    def norm_layer(self, epsilon: float | None = None) -> LayerNorm:
        """A layer norm, with another epsilon if one is given."""
        return LayerNorm(self.norm_epsilon if epsilon is None else epsilon, self.dtype, self.param_dtype)

    def per_stage(self, *names: str) -> None:
        """Raises UserError where the named fields do not all have a number for each stage."""
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {getattr(self, name)}" for name in names)
            raise UserError(f"config.model: as many numbers of each as there are stages, not {listed}")


class ImageEncoder(nn.Module):
    """From a batch to its head's output. An architecture gives `setup`, `encode` and `__call__`."""

    config: Any
    heads = ("none", "classification")
    configs = {}  # by head, the config that a converted model's workdir begins with

    def pixels(self, batch: dict) -> jax.Array:
        """The normalised image [B, H, W, C]: float32 arithmetic, the result in the compute dtype.

        Raises:
          UserError: images of another number of channels, or too small ones.
        """
        c = self.config
        image = batch["image"]  # [B, H, W, C]
        if image.shape[-1] != c.channels:
            raise UserError(f"images have {image.shape[-1]} channels, config.model.channels is {c.channels}")
        if min(image.shape[1:3]) < self.smallest():
            sides = "×".join(map(str, image.shape[1:3]))
            raise UserError(f"images of {sides} pixels are too small: a side has {self.smallest()} or more for this model")
        mean, std = jnp.array(c.mean, jnp.float32), jnp.array(c.std, jnp.float32)  # [C] or [1]
        return ((image.astype(jnp.float32) / 255 - mean) / std).astype(c.dtype)

    @nn.nowrap
    def smallest(self) -> int:
        """Pixels that a side of an image has at least."""
        return 1

    def setup_head(self) -> None:
        """Makes the parts of the head "classification"; to be called in `setup`."""
        c = self.config
        if c.head not in self.heads:
            raise UserError(f"config.model.head is {c.head!r}; it is one of {', '.join(self.heads)}")
        self.classifier_drop = Dropout(c.classifier_dropout)
        if c.head == "classification":
            self.classifier = Linear(c.labels, ("embed", None), **c.numbers())

    def labels_of(self, pooled: jax.Array, deterministic: bool) -> jax.Array:
        """Logits [B, L] of a summary [B, D] of images."""
        return self.classifier(self.classifier_drop(pooled, deterministic=deterministic))

    @nn.nowrap
    def fitted(self, name: str, array: Any, shape: tuple[int, ...]) -> Any:
        """A pretrained leaf as this model has it: learned positions of images of another size are interpolated (Dosovitskiy
        et al. 2021, section 3.2); all else, and what has another width, stays as it is.
        """
        if name != "positions" or array.shape == tuple(shape) or array.shape[1:] != tuple(shape[1:]):
            return array
        return fitted_positions(np.asarray(array), shape[0])

    @nn.nowrap
    def protocol(self) -> Protocol:
        """What this model tells about itself."""
        c, labelled = self.config, self.heads[1:]
        return Protocol(
            reads=(IMAGES,),
            does=(ENCODES,),
            fields=("image",),
            head=c.head,
            heads=self.heads,
            labelled=labelled,
            labels=c.labels if c.head in labelled else 0,
            token_heads=(),
            tied=False,
            configs=self.configs,
            sizes={"H": c.image_size, "W": c.image_size, "C": c.channels},
        )


def fitted_positions(table: np.ndarray, rows: int) -> np.ndarray:
    """The positions [T, D] of a square grid, behind a class token's if there is one, as so many rows for another grid."""
    there, wanted = math.isqrt(len(table)), math.isqrt(rows)
    first = len(table) - there**2
    if first != rows - wanted**2 or first > 1:
        return table
    grid = table[first:].reshape(there, there, -1)  # [h, w, D]
    grid = resize(jnp.asarray(grid, jnp.float32), (wanted, wanted), "bicubic")
    return np.concatenate([table[:first], np.asarray(grid, table.dtype).reshape(wanted**2, -1)])


def mean_pool(x: jax.Array) -> jax.Array:
    """The mean of all positions of [B, ..., D], in float32: [B, D] in the dtype of x."""
    positions = math.prod(x.shape[1:-1])
    return x.reshape(x.shape[0], positions, -1).mean(axis=1, dtype=jnp.float32).astype(x.dtype)


# What the tables of names share

BACKBONE_KEYS = ("num_layers", "hidden_size", "stage_names", "out_features", "out_indices")
"""Keys of config.json that follow from others, or say which maps a backbone gives."""

MODULES = (
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"\.output\.dense", ".mlp.fc2"),
)
"""Names of modules that `transformers` 5 has changed alike, see `NameMap.modules`."""


def square(config: dict, key: str, default: int) -> int:
    """The number of a key of a config.json that may be a number, or one for each side.

    Raises:
      UserError: the sides differ.
    """
    value = config.get(key, default)
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) > 1:
        raise UserError(f"config.json: {key} is {value}; here it is the same in both directions")
    return sides.pop()


def only(model: str, config: Any, wanted: dict) -> None:
    """Raises UserError where a field of a config has another value than the one that `transformers`' model has."""
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise UserError(
                f"config.model.{name} is {getattr(config, name)!r}: transformers' {model} has no such thing, only {value!r}"
            )
