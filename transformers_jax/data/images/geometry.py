"""Sizes, crops and resizing of images, without chance: what augmentation and image processors share.

Axes: H height, W width, C channels, 1 or 3. Every image is uint8 [H, W, C], or one of Pillow's in RGB, which spares a copy of
all of a photograph of which a part is wanted; what is resized or cropped is an array.
"""

import numpy as np

from transformers_jax.data.images.pillow import Image

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX, "hamming": Image.Resampling.HAMMING,
}  # fmt: skip
"""Pillow's filters, whose support grows as an image shrinks, so that nothing aliases."""


def sides(image: np.ndarray | Image.Image) -> tuple[int, int]:
    """(H, W)."""
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


def to_pillow(image: np.ndarray | Image.Image) -> Image.Image:
    """Pillow's image of uint8 [H, W, C], or of a mask [H, W]."""
    if isinstance(image, Image.Image):
        return image
    return Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def from_pillow(image: Image.Image, like: np.ndarray | Image.Image) -> np.ndarray:
    """uint8 with as many axes and channels as `like`, the image that `image` was made of."""
    array = np.array(image)
    return array if isinstance(like, Image.Image) else array.reshape(*array.shape[:2], *like.shape[2:])  # [H, W, C]


def resize(image: np.ndarray | Image.Image, height: int, width: int, interpolation: str = "bicubic") -> np.ndarray:
    """The image in another size, [height, width, C], its proportions changed where they differ. Masks take "nearest"."""
    if sides(image) == (height, width):
        return np.array(image) if isinstance(image, Image.Image) else image
    return from_pillow(to_pillow(image).resize((width, height), INTERPOLATIONS[interpolation]), image)


def with_shorter_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """Height and width in the same proportions, the shorter being `edge` and the longer rounded down."""
    longer = int(edge * max(height, width) / min(height, width))
    return (longer, edge) if width <= height else (edge, longer)


def resize_shorter(image: np.ndarray | Image.Image, edge: int, interpolation: str = "bicubic") -> np.ndarray:
    """The image with its shorter edge of `edge` pixels, its proportions kept."""
    return resize(image, *with_shorter_edge(*sides(image), edge), interpolation)


def center_crop(image: np.ndarray, height: int, width: int, rim: int = 0) -> np.ndarray:
    """The middle [height, width, C]; an image that is smaller gets a rim of the value `rim`, black.

    Where no crop is exactly in the middle, it is the upper or left one of two, and the rim is wider above or on the left,
    which is how Hugging Face's image processors cut.
    """
    short = [max(0, size - had) for size, had in zip((height, width), image.shape[:2], strict=True)]
    if any(short):
        wide = [(missing - missing // 2, missing // 2) for missing in short]
        image = np.pad(image, [*wide, *((0, 0),) * (image.ndim - 2)], constant_values=rim)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def crop_resized(
    image: np.ndarray | Image.Image, box: tuple[int, int, int, int], size: int, interpolation: str = "bicubic"
) -> np.ndarray:
    """The pixels of a box (top, left, height, width) alone, resized to [size, size, C]."""
    top, left, height, width = box
    if isinstance(image, Image.Image):
        return resize(image.crop((left, top, left + width, top + height)), size, size, interpolation)
    return resize(image[top : top + height, left : left + width], size, size, interpolation)
