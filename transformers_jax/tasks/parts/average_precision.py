"""Average precision of boxes as COCO measures it, by the package `pycocotools`."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from transformers_jax.errors import UserError

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Of COCOeval's numbers, the first six: the mean over overlaps from 0.5 to 0.95, at 0.5, at 0.75, and of objects below 32², of
32² to 96², and above 96² pixels."""


def measured(
    truth: Sequence[tuple[tuple[int, int], Sequence[dict]]], found: Sequence[Sequence[dict]], labels: Sequence[str]
):
    """The package's COCOeval of all images; None where there is no object but in crowds.

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
    categories = [{"id": number, "name": name} for name, number in numbers.items()]

    def indexed(objects_of_images):
        annotations = []
        for i, objects in enumerate(objects_of_images):
            for thing in objects:
                box = _of_sides(thing["box"])
                annotations.append({
                    "id": len(annotations) + 1, "image_id": i + 1, "category_id": numbers[thing["label"]], "bbox": box,
                    "area": thing.get("area", box[2] * box[3]), "iscrowd": int(thing.get("crowd", False)),
                    "score": thing.get("score", 1.0),
                })  # fmt: skip
        index = COCO()
        index.dataset = {"images": images, "categories": categories, "annotations": annotations}
        index.createIndex()
        return index

    if all(thing.get("crowd", False) for _, objects in truth for thing in objects):
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(indexed(objects for _, objects in truth), indexed(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def scores(evaluation) -> dict[str, float]:
    """{"ap": …, "ap50": …, …} of `measured`; a size without objects is left out."""
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=False) if value >= 0}


def of_labels(evaluation, labels: Sequence[str]) -> dict[str, float]:
    """{"ap_cat": …, "ap50_cat": …, …} of each label of which there are objects."""
    found, precision = {}, evaluation.eval["precision"][..., 0, -1]  # [overlaps, recalls, L], of all sizes
    for k, name in enumerate(labels):
        if (precision[..., k] >= 0).any():
            found |= {f"ap_{name}": float(precision[..., k].mean()), f"ap50_{name}": float(precision[0, :, k].mean())}
    return found


def of_images(evaluation) -> list[float]:
    """Of each image, at an overlap of one half, the mean over its labels of the mean over a label's objects of the precision
    when the object is found, 0 for one that is not; NaN of an image without objects."""
    params = evaluation.params
    found: dict[int, list[float]] = {number: [] for number in params.imgIds}
    for of_label in evaluation.evalImgs:
        if of_label is None or of_label["aRng"] != params.areaRng[0]:
            continue
        objects = np.sum(np.asarray(of_label["gtIgnore"]) == 0)
        counted = np.asarray(of_label["dtIgnore"])[0] == 0  # best first
        right = np.asarray(of_label["dtMatches"])[0][counted] > 0
        if objects:
            precision = right.cumsum() / np.arange(1, len(right) + 1)
            found[of_label["image_id"]].append(float(precision[right].sum() / objects))
    return [float(np.mean(values)) if values else float("nan") for values in found.values()]


def _of_sides(box: Sequence[float]) -> list[float]:
    """Left, top, width and height of left, top, right and bottom."""
    left, top, right, bottom = map(float, box)
    return [left, top, right - left, bottom - top]
