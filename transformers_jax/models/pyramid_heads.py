"""Heads on the pyramid of a model of images: every stage's map, each half as fine as the one before it.

Axes: B batch rows, h rows and w columns of positions, E width of the decoder, L labels.
"""

from typing import Any

import flax.linen as nn
import jax

from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.projections import Linear
from transformers_jax.layers.resize import resize


class SegmentationHead(nn.Module):
    """A label for each position of the finest map: every map, normed and projected to one width, as large as the finest, and
    all added up, as a feature pyramid does (Lin et al. 2017, section 3; Kirillov et al. 2019, "Panoptic Feature Pyramids").

    config: an `image_encoder.Config` that has `decoder_width`, E.
    levels: maps of the pyramid.
    """

    config: Any
    levels: int

    def setup(self):
        c, numbers = self.config, self.config.numbers()
        self.norm = [c.norm() for _ in range(self.levels)]
        self.project = [Linear(c.decoder_width, ("embed", "mlp"), **numbers) for _ in range(self.levels)]
        self.fused_norm = c.norm()
        self.drop = Dropout(c.classifier_dropout)
        self.classifier = Linear(c.labels, ("embed", None), **numbers)

    def __call__(self, maps: list[jax.Array], deterministic: bool) -> jax.Array:
        """The maps of all stages, finest first → logits [B, h, w, L] of the finest one's positions."""
        size = maps[0].shape[1:3]
        parts = zip(self.project, self.norm, maps, strict=True)
        x = sum(resize(project(norm(x)), size, "bilinear") for project, norm, x in parts)  # [B, h, w, E]
        x = nn.gelu(self.fused_norm(x))
        return self.classifier(self.drop(x, deterministic=deterministic))
