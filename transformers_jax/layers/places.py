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


class TablePlace(NamedTuple):
    """A table of vectors [V, D] that are looked up, and may be the softmax's: it can be held in blocks.

    Such a table is a kernel [D, V] there.
    """

    shape: tuple[int, int]


Places = dict[str, KernelPlace | AdapterPlace | TablePlace]
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


def note(module: nn.Module, name: str, place: KernelPlace | AdapterPlace | TablePlace) -> None:
    """Notes a place among the parameters of a module, if somebody wants to know."""
    found = _NOTES.get()
    if found is not None:
        found["/".join((*module.scope.path, name))] = place


STACKS = "stacks"
"""Where a stack of layers has kernels that are not sliced as `nn.scan` slices others: {…: {"kernel": a stack}}."""

NUMBER = "kernel_layer"
"""The leaf in such a kernel's place: the number of the layer, [L] in a stack, of which a scan slices its own."""

_STACKS: contextvars.ContextVar[dict[tuple, Any] | None] = contextvars.ContextVar("stacks", default=None)


@contextlib.contextmanager
def whole_stacks(module: nn.Module, name: str) -> Iterator[None]:
    """Gives the layers `name` of a module, which are scanned, the kernels that stand unsliced in its parameters."""
    stacks = given(module, STACKS)
    if stacks is None:
        yield
        return
    path = (*module.scope.path, name)
    token = _STACKS.set({path: stacks})
    try:
        yield
    finally:
        _STACKS.reset(token)


def unsliced(module: nn.Module) -> Any:
    """The whole stack of the parameter "kernel" of a module in scanned layers; None where it is no such."""
    for path, found in (_STACKS.get() or {}).items():
        own = module.scope.path
        if own[: len(path)] != path:
            continue
        for part in (*own[len(path) :], "kernel"):
            found = found.get(part) if isinstance(found, dict) else None
        return found
    return None


def kernel_of(module: nn.Module) -> Any:
    """The parameter "kernel" of a module that has one: an array, or quantised; of scanned layers perhaps the whole stack."""
    stack = unsliced(module)
    return given(module, "kernel") if stack is None else stack


def given(module: nn.Module, name: str) -> Any:
    """A parameter of the module, or a dict of them, that is there already; None if there is none, as when the model is
    initialised."""
    return nn.meta.unbox(module.get_variable("params", name)) if module.has_variable("params", name) else None
