"""QLoRA on eight devices against one, as a script: `python adapted_meshes.py FOLDER` prints one line of JSON.

The folder is for a checkpoint that is saved on one mesh and restored on another.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from adapted import build, plain

from transformers_jax import parameters
from transformers_jax.finetuning.method import Finetuning
from transformers_jax.finetuning.trainable import Options, patterns
from transformers_jax.layers.quantized import is_quantized
from transformers_jax.mesh import global_batch, make_mesh
from transformers_jax.runs import initialise
from transformers_jax.training.checkpoint import Base, Checkpoints
from transformers_jax.training.state import abstract_state, create_state
from transformers_jax.training.step import compile_step, make_train_step

METHODS = {
    "qlora": dict(method="lora", rank=2, targets=(".",), quantization="nf4", block=8, dora=True),
}
MESHES = {"one": None, "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2}}
BASE = Base("somewhere", "of this model")


class Squares:
    """The loss is how far each logit is from 1."""

    def mix(self, batch, key):
        return batch

    def loss(self, output, batch, *, train):
        return jnp.sum((output.logits - 1.0) ** 2), jnp.float32(output.logits.size), {}


def batch_of(model):
    random, batch = np.random.default_rng(0), model.protocol().example(B=8, T=6)
    return batch | {"tokens": random.integers(3, 37, batch["tokens"].shape).astype(np.int32)}


def made(method: str, mesh):
    """(state, step, batch) of a method on a mesh; the base is the same on each."""
    model, boxed, places = build("scanned")
    options = METHODS[method]
    adapt = Finetuning(Options(**options), places, patterns({"finetuning": options}))
    batch, tx = batch_of(model), optax.sgd(0.1)
    place = {"trainable": adapt.patterns, "adapt": adapt}
    abstract = abstract_state(model, tx, batch, mesh, **place)
    base = {name: np.asarray(x) for name, x in parameters.flat(plain(boxed)).items()}
    given = initialise.placed(base, abstract.variables)
    state, shardings = create_state(model, tx, batch, mesh, seed=4, given=given, **place)
    step = compile_step(make_train_step(model, Squares(), tx, seed=2), mesh, shardings, batch)
    return state, step, global_batch(batch, mesh)


def trained(state, step, batch, steps: int = 3):
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


def largest(first, second) -> float:
    return max(float(np.abs(np.asarray(x, float) - np.asarray(y, float)).max()) for x, y in zip(first, second, strict=True))


def main(folder: str) -> dict:
    report = {"devices": jax.device_count()}
    for method in METHODS:
        runs = {}
        for name, sizes in MESHES.items():
            mesh = make_mesh(sizes) if sizes else make_mesh({}, jax.devices()[:1])
            state, step, batch = made(method, mesh)
            split = [x for leaf in parameters.flat(state.frozen).values() if is_quantized(leaf)
                     for x in jax.tree.leaves(leaf) if not x.sharding.is_fully_replicated]  # fmt: skip
            before = [np.asarray(x) for x in jax.tree.leaves(state.frozen)]
            state, losses = trained(state, step, batch)
            after = [np.asarray(x) for x in jax.tree.leaves(state.frozen)]
            runs[name] = {
                "losses": losses, "split": len(split), "params": [np.asarray(x) for x in jax.tree.leaves(state.params)],
                "kept": all(x.tobytes() == y.tobytes() for x, y in zip(before, after, strict=True)),
            }  # fmt: skip
            if name == "2x2x2":
                with Checkpoints(f"{folder}/{method}", base=BASE) as checkpoints:
                    checkpoints.save(3, state)
        other, _, _ = made(method, make_mesh({"data": 1, "fsdp": 8}))
        with Checkpoints(f"{folder}/{method}", base=BASE) as checkpoints:
            _, restored, _ = checkpoints.restore_latest(other)
        found = [np.asarray(x) for x in jax.tree.leaves(restored.params)]
        report[method] = {
            name: {"losses": largest(run["losses"], runs["one"]["losses"]), "split": run["split"], "kept": run["kept"],
                   "params": largest(run["params"], runs["one"]["params"])} for name, run in runs.items()
        }  # fmt: skip
        report[method]["falls"] = runs["one"]["losses"][0] - runs["one"]["losses"][-1]
        report[method]["restored"] = largest(found, runs["2x2x2"]["params"])
    return report


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
