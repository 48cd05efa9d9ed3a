"""What a vision model of Hugging Face wants to be done to an image: its preprocessor_config.json, read, applied, written.

Axes: H height, W width, C channels, 3 here.

The arithmetic is that of `transformers`' image processors on Pillow. What is done to uint8 pixels, resizing and cropping,
is apart from what is done to numbers, rescaling and normalising, so that the latter can happen on the device.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformers_jax.data.images.geometry import center_crop, resize, resize_shorter
from transformers_jax.errors import UserError
from transformers_jax.files import write_whole

FILE = "preprocessor_config.json"
WHOLE_FILE = "processor_config.json"
"""Where newer models keep the same, under "image_processor"."""
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By their number in `resample`."""
WARPED_FROM = 384
"""From this size on ConvNeXt's processor takes the whole image instead of its middle."""

HALF, IMAGENET_MEAN, IMAGENET_STD = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COMMON = dict(do_resize=True, do_rescale=True, rescale_factor=1 / 255, do_normalize=True, do_convert_rgb=None)
CROPPED = dict(do_center_crop=False, crop_size=None)
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": COMMON | CROPPED | dict(size=224, resample=2, image_mean=HALF, image_std=HALF),
    "DeiT": COMMON | dict(size=256, resample=3, do_center_crop=True, crop_size=224, image_mean=HALF, image_std=HALF),
    "Segformer": COMMON | dict(size=512, resample=2, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD, do_reduce_labels=False),
    "ConvNext": COMMON | CROPPED | dict(size=384, resample=3, crop_pct=224 / 256, image_mean=HALF, image_std=HALF),
}
"""Kind of processor → the keys that it reads and what they are where a file does not say. Swin has ViT's."""
OF_MODELS = {
    "vit": "ViT", "swin": "ViT", "swinv2": "ViT", "deit": "DeiT", "segformer": "Segformer", "convnext": "ConvNext",
    "convnextv2": "ConvNext",
}  # fmt: skip
"""model_type of config.json → kind, for files that do not name one."""
NO_MATTER = (
    "image_processor_type", "feature_extractor_type", "processor_class", "model_input_names", "default_to_square", "device",
    "data_format", "input_data_format", "return_tensors", "disable_grouping", "image_seq_length", "pad_size", "crop_size",
    "_valid_processor_keys", "transformers_version",
)  # fmt: skip
"""Keys that change no number, or none without another key that does."""
NO_CLASS = 255


