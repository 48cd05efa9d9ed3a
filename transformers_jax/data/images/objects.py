"""Images with boxes around objects, from COCO's JSON and from Pascal VOC's XML.

Each example is {"image": path, "size": (height, width), "objects": [{"label": name, "box": (left, top, right, bottom), "crowd":
bool, "area": pixels}]}; a box is in pixels, the first pixel reaching from 0 to 1. Images without objects are examples, too. A
crowd is a box around many objects, or one that is hard to tell: it is not learned, and what is found there is not wrong.

Keys of config.data that are read here:
  train, validation, test: coco: a file of instances and the folder of its images, "instances_val2017.json,val2017". voc: a list
    of names, "VOC2012/ImageSets/Main/train.txt", beside whose ImageSets lie JPEGImages and Annotations.
  on_error: see `folders`.

The classes are COCO's categories in the order of their numbers, and Pascal VOC's of training in the order of their names.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from transformers_jax.data.images.folders import Images, Mistakes
from transformers_jax.errors import UserError
from transformers_jax.files import read_text

# -- COCO --------------------------------------------------------------------------------------------------------------


def _coco(config, split: str) -> Images:
    mistakes = Mistakes(config, split)
    given = [part.strip() for part in config.get(split, "").split(",") if part.strip()]
    if len(given) != 2:
        raise UserError(f"{mistakes.key}={config.get(split, '')!r}: give a JSON file and the folder of its images")
    path, folder = given
    content = _json(path, mistakes.key)
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    source = Images(tuple(names[number] for number in sorted(names)))
    objects: dict[int, list] = {}
    known = {image["id"]: image for image in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        where = f"{path}, annotation {annotation.get('id', number)}"
        problem = _problem(annotation, known, names)
        if problem:
            mistakes.met(f"{where}: {problem}")
            continue
        left, top, width, height = annotation["bbox"]
        objects.setdefault(annotation["image_id"], []).append({
            "label": names[annotation["category_id"]], "box": (left, top, left + width, top + height),
            "crowd": bool(annotation.get("iscrowd", 0)), "area": annotation.get("area", width * height),
        })  # fmt: skip
    for image in content["images"]:
        file = os.path.join(folder, image["file_name"])
        if not os.path.isfile(file):
            mistakes.met(f"{path}: no file {file}")
        elif mistakes.image_is_fine(file, file):
            found = objects.get(image["id"], [])
            source.add({"image": file, "size": (image["height"], image["width"]), "objects": found}, file)
    mistakes.told()
    return source


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
    if annotation.get("image_id") not in images:
        return f"no image {annotation.get('image_id')!r}"
    if annotation.get("category_id") not in names:
        return f"no category {annotation.get('category_id')!r}"
    box = annotation.get("bbox", ())
    if len(box) != 4 or box[2] <= 0 or box[3] <= 0:
        return f"bbox {box!r} is not left, top, width and height, both above 0"
    return ""


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
        elif mistakes.image_is_fine(example["image"], where):
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
            except (OSError, ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
                mistakes.met(f"{path} is no annotation of Pascal VOC: {error}")


def _annotated(path: Path, root: Path) -> dict:
    """The example of an XML file, whose pixels count from 1, a box's last one being within."""
    tree = ElementTree.parse(path).getroot()
    width, height = (int(tree.find(f"size/{side}").text) for side in ("width", "height"))
    objects = []
    for thing in tree.iter("object"):
        corners = (float(thing.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax"))
        left, top, right, bottom = corners
        box = (max(0.0, left - 1), max(0.0, top - 1), min(right, float(width)), min(bottom, float(height)))
        area = (box[2] - box[0]) * (box[3] - box[1])
        if box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"a box from {left:g}, {top:g} to {right:g}, {bottom:g} has no area")
        crowd = thing.findtext("difficult", "0").strip() == "1"
        objects.append({"label": thing.find("name").text.strip(), "box": box, "crowd": crowd, "area": area})
    name = tree.findtext("filename") or f"{path.stem}.jpg"
    if not (root / "JPEGImages" / name).exists():  # copies are often renamed
        name = f"{path.stem}.jpg"
    return {"image": str(root / "JPEGImages" / name), "size": (height, width), "objects": objects}


KINDS: dict[str, Callable] = {"coco": _coco, "voc": _voc}
