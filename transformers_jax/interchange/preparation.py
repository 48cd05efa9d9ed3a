"""How a folder of `transformers` and a run's config.data say how an image becomes what a model reads, one from the other.

A folder says it in preprocessor_config.json (see `data.images.processing`), a run in the keys of config.data that
`data.images.augment` reads. What evaluation does is the same on both sides; what training does, a folder does not say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers_jax.data.images import processing
from transformers_jax.data.images.processing import FILTERS, WARPED_FROM, ImageProcessing
from transformers_jax.errors import UserError
from transformers_jax.models.name_map import NameMap


def is_said(folder: Path) -> bool:
    """Whether a folder says it."""
    return any((folder / file).exists() for file in (processing.FILE, processing.WHOLE_FILE))


def keys(folder: Path) -> dict[str, Any]:
    """Keys of config.data with which evaluation does as a folder says; none where it says nothing.

    Raises:
      UserError: it says something that config.data has no keys for.
    """
    if not is_said(folder):
        return {}
    said = ImageProcessing.read(folder)
    if not said.do_resize:
        raise UserError(f"{folder}: do_resize=False: images of one size are wanted here")
    edge, found = said.size.get("shortest_edge"), {"interpolation": FILTERS[said.resample]}
    if said.kind == "ConvNext":
        if edge >= WARPED_FROM:
            return found | {"size": edge, "crop": "squash"}
        return found | {"size": edge, "resize": int(edge / said.crop_pct)}
    if said.do_center_crop and edge:
        height, width = said.crop_size["height"], said.crop_size["width"]
        if height == width <= edge:
            return found | {"size": height, "resize": edge}
    elif not said.do_center_crop and not edge and said.size["height"] == said.size["width"]:
        return found | {"size": said.size["height"], "crop": "squash"}
    crop = f", crop_size={dict(said.crop_size)}" if said.do_center_crop else ""
    raise UserError(
        f"{folder}: size={dict(said.size)}{crop}: what is computed here is a square, which all of an image is squeezed into, "
        "or the middle of one whose shorter edge is that size"
    )


def squeezed(folder: Path) -> dict[str, Any]:
    """Keys of config.data by which all of an image is brought to the size that a folder says, of any proportions; none where it
    says nothing.

    Raises:
      UserError: it says something else than that.
    """
    if not is_said(folder):
        return {}
    said = ImageProcessing.read(folder)
    if not said.do_resize or said.do_center_crop or "height" not in said.size:
        raise UserError(f"{folder}: do_resize={said.do_resize}, size={dict(said.size)}: images are squeezed into one size here")
    size = said.size["height"], said.size["width"]
    return {"size": size, "crop": "squash", "interpolation": FILTERS[said.resample]}


def first_class(folder: Path) -> int:
    """The number of the first class in masks: 1 where a folder says that 0 is none."""
    return int(is_said(folder) and ImageProcessing.read(folder).do_reduce_labels)


def of_run(config: Any, names: NameMap, data: Mapping[str, Any] | None = None) -> ImageProcessing:
    """How images are prepared for a model: as config.data says, or without it as its family does, to the model's own size.

    Args:
      config: the model's, of which image_size, mean and std are read.
      names: of its family.
      data: config.data of a run that gives images one label.
    """
    kind = processing.OF_MODELS[names.model_type]
    size, data = config.image_size, data or {}
    content: dict[str, Any] = {"size": {"shortest_edge": size} if kind == "ConvNext" else {"height": size, "width": size}}
    if data:
        size, squash = data["size"], data.get("crop") == "squash"
        resize = size if squash else data.get("resize") or size
        content["resample"] = FILTERS.index(data.get("interpolation", "bicubic"))
        if kind == "ConvNext" and squash == (size >= WARPED_FROM) and int(size / (size / resize)) == resize:
            content |= {"size": {"shortest_edge": size}, "crop_pct": size / resize}
        elif squash:
            kind, content["size"] = "Segformer" if kind == "Segformer" else "ViT", {"height": size, "width": size}
        else:
            kind, content["size"] = "ViT", {"shortest_edge": resize}
            content |= {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    content["image_processor_type"] = f"{kind}ImageProcessor"
    for name in ("mean", "std"):
        value = getattr(config, name)
        content[f"image_{name}"] = list(value * 3 if len(value) == 1 else value)
    return ImageProcessing.from_dict(content, "config.data")
