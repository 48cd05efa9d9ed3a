"""A tiny run for the tests of the loop, and, as a script, runs that are killed or share their work.

`python tiny_runs.py NAME WORKDIR …` prints one line of JSON.
"""

import functools
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.training import integrity
from transformers_jax.training.best import Best
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.loop import Evaluator, graceful_stop, train
from transformers_jax.training.metrics import MetricsWriter

SEED, TOTAL = 3, 24
EVERY = {"log_every": 5, "checkpoint_every": 4, "eval_every": 8}
SCORES = {3: 0.1, 6: 0.5, 9: 0.5, 12: 0.7, 15: 0.6, 18: float("nan"), 21: 0.65, 24: 0.4}
"""Of the evaluations of a run whose best is kept: that of step 12 is the best."""


class Data:
    """Endless batches, each a function of its position."""

    def __init__(self, end=None):
        self.position, self.end = 0, end

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == self.end:
            raise StopIteration
        self.position += 1
        r = np.random.default_rng(self.position)
        return {"x": r.normal(size=(8, 4)).astype(np.float32), "weight": r.integers(0, 2, 8).astype(np.float32)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def make_state():
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    return jax.device_put({"step": np.int32(0), "params": {"w": ones}, "momentum": {"w": zeros}})


@functools.cache
def make_step():
    """Regression with dropout, momentum and the metrics of a language model; the state is donated."""

    def step(state, batch):
        kept = jax.random.bernoulli(jax.random.fold_in(jax.random.key(SEED), state["step"]), 0.5, (8, 4))

        def loss(params):
            error = (batch["x"] * kept) @ params["w"] - batch["x"].sum(1)
            return (batch["weight"] * error**2).sum() / jnp.maximum(batch["weight"].sum(), 1)

        value, gradient = jax.value_and_grad(loss)(state["params"])
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state["momentum"], gradient)
        params = jax.tree.map(lambda p, m: p - 0.01 * m, state["params"], momentum)
        weight = batch["weight"].sum()
        sums = {"loss": value * weight, "nll": value * weight / 2, "correct": weight / 3, "weight": weight}
        state = {"step": state["step"] + 1, "params": params, "momentum": momentum}
        return state, sums | {"grad_norm": jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))}

    return jax.jit(step, donate_argnums=0)


def evaluators(called=None):
    def measure(state, step):
        if called is not None:
            called.append(step)
        return {"loss": np.square(state["params"]["w"]).sum(), "at": step}

    def bleu(state, step):
        return {"bleu": np.asarray(state["params"]["w"])[0] * step}

    return [Evaluator("validation", measure), Evaluator("bleu", bleu, 12)]


def arguments(**changes):
    """Those of a run without a workdir."""
    return {
        "state": make_state(),
        "step_fn": make_step(),
        "iterator": Data(),
        "to_device": jax.device_put,
        "total_steps": TOTAL,
        "evaluators": evaluators(),
        "learning_rate": lambda count: 1 / (1 + count),
        "flops_per_step": 1e6,
        "peak_flops": 1e12,
        "verbose": False,
        **EVERY,
        **changes,
    }


def run(workdir, **changes):
    with Checkpoints(workdir / "checkpoints") as checkpoints, MetricsWriter(workdir, tensorboard=False) as writer:
        return train(**{"checkpoints": checkpoints, "writer": writer, "config": {"a": 1}} | arguments(**changes))


def scored(workdir, *, patience=0, writer=MetricsWriter, model=lambda state: {"params": state["params"]}, **changes):
    """A run with SCORES every three steps, whose best is kept."""
    changes = {"eval_every": 3, "evaluators": [Evaluator("validation", lambda _, step: {"score": SCORES[step]})]} | changes
    with (
        Checkpoints(workdir / "checkpoints") as checkpoints,
        Checkpoints(workdir / "best", keep=1) as kept,
        writer(workdir, tensorboard=False) as lines,
    ):
        best = Best(kept, "score", bigger=True, model=model, patience=patience)
        return train(**arguments(**{"checkpoints": checkpoints, "writer": lines, "best": best} | changes))


