"""A tiny model and task for the tests of training, and, as a script, those tests' work on other devices.

`python tiny_training.py meshes` trains on eight devices, `python tiny_training.py process INDEX COUNT PORT` as one of
several processes; both print one line of JSON. The device count is XLA's to read at its start: hence the scripts.
"""

import dataclasses
import json
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.mesh import data_shard, global_batch, make_mesh
from transformers_jax.tasks.task import Task
from transformers_jax.training.optimizers import make_optimizer
from transformers_jax.training.state import abstract_state, create_state
from transformers_jax.training.step import compile_eval_step, compile_step, make_eval_step, make_train_step

VOCAB, WIDTH, HIDDEN, ROWS, LENGTH = 16, 8, 32, 16, 6
STEPS = 3


def wave(key, shape, dtype=jnp.float32):
    """Numbers in ±0.3 that look random and compile quickly."""
    return 0.3 * jnp.sin(1.7 * jnp.arange(np.prod(shape), dtype=dtype) + 1).reshape(shape)


def boxed(*axes, init=wave):
    return nn.with_logical_partitioning(init, axes)


class Layer(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, deterministic):
        h = nn.Dense(HIDDEN, kernel_init=boxed("embed", "mlp"), bias_init=boxed("mlp"), name="up")(x)
        h = nn.Dropout(self.rate)(nn.relu(h), deterministic=deterministic)
        return x + nn.Dense(WIDTH, kernel_init=boxed("mlp", "embed"), use_bias=False, name="down")(h), None


class TinyModel(nn.Module):
    """batch["inputs"] [B, T] → logits [B, T, V]; two scanned layers."""

    rate: float = 0.0
    batch_norm: bool = False

    @nn.compact
    def __call__(self, batch, *, deterministic=True):
        embedding = self.param("embedding", boxed("vocab", "embed", init=nn.initializers.normal(0.3)), (VOCAB, WIDTH))
        x = embedding[batch["inputs"]]
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=2,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = layers(self.rate, name="layers")(x, deterministic)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=deterministic, momentum=0.5, name="running")(x)
        x = x * self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), (WIDTH,))
        return x @ embedding.T


class TinyTask(Task):
    """Cross entropy of the tokens that are not padding."""

    def loss(self, output, batch, *, train):
        weights = (batch["segments"] > 0).astype(jnp.float32)
        losses = -jnp.take_along_axis(nn.log_softmax(output), batch["targets"][..., None], axis=-1)[..., 0]
        correct = (output.argmax(-1) == batch["targets"]) * weights
        return (losses * weights).sum(), weights.sum(), {"correct": correct.sum(), "training": jnp.float32(train)}


def make_batch(seed=0, rows=ROWS):
    """Rows of very unequal numbers of tokens; the first quarter has none."""
    r = np.random.default_rng(seed)
    lengths = np.where(np.arange(rows) < rows // 4, 0, r.integers(1, LENGTH + 1, rows))
    fields = {name: r.integers(0, VOCAB, (rows, LENGTH), dtype=np.int32) for name in ("inputs", "targets")}
    return fields | {"segments": (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)}


SGD = {"name": "sgd", "schedule": "constant", "learning_rate": 0.5}
ADAM = {"name": "adamw", "schedule": "constant", "learning_rate": 0.01, "weight_decay": 0.1, "eps": 1e-3}


COMPILATIONS = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILATIONS.append(event) if event.endswith("backend_compile_duration") else None
)


@dataclasses.dataclass
class Run:
    """What a few steps gave: the metrics of each, the state in numpy before and after, the sums of an evaluation of the
    last state, how many programs each step compiled, and whether the first state's memory was given up."""

    metrics: list
    first: object
    last: object
    evaluated: dict
    compiled: list
    given_up: bool


def train(
    mesh,
    *,
    rate=0.0,
    batch_norm=False,
    optimizer=ADAM,
    accumulate=1,
    parallelism="jit",
    trainable=".",
    rows=slice(None),
):
    """Trains for STEPS on `rows` (this process's) of the same global batches."""
    model, task = TinyModel(rate, batch_norm), TinyTask()
    tx, _ = make_optimizer(optimizer, STEPS)
    state, shardings = create_state(model, tx, make_batch(), mesh, seed=1, trainable=trainable)
    step = make_train_step(model, task, tx, seed=2, accumulate=accumulate, parallelism=parallelism)
    step = compile_step(step, mesh, shardings, make_batch(), parallelism=parallelism)
    initial, first, metrics, compiled = state, fetch(state), [], []
    for i in range(STEPS):
        batch = {name: field[rows] for name, field in make_batch(i).items()}
        before = len(COMPILATIONS)
        state, measured = step(state, global_batch(batch, mesh, parallelism=parallelism))
        compiled.append(len(COMPILATIONS) - before)
        metrics.append({name: float(value) for name, value in measured.items()})
    evaluate = compile_eval_step(make_eval_step(model, task), mesh)
    batch = {name: field[rows] for name, field in make_batch(9).items()}
    sums = evaluate(state.model_params, state.model_state, global_batch(batch, mesh))
    evaluated = {name: float(value) for name, value in sums.items()}
    given_up = all(leaf.is_deleted() for leaf in jax.tree.leaves(initial))
    return Run(metrics, first, fetch(state), evaluated, compiled, given_up)


