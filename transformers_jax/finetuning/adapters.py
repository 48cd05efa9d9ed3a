"""Houlsby's adapters (Houlsby et al. 2019): which places of a model get them, and how they start.

A block has one inside the residual of each sublayer; a genome's cell has one behind it. `layers.adapter` computes with them.

Axes: D model width, m adapter width.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.finetuning.lora import chosen_layers
from transformers_jax.finetuning.trainable import Options
from transformers_jax.layers.adapter import ADAPTER
from transformers_jax.layers.places import AdapterPlace, Places

STDDEV = 1e-2
"""Of the first numbers of W_down, cut off at two standard deviations (Houlsby et al. 2019, section 3.6)."""


def chosen(places: Places, options: Options) -> dict[str, AdapterPlace]:
    """The places that get an adapter, by name.

    Raises:
      UserError: the model has no place for them; no such layer.
    """
    able = {name: place for name, place in places.items() if isinstance(place, AdapterPlace)}
    if not able:
        raise UserError("config.finetuning.method=adapters: the blocks of this model have no place for them; give method=lora")
    layers = chosen_layers(set(able), options.layers)
    return {name: place for name, place in able.items() if name in layers}


def added(key: jax.Array, name: str, place: AdapterPlace, leaves: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The leaves of one place, by name, boxed with their logical axes. W_up is zero: the model computes what it did before.

    Args:
      leaves: the model's parameters, boxed: whether those around are stacked, and their dtype.
    """
    around = [leaf for other, leaf in leaves.items() if other.startswith(name.rpartition("/")[0] + "/")]
    some = next(leaf for leaf in around if isinstance(leaf, nn.LogicallyPartitioned))
    stacked = some.names[:1] == ("layers",)
    layers, lead, dtype = (some.value.shape[:1], ("layers",), some.value.dtype) if stacked else ((), (), some.value.dtype)
    width, inner = place.width, options.adapter_width
    down = STDDEV * jax.random.truncated_normal(key, -2, 2, (*layers, width, inner), jnp.float32).astype(dtype)
    found = {
        "down/kernel": (down, ("embed", None)),
        "down/bias": (jnp.zeros((*layers, inner), dtype), (None,)),
        "up/kernel": (jnp.zeros((*layers, inner, width), dtype), (None, "embed")),
        "up/bias": (jnp.zeros((*layers, width), dtype), ("embed",)),
    }
    return {f"{name}/{leaf}": nn.LogicallyPartitioned(x, (*lead, *axes)) for leaf, (x, axes) in found.items()}


def count(place: AdapterPlace, width: int) -> int:
    """How many numbers an adapter of a width has: 2 · m · D + D + m."""
    return 2 * width * place.width + place.width + width


def has_adapters(params: Mapping) -> bool:
    """Whether there are Houlsby's layers among parameters."""
    return bool(parameters.matching(parameters.flat(params), ADAPTER))
