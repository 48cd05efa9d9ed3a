"""What finetuning changed about the kernels of a pretrained model, and what quantisation makes of them, as pictures.

LoRA's premise is that the change W_tuned − W is of low rank (Hu et al. 2021, sections 4.1 and 7.2): its singular values after
full finetuning show how much of it parts of rank r could have had. And one outlier ruins a constant that all numbers of a
kernel share, but not those of blocks without it (Dettmers et al. 2022, section 2.1).

Axes: A inputs, C outputs, K kernels of a layer, n = min(A, C) singular values.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from transformers_jax import parameters
from transformers_jax.finetuning import trainable
from transformers_jax.finetuning.method import places_of
from transformers_jax.interchange import stacking
from transformers_jax.layers.places import KernelPlace
from transformers_jax.layers.quantized import dequantize, quantize
from transformers_jax.reporting.style import COLOURS, GREY, OTHERS, figure
from transformers_jax.runs import initialise
from transformers_jax.runs.experiment import Experiment

RANKS = (1, 4, 8, 16)
LARGEST = 2048
"""Rows or columns of the largest kernel whose singular values are computed."""
OUTLIERS = (1, 2, 4, 8, 16, 32, 64, 128)
"""By how much the outlier is larger than the largest number of the kernel."""
_LAYER = re.compile(r"(^|/)layer_(\d+)/")


def pictures(run: Experiment) -> dict[str, Callable[[Path], None]]:
    """Title → what draws the picture into a file: the changes after full finetuning, and the quantisation of a base.

    Raises:
      UserError: there is no trained model, or what it began with cannot be read.
    """
    options = run.config.get("finetuning", {})
    if not options.get("init_from") or options.get("fresh"):
        return {}
    found, chosen = {}, trainable.options(run.config)
    if chosen.method == "full" and not run.beside:
        before = pretrained_kernels(run)
        if changes := spectra(before, kernels_of(run, run.trained()["params"])):
            found["Singular values of what was learned"] = functools.partial(draw_spectra, changes)
    elif chosen.quantization:
        name, kernel = next(iter(pretrained_kernels(run).items()))
        found["An outlier in a quantised kernel"] = functools.partial(draw_outlier, name, outlier_errors(np.asarray(kernel)))
    return found


def kernels_of(run: Experiment, params: Mapping) -> dict[str, Any]:
    """The kernels of a model's layers as matrices [A, C] by name, layers apart; those that are too large are left out."""
    places, found = places_of(run.model), {}
    for name, leaf in stacking.separate(parameters.flat(params)).items():
        place = places.get(name) or places.get(_LAYER.sub(r"\1layer/", name))
        if isinstance(place, KernelPlace) and _LAYER.search(name) and math.prod(place.shape) == leaf.size:
            matrix = math.prod(place.shape[: place.inputs]), math.prod(place.shape[place.inputs :])
            if max(matrix) <= LARGEST:
                found[name] = np.asarray(leaf, np.float32).reshape(matrix)
    return found


def pretrained_kernels(run: Experiment) -> dict[str, Any]:
    """The same of what the run began with."""
    return kernels_of(run, initialise.pretrained(run, run.abstract_state(optax.identity())))


# -- what was learned --------------------------------------------------------------------------------------------------


