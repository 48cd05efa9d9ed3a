"""Parts of low rank beside frozen kernels: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024).

A kernel W of A inputs and C outputs counts as W + scale · AB, with A [A, r] and B [r, C] that learn: r · (A + C) numbers. The
scale is alpha / r, or alpha / √r for rsLoRA. DoRA has C numbers more, the length of each column. `layers.product` computes with
these leaves; here is which kernels get them, how they start, and how they become a plain kernel again.

Axes: L layers of a stack, A inputs, C outputs, r rank.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.finetuning.trainable import Options
from transformers_jax.layers.places import KernelPlace, Places
from transformers_jax.layers.quantized import dequantize, is_quantized

LEAF = re.compile(r"(^|/)lora_(a|b|scale|dropout|magnitude)$")
"""Leaves of a part of low rank, those that do not learn too."""

_LAYER = re.compile(r"(^|/)layer_(\d+)/")


def targets(names: Iterable[str], places: Places, options: Options, learning: set[str] = frozenset()) -> list[str]:
    """The kernels that get a part of low rank, by name.

    Args:
      names: of all parameters.
      places: those of the model.
      learning: parameters that learn whole, a head's, which get none.

    Raises:
      UserError: a pattern matches no parameter, or nothing that can have one; no such layer.
    """
    names, key = list(names), "config.finetuning.targets"
    able = [name for name in names if isinstance(places.get(name), KernelPlace) and name not in learning]
    found = set()
    for pattern in options.targets:
        hits = parameters.matching(able, pattern)
        if not hits and (others := sorted(parameters.matching(names, pattern, key=key))):
            why = "learns whole" if others[0] in learning else "is no kernel of a linear map"
            raise UserError(
                f"{key}: {pattern!r} matches {others[0]}, which {why}; a part of low rank can stand {_beside(able)}"
            )
        found |= hits
    found = chosen_layers(found, options.layers)
    return [name for name in able if name in found]


def chosen_layers(names: set[str], layers: tuple[int, ...]) -> set[str]:
    """The names that belong to layers of these numbers; all of them where no numbers are given.

    Raises:
      UserError: the layers are stacked, or one of them is not there.
    """
    if not layers:
        return names
    numbers = {name: int(match[2]) for name in names if (match := _LAYER.search(name))}
    if not numbers:
        raise UserError(
            f"config.finetuning.layers={layers} picks layers by number, and these share their parameters or are one stack: "
            "give --config.model.scan_layers=False, or no layers"
        )
    if missing := sorted(set(layers) - set(numbers.values())):
        raise UserError(f"config.finetuning.layers: there is no layer {missing[0]}; there are 0 to {max(numbers.values())}")
    return {name for name, number in numbers.items() if number in layers}


def rank_and_scale(name: str, options: Options) -> tuple[int, float]:
    """The rank of a kernel's part, and what it is multiplied by."""
    rank = int(parameters.lookup(name, options.rank_pattern, options.rank))
    alpha = float(parameters.lookup(name, options.alpha_pattern, options.alpha))
    if rank < 1:
        raise UserError(f"config.finetuning.rank is {rank}; give 1 or more")
    return rank, alpha / (math.sqrt(rank) if options.rslora else rank)


def count(place: KernelPlace, rank: int) -> int:
    """How many numbers a part of low rank has: r · (A + C)."""
    return rank * sum(_matrix(place))


def added(key: jax.Array, name: str, kernel: Any, axes: tuple, place: KernelPlace, options: Options) -> dict[str, Any]:
    """The leaves that stand beside a kernel, by name, boxed with their logical axes. The model computes what it did before.

    A is drawn uniformly from ±1 / √inputs, as PEFT does (Kaiming's numbers with slope √5), and B is zero.

    Args:
      kernel: an array or quantised, with the axis L in front if it is stacked.
      axes: logical names of the kernel's dimensions.

    Raises:
      UserError: the rank is above what the matrix has.
    """
    rank, scale = rank_and_scale(name, options)
    inputs, outputs = _matrix(place)
    if rank > min(inputs, outputs):
        raise UserError(
            f"config.finetuning.rank: {rank} is above the rank of {name}, a matrix of {inputs} × {outputs}: give at most "
            f"{min(inputs, outputs)}"
        )
    stacked = kernel.stacked if is_quantized(kernel) else kernel.ndim > len(place.shape)
    layers = (_layers(kernel),) if stacked else ()
    dtype = jnp.dtype(kernel.dtype)
    lead, axes = (axes[:1], axes[1:]) if stacked else ((), axes)
    bound = 1 / math.sqrt(inputs)
    found = {
        "a": (jax.random.uniform(key, (*layers, inputs, rank), dtype, -bound, bound), (axes[0], None)),
        "b": (jnp.zeros((*layers, rank, outputs), dtype), (None, axes[place.inputs])),
        "scale": (jnp.full(layers, scale, jnp.float32), ()),
    }
    if options.dropout:
        found["dropout"] = jnp.full(layers, options.dropout, jnp.float32), ()
    if options.dora:
        found["magnitude"] = column_lengths(kernel, (inputs, outputs)).reshape(*layers, outputs), (axes[place.inputs],)
    prefix = name.removesuffix("kernel")
    return {f"{prefix}lora_{leaf}": nn.LogicallyPartitioned(x, (*lead, *own)) for leaf, (x, own) in found.items()}


