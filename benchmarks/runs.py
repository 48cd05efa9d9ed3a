"""What the benchmarks share: a short training on Multi30k through the launcher, and what its lines say."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SPLITS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}


def files(data: Path, splits=("train", "validation")) -> list[str]:
    """The flags that name Multi30k's files in a folder; splits that are not wanted are left empty."""
    return [
        f"--config.data.{split}="
        + (",".join(str(data / f"{name}.{language}.gz") for language in ("en", "de")) if split in splits else "")
        for split, name in SPLITS.items()
    ]


def command(config: str, data: Path, workdir: Path, *flags: str) -> list[str]:
    """A training of configs/<config>.py:multi30k that says each step and neither tests nor translates."""
    return [
        sys.executable, "-m", "experiments.pretrain", f"--config=configs/{config}.py:multi30k", f"--workdir={workdir}",
        *files(data.resolve()), "--config.training.log_every=1", "--config.training.bleu_every=0", *flags,
    ]  # fmt: skip


def pretrain(config: str, data: Path, workdir: Path, *flags: str) -> list[dict]:
    """Trains, and returns the lines of metrics.jsonl."""
    done = subprocess.run(command(config, data, workdir, *flags), cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_line(command: list[str]) -> dict:
    """The JSON object that a command prints last; its failure is ours."""
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def compiled(run):
    """(first state, compiled step) of an experiment."""
    import jax

    from transformers_jax.runs import train as pretraining
    from transformers_jax.training.optimizers import make_optimizer
    from transformers_jax.training.state import create_state

    tx, _ = make_optimizer(run.config.optimizer, 1000)
    state, _ = create_state(run.model, tx, run.batch_shapes(), run.mesh, seed=0)
    return state, pretraining.compiled_step(run, tx, jax.tree.map(lambda x: x.sharding, state))


def tokens_per_second(lines: list[dict]) -> float:
    """Real target tokens a second: the median over steps, the first third left out."""
    return median(lines, "tokens_per_second")


def median(lines: list[dict], name: str) -> float:
    """Of a number of the training lines: the median over steps, the first third left out."""
    values = [x[name] for x in lines if x["split"] == "train" and name in x]
    return statistics.median(values[len(values) // 3 :])
