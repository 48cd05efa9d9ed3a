"""Recurrence over time, and the long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

Axes: T time, B batch rows, I input width, F hidden width.

The cell, for one row, with σ the logistic function and ⊙ the product of elements:

    i = σ(x K_i + h R_i + b_i)    what is written
    f = σ(x K_f + h R_f + b_f)    what is kept
    g = tanh(x K_g + h R_g + b_g) the candidate
    o = σ(x K_o + h R_o + b_o)    what is shown
    c' = f ⊙ c + i ⊙ g
    h' = o ⊙ tanh(c')

A recurrence is slow because its products are small and wait for each other. So nothing stands inside the loop that can
stand outside: the products with x are one matrix product over all times before the loop, and the gradients of the
weights are one product over all times after the backward loop, where plain differentiation of `jax.lax.scan` would add
a whole weight matrix to an accumulator at every step.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.product import gathered

State = tuple[jax.Array, jax.Array]
"""(h, c): what a cell shows, in the compute dtype, and what it keeps, in float32."""


def product(weights: dict, name: str, x: jax.Array) -> jax.Array:
    """x @ weights[name] in float32, row by row.

    x [B, I] times [I, O], a matrix for all rows, or times [B, I, O], one for each row → [B, O].
    """
    spec = "bi,io->bo" if weights[name].ndim == 2 else "bi,bio->bo"
    return jnp.einsum(spec, x, weights[name], preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recurrence(step: Callable, reverse: bool, weights: dict, shared, carry, xs):
    """`jax.lax.scan` whose weights get their gradients after the loop instead of inside it.

    Args:
      step: step(multiply, shared, carry, x) -> (carry, y), which closes over no arrays. multiply(name, x) is
        `product(weights, name, x)`; each name is used exactly once a step.
      reverse: from the last time to the first.
      weights: matrices by name, [I, O] or [B, I, O].
      shared: any tree, the same at all times.
      carry: any tree, the state before the first step.
      xs: a tree of arrays with leading axis T.

    Returns:
      (carry after the last step, ys with leading axis T).
    """
    return _scan(step, reverse, weights, shared, carry, xs, None)[0]


def _scan(step, reverse, weights, shared, carry, xs, taps):
    """The scan, with taps [T, B, O] added to the products: ((carry, ys), what was multiplied [T, B, I] by name)."""
    weights = {name: gathered(w) if w.ndim == 2 else w for name, w in weights.items()}  # once, not at every step

    def body(carry, x):
        x, tap = x
        factors = {}

        def multiply(name, factor):
            factors[name] = factor
            out = product(weights, name, factor)
            return out if tap is None else out + tap[name]

        carry, y = step(multiply, shared, carry, x)
        return carry, (y, factors if tap is not None else None)

    carry, (ys, factors) = jax.lax.scan(body, carry, (xs, taps), reverse=reverse)
    return (carry, ys), factors


def _forward(step, reverse, weights, shared, carry, xs):
    """Adds a zero to each product: its gradient, times what was multiplied, is the gradient of the weights."""
    times, rows = jax.tree.leaves(xs)[0].shape[0], jax.tree.leaves(carry)[0].shape[0]
    taps = {name: jnp.zeros((times, rows, w.shape[-1]), jnp.float32) for name, w in weights.items()}
    run = functools.partial(_scan, step, reverse, weights)
    result, pull, factors = jax.vjp(run, shared, carry, xs, taps, has_aux=True)
    return result, (pull, factors, weights)


def _backward(step, reverse, saved, cotangents):
    pull, factors, weights = saved
    shared, carry, xs, taps = pull(cotangents)

    def gradient(factor, tap, weight):
        spec = "tbi,tbo->io" if weight.ndim == 2 else "tbi,tbo->bio"
        return jnp.einsum(spec, factor, tap.astype(factor.dtype), preferred_element_type=weight.dtype)

    return jax.tree.map(gradient, factors, taps, weights), shared, carry, xs


recurrence.defvjp(_forward, _backward)


def cell(gates: jax.Array, c: jax.Array, dtype) -> State:
    """The equations above, from the sums inside the functions i, f, g, o: gates [B, 4F]; c [B, F] is float32."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)  # [B, F] each
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return (jax.nn.sigmoid(o) * jnp.tanh(c)).astype(dtype), c


