"""Where finetuning may change a model: noted while the model is traced, and filled by what stands in the parameters.

The layers name their places, and read from their parameters what finetuning has put there. Models know of neither.

    with noted() as places:
        jax.eval_shape(model.init, key, batch)
    places["encoder/layer_0/block/self_attention/query/kernel"]  # KernelPlace(…)
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn


class KernelPlace(NamedTuple):
    """A kernel that activations are multiplied by in `product.times_kernel`.

    shape: of one layer's kernel.
    inputs: how many of its first dimensions are inputs; the others are outputs.
    """

    shape: tuple[int, ...]
    inputs: int


class AdapterPlace(NamedTuple):
    """A place for Houlsby's layers, see `adapter`; width: of the vectors there."""

    width: int


Places = dict[str, KernelPlace | AdapterPlace]
"""Places by the names of their parameters."""

_NOTES: contextvars.ContextVar[Places | None] = contextvars.ContextVar("places", default=None)


@contextlib.contextmanager
def noted() -> Iterator[Places]:
    """The places of all models that are traced in here."""
    found: Places = {}
    token = _NOTES.set(found)
    try:
        yield found
    finally:
        _NOTES.reset(token)


def note(module: nn.Module, name: str, place: KernelPlace | AdapterPlace) -> None:
    """Notes a place among the parameters of a module, if somebody wants to know."""
    found = _NOTES.get()
    if found is not None:
        found["/".join((*module.scope.path, name))] = place


def given(module: nn.Module, name: str) -> Any:
    """A parameter of the module, or a dict of them, that is there already; None if there is none, as when the model is
    initialised."""
    return nn.meta.unbox(module.get_variable("params", name)) if module.has_variable("params", name) else None