def together(workdir, index, port):
    """One of two processes: stopped, evaluated at step 6 when resumed, stopped again, resumed to the end."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    mesh = jax.make_mesh((2,), ("data",))
    rows, copied = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*p)) for p in (("data",), ()))

    def step(state, batch):
        loss = ((batch["x"] @ state["w"]) ** 2).sum()
        return {"w": state["w"] * 0.9}, {"loss": loss, "weight": batch["weight"].sum()}

    step, evaluated, report = jax.jit(step, out_shardings=copied), [], {}

    def once(total, stop):
        data = Data()
        changes = {
            "state": {"w": jax.make_array_from_process_local_data(copied, np.ones(4, np.float32))},
            "step_fn": step,
            "iterator": data,
            "to_device": lambda batch: jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch),
            "evaluators": [Evaluator("validation", lambda state, step: evaluated.append(step) or {"a": 1.0}, 6)],
            "should_stop": lambda: index == "1" and data.position >= stop,
            "total_steps": total,
            "log_every": 3,
            "checkpoint_every": 0,
        }
        try:
            run(Path(workdir), **changes)
        except SystemExit as stop:
            return stop.code, data.position
        return 0, data.position

    report["code"], report["position"] = once(9, 4)
    report["again"], report["end"] = once(9, 7)
    once(9, 99)
    return report | {"evaluated": evaluated}


def together_until_spent(workdir, index, port):
    """One of two processes that end by patience; in the second the scores are others, which must not matter."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    mesh = jax.make_mesh((2,), ("data",))
    copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    data = Data()
    scored(
        Path(workdir),
        patience=2,
        model=lambda state: state,
        state={"w": jax.make_array_from_process_local_data(copied, np.zeros(4, np.float32))},
        step_fn=jax.jit(lambda state, batch: ({"w": state["w"] + 1}, {"loss": batch, "weight": batch}), out_shardings=copied),
        iterator=data,
        to_device=lambda batch: np.float32(1),
        evaluators=[Evaluator("validation", lambda _, step: {"score": SCORES[step] * (1 if index == "0" else step)})],
    )
    return {"end": data.position}


def victim(workdir, moment, kept=False):
    """A run that ends itself at a moment, such as "torn 8 train": "" is never."""

    def at(*what):
        if " ".join(map(str, what)) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    class Writer(MetricsWriter):
        def write(self, step, split, metrics):
            at("before", step, split)
            if moment == f"torn {step} {split}":
                self._file.write(f'{{"step": {step}, "spl')
                self._file.flush()
            at("torn", step, split)
            super().write(step, split, metrics)
            at("after", step, split)

    def sealed(folder):
        at(*(["best"] if folder.parent.name == "best" else []), "seal", folder.name.split(".")[0])
        seal(folder)

    def stepped(state, batch):
        state, metrics = step(state, batch)
        if moment == f"term {data.position}":
            os.kill(os.getpid(), signal.SIGTERM)
        at("step", data.position)
        return state, metrics

    def measured(split, measure):
        return lambda state, step: at("evaluate", step, split) or measure(state, step)

    seal, integrity.seal = integrity.seal, sealed
    step, data = make_step(), Data()
    measures = [e._replace(run=measured(e.split, e.run)) for e in evaluators()]
    run_with = {"step_fn": stepped, "iterator": data, "evaluators": measures}
    if kept:
        scored(workdir, writer=Writer, step_fn=stepped, iterator=data)
        return
    with Checkpoints(workdir / "checkpoints") as checkpoints, Writer(workdir, tensorboard=False) as writer:
        with graceful_stop() as stop:
            train(**arguments(**run_with), checkpoints=checkpoints, writer=writer, config={"a": 1}, should_stop=stop)


def killed(workdir, *moments, kept=False):
    """Exit codes of one process a moment: forked here, so that the libraries are imported once."""
    codes = []
    for moment in moments:
        if not (child := os.fork()):
            code = 1
            try:
                victim(Path(workdir), moment, kept)
                code = 0
            except SystemExit as stop:
                code = stop.code
            finally:
                sys.stderr.flush()
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes


if __name__ == "__main__":
    with_best = {"killed_with_best": functools.partial(killed, kept=True), "together_until_spent": together_until_spent}
    print(json.dumps(({"killed": killed, "together": together} | with_best)[sys.argv[1]](*sys.argv[2:])))
