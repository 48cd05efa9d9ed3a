"""Average precision of boxes as COCO measures it, by the package `pycocotools`."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from transformers_jax.errors import UserError

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Of COCOeval's numbers, the first six: the mean over overlaps from 0.5 to 0.95, at 0.5, at 0.75, and of objects below 32², of
32² to 96², and above 96² pixels."""


def scores(
    truth: Sequence[tuple[tuple[int, int], Sequence[dict]]], found: Sequence[Sequence[dict]], labels: Sequence[str]
) -> dict[str, float]:
    """{"ap": …, "ap50": …, …}; a size without objects is left out.

    What is found in a crowd is not wrong, as often as it may be.

    Args:
      truth: (height and width, objects {"label", "box", "crowd", "area"}) of each image.
      found: objects {"label", "box", "score"} of each image.
      labels: all that there are.

    Raises:
      UserError: the package is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError("scores of boxes need another package: pip install transformers_jax[images]") from error
    numbers = {name: i + 1 for i, name in enumerate(labels)}
    images = [{"id": i + 1, "height": size[0], "width": size[1]} for i, (size, _) in enumerate(truth)]
    annotations = []
    for i, (_, objects) in enumerate(truth):
        for thing in objects:
            box = _of_sides(thing["box"])
            annotations.append({
                "id": len(annotations) + 1, "image_id": i + 1, "category_id": numbers[thing["label"]], "bbox": box,
                "area": thing.get("area", box[2] * box[3]), "iscrowd": int(thing.get("crowd", False)),
            })  # fmt: skip
    results = [
        {"image_id": i + 1, "category_id": numbers[thing["label"]], "bbox": _of_sides(thing["box"]), "score": thing["score"]}
        for i, objects in enumerate(found)
        for thing in objects
    ]
    if not any(not annotation["iscrowd"] for annotation in annotations):
        return {}
    if not results:
        return {name: 0.0 for name in NAMES[:3]}
    with contextlib.redirect_stdout(io.StringIO()):
        there = COCO()
        there.dataset = {"images": images, "annotations": annotations, "info": {}}
        there.dataset["categories"] = [{"id": number, "name": name} for name, number in numbers.items()]
        there.createIndex()
        measured = COCOeval(there, there.loadRes(results), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return {name: float(value) for name, value in zip(NAMES, measured.stats, strict=False) if value >= 0 and np.isfinite(value)}


def _of_sides(box: Sequence[float]) -> list[float]:
    """Left, top, width and height of left, top, right and bottom."""
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]
