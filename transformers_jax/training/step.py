"""One update of training, and one measurement of evaluation: pure functions of (state, batch).

    loss    = Σ loss of every token of the global batch / Σ weight of every token of the global batch
    update  = tx(∂ loss / ∂ params)

The two sums run over microbatches, devices and processes before the one division, so however a batch is split, each
token counts the same. What a run learns is a function of config, seed and device count: the only randomness is the
dropout key, fold_in(fold_in(key(seed), step), microbatch).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformers_jax.errors import UserError
from transformers_jax.mesh import check_rows, row_sharding
from transformers_jax.training import sharding
from transformers_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, dict], tuple[TrainState, Metrics]]

MIXING = 2**31
"""What the key of `task.mix` is folded with: dropout's is not, and stays what it is."""

DEVICES = "devices"
"""The name of the axis that `jax.pmap` maps over."""

IN_PLACE = {"xla_cpu_copy_insertion_use_region_analysis": True}
"""Options of XLA with which an update without clipping writes over the parameters on CPUs, where it would copy them first."""


def make_train_step(
    model: nn.Module,
    task: Any,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    accumulate: int = 1,
    parallelism: str = "jit",
    ema: float = 0.0,
) -> Step:
    """The update, (state, batch) → (state, metrics).

    Args:
      model: `model.apply(variables, batch, deterministic=, rngs=, mutable=)` gives what the task's loss takes.
      task: `task.loss(output, batch, train=True)` gives (loss sum, weight sum, sums by name), scalars; `task.mix(batch, key)`
        gives the fields that model and loss are given.
      tx: gradients of `state.params` → updates.
      seed: of dropout.
      accumulate: microbatches that a batch is cut into; the gradient is that of the whole batch. A model's running
        statistics are updated once a microbatch, in turn.
      parallelism: "jit": the batch is global. "pmap": the batch is one device's rows, to be run under `jax.pmap`. Both
        give the same numbers, but for two things: under pmap each device draws its own dropout, and a model's running
        statistics are the mean of the devices' instead of those of the global batch.
      ema: decay of the state's average of what learns, see `moved`; 0 where it has none.

    Returns:
      The step. Its metrics are scalars: the sums over the batch `loss`, `weight` and the task's own, and `grad_norm`,
      the global norm of the gradient of the mean loss, loss / weight, before clipping.
    """
    total, mean, device_key = _across_devices(parallelism)

    def loss_sum(params, state, model_state, batch, key):
        variables = state.replace(params=params, model_state=model_state).variables
        batch = task.mix(batch, jax.random.fold_in(key, MIXING))
        output, updated = model.apply(variables, batch, deterministic=False, rngs={"dropout": key}, mutable=list(model_state))
        loss, weight, sums = task.loss(output, batch, train=True)
        return loss, (updated, {**sums, "loss": loss, "weight": weight})

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, Metrics]:
        # Parameters, and the sums that start at zero.
        key = device_key(jax.random.fold_in(jax.random.key(seed), state.step))
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), state.params)

        # Gradients: summed over microbatches and devices, divided once.
        def microbatch(carry, indexed):
            gradients, model_state = carry
            index, rows = indexed
            gradient, (model_state, sums) = jax.grad(loss_sum, has_aux=True)(
                state.params, state, model_state, rows, jax.random.fold_in(key, index)
            )
            return (jax.tree.map(jnp.add, gradients, gradient), model_state), sums

        (gradients, model_state), sums = jax.lax.scan(
            microbatch, (zeros, state.model_state), _microbatches(batch, accumulate), unroll=accumulate == 1
        )
        sums = jax.tree.map(lambda x: x.sum(axis=0), sums)
        gradients, sums, model_state = total(gradients), total(sums), mean(model_state)
        share = 1.0 / jnp.where(sums["weight"] == 0, 1, sums["weight"])  # CPUs divide in a pass of their own
        norm = optax.tree.norm(gradients) * share  # of the sums: else XLA would write the means' squares down
        gradients = jax.tree.map(lambda g: g * share, gradients)

        # Updates.
        like_params = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, state.params)
        updates, opt_state = tx.update(like_params, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = moved(state.average, params, ema, state.step) if ema else state.average

        # Measurements.
        metrics = {**sums, "grad_norm": norm}

        learned = {"params": params, "model_state": model_state, "opt_state": opt_state, "average": average}
        return state.replace(step=state.step + 1, **learned), metrics

    return train_step


def moved(average: dict, params: dict, decay: float, updates: jax.Array) -> dict:
    """The moving average of parameters after an update (Polyak and Juditsky 1992; as ConvNeXt's table 5 has it): d · average
    + (1 - d) · params, in float32.

    Args:
      decay: d; after few updates less, (1 + updates) / (10 + updates), so that it is not of the first parameters.
      updates: made before this one.
    """
    decay = jnp.minimum(decay, (1 + updates) / (10 + updates))

    def mean(old, new):
        return (decay * old.astype(jnp.float32) + (1 - decay) * new.astype(jnp.float32)).astype(old.dtype)

    return jax.tree.map(mean, average, params)


def make_eval_step(model: nn.Module, task: Any) -> Callable[[Any, Any, dict], Metrics]:
    """The measurement, (params, model_state, batch) → sums over the batch: `loss`, `weight` and the task's own.

    `params` are all of the model's (`state.model_params`, or their average over checkpoints). Nothing is random, and a
    model's running statistics stay as they are.
    """

    return _of_output(model, lambda output, batch: _sums(task, output, batch))


def make_totals_step(model: nn.Module, task: Any) -> Callable[[Any, Any, dict], tuple[Metrics, dict]]:
    """(params, model_state, batch) → (the same sums, the arrays of `task.sums` by name, summed over the batch)."""
    return _of_output(model, lambda output, batch: (_sums(task, output, batch), task.sums(output, batch)))


def make_predict_step(model: nn.Module, task: Any) -> Callable[[Any, Any, dict], dict]:
    """(params, model_state, batch) → `task.predict` of the output by name, [B, …], and `row_weights` [B] of the batch."""
    return _of_output(model, lambda output, batch: _answers(task, output, batch))


def make_scoring_step(model: nn.Module, task: Any) -> Callable[[Any, Any, dict], tuple[Metrics, dict]]:
    """(params, model_state, batch) → (the sums, what is predicted), of one forward pass."""
    return _of_output(model, lambda output, batch: (_sums(task, output, batch), _answers(task, output, batch)))


def _of_output(model: nn.Module, measure: Callable) -> Callable:
    """(params, model_state, batch) → `measure` of the model's output and the batch."""

    def step(params: Any, model_state: Any, batch: dict):
        return measure(model.apply({"params": params, **model_state}, batch, deterministic=True), batch)

    return step


def _sums(task, output, batch: dict) -> Metrics:
    loss, weight, sums = task.loss(output, batch, train=False)
    return {**sums, "loss": loss, "weight": weight}


def _answers(task, output, batch: dict) -> dict:
    return {**task.predict(output, batch), "row_weights": batch["row_weights"]}


def compile_step(
    step: Step, mesh: Mesh, state_shardings: TrainState, batch_shapes: dict | None = None, *, parallelism: str = "jit"
) -> Step:
    """The step as a program for a mesh. The state that is passed in is given up: the new one takes its memory.

    Args:
      step: from `make_train_step`, with the same `parallelism`.
      state_shardings: from `create_state`.
      batch_shapes: a global batch's fields, arrays or ShapeDtypeStructs; given, its rows are checked against the mesh.
      parallelism: "jit" or "pmap". Both take a state as `create_state` makes it and a batch as `global_batch(…,
        parallelism=)` makes it; metrics are on every device.

    Returns:
      A function of (state, batch), which compiles once a batch shape. Its `.lower(state, batch).compile()` gives the
      program without running it, from ShapeDtypeStructs too. Under jit its `.trace(state, batch).jaxpr` says what it computes;
      no other traced function may call it, since it has options of its own.

    Raises:
      UserError: the batch does not divide, or pmap is asked for a mesh that splits parameters or for several processes.
    """
    if batch_shapes is not None:
        check_rows(next(iter(batch_shapes.values())).shape[0], mesh)
    if parallelism == "pmap":
        return _compile_pmap(step, mesh)
    copied = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        _over(mesh, step),
        in_shardings=(state_shardings, row_sharding(mesh)),
        out_shardings=(state_shardings, copied),
        donate_argnums=0,
        compiler_options=known_options(**IN_PLACE) if mesh.devices.flat[0].platform == "cpu" else None,
    )


