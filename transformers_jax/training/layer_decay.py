"""Learning rates that fall from layer to layer towards the input (Clark et al. 2020, "ELECTRA", section 3.1; Bao et al. 2022,
"BEiT"; ConvNeXt's finetuning).

Which layer a parameter is of is read from its name: "encoder/layer_3/…" is in the fourth, "stage_1/layer_0/…" in the first of
the second stage, behind all layers of the first; "encoder/layer/…" are the stacked parameters of all layers, first axis the
layers. What comes before any layer, embeddings, patches and the like, counts as layer 0, the first layer as 1, and what comes
behind the last, a norm or a head, as one more than that. Whatever stands between two stages goes with the one that follows.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from transformers_jax import parameters

_LAYER = re.compile(r"^(?P<stack>(?:[^/]+/)*?)layer(?:_(?P<number>\d+))?/")
_BEFORE = re.compile(r"^(embeddings?|stem|stem_norm|patches(_0)?|patch_norm(_0)?|class_token|positions?)(/|$)")
_BETWEEN = {"down": 1, "down_norm": 1, "merge": 1, "patches": 0, "patch_norm": 0, "stage_norm": 1}
"""Names of parts that stand between stages → by how much the number of the stage that follows is more than theirs."""
_NUMBERED = re.compile(r"^([a-z_]+?)_(\d+)(/|$)")


def by_layer(decay: float) -> optax.GradientTransformation:
    """Updates times decay^(N + 1 - n), of N layers, where n is the layer of a parameter; those of a head stay as they are."""

    def scale(updates: Any, params: Any = None) -> Any:
        del params
        leaves = parameters.flat(updates)
        factors = scales({name: leaf.shape for name, leaf in leaves.items()}, decay)
        return parameters.nest({name: leaf * jnp.asarray(factors[name], leaf.dtype) for name, leaf in leaves.items()})

    return optax.stateless(scale)


def scales(shapes: Mapping[str, tuple[int, ...]], decay: float) -> dict[str, Any]:
    """By parameter name its factor: a number, or of stacked layers an array [layers, 1, …]."""
    counts: dict[str, int] = {}  # layers of each stack, in the order in which they are passed through
    for name, shape in sorted(shapes.items(), key=lambda item: _order(item[0])):
        if found := _LAYER.search(name):
            own = shape[0] if found["number"] is None else int(found["number"]) + 1
            counts[found["stack"]] = max(counts.get(found["stack"], 0), own)
    stacks, total = list(counts), sum(counts.values())
    before = {stack: sum(counts[s] for s in stacks[:i]) for i, stack in enumerate(stacks)}

    def factor(name: str, shape: tuple[int, ...]) -> Any:
        found = _LAYER.search(name)
        if found and found["number"] is None:
            layers = before[found["stack"]] + 1 + jnp.arange(shape[0])  # [layers]
            return (decay ** (total + 1.0 - layers)).reshape(-1, *[1] * (len(shape) - 1))  # [layers, 1, …]
        if found:
            layer = before[found["stack"]] + 1 + int(found["number"])
        elif _BEFORE.search(name):
            layer = 0
        else:
            layer = _between(name, before, total)
        return decay ** (total + 1 - layer)

    return {name: factor(name, shape) for name, shape in shapes.items()}


def _between(name: str, before: Mapping[str, int], total: int) -> int:
    """The layer that counts for a parameter behind some layer: the first of the following stage, or one more than the last."""
    found = _NUMBERED.search(name)
    if found and found[1] in _BETWEEN:
        stage = int(found[2]) + _BETWEEN[found[1]]
        return before[f"stage_{stage}/"] + 1 if f"stage_{stage}/" in before else total + 1
    return total + 1


def _order(name: str) -> list:
    """A key that sorts stage_2 before stage_10, and an encoder before a decoder."""
    parts = re.split(r"(\d+)", name.removeprefix("decoder") if name.startswith("encoder") else name)
    return [0 if name.startswith("encoder") else 1, [(int(p), "") if p.isdigit() else (-1, p) for p in parts]]
