"""Pictures of what `reporting.vision` finds out about a trained model of images.

Axes: B images, H height, W width, C channels, L layers, N heads, h rows and w columns of patches, P side of a patch.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from transformers_jax.reporting import vision
from transformers_jax.reporting.style import COLOURS, GREY, figure
from transformers_jax.reporting.vision import Shown
from transformers_jax.runs.experiment import Experiment

Draw = Callable[[Path], None]
MOST_POSITIONS = 8
"""Rows and columns of positions whose similarities are drawn: of more, some at equal steps."""


def pictures(run: Experiment) -> dict[str, Draw]:
    """Title → what draws the picture into a file, for each picture that the run's model and data allow.

    Raises:
      UserError: there is no trained model, or an image cannot be read.
    """
    variables, shown, found = run.trained(), vision.some(run), {}
    if wrong := vision.worst(run):
        found["Worst mistakes"] = functools.partial(draw_images, wrong)
    if shown:
        images = vision.stacked(shown)
        weights = vision.patch_attention(run, variables, images)
        if weights is not None:
            sizes, side = vision.grid(run, images), run.model.config.stride()
            found["Attention rollout"] = functools.partial(draw_rollout, shown, vision.looked_at(weights, sizes))
            apart = vision.distances(weights, sizes, side)
            found["Mean attention distance"] = functools.partial(draw_distances, apart, max(images.shape[1:3]))
        elif (apart := vision.window_distances(run, variables, images)) is not None:
            found["Mean attention distance"] = functools.partial(draw_distances, apart, max(images.shape[1:3]))
        if fields := vision.receptive_fields(run, variables, images):
            found["Effective receptive field"] = functools.partial(draw_fields, fields)
    if (near := vision.position_similarity(variables["params"])) is not None:
        found["Similarity of positions"] = functools.partial(draw_similarity, near)
    if (kernels := vision.filters(variables["params"])) is not None:
        found["Filters of patches"] = functools.partial(draw_filters, kernels)
    return found


def show(axes, image: np.ndarray, **options) -> None:
    """One image without axes, [H, W] or [H, W, C]; a grey one in greys."""
    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    axes.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 255} if image.ndim == 2 and not options else options))
    axes.set_axis_off()


def draw_images(shown: Sequence[Shown], path: Path) -> None:
    """Images side by side, six in a row, with their titles."""
    wide = min(6, max(3, len(shown)))
    high = math.ceil(len(shown) / wide)
    with figure(path, 1.8 * wide, 2.15 * high) as drawn:
        for axes, one in zip(drawn.subplots(high, wide, squeeze=False).flat, [*shown, *[None] * wide], strict=False):
            axes.set_axis_off()
            if one is not None:
                show(axes, one.image)
                title = "\n".join(_short(line) for line in one.title.split("\n"))
                axes.set_title(title, fontsize=7, fontweight="normal", pad=3)


def draw_rollout(shown: Sequence[Shown], shares: np.ndarray, path: Path) -> None:
    """Above the images, below them the patches' shares [B, h, w], the brighter the larger, each image by its own scale."""
    with figure(path, 1.7 * max(3, len(shown)), 3.9) as drawn:
        grid = drawn.subplots(2, len(shown), squeeze=False)
        for (above, below), one, share in zip(grid.T, shown, shares, strict=True):
            height, width = one.image.shape[:2]
            show(above, one.image)
            above.set_title(_short(one.title), fontsize=8, fontweight="normal", pad=3)
            show(below, one.image)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            below.imshow(share, cmap="inferno", alpha=0.65, extent=extent, interpolation="bilinear", vmin=0, vmax=share.max())


def draw_distances(apart: np.ndarray, size: int, path: Path) -> None:
    """A dot for each head [L, N] over its layer, pixels upwards, none for NaN; the line is the layers' mean."""
    layers, heads = apart.shape
    with figure(path, max(4.5, 0.35 * layers + 2.5), 3.6) as drawn:
        axes = drawn.subplots()
        numbers = np.arange(1, layers + 1)
        axes.plot(numbers, np.nanmean(apart, axis=1), color=GREY, linewidth=1, label="mean of heads")
        for head in range(heads):
            own = {"label": "a head"} if head == 0 else {}
            axes.plot(numbers, apart[:, head], "o", color=COLOURS["train"], markersize=5, alpha=0.7, **own)
        axes.set_xlabel("layer")
        axes.set_ylabel("mean attention distance, pixels")
        axes.set_title(f"images of {size} × {size} pixels", fontsize=9, fontweight="normal", color=GREY)
        axes.set_xticks(numbers if layers <= 16 else numbers[:: math.ceil(layers / 12)])
        axes.set_ylim(0, 1.08 * float(np.nanmax(apart)))
        axes.legend(fontsize=8)


def draw_similarity(near: np.ndarray, path: Path) -> None:
    """A panel for each position [h, w], where it is in the image: its cosine with every other one."""
    side = len(near)
    every = range(side) if side <= MOST_POSITIONS else np.linspace(0, side - 1, MOST_POSITIONS).round().astype(int)
    with figure(path, 6.8, 6.0) as drawn:
        panels = drawn.subplots(len(every), len(every), squeeze=False)
        for row, i in zip(panels, every, strict=True):
            for axes, j in zip(row, every, strict=True):
                image = axes.imshow(near[i, j], cmap="viridis", vmin=-1, vmax=1)
                axes.set_axis_off()
        bar = drawn.colorbar(image, ax=panels, fraction=0.03, pad=0.02, aspect=30)
        bar.set_label("cosine similarity", fontsize=9)
        drawn.supxlabel("column of the patch", fontsize=9, color=GREY)
        drawn.supylabel("row of the patch", fontsize=9, color=GREY)


def draw_filters(kernels: np.ndarray, path: Path) -> None:
    """Filters [n, P, P, C] of values from 0 to 1, the most important first, seven in a row."""
    wide = min(7, len(kernels))
    high = math.ceil(len(kernels) / wide)
    with figure(path, max(3.0, 0.95 * wide), max(2.0, 0.95 * high)) as drawn:
        for axes, kernel in zip(drawn.subplots(high, wide, squeeze=False).flat, [*kernels, *[None] * wide], strict=False):
            axes.set_axis_off()
            if kernel is not None:
                grey = kernel.shape[2] == 1
                show(axes, kernel, **({"cmap": "gray", "vmin": 0, "vmax": 1} if grey else {"interpolation": "nearest"}))


def draw_fields(fields: Sequence[np.ndarray], path: Path) -> None:
    """A panel for each stage [H, W], on a logarithmic scale of three decades."""
    from matplotlib.colors import LogNorm

    with figure(path, 2.3 * max(2, len(fields)) + 0.9, 2.7) as drawn:
        panels = drawn.subplots(1, len(fields), squeeze=False)[0]
        for number, (axes, field) in enumerate(zip(panels, fields, strict=True), start=1):
            image = axes.imshow(np.maximum(field, 1e-3), cmap="magma", norm=LogNorm(1e-3, 1))
            axes.set_axis_off()
            share = float((field > 0.05).mean())
            axes.set_title(f"stage {number}: {share:.0%} above 0.05", fontsize=9, fontweight="normal", pad=4)
        bar = drawn.colorbar(image, ax=panels, fraction=0.05, pad=0.02, shrink=0.8)
        bar.set_ticks([1e-3, 1e-2, 1e-1, 1], labels=["0.001", "0.01", "0.1", "1"])
        bar.set_label("gradient of the middle", fontsize=9)


def _short(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
