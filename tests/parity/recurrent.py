"""Stacks of LSTM layers: against torch.nn.LSTM, whose gates too stand in the order input, forget, candidate, output.

PyTorch adds two biases where we have one: ours is its first, and its second is zero.

Axes: B batch rows, T time, I input width, F hidden width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from parity.case import Case, differentiate, differentiate_torch, draw_parameters, normal, variables

from transformers_jax.layers.recurrent import LSTM

B, T, I, F, LAYERS = 3, 6, 5, 4, 2
LENGTHS = np.array([6, 4, 1], np.int32)


def draw_layer(rng, name: str, inputs: int) -> dict:
    drawn = draw_parameters(rng, LSTM(inputs, F), np.zeros((B, T, inputs), np.float32), np.zeros((B, T), bool))
    return {k.replace("params", name, 1): v for k, v in drawn.items()}


def their_layer(torch, i: dict, name: str, suffix: str) -> dict:
    """The parameters of one direction of one layer of torch.nn.LSTM, [4F, …], from ours, […, 4, F]."""
    kernel, recurrent, bias = (i[f"{name}/{part}"] for part in ("kernel", "recurrent", "bias"))
    return {
        f"weight_ih_{suffix}": kernel.flatten(1).T,
        f"weight_hh_{suffix}": recurrent.flatten(1).T,
        f"bias_ih_{suffix}": bias.flatten(),
        f"bias_hh_{suffix}": torch.zeros(4 * F),
    }


def draw_stack(rng) -> dict:
    inputs = {"x": normal(rng, B, T, I), "h": normal(rng, LAYERS, B, F), "c": normal(rng, LAYERS, B, F)}
    inputs |= {"cotangent_out": normal(rng, B, T, F), "cotangent_c": normal(rng, LAYERS, B, F)}
    return inputs | draw_layer(rng, "layer_0", I) | draw_layer(rng, "layer_1", F)


def our_stack(inputs: dict) -> dict:
    """Each layer takes up its first state where `reset` is true: at the first time alone."""

    def function(i):
        x, reset, last = i["x"], jnp.zeros((B, T), bool).at[:, 0].set(True), []
        for n in range(LAYERS):
            first = tuple(jnp.broadcast_to(i[part][n][:, None], (B, T, F)) for part in ("h", "c"))
            x, c = LSTM(x.shape[-1], F).apply(variables(i, f"layer_{n}/"), x, reset, first)
            last.append(c[:, -1])
        last = jnp.stack(last)
        return jnp.sum(x * i["cotangent_out"]) + jnp.sum(last * i["cotangent_c"]), {"out": x, "c": last}

    return differentiate(function, inputs)


def their_stack(torch, inputs: dict) -> dict:
    module = torch.nn.LSTM(I, F, LAYERS, batch_first=True)

    def function(i):
        weights = their_layer(torch, i, "layer_0", "l0") | their_layer(torch, i, "layer_1", "l1")
        arguments = (i["x"], (i["h"], i["c"]))
        out, (_, c) = torch.func.functional_call(module, weights, arguments, strict=True)
        return (out * i["cotangent_out"]).sum() + (c * i["cotangent_c"]).sum(), {"out": out, "c": c}

    return differentiate_torch(torch, function, inputs)


def draw_both_ways(rng) -> dict:
    inputs = {"x": normal(rng, B, T, I), "lengths": LENGTHS, "cotangent": normal(rng, B, T, 2 * F)}
    return inputs | draw_layer(rng, "forward", I) | draw_layer(rng, "backward", I)


def our_both_ways(inputs: dict) -> dict:
    """Backwards, the state starts at each row's last position."""

    def function(i):
        times, lengths = jnp.arange(T)[None, :], i["lengths"][:, None]
        ahead, _ = LSTM(I, F).apply(variables(i, "forward/"), i["x"], jnp.broadcast_to(times == 0, (B, T)))
        back, _ = LSTM(I, F).apply(variables(i, "backward/"), i["x"], times == lengths - 1, reverse=True)
        out = jnp.concatenate([ahead, back], -1) * (times < lengths)[..., None]
        return jnp.sum(out * i["cotangent"]), {"out": out}

    return differentiate(function, inputs)


def their_both_ways(torch, inputs: dict) -> dict:
    module, rnn = torch.nn.LSTM(I, F, bidirectional=True, batch_first=True), torch.nn.utils.rnn

    def function(i):
        weights = their_layer(torch, i, "forward", "l0") | their_layer(torch, i, "backward", "l0_reverse")
        packed = rnn.pack_padded_sequence(i["x"], i["lengths"], batch_first=True)
        out, _ = torch.func.functional_call(module, weights, (packed,), strict=True)
        out, _ = rnn.pad_packed_sequence(out, batch_first=True)
        return (out * i["cotangent"]).sum(), {"out": out}

    return differentiate_torch(torch, function, inputs)


CASES = [
    Case("lstm_stack", draw_stack, jax.jit(our_stack), their_stack),
    Case("lstm_both_ways", draw_both_ways, jax.jit(our_both_ways), their_both_ways),
]
