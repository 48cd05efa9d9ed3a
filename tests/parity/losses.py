"""Cross entropy with label smoothing: against torch.nn.functional.cross_entropy.

Axes: B batch rows, T target length, D model width, V vocabulary.
"""

import functools

import jax
import numpy as np
from parity.case import Case, differentiate, differentiate_torch, normal

from transformers_jax.layers.losses import cross_entropy

B, T, D, V, PAD = 3, 7, 6, 13, 0
LENGTHS = (7, 4, 1)


def draw(rng) -> dict:
    weights = np.arange(T)[None, :] < np.array(LENGTHS)[:, None]  # [B, T]
    targets = np.where(weights, rng.integers(1, V, (B, T)), PAD).astype(np.int32)
    return {"hidden": normal(rng, B, T, D), "table": normal(rng, V, D), "targets": targets}


def ours(smoothing: float, inputs: dict) -> dict:
    def function(i):
        sums = cross_entropy(i["hidden"], i["table"], i["targets"], i["targets"] != PAD, smoothing)
        return sums.loss, sums._asdict()

    return differentiate(function, inputs)


def theirs(smoothing: float, torch, inputs: dict) -> dict:
    def function(i):
        logits, targets = (i["hidden"] @ i["table"].T).flatten(0, 1), i["targets"].flatten()
        entropy = functools.partial(torch.nn.functional.cross_entropy, logits, targets, ignore_index=PAD, reduction="sum")
        loss, real = entropy(label_smoothing=smoothing), targets != PAD
        correct = ((logits.argmax(1) == targets) & real).sum().float()
        return loss, {"loss": loss, "nll": entropy(), "correct": correct, "weight": real.sum().float()}

    return differentiate_torch(torch, function, inputs)


CASES = [
    Case(f"cross_entropy_{name}", draw, jax.jit(functools.partial(ours, rate)), functools.partial(theirs, rate))
    for name, rate in (("plain", 0.0), ("smoothed", 0.1))
]