@dataclass(frozen=True)
class ImageProcessing:
    """How an image becomes what a model reads. The fields are the file's keys; each kind uses those in `DEFAULTS`."""

    kind: str
    do_resize: bool
    size: Mapping[str, int]  # {"height", "width"}, or {"shortest_edge"}
    resample: int  # one of Pillow's filters, see `FILTERS`
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    do_convert_rgb: bool | None = None  # images are RGB here in any case
    do_center_crop: bool = False
    crop_size: Mapping[str, int] | None = None
    crop_pct: float = 1.0  # ConvNext: the side of the middle that is taken, as a share of the resized image's
    do_reduce_labels: bool = False  # Segformer: masks count classes from 1, 0 being none

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] of any size → float32 [height, width, C], the channels last."""
        return self.normalized(self.pixels(image))

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The resized and cropped image, uint8 [height, width, 3]; a grey one, [H, W, 1], becomes RGB."""
        image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
        if self.do_resize:
            image = self._resized(image, FILTERS[self.resample])
        if self.do_center_crop:
            image = center_crop(image, self.crop_size["height"], self.crop_size["width"])
        return image

    def normalized(self, pixels):
        """The numbers that the model reads, of uint8 arrays [..., C] of NumPy or JAX: float32 of the same shape."""
        numbers = pixels.astype(np.float32)
        if self.do_rescale:
            numbers = numbers * np.float32(self.rescale_factor)
        if self.do_normalize:
            numbers = (numbers - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return numbers

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """The classes of a mask, uint8 [H, W] → [height, width], as the image's pixels lie; 255 is none."""
        if self.do_reduce_labels:
            mask = np.where(mask == 0, NO_CLASS, mask - (mask < NO_CLASS)).astype(np.uint8)
        if self.do_resize:
            mask = self._resized(mask, "nearest")
        if self.do_center_crop:
            mask = center_crop(mask, self.crop_size["height"], self.crop_size["width"], rim=NO_CLASS)
        return mask

    def _resized(self, image: np.ndarray, interpolation: str) -> np.ndarray:
        """An image or a mask in the size that is wanted before any crop of its middle, ConvNeXt's own crop included."""
        edge = self.size.get("shortest_edge")
        if edge is None:
            return resize(image, self.size["height"], self.size["width"], interpolation)
        if self.kind != "ConvNext":
            return resize_shorter(image, edge, interpolation)
        if edge >= WARPED_FROM:
            return resize(image, edge, edge, interpolation)
        return center_crop(resize_shorter(image, int(edge / self.crop_pct), interpolation), edge, edge)  # never smaller

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str, model_type: str | None = None) -> "ImageProcessing":
        """The content of a file.

        Args:
          where: the file, for messages.
          model_type: the model's in its config.json, for files that do not name their kind.

        Raises:
          UserError: a kind or key that is not computed here, or a value that makes no sense; the message names it.
        """
        kind = _kind(content, where, model_type)
        content = dict(content)
        if kind == "Segformer" and "reduce_labels" in content:  # the key's old name
            content.setdefault("do_reduce_labels", content.pop("reduce_labels"))
        defaults = DEFAULTS[kind]
        for key in content:
            changes = content[key] is not None and content[key] is not False
            if key not in defaults and key not in NO_MATTER and changes:
                raise UserError(f"{where}: {key}={content[key]!r} is not computed here for {kind}ImageProcessor")
        given = {key: content[key] for key in defaults if content.get(key) is not None}
        values = {key: _checked(key, value, where) for key, value in (defaults | given).items()}
        square = content.get("default_to_square")
        values["size"] = _size("size", values["size"], where, kind != "ConvNext" if square is None else square)
        if kind == "ConvNext" and values["do_resize"] and "shortest_edge" not in values["size"]:
            raise UserError(f"{where}: size={content['size']!r}: ConvNextImageProcessor has {{'shortest_edge': pixels}}")
        if values.get("crop_size") is not None:
            values["crop_size"] = _size("crop_size", values["crop_size"], where, True)
        if values.get("do_center_crop") and "height" not in (values["crop_size"] or {}):
            raise UserError(f"{where}: do_center_crop needs crop_size, as in {{'height': 224, 'width': 224}}")
        return cls(kind=kind, **values)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "ImageProcessing":
        """Reads a model's folder, or the file itself.

        Raises:
          UserError: no such file, no JSON, or as `from_dict`.
        """
        path = Path(path)
        if path.is_dir():
            path = path / (WHOLE_FILE if not (path / FILE).exists() and (path / WHOLE_FILE).exists() else FILE)
        content, config = _json(path), path.with_name("config.json")
        if isinstance(content.get("image_processor"), dict):
            content = content["image_processor"]
        return cls.from_dict(content, str(path), _json(config).get("model_type") if config.exists() else None)

    def to_dict(self) -> dict[str, Any]:
        """The content of a file that `from_dict` and `transformers` read as this."""
        fields = {key: getattr(self, key) for key in DEFAULTS[self.kind]}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items() if value is not None}
        return {"image_processor_type": f"{self.kind}ImageProcessor", **plain}

    def write(self, folder: str | os.PathLike) -> None:
        """Writes preprocessor_config.json into a model's folder."""
        write_whole(Path(folder) / FILE, json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")


# -- what a file says --------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no file {path}, which says how images are prepared for the model") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content


def _kind(content: Mapping[str, Any], where: str, model_type: str | None) -> str:
    name = content.get("image_processor_type") or content.get("feature_extractor_type")
    if name is None:
        if model_type not in OF_MODELS:
            raise UserError(f"{where} has no image_processor_type; none is known for config.json's model_type={model_type!r}")
        return OF_MODELS[model_type]
    kind = str(name)
    for ending in "Fast", "Pil", "ImageProcessor", "FeatureExtractor":
        kind = kind.removesuffix(ending)
    if kind not in DEFAULTS:
        known = ", ".join(f"{known}ImageProcessor" for known in DEFAULTS)
        raise UserError(f"{where}: image_processor_type={name!r} is not one of {known}")
    return kind


def _checked(key: str, value: Any, where: str) -> Any:
    """The value of a key, one number for each of three channels where it is a mean or standard deviation."""
    wrong = UserError(f"{where}: {key}={value!r} makes no sense")
    if key.startswith("do_"):
        if value is not None and not isinstance(value, bool):
            raise wrong
    elif key == "resample":
        if isinstance(value, bool) or value not in range(len(FILTERS)):
            raise wrong
    elif key in ("rescale_factor", "crop_pct"):
        if not _is_number(value) or value <= 0 or key == "crop_pct" and value > 1:
            raise wrong
    elif key in ("image_mean", "image_std"):
        value = (value,) * 3 if _is_number(value) else value
        if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(_is_number, value)):
            raise wrong
        if key == "image_std" and min(value) <= 0:
            raise wrong
        return tuple(map(float, value))
    return value


def _size(key: str, value: Any, where: str, square: bool) -> dict[str, int]:
    """A size in the file's newer form, whatever its form was.

    Args:
      square: whether one number is both edges or the shorter one.
    """
    if isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    known = isinstance(value, Mapping) and set(value) in ({"height", "width"}, {"shortest_edge"})
    if not known or not all(isinstance(edge, int) and not isinstance(edge, bool) and edge > 0 for edge in value.values()):
        raise UserError(f"{where}: {key}={value!r} is not computed; give height and width, or shortest_edge, in pixels")
    return dict(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
