"""Images with boxes around objects, from COCO's JSON and from Pascal VOC's XML.

Each example is {"image": path, "size": (height, width), "objects": [{"label": name, "box": (left, top, right, bottom), "crowd":
bool, "area": pixels}]}; a box is in pixels, the first pixel reaching from 0 to 1. Images without objects are examples, too. A
crowd is a box around many objects, or one that is hard to tell: it is not learned, and what is found there is not wrong.

Each example of "coco_masks" is {"image": path, "size", "mask": `Outlines`}: COCO's categories in the order of their numbers are
the classes 1, 2, …, and 0 is what belongs to no object; crowds have a class as single objects have.

Keys of config.data that are read here:
  train, validation, test: coco, coco_masks: a file of instances and the folder of its images, "instances_val2017.json,val2017".
    voc: a list of names, "VOC2012/ImageSets/Main/train.txt", beside whose ImageSets lie JPEGImages and Annotations.
  on_error: see `folders`.

The classes are COCO's categories in the order of their numbers, and Pascal VOC's of training in the order of their names.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from transformers_jax.data.images.decode import size_of
from transformers_jax.data.images.folders import Images, Mistakes
from transformers_jax.errors import UserError
from transformers_jax.files import read_text

BACKGROUND = "background"

# -- COCO --------------------------------------------------------------------------------------------------------------


def _coco(config, split: str) -> Images:
    mistakes = Mistakes(config, split)
    names, images = _instances(config, mistakes)
    source = Images(tuple(names.values()))
    for file, size, annotations in images:
        objects = []
        for annotation in annotations:
            left, top, width, height = annotation["bbox"]
            objects.append({
                "label": names[annotation["category_id"]], "box": (left, top, left + width, top + height),
                "crowd": bool(annotation.get("iscrowd", 0)), "area": annotation.get("area", width * height),
            })  # fmt: skip
        source.add({"image": file, "size": size, "objects": objects}, file)
    mistakes.told()
    return source


def _coco_masks(config, split: str) -> Images:
    mistakes = Mistakes(config, split)
    names, images = _instances(config, mistakes, shapes=True)
    numbers = {category: i + 1 for i, category in enumerate(names)}
    source = Images((BACKGROUND, *names.values()))
    for file, size, annotations in images:
        shapes = [(numbers[annotation["category_id"]], annotation["segmentation"]) for annotation in annotations]
        source.add({"image": file, "size": size, "mask": Outlines(size, shapes)}, file)
    mistakes.told()
    return source


class Outlines:
    """Outlines of objects, polygons or COCO's run lengths, which become a mask where NumPy makes an array of them: when an
    example is read.

    size: height and width.
    shapes: (class, "segmentation" of an annotation).
    """

    def __init__(self, size: tuple[int, int], shapes: list[tuple[int, list | dict]]):
        self.size, self.shapes = size, shapes

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """uint8 [h, w]: the class of the smallest object that a pixel belongs to, else 0.

        Raises:
          UserError: the package pycocotools is not installed.
        """
        try:
            from pycocotools import mask as rle
        except ImportError as error:
            raise UserError("masks of COCO need another package: pip install transformers_jax[images]") from error
        drawn = []
        for number, shape in self.shapes:
            runs = rle.frPyObjects(shape, *self.size) if isinstance(shape, list) or isinstance(shape["counts"], list) else shape
            drawn.append((number, rle.decode(rle.merge(runs) if isinstance(runs, list) else runs).astype(bool)))
        found = np.zeros(self.size, np.uint8)
        for number, inside in sorted(drawn, key=lambda pair: -pair[1].sum()):
            found[inside] = number
        return found if dtype is None else found.astype(dtype)


def _instances(config, mistakes: Mistakes, shapes: bool = False) -> tuple[dict, list[tuple[str, tuple, list]]]:
    """({number: name} of the categories, by number; (file, size, annotations) of each image) of a file of instances.

    shapes: their outlines are needed, too.
    """
    split = mistakes.key.rpartition(".")[2]
    given = [part.strip() for part in config.get(split, "").split(",") if part.strip()]
    if len(given) != 2:
        raise UserError(f"{mistakes.key}={config.get(split, '')!r}: give a JSON file and the folder of its images")
    path, folder = given
    content = _json(path, mistakes.key)
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    annotations, found = {}, []
    known = {image["id"]: image for image in content["images"] if "id" in image}
    for number, annotation in enumerate(content["annotations"]):
        problem = _problem(annotation, known, names) or (shapes and _problem_of_shape(annotation, known))
        if problem:
            mistakes.met(f"{path}, annotation {annotation.get('id', number)}: {problem}")
        else:
            annotations.setdefault(annotation["image_id"], []).append(annotation)
    for number, image in enumerate(content["images"]):
        if missing := [key for key in ("id", "file_name", "height", "width") if key not in image]:
            mistakes.met(f"{path}, image {image.get('id', number)}: no {missing[0]}")
            continue
        file, size = os.path.join(folder, image["file_name"]), (image["height"], image["width"])
        if not os.path.isfile(file):
            mistakes.met(f"{path}: no file {file}")
        elif mistakes.image_is_fine(file, file) and _is_so_large(file, size, mistakes):
            found.append((file, size, annotations.get(image["id"], [])))
    return {number: names[number] for number in sorted(names)}, found


def _json(path: str, key: str) -> dict:
    try:
        content = json.loads(read_text(path, key))
    except ValueError as error:
        raise UserError(f"{key}: {path} is no JSON: {error}") from error
    missing = [part for part in ("images", "annotations", "categories") if not isinstance(content, dict) or part not in content]
    if missing:
        raise UserError(f"{key}: {path} has no {missing[0]}: give a file of instances, as COCO has them")
    return content


def _problem(annotation: dict, images: dict, names: dict) -> str:
    """What is wrong with an annotation; "" for nothing."""
    image = images.get(annotation.get("image_id"))
    if image is None:
        return f"no image {annotation.get('image_id')!r}"
    if annotation.get("category_id") not in names:
        return f"no category {annotation.get('category_id')!r}"
    box = annotation.get("bbox", ())
    if len(box) != 4 or box[2] <= 0 or box[3] <= 0:
        return f"bbox {box!r} is not left, top, width and height, both above 0"
    width, height = image.get("width", math.inf), image.get("height", math.inf)
    if box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return f"bbox {box!r} is outside of {image.get('file_name')}, {width} wide and {height} high"
    return ""


def _problem_of_shape(annotation: dict, images: dict) -> str:
    """What is wrong with an annotation's outline; "" for nothing."""
    shape, image = annotation.get("segmentation"), images[annotation["image_id"]]
    polygons = shape if isinstance(shape, list) else []
    if polygons and all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in polygons):
        return ""
    if isinstance(shape, dict) and "counts" in shape and shape.get("size") == [image.get("height"), image.get("width")]:
        return ""
    return "its segmentation is neither polygons of three points or more nor run lengths of its image's size"


