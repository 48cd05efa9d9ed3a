"""What the lecture says about inductive biases, on 5,000 photographs of 32 × 32, at equal parameters and equal time.

    python -m benchmarks.cifar --data=FOLDER --out=cifar.jsonl [--minutes=3 --seeds=0,1,2 --parts=models,positions,pretraining]

FOLDER has train and test, a folder a class in each, as CIFAR-10 has them. Each row of `--out` is one training, written when it
is done; the same command goes on where it was ended. A model's speed is measured first, in a run of its own whose accuracy does
not count, and gives it the steps of a cosine schedule that take `--minutes`; all seeds have these steps.

models: ViT with patches of 4 × 4; the hybrid, on a ResNet of as many positions; ConvNeXt. Parameters differ by 4 % at most.
positions: ViT's learned positions (the row of models), fixed ones, none.
pretraining: a ViT learns five of the ten classes, from none, a quarter or all of the other five's images. The five to be
  learned are finetuned for `--minutes`; each pretraining takes as long.

Minutes in all: seeds × 9 × `--minutes` and two pretrainings, and half a minute of compiling and evaluating a training.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks import runs

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "folder with train and test", required=True)
flags.DEFINE_string("out", None, "file of the rows", required=True)
flags.DEFINE_float("minutes", 3.0, "of each training")
flags.DEFINE_list("seeds", ["0", "1", "2"], "of each model")
flags.DEFINE_list("parts", ["models", "positions", "pretraining"], "which")
flags.DEFINE_integer("measured", 40, "steps of the run that measures speed")

VIT = ["width=96", "num_heads=3", "mlp_width=192"]  # half as wide as configs/vit.py:folders
MODELS = {
    "vit": ("vit", VIT),
    "hybrid": ("vit", [*VIT, "stem=resnet", "stem_depths=(2,)", "stem_width=16"]),
    "convnext": ("convnext", ["widths=(34,68,136)"]),
}
POSITIONS = {name: ("vit", [*VIT, f"positions={kind}"])
             for name, kind in (("vit, fixed positions", "sinusoidal_2d"), ("vit, no positions", "none"))}  # fmt: skip
SHARES = {"0": 0, "1/4": 4, "1": 1}
"""Of the other classes' images, and every which of them that is."""


def main(_):
    out, data = Path(FLAGS.out), Path(FLAGS.data).resolve()
    rows = Rows(out)
    for part, models in (("models", MODELS), ("positions", POSITIONS)):
        if part in FLAGS.parts:
            for seed in map(int, FLAGS.seeds):
                for name, (config, fields) in models.items():
                    rows.add(Training(part, name, seed, config, fields, data))
    if "pretraining" in FLAGS.parts:
        pretraining(rows, data, out.with_suffix(".pretrained").resolve())
    print(json.dumps(summary(rows.found)))


class Training:
    """One row: a model, a seed and its images."""

    def __init__(self, part: str, name: str, seed: int, config: str, fields: list[str], data: Path):
        self.key, self.config, self.data = {"part": part, "name": name, "seed": seed}, config, data
        self.timed = name if part == "models" else "vit"  # all others are as fast
        self.flags = [f"--config.model.{field}" for field in fields] + [f"--config.seed={seed}"]

    def run(self, workdir: Path, steps: int, *more: str, launcher: str = "pretrain") -> list[dict]:
        """Trains, and returns the lines of metrics.jsonl."""
        done = subprocess.run(
            [
                sys.executable, "-m", f"experiments.{launcher}", f"--config=configs/{self.config}.py:folders",
                f"--workdir={workdir}", f"--config.data.train={self.data}/train", f"--config.data.validation={self.data}/test",
                f"--config.training.steps={steps}", "--config.training.eval_every=0", "--config.training.checkpoint_every=0",
                "--config.training.log_every=10", f"--config.optimizer.warmup_steps={steps // 10}", *self.flags, *more,
            ],
            cwd=runs.REPOSITORY, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr.strip().splitlines()[-1])
        self.said = done.stderr
        return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    def row(self, workdir: Path, steps: int, *more: str, launcher: str = "pretrain") -> dict:
        """The row of a training, whose workdir is left."""
        began = time.monotonic()
        lines = self.run(workdir, steps, *more, launcher=launcher)
        parameters = next(x.split(" parameters")[0].split()[-1] for x in self.said.splitlines() if " parameters; start" in x)
        scores = [x for x in lines if x["split"] == "validation"][-1]
        return self.key | {
            "accuracy": round(100 * scores["accuracy"], 2),
            "steps": steps,
            "parameters": int(parameters.replace(",", "")),
            "seconds": round(time.monotonic() - began),
        }


class Rows:
    """The rows of a file, and those that are added to it."""

    def __init__(self, path: Path):
        self.path = path
        self.found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def row(self, key: dict) -> dict | None:
        """The row of this part, name and seed, if it is there."""
        return next((row for row in self.found if row.items() >= key.items()), None)

    def write(self, row: dict) -> dict:
        """Adds a row."""
        self.found.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return row

    def steps(self, training: Training) -> int:
        """So many as take `--minutes`: measured once a model, and kept as a row."""
        key = {"part": "speed", "name": training.timed}
        found = self.row(key)
        if found is None:
            with tempfile.TemporaryDirectory() as folder:
                lines = training.run(Path(folder) / "run", FLAGS.measured)
            found = self.write(key | {"images_per_second": runs.median(lines, "examples_per_second")})
        batch = 64  # of configs/*.py:folders
        return max(20, round(60 * FLAGS.minutes * found["images_per_second"] / batch))

    def add(self, training: Training, *more: str, launcher: str = "pretrain") -> None:
        """Trains if the row is not there."""
        if self.row(training.key) is None:
            steps = self.steps(training)
            with tempfile.TemporaryDirectory() as folder:
                self.write(training.row(Path(folder) / "run", steps, *more, launcher=launcher))


def pretraining(rows: Rows, data: Path, kept: Path) -> None:
    """Half of the classes, after more or less of the other half."""
    classes = sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
    for share, every in SHARES.items():
        workdir = kept / share.replace("/", "_")
        if every:
            other = linked(kept / f"images_{every}", data, classes[::2], every)
            before = Training("pretraining", f"{share} of the other classes", 0, "vit", VIT, other)
            if rows.row(before.key) is None:
                shutil.rmtree(workdir, ignore_errors=True)
                rows.write(before.row(workdir, rows.steps(before)))
        mine = linked(kept / "images", data, classes[1::2], 1)
        for seed in map(int, FLAGS.seeds):
            training = Training("pretraining", f"after {share}", seed, "vit", VIT, mine)
            more = {"launcher": "finetune"} if every else {}
            rows.add(training, *([f"--init_from={workdir}"] if every else []), **more)


def linked(folder: Path, data: Path, classes: list[str], every: int) -> Path:
    """A folder of some classes, with every which image of training, as links."""
    for split, step in (("train", every), ("test", 1)):
        for name in classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for image in sorted((data / split / name).iterdir())[::step]:
                link = folder / split / name / image.name
                if not link.exists():
                    os.symlink(image, link)
    return folder


def summary(rows: list[dict]) -> dict:
    """Accuracies by part and name, one a seed."""
    found: dict = {}
    for row in rows:
        if "accuracy" in row:
            found.setdefault(row["part"], {}).setdefault(row["name"], []).append(row["accuracy"])
    return found


if __name__ == "__main__":
    app.run(main)
