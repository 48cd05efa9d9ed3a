"""The state of training: one tree with all that an update reads and writes."""

from collections.abc import Callable
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


class TrainState(struct.PyTreeNode):
    """What a checkpoint holds of the model and its optimizer.

    step: int32 scalar, updates made so far.
    params: the parameters that learn, nested dicts.
    frozen: the parameters that do not; {} when all learn. It shares no leaf with `params`; the two make up the model's.
    model_state: the model's other collections by name, such as {"batch_stats": …}; {} when it has none.
    opt_state: the Optax state of `params`.
    """

    step: Any
    params: Any
    frozen: Any
    model_state: Any
    opt_state: Any

    @property
    def model_params(self) -> dict:
        """All parameters of the model: those that learn and those that do not."""
        return parameters.merge(self.params, self.frozen)

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
    rules: sharding.Rules = sharding.RULES,
    overrides: sharding.Overrides = (),
) -> TrainState:
    """The state as ShapeDtypeStructs with their shardings: nothing is computed. Arguments as `create_state`."""
    shapes, shardings = _trace(_initialise(model, tx, batch, trainable), mesh, rules, overrides)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    batch: dict,
    mesh: Mesh,
    *,
    seed: int,
    trainable: parameters.Patterns = ".",
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
      rules, overrides: see `sharding`.
      compiler_options: of the program that makes it, see `jax.jit`.

    Returns:
      The state, and the tree of its shardings.

    Raises:
      UserError: a pattern matches no parameter.
    """
    initialise = _initialise(model, tx, batch, trainable)
    _, shardings = _trace(initialise, mesh, rules, overrides)
    make = jax.jit(lambda key: initialise(key)[0], out_shardings=shardings, compiler_options=compiler_options)
    return make(jax.random.key(seed)), shardings


def _initialise(model, tx, batch, trainable) -> Callable[[jax.Array], tuple[TrainState, Any]]:
    """key → (state, the model's parameters with their metadata)."""

    def initialise(key):
        zeros = {name: jnp.zeros(field.shape, field.dtype) for name, field in batch.items()}
        collections = dict(model.init({"params": key}, zeros, deterministic=True))
        boxed = collections.pop("params", {})
        params, frozen = parameters.split(meta.unbox(boxed), trainable, key="config.finetuning.trainable")
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            frozen=frozen,
            model_state=meta.unbox(collections),
            opt_state=tx.init(params),
        )
        return state, boxed

    return initialise


def _trace(initialise, mesh, rules, overrides) -> tuple[TrainState, TrainState]:
    """The state's shapes and its shardings, from a trace of its initialisation."""
    shapes, boxed = jax.eval_shape(initialise, jax.random.key(0))
    axes = sharding.logical_axes(boxed, overrides)
    return shapes, sharding.state_shardings(shapes, axes, mesh, rules)
