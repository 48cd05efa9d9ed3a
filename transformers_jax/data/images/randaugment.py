"""RandAugment (Cubuk et al. 2020): n of 14 operations, drawn with replacement, all at one magnitude.

Axes: H height, W width, C channels, 1 or 3.

Magnitude 0 leaves an image almost as it is and 10 is AutoAugment's strongest (Cubuk et al. 2019, table 6); larger ones,
which the paper uses for large models, go on in proportion. The operations grow stronger with the magnitude, all of them,
as in the recipes of DeiT, Swin and ConvNeXt ("rand-m9-inc1"); in the paper's own code posterize and solarize grow weaker.
Those with a direction take either one with equal chance.
"""

from collections.abc import Callable

import numpy as np

from transformers_jax.data.images.geometry import from_pillow, to_pillow
from transformers_jax.data.images.pillow import Image, ImageEnhance, ImageOps

MOST = 30
"""The largest magnitude."""
GREY = 128
"""What stands where a moved image has no pixels."""


def _affine(image: Image.Image, *rows: float) -> Image.Image:
    """The image whose pixel (x, y) is the old one at (a x + b y + c, d x + e y + f), rows being a to f."""
    fill = GREY if image.mode == "L" else (GREY,) * 3
    return image.transform(image.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR, fillcolor=fill)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    fill = GREY if image.mode == "L" else (GREY,) * 3
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill)


def _enhance(kind: Callable) -> Callable:
    return lambda image, change: kind(image).enhance(max(0.0, 1 + change))


def _posterize(image: Image.Image, fewer: float) -> Image.Image:
    return ImageOps.posterize(image, max(1, 8 - round(fewer)))


def _solarize(image: Image.Image, below: float) -> Image.Image:
    return ImageOps.solarize(image, max(0, round(256 - below)))


OPERATIONS: dict[str, tuple[Callable, float, bool]] = {
    "identity": (lambda image, strength: image, 0, False),
    "auto_contrast": (lambda image, strength: ImageOps.autocontrast(image), 0, False),
    "equalize": (lambda image, strength: ImageOps.equalize(image), 0, False),
    "rotate": (_rotate, 30, True),
    "solarize": (_solarize, 256, False),
    "color": (_enhance(ImageEnhance.Color), 0.9, True),
    "posterize": (_posterize, 4, False),
    "contrast": (_enhance(ImageEnhance.Contrast), 0.9, True),
    "brightness": (_enhance(ImageEnhance.Brightness), 0.9, True),
    "sharpness": (_enhance(ImageEnhance.Sharpness), 0.9, True),
    "shear_x": (lambda image, share: _affine(image, 1, share, 0, 0, 1, 0), 0.3, True),
    "shear_y": (lambda image, share: _affine(image, 1, 0, 0, share, 1, 0), 0.3, True),
    "translate_x": (lambda image, share: _affine(image, 1, 0, share * image.width, 0, 1, 0), 0.45, True),
    "translate_y": (lambda image, share: _affine(image, 1, 0, 0, 0, 1, share * image.height), 0.45, True),
}
"""Name → (function of image and strength, its strength at magnitude 10, whether it has two directions).

Strengths: rotate in degrees; solarize inverts values from 256 minus it on; posterize drops so many of 8 bits; the
enhancements add it to a factor of 1; shear and translate in shares of the edge."""


def apply(name: str, image: np.ndarray, magnitude: float, direction: int = 1) -> np.ndarray:
    """The image [H, W, C] after one operation.

    Args:
      name: one of `OPERATIONS`.
      magnitude: 0 to 30.
      direction: 1 or -1, for operations that have two.
    """
    function, strongest, directed = OPERATIONS[name]
    strength = strongest * magnitude / 10 * (direction if directed else 1)
    return from_pillow(function(to_pillow(image), strength), image)


def randaugment(image: np.ndarray, rng: np.random.Generator, count: int = 2, magnitude: float = 9.0) -> np.ndarray:
    """The image [H, W, C] after `count` operations drawn at random, one after another."""
    names = list(OPERATIONS)
    for _ in range(count):
        name, direction = names[rng.integers(len(names))], int(rng.integers(2)) * 2 - 1
        image = apply(name, image, magnitude, direction)
    return image