def fetch(state):
    """The state in numpy; what other processes hold in part is left out."""
    return jax.tree.map(lambda x: np.array(x) if x.is_fully_addressable else None, state)


def one_device():
    return make_mesh({}, jax.devices()[:1])


def difference(a, b):
    """The largest absolute difference of two trees of the same structure."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return max(
        float(np.abs(np.asarray(x, float) - np.asarray(y, float)).max())
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


NOISY = {"rate": 0.5, "batch_norm": True}
WAYS = {
    "data=8": ({"data": 8}, NOISY),
    "fsdp=8": ({"data": 1, "fsdp": 8}, NOISY),
    "2x2x2": ({"data": 2, "fsdp": 2, "tensor": 2}, NOISY),
    "2x2x2 accumulate": ({"data": 2, "fsdp": 2, "tensor": 2}, {"accumulate": 2}),
    "pmap accumulate": ({"data": 8}, {"parallelism": "pmap", "accumulate": 2}),
}
"""Ways to train on eight devices that must give what one device gives, by name: the mesh and the options of `train`."""


def meshes():
    """Eight devices against one: differences of the first and the last state and of the metrics, by name of the way."""
    references = {True: train(one_device(), **NOISY), False: train(one_device())}
    report = {}
    for name, (mesh, options) in WAYS.items():
        reference = references[options is NOISY]
        run = train(make_mesh(mesh), **options)
        report[name] = {
            "first": difference(run.first, reference.first),
            "last": difference(run.last, reference.last),
            "moved": difference(run.last.params, run.first.params),
            "evaluated": difference(run.evaluated, reference.evaluated),
            "metrics": [run.metrics, reference.metrics],
            "compiled": run.compiled,
        }
    return {"devices": jax.device_count(), "ways": report, "placement": placement(), "moves": moves()}


def placement():
    """Shapes of what one device holds on the mesh 2x2x2, under Adam and under Adafactor."""
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    report = {}
    for optimizer in (ADAM, ADAM | {"name": "adafactor", "min_factored": 8}):
        tx, _ = make_optimizer(optimizer, STEPS)
        state = abstract_state(TinyModel(), tx, make_batch(), mesh)
        leaves, _ = jax.tree_util.tree_flatten_with_path(state)
        report[optimizer["name"]] = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding.shard_shape(leaf.shape)
            for path, leaf in leaves
        }
    return report


def moves():
    """What crosses between devices in a step, by mesh: (operation, shape) of every gather and exchange."""
    return {
        name: crossings(mesh, accumulate) for name, mesh, accumulate in (("data", {}, 2), ("fsdp", {"data": 1, "fsdp": 8}, 1))
    }


def crossings(mesh, accumulate):
    mesh = make_mesh(mesh)
    model, (tx, _) = TinyModel(), make_optimizer(SGD, STEPS)
    state = abstract_state(model, tx, make_batch(), mesh)
    step = make_train_step(model, TinyTask(), tx, seed=2, accumulate=accumulate)
    step = compile_step(step, mesh, jax.tree.map(lambda x: x.sharding, state))
    text = step.lower(state, global_batch(make_batch(), mesh)).compile().as_text()
    return re.findall(r"\w+\[([\d,]*)\]\S* (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)\(", text)


def process(index, count, port):
    """Trains as one of several processes, each with its share of the rows."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
    mesh = make_mesh({"fsdp": 2})
    share, shares = data_shard(mesh)
    rows = slice(share * ROWS // shares, (share + 1) * ROWS // shares)
    run = train(mesh, rows=rows, accumulate=2)
    tensor = data_shard(make_mesh({"data": 1, "tensor": -1}))
    return {
        "devices": jax.device_count(),
        "share": [share, shares],
        "tensor": tensor,
        "metrics": run.metrics,
        "evaluated": run.evaluated,
    }


if __name__ == "__main__":
    print(json.dumps({"meshes": meshes, "process": process}[sys.argv[1]](*sys.argv[2:])))
