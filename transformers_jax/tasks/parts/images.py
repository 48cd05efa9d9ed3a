"""How a task reads images: files or arrays of any size become arrays of one shape.

Axes: H height, W width, C channels.
"""

import os
from typing import Any

import numpy as np

from transformers_jax.data.images.augment import Augmentation
from transformers_jax.data.images.decode import decode, opened
from transformers_jax.data.images.geometry import from_pillow, to_pillow
from transformers_jax.data.images.pillow import Image
from transformers_jax.errors import UserError


class ImageReader:
    """Reads images as config.data says.

    Keys of config.data that are read here, beside those of `data.images.augment`:
      channels: 3, or 1 for grey images; others become such.

    Raises:
      UserError: a key that makes no sense.
    """

    def __init__(self, data):
        self.augmentation, self.channels = Augmentation.from_config(data), channels_of(data)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what `train` and `evaluate` give."""
        return self.augmentation.size, self.augmentation.size, self.channels

    def read(self, image: Any) -> np.ndarray | Image.Image:
        """As `read_image`; of a file in colour it is Pillow's, which `train` and `evaluate` take too."""
        if self.channels == 3 and isinstance(image, (str, os.PathLike)):
            return opened(image, where=str(image))
        return read_image(image, self.channels)

    def train(self, image: np.ndarray | Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Cut out and changed at random: uint8 of `shape`."""
        return self.augmentation.train(image, rng)

    def evaluate(self, image: np.ndarray | Image.Image) -> np.ndarray:
        """Its middle: uint8 of `shape`."""
        return self.augmentation.evaluate(image)


def read_image(image: Any, channels: int) -> np.ndarray:
    """An image in its own size, uint8 [H, W, channels].

    Args:
      image: the path of a file, or uint8 [H, W, 1 or 3].

    Raises:
      UserError: the file cannot be read, says which; or it is something else.
    """
    if isinstance(image, (str, os.PathLike)):
        image = decode(image, where=str(image))
    shape = getattr(image, "shape", ())
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3):
        what = f"{image.dtype} {list(shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"an image is a path or uint8 [height, width, 1 or 3], not {what}")
    if shape[2] == channels:
        return image
    return np.repeat(image, 3, axis=2) if shape[2] == 1 else _grey(image)


def channels_of(data) -> int:
    """config.data.channels.

    Raises:
      UserError: it is neither 3 nor 1.
    """
    if (channels := data.get("channels", 3)) not in (1, 3):
        raise UserError(f"config.data.channels={channels!r} is neither 3 nor, for grey images, 1")
    return channels


def _grey(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] → [H, W, 1], its brightness."""
    return from_pillow(to_pillow(image).convert("L"), image[:, :, :1])