def spectra(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Singular values [n] of each kernel's change, from the largest; kernels that did not change are left out."""
    changes = {name: after[name] - before[name] for name in before if name in after}
    return {name: np.linalg.svd(change, compute_uv=False) for name, change in changes.items() if change.any()}


def energy(values: np.ndarray, rank: int) -> float:
    """The share of Σ σ² that the `rank` largest of the singular values [n] have: of the change, in the squared norm."""
    squares = values.astype(np.float64) ** 2
    return float(squares[:rank].sum() / squares.sum())


def by_layer(changes: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The singular values of each layer's kernels, layers in their order: "2", or "stage_0 2" where there are stages."""
    found: dict[str, list[np.ndarray]] = {}
    for name, values in changes.items():
        match = _LAYER.search(name)
        parent = name[: match.start()].rpartition("/")[2]
        found.setdefault((parent, int(match[2])), []).append(values)
    several = len({parent for parent, _ in found}) > 1
    return {f"{parent} {number}" if several else str(number): found[parent, number] for parent, number in sorted(found)}


def draw_spectra(changes: Mapping[str, np.ndarray], path: Path) -> None:
    """On the left the singular values over the largest, a line a layer, the mean of its kernels; on the right the share of
    energy at each of RANKS by layer."""
    from matplotlib import colormaps

    layers = by_layer(changes)
    with figure(path, 9.6, 3.8) as drawn:
        left, right = drawn.subplots(1, 2)
        shortest = min(len(values) for own in layers.values() for values in own)
        for i, (layer, own) in enumerate(layers.items()):
            shade = colormaps["viridis"](0.9 * i / max(1, len(layers) - 1))
            curve = np.mean([values[:shortest] / values[0] for values in own], axis=0)  # [n]
            edge = {"label": f"layer {layer}"} if i in (0, len(layers) - 1) else {}
            left.plot(np.arange(1, shortest + 1), np.maximum(curve, 1e-6), color=shade, linewidth=1.2, **edge)
        left.set_yscale("log")
        left.yaxis.set_major_formatter("{x:g}")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.set_xlabel("number of the singular value")
        left.set_ylabel("over the largest")
        left.set_title("singular values of W_tuned − W", fontsize=9, fontweight="normal", color=GREY)
        left.legend(fontsize=8)
        numbers = np.arange(len(layers))
        for rank, colour in zip(RANKS, (*COLOURS.values(), OTHERS[0]), strict=True):
            shares = [np.mean([energy(values, rank) for values in own]) for own in layers.values()]
            right.plot(numbers, shares, "o-", color=colour, linewidth=1.2, markersize=4, label=f"r = {rank}")
        right.set_xticks(numbers[:: max(1, len(layers) // 12)], list(layers)[:: max(1, len(layers) // 12)], fontsize=8)
        right.set_ylim(0, 1.02)
        right.set_xlabel("layer")
        right.set_ylabel("share of the energy")
        right.set_title("in the r largest, mean over the layer's kernels", fontsize=9, fontweight="normal", color=GREY)
        right.legend(fontsize=8, ncols=2)


# -- an outlier --------------------------------------------------------------------------------------------------------


def outlier_errors(kernel: np.ndarray, block: int = 64) -> dict[str, list[float]]:
    """The relative error of all other numbers of a kernel [A, C] in int8, by the size of one outlier in it, see OUTLIERS.

    Returns:
      ‖W − Ŵ‖ / ‖W‖ without the outlier, for each of its sizes: "whole", one constant for the kernel, and "blocks".
    """
    largest, others = np.abs(kernel).max(), np.ones(kernel.shape, bool)
    others[0, 0] = False
    found: dict[str, list[float]] = {"whole": [], "blocks": []}
    for size in OUTLIERS:
        given = kernel.copy()
        given[0, 0] = size * largest
        for name, length in (("whole", 0), ("blocks", block)):
            again = np.asarray(dequantize(quantize(jnp.asarray(given), "int8", block=length, double=False)))
            error = np.linalg.norm((again - given)[others]) / np.linalg.norm(given[others])
            found[name].append(float(error))
    return found


def draw_outlier(name: str, errors: Mapping[str, list[float]], path: Path) -> None:
    """Both errors over the size of the outlier, on logarithmic scales."""
    labels = {"whole": "one constant for the kernel", "blocks": "a constant for 64 numbers"}
    with figure(path, 5.4, 3.8) as drawn:
        axes = drawn.subplots()
        for (kind, found), colour in zip(errors.items(), ("#d55e00", "#0072b2"), strict=True):
            axes.plot(OUTLIERS, found, "o-", color=colour, linewidth=1.2, markersize=4, label=labels[kind])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(OUTLIERS, [str(size) for size in OUTLIERS])
        axes.set_xlabel("one outlier, over the largest number")
        axes.set_ylabel("relative error of all others in int8")
        axes.set_title(name.removesuffix("/kernel"), fontsize=8, fontweight="normal", color=GREY)
        axes.legend(fontsize=8)
