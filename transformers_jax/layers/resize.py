"""Images and maps of features in another size, as PyTorch's `interpolate` with `align_corners=False` gives them.

Axes: H height, W width, C channels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

CUBIC = -0.75
"""The free parameter of the cubic, as PyTorch and OpenCV have it (Keys 1981 and Pillow: -0.5)."""


def resize(x: jax.Array, size: tuple[int, int], method: str) -> jax.Array:
    """x [..., H, W, C] → [..., *size, C], in the dtype of x.

    Args:
      method: "bilinear" or "bicubic". Where the result is smaller, values are picked, not averaged.
    """
    if x.shape[-3:-1] == tuple(size):
        return x
    down, across = (weights(old, new, method).astype(x.dtype) for old, new in zip(x.shape[-3:-1], size, strict=True))
    return jnp.einsum("ih,...hwc,jw->...ijc", down, x, across)


@functools.cache
def weights(old: int, new: int, method: str) -> np.ndarray:
    """How much of each of `old` values goes into each of `new`, [new, old] float32.

    Value i of the new ones stands at (i + 0.5) · old / new - 0.5 of the old; beyond the border the outermost is repeated.
    """
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(place)
    found = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        distance = np.abs(place - first - offset)
        share = _cubic(distance) if method == "bicubic" else np.maximum(1 - distance, 0)
        column = np.clip(first + offset, 0, old - 1).astype(int)
        np.add.at(found, (np.arange(new), column), share)
    return found.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981, equation 4) at distances up to 2."""
    a, d = CUBIC, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, far)
