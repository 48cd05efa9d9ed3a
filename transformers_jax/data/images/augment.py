"""Images changed at random in training, and brought to one size: functions of an image and a NumPy generator, nothing else.

Axes: H height, W width, C channels, 1 or 3. Every image is uint8 [H, W, C] and stays so; what `Augmentation` and
`random_resized_crop` are given may be Pillow's (see `geometry`).

Keys of config.data that `Augmentation` reads, each with its default:
  size=224: height and width of what a model gets, in pixels.
  resize=size: shorter edge to which an image is brought before its middle is cut out, 256 say.
  interpolation="bicubic": of every resizing; bilinear, nearest, lanczos, box and hamming are the others.
  crop="inception": how training crops.
    inception: a random part, see `inception_box`, resized (ImageNet).
    pad: a random place after a black rim of `padding` pixels was added (CIFAR).
    center: the middle, as in evaluation.
    squash: all of the image, resized without regard to its proportions, in training and in evaluation.
  crop_scale=(0.08, 1.0), crop_ratio=(3/4, 4/3): inception's share of the area, and its width over its height.
  padding=4: pixels of pad's rim.
  rotation=0.0: degrees that a training image is turned by at most, to either side, before it is cropped; its corners get black.
  flip=0.5: probability of a horizontal flip; 0 where left and right differ, as in digits and letters.
  colour=0.0: strength of the colour jitter: one number for brightness, contrast and saturation, or those three and the
    hue, (0.4, 0.4, 0.4, 0.1).
  randaugment_ops=0, randaugment_magnitude=9.0: see `randaugment.py`; 0 operations for none.
  erasing=0.0: probability of random erasing, 0.25 say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformers_jax.data.images import geometry
from transformers_jax.data.images.geometry import INTERPOLATIONS, from_pillow, resize_shorter, to_pillow
from transformers_jax.data.images.pillow import Image, ImageEnhance
from transformers_jax.data.images.randaugment import MOST, randaugment
from transformers_jax.errors import UserError

CROPS = ("inception", "pad", "center", "squash")
TRIES = 10  # boxes that are drawn until one fits


def random_box(
    height: int, width: int, rng: np.random.Generator, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int] | None:
    """A box (top, left, height, width) within an image; None where none of ten that were drawn fits.

    Args:
      scale: least and largest share of the image's area, drawn uniformly.
      ratio: least and largest width over height, its logarithm drawn uniformly.
    """
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return None


def inception_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random part of an image, (top, left, height, width), 8 to 100 % of its area (Szegedy et al. 2015, section 6).

    Where ten boxes do not fit, it is the largest one in the middle whose proportions are allowed.
    """
    if box := random_box(height, width, rng, scale, ratio):
        return box
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(image: np.ndarray, rng: np.random.Generator, size: int, interpolation: str = "bicubic", **box):
    """[size, size, C] of a random part of the image; `box` are `inception_box`'s scale and ratio."""
    return geometry.crop_resized(image, inception_box(*geometry.sides(image), rng, **box), size, interpolation)


def pad_and_crop(image: np.ndarray, rng: np.random.Generator, size: int, padding: int = 4) -> np.ndarray:
    """[size, size, C] at a random place of the image with a black rim (He et al. 2016, section 4.2).

    Raises:
      ValueError: the image with its rim is smaller than `size`.
    """
    rim = (padding, padding)
    image = np.pad(image, [rim, rim, (0, 0)])
    top, left = (int(rng.integers(0, edge - size + 1)) for edge in image.shape[:2])
    return image[top : top + size, left : left + size]


def random_rotation(image: np.ndarray, rng: np.random.Generator, degrees: float) -> np.ndarray:
    """The image turned about its middle by an angle drawn from [-degrees, degrees], its size kept; corners become black."""
    if not degrees:
        return image
    turned = to_pillow(image).rotate(rng.uniform(-degrees, degrees), Image.Resampling.BILINEAR)
    return from_pillow(turned, image)


def flip(image: np.ndarray) -> np.ndarray:
    """Left becomes right."""
    return image[:, ::-1]


def random_flip(image: np.ndarray, rng: np.random.Generator, probability: float = 0.5) -> np.ndarray:
    """The image or its mirror image."""
    return flip(image) if rng.random() < probability else image


def colour_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> np.ndarray:
    """Brightness, contrast, saturation and hue changed by random factors, in random order.

    Args:
      brightness, contrast, saturation: s draws a factor from [max(0, 1 - s), 1 + s]; 0 changes nothing.
      hue: h, at most 0.5, turns the circle of colours by a share drawn from [-h, h]. Grey images have no hue.
    """
    changes = [
        (kind, rng.uniform(max(0.0, 1 - strength), 1 + strength), strength)
        for kind, strength in (
            (ImageEnhance.Brightness, brightness),
            (ImageEnhance.Contrast, contrast),
            (ImageEnhance.Color, saturation),
        )
    ]
    changes.append((None, rng.uniform(-hue, hue), hue))
    changed = to_pillow(image)
    for i in rng.permutation(len(changes)):
        kind, factor, strength = changes[i]
        if strength:
            changed = kind(changed).enhance(factor) if kind else _turn_hue(changed, factor)
    return from_pillow(changed, image)


def _turn_hue(image: Image.Image, share: float) -> Image.Image:
    if image.mode == "L":
        return image
    hsv = np.array(image.convert("HSV"))  # [H, W, 3]
    hsv[:, :, 0] += np.uint8(round(share * 256) % 256)  # a circle of 256 hues
    return Image.fromarray(hsv, "HSV").convert("RGB")


