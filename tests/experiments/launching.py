"""Starting launchers: in processes of their own, and in this one, since starting Python and JAX takes seconds."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from experiments import launch
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.metrics import TIMING_KEYS

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def command(workdir, corpus, *more):
    config = f"--config={REPOSITORY}/configs/transformer.py:tiny"
    return ["-m", "experiments.pretrain", config, f"--workdir={workdir}", *corpus, *more]


def start(arguments, **options):
    """A launcher in a process of its own."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
    return subprocess.Popen([sys.executable, *map(str, arguments)], **(given | options))


def finish(process, stdin=None, timeout=600):
    """(exit code, stdout, stderr) of a process; the timeout is for a machine that has much else to do."""
    try:
        out, err = process.communicate(stdin, timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def call(launcher, capfd, *arguments, stdin=None, monkeypatch=None):
    """(exit code, stdout, stderr) of a launcher in this process."""
    if stdin is not None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    capfd.readouterr()
    code = launch.call(launcher.main, launcher.FLAGS, ["launcher", *map(str, arguments)])
    return code, *capfd.readouterr()


def fails(launcher, capfd, *arguments, says, **options):
    """Checks that a launcher ends with code 2 and one line on stderr that has all of `says`; returns stdout."""
    code, out, err = call(launcher, capfd, *arguments, **options)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and err.splitlines()[-1] == errors[0] and "Traceback" not in err, err
    for word in says:
        assert word in errors[0], errors[0]
    return out


def metrics(workdir):
    """The lines of a run, without timings."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING_KEYS} for line in lines]


def content(workdir):
    """All that a run learned: parameters, the sums of every array of its last state, and the steps of its checkpoints."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        params = jax.tree.map(np.asarray, checkpoints.restore_params())
        steps = checkpoints.all_steps()
    (extra,) = (workdir / "checkpoints" / str(steps[-1]) / "extra").glob("process_*")
    extra = json.loads(extra.read_text())
    extra["extra"]["window"].pop("seconds")
    return params, extra | {"steps": steps}