@functools.cache
def known_options(**options: bool) -> dict[str, bool]:
    """Options of a compilation, if XLA has them; none if it does not, for they are not part of JAX's interface."""
    try:
        jax.jit(lambda: 0).lower().compile(options)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def compile_eval_step(eval_step: Callable, mesh: Mesh) -> Callable[[Any, Any, dict], Metrics]:
    """The measurement as a program: parameters wherever they are, batches from `global_batch`, sums on every device."""
    return jax.jit(_over(mesh, eval_step), out_shardings=NamedSharding(mesh, PartitionSpec()))


def _over(mesh: Mesh, function: Callable) -> Callable:
    """The same function, traced so that rows stay split over the mesh."""

    @functools.wraps(function)
    def traced(*arguments):
        with sharding.rows_stay_split(mesh):
            return function(*arguments)

    return traced


def _across_devices(parallelism: str) -> tuple[Callable, Callable, Callable]:
    """Sum and mean over the devices, and a key for this one. Under jit arrays are global: nothing to do."""
    if parallelism == "pmap":
        return (
            lambda tree: jax.lax.psum(tree, DEVICES),
            lambda tree: jax.lax.pmean(tree, DEVICES),
            lambda key: jax.random.fold_in(key, jax.lax.axis_index(DEVICES)),
        )
    if parallelism != "jit":
        raise UserError(f"config.training.parallelism is {parallelism!r}; known: jit, pmap")
    return (lambda tree: tree,) * 3


def _compile_pmap(step: Step, mesh: Mesh) -> Step:
    if mesh.shape["data"] != mesh.size:
        raise UserError("config.training.parallelism=pmap copies parameters: set config.mesh.fsdp and .tensor to 1")
    if jax.process_count() > 1:
        raise UserError("config.training.parallelism=pmap runs in one process; several processes run with jit")
    devices = list(mesh.devices.flat)
    mapped = jax.pmap(step, DEVICES, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0)
    copied = NamedSharding(Mesh(mesh.devices.flatten(), (DEVICES,)), PartitionSpec())

    def run(state: TrainState, batch: dict) -> tuple[TrainState, Metrics]:
        if state.step.sharding != copied:  # A new or restored state: as pmap returns it, or the next call compiles again.
            state = jax.device_put(state, copied, donate=True)
        return mapped(state, batch)

    run.lower = mapped.lower
    return run


def _microbatches(batch: dict, count: int) -> tuple[jax.Array, dict]:
    """(indices [count], fields [count, B / count, ...]); microbatch i is rows i, i + count, …

    Every count-th row, not every block of rows: then each microbatch has rows on every device, and none has to move.
    """
    rows = len(next(iter(batch.values())))
    if rows % count:
        raise UserError(f"config.training.accumulate is {count}, which does not divide a batch of {rows} rows")
    return jnp.arange(count), jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch)
