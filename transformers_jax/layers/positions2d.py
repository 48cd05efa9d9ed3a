"""Where a patch of an image stands: sinusoids of its row and its column.

Axes: H rows, W columns, D model width.
"""

import numpy as np

from transformers_jax.errors import UserError


def sinusoidal_2d(height: int, width: int, features: int) -> np.ndarray:
    """Position vectors [H, W, D] float32: sines and cosines of the column, then of the row, each D / 4 of them, at angular
    frequencies from 1 down to 1e-4 (Beyer, Zhai, Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k").

    Raises:
      UserError: D is no multiple of 4.
    """
    if features % 4:
        raise UserError(f"positions of rows and columns want a width that is a multiple of 4, not {features}")
    quarter = features // 4
    frequencies = 10_000.0 ** (-np.arange(quarter) / max(quarter - 1, 1))  # [D / 4]
    rows, columns = np.arange(height)[:, None] * frequencies, np.arange(width)[:, None] * frequencies  # [H or W, D / 4]
    of_row = np.broadcast_to(np.concatenate([np.sin(rows), np.cos(rows)], axis=1)[:, None], (height, width, 2 * quarter))
    of_column = np.broadcast_to(np.concatenate([np.sin(columns), np.cos(columns)], axis=1), (height, width, 2 * quarter))
    return np.concatenate([of_column, of_row], axis=-1).astype(np.float32)
