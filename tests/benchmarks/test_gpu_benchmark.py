"""The benchmark of one accelerator runs: at a small size, on the CPU, and tells everything of each model."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_sizes import MODELS, SMALL

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def test_each_size_has_its_small_one():
    assert MODELS.keys() == SMALL.keys()
    for size in SMALL.values():
        batch = size.batch()
        assert size.tokens == size.rows * size.length and {x.shape for x in batch.values()} == {(size.rows, size.length)}


def test_a_small_run(tmp_path):
    flags = ["--small", "--steps=3", "--models=bert_base", f"--out={tmp_path}/found.jsonl"]
    command = [sys.executable, "-m", "benchmarks.gpu", *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr[-2000:]
    device, found, end = map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines())
    assert device["platform"] == "cpu" and device["peak_tflops"] > 0 and end["left_out"] == []
    assert found["model"] == "bert_base" and found["kernel"] == "xla"
    assert found["tokens_per_second"] > 0 and 0 < found["share_of_peak"] < 1 and found["compile_seconds"] > 0
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()] == ["model", "bert_base"]
