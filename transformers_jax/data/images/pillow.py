"""Pillow, which is an optional package: whoever needs it imports it from here.

Raises:
  UserError: it is not installed, when this module is imported.
"""

from transformers_jax.errors import UserError

try:
    from PIL import Image, ImageEnhance, ImageOps
except ImportError as error:
    raise UserError("reading images needs another package: pip install transformers_jax[images]") from error

__all__ = ["Image", "ImageEnhance", "ImageOps"]
