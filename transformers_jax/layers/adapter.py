"""Houlsby's layers: a bottleneck with a residual of its own, inside the residual of a sublayer (Houlsby et al. 2019, figure 2).

    h + W_up · gelu(W_down · h)

They stand in the parameters of a block, below the name of their place: down/kernel [D, m], down/bias [m], up/kernel [m, D] and
up/bias [D], with the axis of the layers in front where they are stacked. A block without them computes what it always did.

Axes: D model width, m adapter width.
"""

import flax.linen as nn
import jax

from transformers_jax.layers.places import AdapterPlace, given, note
from transformers_jax.layers.product import multiply

ADAPTER = r"(^|/)(\w+_)?adapter/(down|up)/(kernel|bias)$"
"""Pattern of the leaves of Houlsby's layers."""


def adapted(module: nn.Module, name: str, h: jax.Array) -> jax.Array:
    """h [..., D] after the layers that stand below `name` in the parameters of `module`; h itself where there are none."""
    note(module, name, AdapterPlace(h.shape[-1]))
    layers = given(module, name)
    if layers is None:
        return h
    down, up = (jax.tree.map(lambda x: x.astype(h.dtype), dict(layers[part])) for part in ("down", "up"))
    inner = jax.nn.gelu(multiply(h, down["kernel"]) + down["bias"], approximate=False)  # [..., m]
    return h + multiply(inner, up["kernel"]) + up["bias"]