def restart(reset: jax.Array, initial, state):
    """`state` where reset [B] is false, `initial` (zeros if None) where it is true; trees of [B, ...]."""
    if initial is None:
        initial = jax.tree.map(jnp.zeros_like, state)
    return jax.tree.map(lambda new, old: jnp.where(reset[:, None], new.astype(old.dtype), old), initial, state)


def _layer_step(multiply, shared, state, x):
    gates, reset, initial = x  # [B, 4F], [B], (h, c) or None
    h, c = restart(reset, initial, state)
    state = cell(gates + multiply("recurrent", h), c, h.dtype)
    return state, state


def gate_kernel(module: nn.Module, name: str, inputs: int, hidden: int, param_dtype) -> jax.Array:
    """Declares a kernel [I, 4, F] in `module`, Glorot-uniform gate by gate."""
    glorot = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=0, out_axis=2, batch_axis=1)
    init = nn.with_logical_partitioning(glorot, ("embed", None, "mlp"))
    return module.param(name, init, (inputs, 4, hidden), param_dtype)


class LSTM(nn.Module):
    """One layer of cells.

    Biases start at zero but for the forget gate's, which starts at 1, so that a new network remembers (Jozefowicz,
    Zaremba, Sutskever 2015, section 2.2).

    inputs: I.  hidden: F.
    """

    inputs: int
    hidden: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.kernel = gate_kernel(self, "kernel", self.inputs, self.hidden, self.param_dtype)
        self.recurrent = gate_kernel(self, "recurrent", self.hidden, self.hidden, self.param_dtype)
        self.bias = self.param(
            "bias",
            nn.with_logical_partitioning(lambda key, shape, dtype: jnp.zeros(shape, dtype).at[1].set(1), (None, "mlp")),
            (4, self.hidden),
            self.param_dtype,
        )

    def matrices(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(kernel [I, 4F], recurrent [F, 4F], bias [4F]), the first two in the compute dtype."""
        kernel = self.kernel.reshape(self.inputs, 4 * self.hidden).astype(self.dtype)
        recurrent = self.recurrent.reshape(self.hidden, 4 * self.hidden).astype(self.dtype)
        return kernel, recurrent, self.bias.reshape(4 * self.hidden).astype(jnp.float32)

    def __call__(self, x: jax.Array, reset: jax.Array, initial: State | None = None, *, reverse: bool = False) -> State:
        """Runs over time.

        Args:
          x: [B, T, I].
          reset: bool [B, T]; where true the state is forgotten before the position is read.
          initial: (h, c) [B, T, F], the state that is taken up where reset is true; zeros if None.
          reverse: from the last position to the first.

        Returns:
          (h, c) [B, T, F], the state after each position.
        """
        kernel, recurrent, bias = self.matrices()
        gates = (
            jnp.einsum("tbi,io->tbo", time_first(x.astype(self.dtype)), kernel, preferred_element_type=jnp.float32)
            + bias
        )
        xs = (gates, *time_first((reset, initial)))
        state = zero_state(x.shape[0], self.hidden, self.dtype)
        return time_first(recurrence(_layer_step, reverse, {"recurrent": recurrent}, None, state, xs)[1])


def zero_state(rows: int, hidden: int, dtype) -> State:
    """(h, c) [B, F] of a cell that has read nothing."""
    return jnp.zeros((rows, hidden), dtype), jnp.zeros((rows, hidden), jnp.float32)


def time_first(tree):
    """Exchanges the first two axes of every leaf: [B, T, ...] ↔ [T, B, ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)
