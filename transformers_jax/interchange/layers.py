"""Stacked layers and separate ones: the same leaves under two names, "encoder/layer/x" and "encoder/layer_0/x", …."""

import re
from collections.abc import Iterable

import numpy as np

_STACKED = re.compile(r"(^|/)layer/")
_SEPARATE = re.compile(r"(^|/)layer_(\d+)/")


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


def arranged(leaves: dict[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Separate layers' leaves, those stacked again whose stack is among the names; a stack that is not whole is left out."""
    names, found = set(names), {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, array in leaves.items():
        stack = _SEPARATE.sub(r"\1layer/", name, count=1)
        if name in names or stack not in names:
            found[name] = array
        else:
            stacks.setdefault(stack, {})[int(_SEPARATE.search(name)[2])] = array
    for name, parts in stacks.items():
        if sorted(parts) == list(range(len(parts))):
            found[name] = np.stack([parts[i] for i in range(len(parts))])
    return found


def chosen(leaves: dict[str, np.ndarray], layers: Iterable[int]) -> dict[str, np.ndarray]:
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
