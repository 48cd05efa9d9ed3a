"""The hidden states of an encoder's layers, and of several of them what is made of them: concatenated, summed or averaged, as
BERT's features are (Devlin et al. 2019, section 5.3).

Axes: B batch rows, T length, D model width, L layers.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from transformers_jax.errors import UserError
from transformers_jax.inference.predictor import Body, Loaded, Predictor
from transformers_jax.outputs import EncoderOutput

COMBINE = ("concat", "sum", "mean")
BEFORE = ("embeddings", "widen")
"""Modules whose output goes into the first layer; the last of those that there are gives it."""

_FORM = re.compile(r"(-?\d+)?(:)?(-?\d+)?")


class Layers(NamedTuple):
    """Which layers: 0 is what goes into the first one, 1 its output, -1 the last one's.

    chosen: "-4:" for the last four, "2" or "-2" for one, "1:5" for layers 1 to 4, as Python counts.
    combine: one of COMBINE.
    """

    chosen: str
    combine: str = "concat"

    def of(self, count: int) -> list[int]:
        """The numbers of the layers, of a model with `count` of them.

        Raises:
          UserError: it is not written so, or there are no such layers.
        """
        match = _FORM.fullmatch(self.chosen)
        if not match or not (match[1] or match[2]) or (match[3] and not match[2]):
            raise UserError(f"--layers={self.chosen}: give one as -2, or several as -4: or 1:5")
        every = list(range(count + 1))
        if not match[2]:
            number = int(match[1])
            found = [every[number]] if -count - 1 <= number <= count else []
        else:
            found = every[slice(*(int(end) if end else None for end in (match[1], match[3])))]
        if not found or match[1] and not -count - 1 <= int(match[1]) <= count:
            raise UserError(f"--layers={self.chosen}: the model has layers 0 to {count}, 0 being its embeddings")
        return found

    def width(self, width: int, count: int) -> int:
        """Of what is made of them, for a model of this width with `count` layers."""
        return width * len(self.of(count)) if self.combine == "concat" else width

    def combined(self, states: list[jax.Array]) -> jax.Array:
        """What is made of hidden states [B, T, D] of each chosen layer: [B, T, L · D], or [B, T, D]."""
        if self.combine == "concat":
            return jnp.concatenate(states, axis=-1)
        total = sum(states)
        return total if self.combine == "sum" else total / len(states)


class Between(Body):
    """An encoder without its head, which gives what is made of several layers' states in place of the last one's.

    Raises:
      UserError: there are no such layers, or an unknown way to combine them.
    """

    def __init__(self, model, layers: Layers):
        super().__init__(model)
        if layers.combine not in COMBINE:
            raise UserError(f"--combine={layers.combine} is not one of {', '.join(COMBINE)}")
        self.layers, self.numbers = layers, layers.of(model.config.layers)

    def apply(self, variables: dict, batch: dict, *, deterministic: bool, mutable: Any = False):
        """As of `Body`."""
        last, sown = self.model.apply(
            variables, batch, deterministic, method="encode", capture_intermediates=_gives_states, mutable=["intermediates"]
        )
        states = [*_states(sown["intermediates"])[:-1], last]  # behind the last layer a norm may stand
        if len(states) != self.model.config.layers + 1:
            raise UserError(f"--layers: {type(self.model).__module__} does not show its layers")
        output = EncoderOutput(self.layers.combined([states[number] for number in self.numbers]))
        return (output, {}) if mutable else output


def states(there: Loaded, task: Any, layers: Layers | None = None) -> Predictor:
    """A predictor of a task that reads hidden states: those of the last layer, or what is made of several."""
    if layers is None:
        return there.states(task)
    return Predictor(Between(there.model, layers), task, there.variables, there.mesh, longest=there.longest())


def _gives_states(module, method: str) -> bool:
    """Whether a module's output is one of the layers' states."""
    return method == "__call__" and (module.path[-1:] in [(name,) for name in BEFORE] or module.path[-2:-1] == ("encoder",))


def _states(sown: Mapping) -> list[jax.Array]:
    """The states before the first layer and behind each, [B, T, D], in their order.

    Layers that are scanned come stacked, [L, B, T, D], and those that share their parameters as several calls of one module.
    """
    calls = {path[:-1]: value for path, value in flatten_dict(dict(sown)).items() if path[-1] == "__call__"}
    before = [calls[path][0] for name in BEFORE for path in calls if path[-1] == name]
    layers = {path[-1]: value for path, value in calls.items() if path[-2:-1] == ("encoder",)}
    found = before[-1:]
    for name in sorted(layers, key=lambda name: int(name.rpartition("_")[2]) if "_" in name else 0):
        for state, *_ in layers[name]:
            found += [state] if state.ndim == before[-1].ndim else list(state)
    return found
