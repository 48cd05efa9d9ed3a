"""What a run costs beside its steps: time to the first step with a warm compile cache, and host work in steady state.

    python -m benchmarks.overhead --data=DIR_OF_MULTI30K

The overhead compares the loop, with the real pipeline behind it, with the same compiled step called again and again on
one batch that is on the device already; the two take turns. The last line is one JSON object.
"""

import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags

from benchmarks import runs
from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "folder with train and val, .en.gz and .de.gz", required=True)
flags.DEFINE_integer("rounds", 5, "turns of each side")
flags.DEFINE_integer("steps", 10, "steps a turn")


def main(_):
    launch.use_large_pages()
    data = Path(FLAGS.data)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        first_step(data, folder / "cold")
        seconds = [first_step(data, folder / f"warm{i}") for i in range(2)]
        loop, bare = steady(folder / "cold")
    shares = [a / b - 1 for a, b in zip(loop, bare, strict=True)]
    result = {
        "first_step_seconds_warm": [round(x, 1) for x in seconds],
        "step_seconds": {"loop": [round(x, 3) for x in loop], "bare": [round(x, 3) for x in bare]},
        "overhead_percent": [round(100 * x, 1) for x in shares],
        "median_overhead_percent": round(100 * statistics.median(shares), 1),
    }
    print(json.dumps(result))


def first_step(data: Path, workdir: Path) -> float:
    """Seconds from the launch of a process to the end of its first step; the tokenizer is learned anew."""
    began = time.monotonic()
    command = runs.command("transformer", data, workdir, "--config.training.steps=1")
    process = subprocess.Popen(command, cwd=runs.REPOSITORY, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "first step" in line:
            found = time.monotonic() - began
            process.communicate()
            return found
    raise SystemExit(line)  # which says what is wrong


def steady(workdir: Path) -> tuple[list[float], list[float]]:
    """Seconds a step of the loop, and of the bare step, turn by turn."""
    from transformers_jax import config as configuration
    from transformers_jax.mesh import global_batch
    from transformers_jax.runs import train as pretraining
    from transformers_jax.runs.experiment import Experiment
    from transformers_jax.training.loop import train

    run = Experiment(configuration.read(workdir), workdir)
    state, step = runs.compiled(run)
    iterator = run.train_iterator()

    def to_device(batch):
        return global_batch(batch, run.mesh)

    loop, bare = [], []
    with pretraining.in_context(run):
        fixed = to_device(next(iterator))
        for turn in range(FLAGS.rounds + 1):
            began = time.monotonic()
            state = train(
                state=state, step_fn=step, iterator=iterator, total_steps=FLAGS.steps, to_device=to_device,
                log_every=FLAGS.steps, verbose=False,
            )  # fmt: skip
            jax.block_until_ready(state)
            between = time.monotonic()
            for _ in range(FLAGS.steps):
                state, metrics = step(state, fixed)
                jax.block_until_ready(metrics)
            if turn:  # the first compiles and fills the cache of encoded examples
                loop.append((between - began) / FLAGS.steps)
                bare.append((time.monotonic() - between) / FLAGS.steps)
    return loop, bare


if __name__ == "__main__":
    app.run(main)
