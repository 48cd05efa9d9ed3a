"""Heads on the pyramid of a model of images: every stage's map, each half as fine as the one before it.

Axes: B batch rows, h rows and w columns of positions, P positions of all maps, E width of the decoder, L labels.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.boxes import places
from transformers_jax.layers.convolution2d import Conv2d
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.projections import Linear
from transformers_jax.layers.resize import resize
from transformers_jax.layers.resnet import GroupNorm
from transformers_jax.outputs import DetectionOutput


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
        self.norm = [c.norm_layer() for _ in range(self.levels)]
        self.project = [Linear(c.decoder_width, ("embed", "mlp"), **numbers) for _ in range(self.levels)]
        self.fused_norm = c.norm_layer()
        self.drop = Dropout(c.classifier_dropout)
        self.classifier = Linear(c.labels, ("embed", None), **numbers)

    def __call__(self, maps: list[jax.Array], deterministic: bool) -> jax.Array:
        """The maps of all stages, finest first → logits [B, h, w, L] of the finest one's positions."""
        size = maps[0].shape[1:3]
        parts = zip(self.project, self.norm, maps, strict=True)
        x = sum(resize(project(norm(x)), size, "bilinear") for project, norm, x in parts)  # [B, h, w, E]
        x = nn.gelu(self.fused_norm(x))
        return self.classifier(self.drop(x, deterministic=deterministic))


PRIOR = 0.01
"""Of a label at any position, before training: else the many positions without an object would drown the others."""
EXTRA = 2
"""Maps beyond the coarsest, each half as fine, for large objects."""


class DetectionHead(nn.Module):
    """Objects: FCOS (Tian et al. 2019, "FCOS: Fully Convolutional One-Stage Object Detection").

    A feature pyramid of all maps but the finest, and of two coarser ones; on each map the same convolutions give labels, and
    others the distances from a box's sides and how near a position is to its middle (section 3.1 and figure 2).

    config: an `image_encoder.Config` that has `decoder_width`, E, and `decoder_layers`, convolutions in front of each output.
    levels: maps of the pyramid.
    stride: pixels of an image to a side of a position of the finest map.
    """

    config: Any
    levels: int
    stride: int

    def setup(self):
        c, numbers, kept = self.config, self.config.numbers(), range(self.levels - 1)
        self.norm = [c.norm_layer() for _ in kept]
        self.lateral = [Linear(c.decoder_width, ("embed", "mlp"), **numbers) for _ in kept]
        conv = dict(features=c.decoder_width, size=3, axes=("mlp", "embed"), **numbers)
        self.smooth = [Conv2d(padding=1, **conv) for _ in kept]
        self.coarser = [Conv2d(padding=1, stride=2, **conv) for _ in range(EXTRA)]
        types = dict(dtype=c.dtype, param_dtype=c.param_dtype)
        self.label_tower = [Conv2d(padding=1, **conv) for _ in range(c.decoder_layers)]
        self.label_norm = [GroupNorm(**types) for _ in range(c.decoder_layers)]
        self.box_tower = [Conv2d(padding=1, **conv) for _ in range(c.decoder_layers)]
        self.box_norm = [GroupNorm(**types) for _ in range(c.decoder_layers)]
        self.classifier = Conv2d(c.labels, 3, padding=1, axes=("embed", None), **numbers)
        self.box = Conv2d(5, 3, padding=1, axes=("embed", None), **numbers)
        ones = nn.with_logical_partitioning(nn.initializers.ones, (None,))
        self.scale = self.param("scale", ones, (self.levels - 1 + EXTRA,), c.param_dtype)
        prior = nn.with_logical_partitioning(nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR)), (None,))
        self.prior = self.param("prior", prior, (c.labels,), c.param_dtype)

    def __call__(self, maps: list[jax.Array]) -> DetectionOutput:
        """The maps of all stages, finest first → labels and boxes of all positions."""
        pyramid = self.pyramid(maps[1:])
        strides = [self.stride * 2 ** (i + 1) for i in range(len(pyramid))]
        centres, of_each = places([x.shape[1:3] for x in pyramid], strides)
        logits, distances, middle = zip(*map(self.level, range(len(pyramid)), pyramid, strides), strict=True)
        logits, distances, middle = (jnp.concatenate(parts, axis=1) for parts in (logits, distances, middle))
        return DetectionOutput(logits, distances, middle, jnp.asarray(centres), jnp.asarray(of_each))

    def pyramid(self, maps: list[jax.Array]) -> list[jax.Array]:
        """[B, h, w, D] of each stage → [B, h, w, E], finest first, and coarser ones."""
        wide = [lateral(norm(x)) for lateral, norm, x in zip(self.lateral, self.norm, maps, strict=True)]
        for i in reversed(range(len(wide) - 1)):
            wide[i] = wide[i] + resize(wide[i + 1], wide[i].shape[1:3], "bilinear")
        found = [smooth(x) for smooth, x in zip(self.smooth, wide, strict=True)]
        for coarser in self.coarser:
            found.append(coarser(nn.relu(found[-1])))
        return found

    def level(self, i: int, x: jax.Array, stride: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(logits [B, h · w, L], distances in pixels [B, h · w, 4], logits of the middle [B, h · w]) of map i."""
        labels = boxes = x
        for conv, norm in zip(self.label_tower, self.label_norm, strict=True):
            labels = nn.relu(norm(conv(labels)))
        for conv, norm in zip(self.box_tower, self.box_norm, strict=True):
            boxes = nn.relu(norm(conv(boxes)))
        logits = self.classifier(labels).astype(jnp.float32) + self.prior  # [B, h, w, L]
        found = self.box(boxes).astype(jnp.float32)  # [B, h, w, 5]
        distances = jnp.exp(jnp.clip(found[..., :4] * self.scale[i], -8, 8)) * stride
        rows = len(x)
        return logits.reshape(rows, -1, logits.shape[-1]), distances.reshape(rows, -1, 4), found[..., 4].reshape(rows, -1)
