"""Quantised bases: frozen kernels of linear maps in four or eight bits, made leaf by leaf as they are read.

With "nf4" in blocks of 64 and double quantisation this is QLoRA's base (Dettmers et al. 2023, section 3): 0.516 bytes a
parameter. Embeddings, norms, biases and all that learns stay as they are.

In training a kernel is dequantised where it is multiplied, and again for the gradient. With config.model.scan_layers that
is one layer's at a time; add config.model.remat, and nothing of a layer is kept but its input. Layers that are written out
one by one (scan_layers=False) compute the same, but XLA may dequantise several of them at once.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.finetuning.trainable import Options
from transformers_jax.layers.places import KernelPlace, Places
from transformers_jax.layers.quantized import QuantizedKernel, quantize


def chosen(names: Iterable[str], places: Places, learning: set[str]) -> list[str]:
    """The kernels that are quantised: those of linear maps that do not learn."""
    return [name for name in names if isinstance(places.get(name), KernelPlace) and name not in learning]


def quantized(kernel: jax.Array, place: KernelPlace, options: Options) -> QuantizedKernel:
    """A kernel as the options say; also traced."""
    stacked = kernel.ndim > len(place.shape)
    how = dict(block=options.block, double=options.double, inputs=place.inputs, stacked=stacked)
    return quantize(kernel, options.quantization, **how)


def quantized_like(leaf: Any, like: QuantizedKernel) -> QuantizedKernel:
    """A leaf that was read, quantised as another is: its arrays are on this machine, layers are quantised one by one.

    Args:
      leaf: an array or what `np.asarray` makes one of; if it has `parts`, they are its layers. One whose file has it
        quantised in this way already is taken as it is.
      like: of arrays or ShapeDtypeStructs.
    """
    double = like.nested_absmax is not None
    how = dict(block=like.block, double=double, inputs=like.inputs)

    def one(kernel) -> QuantizedKernel:
        if (stored := getattr(kernel, "kernel", None)) is not None:
            found = stored(like.shape, like.inputs)
            same = isinstance(found, QuantizedKernel) and (found.kind, found.block) == (like.kind, like.block)
            if same and (found.nested_absmax is not None) == double:
                return jax.tree.map(np.asarray, found.replace(dtype=like.dtype))
        found = quantize(jnp.asarray(np.asarray(kernel)).astype(like.dtype), like.kind, **how)
        return jax.tree.map(np.asarray, found)

    if not like.stacked:
        return one(leaf)
    layers = [one(part) for part in getattr(leaf, "parts", None) or np.asarray(leaf)]
    return jax.tree.map(lambda *parts: np.stack(parts), *layers)