def random_erasing(
    image: np.ndarray,
    rng: np.random.Generator,
    probability: float = 0.5,
    scale: Sequence[float] = (0.02, 0.4),
    ratio: Sequence[float] = (0.3, 1 / 0.3),
) -> np.ndarray:
    """A random box of the image becomes noise, 2 to 40 % of its area (Zhong et al. 2020, algorithm 1, RE-R).

    A probability of 0.25 is what DeiT, Swin and ConvNeXt train with. Where ten boxes do not fit nothing is erased.
    """
    if rng.random() >= probability or not (box := random_box(*image.shape[:2], rng, scale, ratio)):
        return image
    top, left, height, width = box
    erased = image.copy()
    erased[top : top + height, left : left + width] = rng.integers(0, 256, (height, width, image.shape[2]), np.uint8)
    return erased


@dataclass(frozen=True)
class Augmentation:
    """What is done to each image in training and in evaluation; the keys are those at the top of this file.

    Raises:
      UserError: a value is out of range; names the key of config.data.
    """

    size: int = 224
    resize: int = 0  # 0 is `size`
    interpolation: str = "bicubic"
    crop: str = "inception"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    rotation: float = 0.0
    flip: float = 0.5
    colour: float | tuple[float, ...] = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: float = 9.0
    erasing: float = 0.0

    @classmethod
    def from_config(cls, config) -> "Augmentation":
        """The one of config.data; a key that is missing has its default."""
        return cls(**{key: config[key] for key in cls.__dataclass_fields__ if key in config})

    def __post_init__(self):
        _whole(self, "size", 1)
        _whole(self, "resize", 0)
        _whole(self, "padding", 0)
        _whole(self, "randaugment_ops", 0)
        _number(self, "rotation", 0, 180)
        _number(self, "flip", 0, 1)
        _number(self, "erasing", 0, 1)
        _number(self, "randaugment_magnitude", 0, MOST)
        _among(self, "interpolation", INTERPOLATIONS)
        _among(self, "crop", CROPS)
        _range(self, "crop_scale", 1.0)
        _range(self, "crop_ratio", math.inf)
        if 0 < self.resize < self.size:
            raise UserError(f"config.data.resize={self.resize} is less than config.data.size={self.size}, cut out of it")
        fits = len(self.strengths) in (3, 4) and all(_is_number(strength) and strength >= 0 for strength in self.strengths)
        if not fits or max(self.strengths[3:], default=0) > 0.5:
            raise UserError(
                f"config.data.colour={self.colour!r}: give one strength from 0 on, or brightness, contrast, saturation, and "
                "hue, as in (0.4, 0.4, 0.4, 0.1), the hue up to 0.5"
            )

    @property
    def strengths(self) -> tuple[float, ...]:
        """The colour jitter's: brightness, contrast, saturation, and the hue where it is given."""
        return tuple(self.colour) if isinstance(self.colour, (tuple, list)) else (self.colour,) * 3

    def train(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An image [H, W, C] of any size, cropped, flipped and changed at random: [size, size, C]."""
        image = random_rotation(image, rng, self.rotation)
        if self.crop == "inception":
            box = dict(scale=self.crop_scale, ratio=self.crop_ratio)
            image = random_resized_crop(image, rng, self.size, self.interpolation, **box)
        elif self.crop == "pad":
            image = resize_shorter(image, self.resize or self.size, self.interpolation)
            image = pad_and_crop(image, rng, self.size, self.padding)
        else:
            image = self.evaluate(image)
        image = np.ascontiguousarray(random_flip(image, rng, self.flip))
        image = randaugment(image, rng, self.randaugment_ops, self.randaugment_magnitude)
        if any(self.strengths):
            image = colour_jitter(image, rng, *self.strengths)
        return random_erasing(image, rng, self.erasing)

    def evaluate(self, image: np.ndarray) -> np.ndarray:
        """An image [H, W, C] of any size: its middle, without chance: [size, size, C]."""
        if self.crop == "squash":
            return geometry.resize(image, self.size, self.size, self.interpolation)
        image = resize_shorter(image, self.resize or self.size, self.interpolation)
        return np.ascontiguousarray(geometry.center_crop(image, self.size, self.size))


# -- what a key may be -------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(owner: Augmentation, key: str, least: int) -> None:
    value = getattr(owner, key)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"config.data.{key}={value!r} is not a whole number from {least} on")


def _number(owner: Augmentation, key: str, least: float, most: float) -> None:
    value = getattr(owner, key)
    if not _is_number(value) or not least <= value <= most:
        raise UserError(f"config.data.{key}={value!r} is not a number from {least} to {most}")


def _among(owner: Augmentation, key: str, known) -> None:
    if getattr(owner, key) not in known:
        raise UserError(f"config.data.{key}={getattr(owner, key)!r} is not one of {', '.join(known)}")


def _range(owner: Augmentation, key: str, most: float) -> None:
    value = getattr(owner, key)
    fits = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value))
    if not fits or not 0 < value[0] <= value[1] <= most:
        bounds = "above 0" if most == math.inf else f"above 0 and up to {most:g}"
        example = getattr(Augmentation, key)
        raise UserError(f"config.data.{key}={value!r}: give the least and the largest, {bounds}, as in {example}")