def _is_so_large(file: str, size: tuple[int, int], mistakes: Mistakes) -> bool:
    """Whether an image has the size of its annotations. Where mistakes are fatal, that is found when it is decoded."""
    if mistakes.skip and (real := size_of(file, where=file)) != size:
        mistakes.met(f"{file} has {real[0]}×{real[1]} pixels, and {size[0]}×{size[1]} by its annotations")
        return False
    return True


# -- Pascal VOC --------------------------------------------------------------------------------------------------------


def _voc(config, split: str) -> Images:
    mistakes = Mistakes(config, split)
    examples = list(_listed(config, split, mistakes))
    of_train = examples if split == "train" or not config.get("train") else _listed(config, "train", Mistakes(config, "train"))
    classes = tuple(sorted({thing["label"] for _, example in of_train for thing in example["objects"]}))
    source = Images(classes)
    for where, example in examples:
        unknown = [thing["label"] for thing in example["objects"] if thing["label"] not in classes]
        if unknown:
            mistakes.met(f"{where}: {unknown[0]!r} is a class that {config.train} has not: {', '.join(classes)}")
        elif not os.path.isfile(example["image"]):
            mistakes.met(f"{where}: no file {example['image']}")
        elif mistakes.image_is_fine(example["image"], where) and _is_so_large(example["image"], example["size"], mistakes):
            source.add(example, example["image"])
    mistakes.told()
    return source


def _listed(config, split: str, mistakes: Mistakes):
    """(annotation file, example) of each name in a split's list."""
    given = config.get(split, "")
    if not given or Path(given).suffix != ".txt" or "ImageSets" not in Path(given).parts:
        raise UserError(f"{mistakes.key}={given!r}: give a list of names, as in VOC2012/ImageSets/Main/{split}.txt")
    root = next(parent for parent in Path(given).parents if parent.name == "ImageSets").parent
    for line in read_text(given, mistakes.key).splitlines():
        if line.strip():
            path = root / "Annotations" / f"{line.split()[0]}.xml"
            try:
                yield str(path), _annotated(path, root)
            except (OSError, ElementTree.ParseError, ValueError) as error:
                mistakes.met(f"{path} is no annotation of Pascal VOC: {error}")


def _annotated(path: Path, root: Path) -> dict:
    """The example of an XML file, whose pixels count from 1, a box's last one being within."""
    tree = ElementTree.parse(path).getroot()
    width, height = (int(_text(tree, f"size/{side}")) for side in ("width", "height"))
    objects = []
    for thing in tree.iter("object"):
        left, top, right, bottom = (float(_text(thing, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        box = (max(0.0, left - 1), max(0.0, top - 1), min(right, float(width)), min(bottom, float(height)))
        area = (box[2] - box[0]) * (box[3] - box[1])
        if box[2] <= box[0] or box[3] <= box[1]:
            shown = f"a box from {left:g}, {top:g} to {right:g}, {bottom:g}"
            raise ValueError(f"{shown} has no area within an image {width} wide and {height} high")
        crowd = thing.findtext("difficult", "0").strip() == "1"
        objects.append({"label": _text(thing, "name"), "box": box, "crowd": crowd, "area": area})
    name = tree.findtext("filename") or f"{path.stem}.jpg"
    if not (root / "JPEGImages" / name).exists():  # copies are often renamed
        name = f"{path.stem}.jpg"
    return {"image": str(root / "JPEGImages" / name), "size": (height, width), "objects": objects}


def _text(tree: ElementTree.Element, place: str) -> str:
    """What stands at a place of XML; raises ValueError where there is nothing."""
    if not (text := (tree.findtext(place) or "").strip()):
        raise ValueError(f"no {place} in <{tree.tag}>")
    return text


KINDS: dict[str, Callable] = {"coco": _coco, "coco_masks": _coco_masks, "voc": _voc}
