"""A file of an image → its pixels, uint8 [H, W, 3]; a file of a mask → its class numbers, uint8 [H, W].

Axes: H height, W width.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from transformers_jax.data.images.pillow import Image, ImageOps
from transformers_jax.errors import UserError

WHITE = (255, 255, 255, 255)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of a grey image with 16 bits a pixel."""
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag of the orientation, and its values of photographs that lie on a side."""
TAIL = 64  # bytes at the end of a file that are searched for its last marker


def decode(image: str | os.PathLike | bytes, *, where: str, size: int = 0) -> np.ndarray:
    """The pixels of an image of any format that Pillow reads: JPEG, PNG, WebP, BMP, GIF, TIFF …

    A photograph is turned as its EXIF orientation says. Transparent pixels are laid over white. Grey, palette and CMYK
    images become RGB. Of 16 bits a pixel the upper 8 are kept. Of several frames the first is read.

    Args:
      image: a path, or the content of a file.
      where: for messages, which file this is: its path, or "list.csv, line 3".
      size: the shorter edge that is wanted in the end. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size, as small as
        its shorter edge allows without falling below `size`, which takes less time. Its pixels differ a little from those
        of the whole image. 0 decodes the whole.

    Returns:
      uint8 [H, W, 3], the caller's own.

    Raises:
      UserError: the file is missing, no image, cut short, or has 32-bit pixels; the message names `where`.
    """
    return _read(image, where, lambda opened: _rgb(_drafted(opened, size)))


def opened(image: str | os.PathLike | bytes, *, where: str, size: int = 0) -> Image.Image:
    """As `decode`, an image of Pillow's in RGB: for who wants a part of it."""
    return _read(image, where, lambda found: _pillow_rgb(_drafted(found, size)))


def decode_mask(mask: str | os.PathLike | bytes, *, where: str) -> np.ndarray:
    """The class numbers of a segmentation mask, a PNG (or another format without loss) with a palette or in grey.

    The number of a palette's entry is the class, whatever its colour; in a grey mask the grey value is.

    Args:
      mask: a path, or the content of a file.
      where: for messages, which file this is.

    Returns:
      uint8 [H, W], the caller's own. 255 usually means "no class".

    Raises:
      UserError: the file is missing or damaged; it has colours or transparency in place of numbers; it is a JPEG, whose
        numbers are not those that were saved; a number is above 255.
    """
    return _read(mask, where, _numbers)


def size_of(image: str | os.PathLike | bytes, *, where: str) -> tuple[int, int]:
    """(height, width) of an image or a mask as `decode` gives it; only the beginning of the file is read.

    Raises:
      UserError: the file is missing or no image; the message names `where`.
    """

    def size(opened: Image.Image) -> tuple[int, int]:
        width, height = opened.size
        return (width, height) if opened.getexif().get(ORIENTATION) in TURNED else (height, width)

    return _read(image, where, size)


def check(path: str | os.PathLike, *, where: str) -> None:
    """Reads enough of a file to tell an image from something else and a whole one from one that was cut short.

    Only the beginning and the end of a JPEG or PNG are read where both are in order, otherwise all of the file.

    Raises:
      UserError: as `decode` does.
    """

    def checked(opened: Image.Image) -> np.ndarray | None:
        last = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(opened.format)
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            tail = file.read()
        return None if last is not None and last in tail else _rgb(opened)

    _read(path, where, checked)


def _read(image: str | os.PathLike | bytes, where: str, read: Callable):
    """What `read` makes of the opened image; whatever goes wrong inside a decoder is a mistake in the file."""
    named = where if isinstance(image, bytes) or str(image) in where else f"{where}: {image}"
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else Path(image)) as opened:
            return read(opened)
    except UserError as error:
        raise UserError(f"{named} {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{named}: no such file") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{named} is no image that can be read; replace or remove it") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged files
        raise UserError(f"{named} cannot be decoded, {str(error) or type(error).__name__}; replace or remove it") from error


def _drafted(opened: Image.Image, size: int) -> Image.Image:
    """The image, to be decoded at a fraction of its size where it is a JPEG."""
    if size and opened.format == "JPEG":
        opened.draft(None, (size, size))
    return opened


def _turned(opened: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; EXIF that cannot be read says nothing."""
    opened.load()
    try:
        ImageOps.exif_transpose(opened, in_place=True)
    except Exception:
        pass
    return opened


def _rgb(opened: Image.Image) -> np.ndarray:
    return np.array(_pillow_rgb(opened))  # [H, W, 3]


def _pillow_rgb(opened: Image.Image) -> Image.Image:
    if opened.mode in SIXTEEN_BITS:
        return Image.fromarray(_rgb_of_sixteen_bits(opened))
    if opened.mode in ("I", "F"):
        raise UserError("has pixels of 32 bits, whose range is not known; save it with 8 or 16 bits a channel")
    image = _turned(opened)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _rgb_of_sixteen_bits(opened: Image.Image) -> np.ndarray:
    """The upper 8 bits of each grey value, which is what Pillow takes of 16-bit colours."""
    grey = np.array(_turned(opened)).astype(np.int64)  # [H, W]
    eight = (grey >> 8).astype(np.uint8)
    transparent = opened.info.get("transparency")
    if isinstance(transparent, int):
        eight[grey == transparent] = 255
    return np.repeat(eight[:, :, None], 3, axis=2)  # [H, W, 3]


def _numbers(opened: Image.Image) -> np.ndarray:
    if opened.format == "JPEG":
        raise UserError("is a JPEG, which changes the class numbers of a mask; save masks as PNG")
    if opened.mode not in ("1", "L", "P", *SIXTEEN_BITS):
        raise UserError(f"has {opened.mode} pixels where a mask has one class number a pixel; save it with a palette or grey")
    raw = str(opened.tile[0][3]) if opened.format == "PNG" and opened.tile else ""  # how pixels lie in the file
    numbers = np.array(_turned(opened))  # [H, W]
    if numbers.size and numbers.max() > 255:
        raise UserError(f"has the class number {numbers.max()}; a mask has 0 to 255")
    # Pillow spreads grey values of 2 and 4 bits over 0 to 255.
    return numbers.astype(np.uint8) // np.uint8({"L;2": 85, "L;4": 17}.get(raw, 1))
