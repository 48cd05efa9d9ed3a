"""Does the search find something: its winner beside the Transformer it began with and beside random search; and workers.

    python -m benchmarks.search --data=DIR_OF_MULTI30K --workdir=DIR [--steps=1000] [--seeds=3]
    python -m benchmarks.search --data=DIR_OF_MULTI30K --part=workers

The first searches with configs/search.py:multi30k, then at random for as many training steps, and trains both winners (of
each method the best of its finalists) and the seed genome anew: as many steps and seeds each, parameters in the same band.
It is resumed by the same command. The second evaluates the same candidates with one worker and with two, each on a
processor core of its own, in turns; time is counted from when the workers stand ready, with nothing compiled before.

The last line is one JSON object.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks import runs

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "folder with train and val, .en.gz and .de.gz", required=True)
flags.DEFINE_enum("part", "search", ("search", "workers"), "what to measure")
flags.DEFINE_string("workdir", "", "folder of the search, to be resumed; by default a new one")
flags.DEFINE_integer("workers", -1, "of the search")
flags.DEFINE_integer("steps", 1000, "of the trainings at the end")
flags.DEFINE_integer("seeds", 3, "of the trainings at the end")
flags.DEFINE_integer("rounds", 1, "turns with one and with two workers")
flags.DEFINE_integer("candidates", 6, "that are evaluated in a turn")
flags.DEFINE_string("config", "multi30k", "variant of configs/search.py")


def main(_):
    data = Path(FLAGS.data)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(FLAGS.workdir or folder).absolute()
        result = searched(data, workdir) if FLAGS.part == "search" else workers(data, Path(folder))
    print(json.dumps(result))


def command(data: Path, workdir: Path, *more: str) -> list[str]:
    config = f"--config=configs/search.py:{FLAGS.config}"
    files = runs.files(data.resolve())
    return [sys.executable, "-m", "experiments.search", config, f"--workdir={workdir}", *files, *more]


def searched(data: Path, workdir: Path) -> dict:
    """Evolution, random search and the seed: perplexity of each, trained anew, mean and spread over the seeds."""
    more = ["--config.search.controls=('random',)", f"--workers={FLAGS.workers}"]
    more += [f"--config.search.final_steps={FLAGS.steps}", f"--config.search.final_seeds={FLAGS.seeds}"]
    began = time.monotonic()
    done = subprocess.run(command(data, workdir, *more), cwd=runs.REPOSITORY, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads(done.stdout.splitlines()[-1])
    methods = found.get("methods", {found["method"]: found})  # a control that found nothing is left out
    keys = "candidates trained saved failed rejected steps best_perplexity compile_share".split()
    return {
        "searches": {name: {key: counts[key] for key in keys} for name, counts in methods.items()},
        "hurdles": found["hurdles"],
        "trained_anew": {
            name: {
                "perplexity": [round(math.exp(-fitness), 3) for fitness in score["fitness"]],
                "mean": round(statistics.mean(math.exp(-fitness) for fitness in score["fitness"]), 3),
                "parameters": score["parameters"],
            }
            for name, score in found["final"].items()
        },
        "final_steps": found["final_steps"],
        "won": found["won"],
        "winner": found["winner"],
        "hours_of_this_call": round((time.monotonic() - began) / 3600, 2),
    }


def workers(data: Path, folder: Path) -> dict:
    """Seconds for the same candidates with one worker and with two, and how many times as fast two are."""
    seconds = {1: [], 2: []}
    for turn in range(FLAGS.rounds):
        for count, taken in seconds.items():
            taken.append(evaluated(data, folder / f"{turn}-{count}", count))
            print(f"turn {turn + 1}: {count} worker(s) {taken[-1]:.0f} s", flush=True)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    return {"seconds": {n: [round(s, 1) for s in taken] for n, taken in seconds.items()}, "two_over_one": round(ratio, 2)}


def evaluated(data: Path, workdir: Path, count: int) -> float:
    """Seconds from when the workers are there to when the last candidate is measured."""
    options = {"population": FLAGS.candidates - 1, "children": 1, "steps": "(60,)", "final_seeds": 0}
    more = [f"--config.search.{name}={value}" for name, value in options.items()] + [f"--workers={count}"]
    environment = os.environ | {"TRANSFORMERS_JAX_CACHE": ""}
    process = subprocess.Popen(
        command(data, workdir, *more), cwd=runs.REPOSITORY, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    ready = last = 0.0
    for line in process.stderr:
        if re.match(r"worker \d+ is process", line):
            ready = time.monotonic()
        elif line.startswith("evolution candidate"):
            last = time.monotonic()
    if process.wait():
        sys.exit(f"error: the search ended with {process.returncode}")
    return last - ready


if __name__ == "__main__":
    app.run(main)
