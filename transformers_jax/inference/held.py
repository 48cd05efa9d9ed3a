"""Weights that are held in four or eight bits while a model is used, and never as a float copy of the whole.

    kernels of linear maps    in the blocks that a file has, or quantised as they are read, leaf by leaf
    tables of a decoder       in blocks as well, of eight bits where the kernels have four
    norms, biases, …          as they are

What computes with them is `layers.affine`, whose blocks CPUs decode fast from, and `layers.quantized` (int8, nf4).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from transformers_jax.errors import UserError
from transformers_jax.finetuning import method
from transformers_jax.layers import affine, quantized
from transformers_jax.layers.affine import BLOCK, AffineKernel, quantize_affine
from transformers_jax.layers.places import NUMBER, STACKS, KernelPlace, TablePlace
from transformers_jax.layers.quantized import is_quantized, quantize

KINDS = ("none", *quantized.KINDS, *affine.KINDS)
"""What --quantization says: none is floats, nf4 and int8 are finetuning's; without it a file's blocks stay as they are."""

_STACKED = re.compile(r"^(.*?)(^|/)layer/(.*)$")


def check(kind: str) -> None:
    """Raises UserError if there is no such way to hold weights."""
    if kind and kind not in KINDS:
        raise UserError(f"quantization={kind} is not one of {', '.join(KINDS)}")


def in_blocks(leaves: Mapping[str, Any], kind: str) -> bool:
    """Whether some of the leaves would be held in blocks; see `held`."""
    return kind not in ("", "none") or not kind and any(getattr(leaf, "kernel", None) for leaf in leaves.values())


class Held(NamedTuple):
    """What is held in blocks.

    leaves: on devices, by the names they have in a tree of parameters; see `layers.places.STACKS`.
    names: of the model's own leaves whose place they take.
    """

    leaves: dict[str, Any]
    names: set[str]


def held(model, leaves: Mapping[str, Any], kind: str, sharding) -> Held:
    """What is held in blocks of a model's leaves; one is made after the other, tables first.

    Args:
      leaves: arrays or `interchange.weights.Leaf`s by name, stacked where the model's are.
      kind: one of `KINDS`, or "" for what the leaves' file has.
      sharding: of all arrays.

    Raises:
      UserError: they are quantised already.
    """
    found: dict[str, Any] = {}
    names = set()
    places = {} if kind == "none" else method.places_of(model)
    for name, place in sorted(places.items(), key=lambda item: not isinstance(item[1], TablePlace)):
        if name not in leaves or not isinstance(place, KernelPlace | TablePlace):
            continue
        if is_quantized(leaves[name]):
            if kind:
                there = f"{name} is quantised already, as {leaves[name].kind}"
                raise UserError(f"--quantization={kind}: {there}; leave the flag out")
            continue
        shape, inputs = (place.shape, place.inputs) if isinstance(place, KernelPlace) else (place.shape[::-1], 1)
        made = _quantized(leaves[name], place, kind, inputs) if kind else _as_stored(leaves[name], shape, inputs)
        if made is not None:
            names.add(name)
            found |= _placed(name, made, sharding)
    return Held(found, names)


def _placed(name: str, kernel: Any, sharding) -> dict[str, Any]:
    """A kernel on its devices, by the name that it has in a tree of parameters; and the numbers of a stack's layers."""
    there, stacked = jax.device_put(kernel, sharding), _STACKED.match(name)
    if not (isinstance(kernel, AffineKernel) and kernel.stacked and stacked):
        return {name: there}
    before, slash, own = stacked.groups()
    numbers = jax.device_put(np.arange(kernel.codes.shape[0], dtype=np.int32), sharding)
    return {f"{before}{slash}{STACKS}/{own}": there, name.removesuffix("kernel") + NUMBER: numbers}


def _as_stored(leaf: Any, shape: tuple[int, ...], inputs: int) -> Any:
    """The kernel of a leaf, or of a stack, as its file has it; None where that is not in blocks, or of several kinds."""
    parts = getattr(leaf, "parts", None) or [leaf]
    makers = [getattr(part, "kernel", None) for part in parts]
    if None in makers:
        return None
    made = [jax.tree.map(np.asarray, make(shape, inputs)) for make in makers]
    if len({kernel.kind for kernel in made}) > 1:
        logging.info("layers of several kinds are held as float32: %s", ", ".join(sorted({kernel.kind for kernel in made})))
        return None
    return made[0] if len(made) == 1 and not getattr(leaf, "parts", None) else _stack(made)


def _quantized(leaf: Any, place: KernelPlace | TablePlace, kind: str, inputs: int) -> Any:
    """A kernel of a leaf that is an array; None for one that stays as it is."""
    table = isinstance(place, TablePlace)
    if kind in quantized.KINDS:
        how = lambda kernel: None if table else quantize(kernel, kind, inputs=inputs)  # noqa: E731
    elif int(np.prod(place.shape[:inputs] if not table else place.shape[1:])) % BLOCK:
        return None
    else:
        kind = "q8_0" if table else kind
        how = lambda kernel: quantize_affine(kernel.T if table else kernel, kind, inputs=inputs)  # noqa: E731
    if len(leaf.shape) == len(place.shape):
        return jax.tree.map(np.asarray, how(np.asarray(leaf, np.float32)))
    layers = getattr(leaf, "parts", None) or np.asarray(leaf)
    return _stack([jax.tree.map(np.asarray, how(np.asarray(layer, np.float32))) for layer in layers])


def _stack(made: list) -> Any:
    return jax.tree.map(lambda *parts: np.stack(parts), *made)
