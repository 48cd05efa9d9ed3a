"""Stacked layers and separate ones: the same leaves under two names, "encoder/layer/x" and "encoder/layer_0/x", …."""

import re
from collections.abc import Iterable

import numpy as np

from transformers_jax.interchange.weights import Leaf, stacked

_STACKED = re.compile(r"(^|[/:])layer/")
_SEPARATE = re.compile(r"(^|[/:])layer_(\d+)/")


def separate(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every layer's leaves by themselves."""
    found = {}
    for name, array in leaves.items():
        if not _STACKED.search(name):
            found[name] = array
            continue
        for i, part in enumerate(array):
            found[_STACKED.sub(rf"\1layer_{i}/", name, count=1)] = part
    return found


def names(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """As `separate`, of shapes."""
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    return {name: array.shape for name, array in separate(arrays).items()}


def arranged(leaves: dict[str, np.ndarray | Leaf], wanted: Iterable[str]) -> dict[str, np.ndarray | Leaf]:
    """Separate layers' leaves, stacked again where the stack is among the wanted names; one that is not whole is left out."""
    wanted, found = set(wanted), {}
    stacks: dict[str, dict[int, np.ndarray | Leaf]] = {}
    for name, array in leaves.items():
        stack = _SEPARATE.sub(r"\1layer/", name, count=1)
        if name in wanted or stack not in wanted:
            found[name] = array
        else:
            stacks.setdefault(stack, {})[int(_SEPARATE.search(name)[2])] = array
    for name, parts in stacks.items():
        if sorted(parts) == list(range(len(parts))):
            found[name] = stacked([parts[i] for i in range(len(parts))])
    return found


def place(name: str) -> tuple[str, int | None]:
    """(the name in a stack, the number of the layer) of a separate layer's leaf; (name, None) of any other."""
    match = _SEPARATE.search(name)
    return (_SEPARATE.sub(r"\1layer/", name, count=1), int(match[2])) if match else (name, None)


def chosen(leaves: dict[str, np.ndarray | Leaf], layers: Iterable[int]) -> dict[str, np.ndarray | Leaf]:
    """Separate layers' leaves, of these layers only, numbered anew from 0."""
    numbers = {old: new for new, old in enumerate(layers)}
    found = {}
    for name, array in leaves.items():
        match = _SEPARATE.search(name)
        if match is None:
            found[name] = array
        elif int(match[2]) in numbers:
            found[_SEPARATE.sub(rf"\g<1>layer_{numbers[int(match[2])]}/", name, count=1)] = array
    return found
