"""What finetuning makes of a model's parameters: a transform of the tree, of which no model knows.

    params of the model → quantised where they are frozen and config says so, with the leaves of the method added

Which of them learn is said by `trainable.patterns`; `training.state` splits the tree by these.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from transformers_jax import parameters
from transformers_jax.finetuning import adapters, lora, quantization
from transformers_jax.finetuning.trainable import Options
from transformers_jax.layers.places import Places, noted
from transformers_jax.layers.quantized import is_quantized


class Finetuning:
    """The transform of one model's parameters.

    Args:
      options: of config.finetuning.
      places: of the model, see `places_of`.
      patterns: of the parameters that learn.
    """

    def __init__(self, options: Options, places: Places, patterns: parameters.Patterns):
        self.options, self.places, self.patterns = options, places, patterns

    def __call__(self, key: jax.Array, params: dict) -> dict:
        """The tree with what finetuning adds; boxed leaves and fresh numbers in, boxed leaves out. May be traced.

        Args:
          params: the model's, boxed with their logical axes; kernels among them may be quantised already.

        Raises:
          UserError: what config.finetuning asks for does not go with the model.
        """
        leaves = parameters.flat(params)
        learning = parameters.matching(leaves, self.patterns)
        if self.options.quantization:
            for name in quantization.chosen(leaves, self.places, learning):
                leaves[name] = self._quantized(name, leaves[name])
        return parameters.nest(leaves | self._added(key, leaves, learning))

    def _quantized(self, name: str, leaf: Any) -> Any:
        kernel = _value(leaf)
        if not is_quantized(kernel):
            kernel = quantization.quantized(kernel, self.places[name], self.options)
        return leaf.replace_boxed(kernel) if parameters.is_boxed(leaf) else kernel

    def _added(self, key: jax.Array, leaves: Mapping[str, Any], learning: set[str]) -> dict[str, Any]:
        options, places, found = self.options, self.places, {}
        if options.method == "lora":
            for name in lora.targets(leaves, places, options, learning):
                own, kernel = _key_of(key, name), _value(leaves[name])
                found |= lora.added(own, name, kernel, _axes(leaves[name], places[name]), places[name], options)
        elif options.method == "adapters":
            for name, place in adapters.chosen(places, options).items():
                found |= adapters.added(_key_of(key, name), name, place, leaves, options)
        return found


def places_of(model: nn.Module) -> Places:
    """The places of a model where finetuning may change it; nothing is computed."""
    batch = model.protocol().example()
    with noted() as places:
        jax.eval_shape(lambda: model.init(jax.random.key(0), batch, deterministic=True))
    return places


def _key_of(key: jax.Array, name: str) -> jax.Array:
    """A key of a parameter's own, whatever other parameters there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _value(leaf: Any) -> Any:
    return leaf.value if parameters.is_boxed(leaf) else leaf


def _axes(leaf: Any, place: Any) -> tuple:
    """Logical axes of a kernel, with the layers' in front where it is stacked."""
    if parameters.is_boxed(leaf):
        return leaf.names
    kernel = _value(leaf)
    stacked = kernel.stacked if is_quantized(kernel) else kernel.ndim > len(place.shape)
    return (None,) * (len(place.shape) + stacked)
