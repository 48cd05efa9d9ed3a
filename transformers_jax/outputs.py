"""What a model returns, by what it was asked for. A leaf.

Axes: B batch rows, T length, D model width, V vocabulary, L labels, C choices, P positions of an image's maps.
"""

from typing import NamedTuple

import jax


class LanguageModelOutput(NamedTuple):
    """Logits over tokens are `hidden @ table.T + bias`: left undone, so that the loss can take them in chunks.

    hidden: [B, T, D] final hidden states; of a masked language model only those of its masked positions, [B, M, D].
    table: [V, D] output embedding; a kernel [D, V] where a decoder is held in blocks, see `layers.embeddings.token_scores`.
    bias: [V], or None for none.
    """

    hidden: jax.Array
    table: jax.Array
    bias: jax.Array | None = None


class LabelOutput(NamedTuple):
    """Logits of labels.

    logits: [B, L] of whole rows, [B, T, L] of each position, [B, T, 2] of an answer's first and last position, [B, C] of
      choices.
    """

    logits: jax.Array


class EncoderOutput(NamedTuple):
    """An encoder's states, without a head.

    hidden: [B, T, D]; [B, C, T, D] where the batch has groups of C rows.
    pooled: [B, D] or [B, C, D], what the model makes of a row's first position; None for a model that has no such part.
    """

    hidden: jax.Array
    pooled: jax.Array | None = None


class PretrainingOutput(NamedTuple):
    """Masked language model, and how a row's second sentence relates to its first.

    lm: an `LanguageModelOutput` of the masked positions.
    next: [B, 2] logits: the second sentence follows the first (0), or not (1).
    """

    lm: LanguageModelOutput
    next: jax.Array


class DetectionOutput(NamedTuple):
    """Objects of images, at each position of several maps.

    logits: [B, P, L] of labels, each for itself.
    distances: [B, P, 4] pixels from the position to the left, upper, right and lower side of its object's box.
    middle: [B, P] logits, how near the position is to the middle of the box.
    centres: [P, 2] of the positions, across and down, in pixels.
    strides: [P] pixels from one position to the next.
    """

    logits: jax.Array
    distances: jax.Array
    middle: jax.Array
    centres: jax.Array
    strides: jax.Array
