"""Images with a mask each, which has the class of every pixel: a folder of images and a folder of masks of the same names.

Each example is {"image": path, "mask": path, "size": (height, width)}; they are read when they are needed.

Keys of config.data that are read here:
  train, validation, test: image_masks: two folders, "camvid/train,camvid/trainannot". The mask of a/1.jpg is a/1.png: masks
    are in a format without loss, and a pixel's number, or in a palette that of its entry, is its class.
  on_error: see `folders`; "skip" also leaves out images without a mask, and with one of another size or with classes that the
    head has not.
"""

import os
from collections.abc import Callable

from transformers_jax.data.images.folders import SUFFIXES, Images, Mistakes, files_in
from transformers_jax.errors import UserError

NO_MASKS = (".jpg", ".jpeg", ".jpe", ".webp")
"""What is no mask: numbers are not what they were before they were saved."""


def _image_masks(config, split: str) -> Images:
    mistakes = Mistakes(config, split)
    folders = _folders_of(config, split)
    images = _by_stem(folders[0], SUFFIXES, mistakes)
    masks = _by_stem(folders[1], tuple(suffix for suffix in SUFFIXES if suffix not in NO_MASKS), mistakes)
    source = Images(())
    for stem, mask in masks.items():
        if stem not in images:
            mistakes.met(f"the mask {mask} has no image {os.path.join(folders[0], stem)}.jpg, or of another format")
    for stem, image in images.items():
        if stem not in masks:
            mistakes.met(f"{image} has no mask {os.path.join(folders[1], stem)}.png")
        elif size := _size_of_both(image, masks[stem], mistakes):
            source.add({"image": image, "mask": masks[stem], "size": size}, image)
    mistakes.told()
    return source


def _folders_of(config, split: str) -> list[str]:
    key, given = f"config.data.{split}", config.get(split, "")
    folders = [folder.strip() for folder in given.split(",") if folder.strip()]
    if len(folders) != 2:
        raise UserError(f"{key}={given!r}: give a folder of images and one of their masks, as in {key}=photos,masks")
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{key}: no folder {folder}")
    return folders


def _by_stem(folder: str, suffixes: tuple[str, ...], mistakes: Mistakes) -> dict[str, str]:
    """The files of a folder by their path in it without its suffix."""
    found = {}
    for path in files_in(folder, mistakes.key):
        stem, suffix = os.path.splitext(os.path.relpath(path, folder))
        if suffix.lower() not in suffixes:
            mistakes.met(f"{path} is none by its name ({', '.join(suffixes)}); remove or rename it")
        elif stem in found:
            mistakes.met(f"{path} has the name of {found[stem]}; keep one of them")
        else:
            found[stem] = path
    if not found:
        raise UserError(f"{mistakes.key}: {folder} has no files ({', '.join(suffixes)})")
    return found


def _size_of_both(image: str, mask: str, mistakes: Mistakes) -> tuple[int, int] | None:
    """Height and width of an image and its mask; None where something is wrong with them, which was told."""
    from transformers_jax.data.images.decode import decode_mask, size_of

    try:
        sizes = size_of(image, where=image), size_of(mask, where=mask)
        if sizes[0] != sizes[1]:
            shown = ["×".join(map(str, size)) for size in sizes]
            raise UserError(f"the mask {mask} has {shown[1]} pixels and its image {image} has {shown[0]}")
        if mistakes.skip:
            decode_mask(mask, where=mask)
    except UserError as error:
        mistakes.met(str(error))
        return None
    return sizes[0] if mistakes.image_is_fine(image, image) else None


KINDS: dict[str, Callable] = {"image_masks": _image_masks}
