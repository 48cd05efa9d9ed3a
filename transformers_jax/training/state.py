"""The state of training: one tree with all that an update reads and writes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.core import meta
from jax.sharding import Mesh

from transformers_jax import parameters
from transformers_jax.training import sharding

Adapt = Callable[[jax.Array, dict], dict]
"""(key, a model's parameters, boxed with their logical axes) → those that the state has; see `finetuning.method`."""

ADDED = 0x10A
"""Folded into the key of the model's parameters for that of what finetuning adds."""


class TrainState(struct.PyTreeNode):
    """What a checkpoint holds of the model and its optimizer.

    step: int32 scalar, updates made so far.
    params: the parameters that learn, nested dicts.
    frozen: the parameters that do not; {} when all learn. It shares no leaf with `params`; the two make up the model's.
    model_state: the model's other collections by name, such as {"batch_stats": …}; {} when it has none.
    opt_state: the Optax state of `params`.
    average: the moving average of `params` that is evaluated in their place; {} where there is none.
    """

    step: Any
    params: Any
    frozen: Any
    model_state: Any
    opt_state: Any
    average: Any = struct.field(default_factory=dict)

    @property
    def model_params(self) -> dict:
        """All parameters of the model: those that learn and those that do not."""
        return parameters.merge(self.params, self.frozen)

    @property
    def evaluated_params(self) -> dict:
        """All parameters as they are evaluated and used: in place of those that learn their average, if there is one."""
        return parameters.merge(self.average or self.params, self.frozen)

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.model_params, **self.model_state}


def abstract_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    batch: dict,
    mesh: Mesh,
    *,
    trainable: parameters.Patterns = ".",
    adapt: Adapt | None = None,
    averaged: bool = False,
    rules: sharding.Rules = sharding.RULES,
    overrides: sharding.Overrides = (),
) -> TrainState:
    """The state as ShapeDtypeStructs with their shardings: nothing is computed. Arguments as `create_state`."""
    shapes, shardings = _trace(_initialise(model, tx, batch, trainable, adapt, averaged), mesh, rules, overrides)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    batch: dict,
    mesh: Mesh,
    *,
    seed: int,
    trainable: parameters.Patterns = ".",
    adapt: Adapt | None = None,
    given: Mapping[str, dict] = MappingProxyType({}),
    averaged: bool = False,
    rules: sharding.Rules = sharding.RULES,
    overrides: sharding.Overrides = (),
    compiler_options: dict | None = None,
) -> tuple[TrainState, TrainState]:
    """A fresh state, each array made on the devices that keep it: no device ever holds the whole.

    The numbers are a function of the seed alone, not of the mesh.

    Args:
      batch: arrays or ShapeDtypeStructs; only the fields' shapes and dtypes are read.
      seed: of the initial parameters.
      trainable: patterns over parameter names; what none matches is frozen.
      adapt: what finetuning makes of the model's parameters.
      given: variables that are there already, as the state is to have them: {"params": nested dicts with some of the leaves,
        and other collections likewise}. They are kept as they are and no numbers are drawn for them.
      averaged: whether the state has an average of the parameters that learn, which begins with them.
      rules, overrides: see `sharding`.
      compiler_options: of the program that makes it, see `jax.jit`.

    Returns:
      The state, and the tree of its shardings.

    Raises:
      UserError: a pattern matches no parameter.
      ValueError: something is given that the model does not have.
    """
    initialise = _initialise(model, tx, batch, trainable, adapt, averaged)
    shapes, shardings = _trace(initialise, mesh, rules, overrides)
    given = {collection: parameters.flat(tree) for collection, tree in given.items()}
    there = {"params": shapes.model_params, **shapes.model_state}
    for collection, leaves in given.items():
        if unknown := sorted(set(leaves) - set(parameters.flat(there.get(collection, {})))):
            raise ValueError(f"not {collection} of the model: {', '.join(unknown)}")

    def drawn(state: TrainState) -> TrainState:
        """Without what is given."""
        return _each_tree(state, lambda collection, tree: _without(tree, given.get(collection, {})))

    def completed(collection: str, tree: dict, shapes: dict) -> dict:
        own = {name: leaf for name, leaf in given.get(collection, {}).items() if name in parameters.flat(shapes)}
        return parameters.nest(parameters.flat(tree) | own)

    make = jax.jit(
        lambda key, given: drawn(initialise(key, given)[0]), out_shardings=drawn(shardings), compiler_options=compiler_options
    )
    return _each_tree(make(jax.random.key(seed), given), completed, shapes), shardings


def _each_tree(state: TrainState, change: Callable, *others: TrainState) -> TrainState:
    """The state with `change`, a function of (collection, tree, the same tree of others), applied to its variables."""
    params, frozen = (
        change("params", getattr(state, name), *(getattr(other, name) for other in others)) for name in ("params", "frozen")
    )
    rest = {
        collection: change(collection, tree, *(other.model_state[collection] for other in others))
        for collection, tree in state.model_state.items()
    }
    return state.replace(params=params, frozen=frozen, model_state=rest)


def _without(tree: dict, names) -> dict:
    return parameters.nest({name: leaf for name, leaf in parameters.flat(tree).items() if name not in names})


def _initialise(model, tx, batch, trainable, adapt, averaged) -> Callable[..., tuple[TrainState, Any]]:
    """(key, leaves that are given by collection and name) → (state, the model's parameters with their metadata)."""

    def initialise(key, given: Mapping[str, dict] = MappingProxyType({})):
        zeros = {name: jnp.zeros(field.shape, field.dtype) for name, field in batch.items()}
        collections = dict(model.init({"params": key}, zeros, deterministic=True))
        boxed = _with(collections.pop("params", {}), given.get("params", {}))
        if adapt is not None:
            boxed = adapt(jax.random.fold_in(key, ADDED), boxed)
        params, frozen = parameters.split(_unboxed(boxed), trainable, key="config.finetuning.trainable")
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            model_state=meta.unbox(collections),
            opt_state=tx.init(params),
            average=jax.tree.map(jnp.copy, params) if averaged else {},
        )
        return state, boxed

    return initialise


def _with(boxed: dict, given: Mapping[str, Any]) -> dict:
    """Boxed parameters, with those that are given in the boxes."""
    leaves = parameters.flat(boxed)
    own = {name: leaves[name] for name in given if name in leaves}
    replaced = {n: leaf.replace_boxed(given[n]) if parameters.is_boxed(leaf) else given[n] for n, leaf in own.items()}
    return parameters.nest(leaves | replaced) if replaced else boxed


def _unboxed(boxed: dict) -> dict:
    """The values of boxed leaves; a quantised kernel has no sharding as a whole that Flax could constrain."""

    def value(leaf):
        if not parameters.is_boxed(leaf):
            return leaf
        return leaf.value if parameters.is_packed(leaf.value) else leaf.unbox()

    return jax.tree.map(value, boxed, is_leaf=parameters.is_whole)


def _trace(initialise, mesh, rules, overrides) -> tuple[TrainState, TrainState]:
    """The state's shapes and its shardings, from a trace of its initialisation."""
    shapes, boxed = jax.eval_shape(initialise, jax.random.key(0))
    axes = sharding.logical_axes(boxed, overrides)
    return shapes, sharding.state_shardings(shapes, axes, mesh, rules)