def column_lengths(kernel: Any, matrix: tuple[int, int]) -> jax.Array:
    """The length of each column of a kernel that is a matrix [A, C]: float32 [C], or [L, C] of a stack."""
    whole = dequantize(kernel, jnp.float32) if is_quantized(kernel) else kernel.astype(jnp.float32)
    stack = whole.shape[:1] if whole.size > math.prod(matrix) else ()
    return jnp.linalg.norm(whole.reshape(*stack, *matrix), axis=-2)


def merged(params: dict) -> dict:
    """Plain parameters that compute the same: each part of low rank is in its kernel, and quantised kernels are arrays.

    Kernels keep their dtype. It goes from kernel to kernel, so that one at a time is there twice.

    Raises:
      ValueError: a part of low rank without its kernel.
    """
    leaves = parameters.flat(params)
    scopes = {name.removesuffix("lora_a"): leaf for name, leaf in leaves.items() if name.rpartition("/")[2] == "lora_a"}
    found = {name: leaf for name, leaf in leaves.items() if not LEAF.search(name)}
    for prefix in scopes:
        if prefix + "kernel" not in found:
            raise ValueError(f"{prefix}lora_a has no kernel beside it")
        own = {leaf: leaves.get(f"{prefix}lora_{leaf}") for leaf in ("a", "b", "scale", "magnitude")}
        found[prefix + "kernel"] = merge(found[prefix + "kernel"], **own)
    plain = {name: dequantize(leaf) if is_quantized(leaf) else leaf for name, leaf in found.items()}
    return parameters.nest(plain)


def merge(kernel: Any, a: Any, b: Any, scale: Any, magnitude: Any = None) -> jax.Array:
    """The kernel that computes alone what it does with its part of low rank, in its own shape and dtype.

    Args:
      kernel: an array or quantised; stacked where the others have an axis L in front.
      a, b, scale: [A, r], [r, C] and [].
      magnitude: [C], DoRA's.
    """
    kernel = kernel if is_quantized(kernel) else np.asarray(kernel)
    whole = dequantize(kernel, jnp.float32) if is_quantized(kernel) else jnp.asarray(kernel, jnp.float32)
    a, b, scale = (jnp.asarray(x, jnp.float32) for x in (a, b, scale))
    product = jnp.einsum("...ar,...rc->...ac", a, b, precision="highest")
    matrix = whole.reshape(product.shape) + scale[..., None, None] * product
    if magnitude is not None:
        lengths = jnp.maximum(jnp.linalg.norm(matrix, axis=-2, keepdims=True), 1e-30)
        matrix = matrix * (jnp.asarray(magnitude, jnp.float32)[..., None, :] / lengths)
    return matrix.reshape(whole.shape).astype(kernel.dtype)


def has_parts(params: Mapping) -> bool:
    """Whether some kernel has a part of low rank."""
    return any(LEAF.search(name) for name in parameters.flat(params))


def _matrix(place: KernelPlace) -> tuple[int, int]:
    """(A, C)."""
    return math.prod(place.shape[: place.inputs]), math.prod(place.shape[place.inputs :])


def _layers(kernel: Any) -> int:
    return kernel.codes.shape[0] if is_quantized(kernel) else kernel.shape[0]


def _beside(able: list[str]) -> str:
    shown = ", ".join(able[:4]) + (f" and {len(able) - 4} more" if len(able) > 4 else "")
    return f"beside {shown}" if able else "nowhere in this model"
