"""A perceptron of a few layers that reads an image's pixels as one vector: what a model of images has to beat.

Axes: B batch rows, H height, W width, C channels, D width, L labels.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.feedforward import ACTIVATIONS
from transformers_jax.layers.projections import Linear
from transformers_jax.models.protocol import IMAGES, Protocol
from transformers_jax.outputs import LabelOutput

HEADS = ("classification",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of config.model.

    image_size: H and W of an image.  channels: C, 3, or 1 for grey images.
    mean, std: a pixel, divided by 255, less `mean`, over `std`; one number a channel, or one for all.
    width: D of each hidden layer.  layers: how many of those there are, behind which is the one of the labels.
    head: "classification".  labels: L.
    dropout: of the hidden layers' outputs.
    activation: a name of `layers.feedforward.ACTIVATIONS`.
    """

    image_size: int = 28
    channels: int = 1
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    width: int = 512
    layers: int = 1
    head: str = "classification"
    labels: int = 10
    dropout: float = 0.2
    activation: str = "relu"
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) not in (1, self.channels):
                raise UserError(f"config.model.{name}={getattr(self, name)}: give {self.channels} numbers, or one for all")
        if self.head not in HEADS:
            raise UserError(f"config.model.head={self.head!r} is not one of {', '.join(HEADS)}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"config.model.activation={self.activation!r} is not one of {', '.join(ACTIVATIONS)}")


class Model(nn.Module):
    """Images of one size → logits of their labels."""

    config: Config

    @nn.nowrap
    def protocol(self) -> Protocol:
        """What this model tells about itself."""
        c = self.config
        return Protocol(
            reads=(IMAGES,),
            does=(),
            fields=("image",),
            head=c.head,
            heads=HEADS,
            labelled=HEADS,
            labels=c.labels,
            token_heads=(),
            tied=False,
            sizes={"H": c.image_size, "W": c.image_size, "C": c.channels},
        )

    @nn.compact
    def __call__(self, batch: dict, deterministic: bool = True) -> LabelOutput:
        """Logits [B, L] of `image`, [B, H, W, C], uint8 or, mixed with each other, float32 from 0 to 255.

        Raises:
          UserError: images of another size.
        """
        c = self.config
        image = batch["image"]  # [B, H, W, C]
        wanted = (c.image_size, c.image_size, c.channels)
        if image.shape[1:] != wanted:
            raise UserError(
                f"images are {image.shape[1:]}, and config.model.image_size and config.model.channels say {wanted}: give "
                "config.data.size and config.data.channels the same"
            )
        mean, std = jnp.array(c.mean, jnp.float32), jnp.array(c.std, jnp.float32)  # [C] or [1]
        x = ((image.astype(jnp.float32) / 255 - mean) / std).astype(c.dtype)
        x = x.reshape(x.shape[0], -1)  # [B, H * W * C]
        numbers = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        for i in range(c.layers):
            x = ACTIVATIONS[c.activation](Linear(c.width, ("embed", "mlp"), name=f"hidden_{i}", **numbers)(x))  # [B, D]
            x = Dropout(c.dropout)(x, deterministic=deterministic)
        return LabelOutput(Linear(c.labels, ("embed", None), name="classifier", **numbers)(x))  # [B, L]
