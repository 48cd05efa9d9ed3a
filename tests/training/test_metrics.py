"""What a run writes: every line whole, each once, and the same whether the run was interrupted or not."""

import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.training import metrics
from transformers_jax.training.metrics import TIMING_KEYS, MetricsWriter, Progress, means


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def fill(workdir, *steps, splits=("train", "validation")):
    with MetricsWriter(workdir, tensorboard=False) as writer:
        for step in steps:
            for split in splits:
                writer.write(step, split, {"loss": step / 3})


def test_a_line_is_one_json_object_in_order_and_is_there_at_once(tmp_path):
    writer = MetricsWriter(tmp_path / "run", tensorboard=False)
    writer.write(10, "train", {"loss": jnp.float32(0.1), "accuracy": np.float64(1 / 3), "steps": 7, "bleu": 27.5})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()  # not closed yet
    assert text == '{"step": 10, "split": "train", "loss": 0.1, "accuracy": 0.33333334, "steps": 7, "bleu": 27.5}\n'
    writer.write(10, "validation", {"loss": np.array([2]), "name": "x", "flag": np.bool_(True), "none": None})
    writer.close()
    assert lines(tmp_path / "run")[1] == {
        "step": 10, "split": "validation", "loss": 2, "name": "x", "flag": True, "none": None
    }  # fmt: skip


def test_floats_keep_all_digits_of_float32(tmp_path):
    values = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-20, 20).repeat(5)
    values = values.astype(np.float32)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step, value in enumerate(values):
            writer.write(step, "train", {"x": jnp.float32(value)})
    assert [np.float32(line["x"]) for line in lines(tmp_path)] == list(values)


def test_what_is_not_finite_is_null(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, "train", {"a": math.nan, "b": jnp.inf, "c": 1e300, "d": 0.0})
    assert lines(tmp_path) == [{"step": 1, "split": "train", "a": None, "b": None, "c": None, "d": 0.0}]


@pytest.mark.parametrize("torn", ['{"step": 30, "split": "tr', '{"step": 30, "split": "train", "loss": 9}', "\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    fill(tmp_path, 10, 20)
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + torn)
    fill(tmp_path, 30)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.startswith(whole) and [line["step"] for line in lines(tmp_path)] == [10, 10, 20, 20, 30, 30]


def test_truncated_lines_can_be_written_again(tmp_path):
    fill(tmp_path, 10, 20, 30)
    whole = (tmp_path / "metrics.jsonl").read_text()
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        assert writer.has(30, "train")
        writer.truncate_after(20)
        assert writer.has(20, "validation") and not writer.has(30, "train") and not writer.has(20, "bleu")
        assert [line["step"] for line in lines(tmp_path)] == [10, 10, 20, 20]
        for split in ("train", "validation"):
            writer.write(30, split, {"loss": 10.0})
        assert writer.has(30, "train")
    assert (tmp_path / "metrics.jsonl").read_text() == whole
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.truncate_after(0)
    assert lines(tmp_path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_tensorboard_has_the_numbers_and_hides_what_was_truncated(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 2.5, "text": "no number"})
    assert [p.name for p in (tmp_path / "tensorboard").iterdir()]
    with MetricsWriter(tmp_path) as writer:
        writer.truncate_after(0)
        writer.write(1, "train", {"loss": 2.5})
    events = [p.read_bytes() for p in sorted((tmp_path / "tensorboard").iterdir())]
    assert len(events) == 2 and all(b"train/loss" in e and b"no number" not in e for e in events)


@pytest.mark.parametrize("moment", ["while it is written", "when it is closed"])
def test_a_full_disk_takes_tensorboard_away_and_nothing_else(tmp_path, monkeypatch, caplog, moment):
    from tensorboardX.record_writer import RecordWriter

    monkeypatch.setattr(metrics, "_event_file", lambda folder: RecordWriter("/dev/full"))
    if moment == "when it is closed":
        monkeypatch.setattr(metrics, "FLUSH_SECONDS", math.inf)
    with MetricsWriter(tmp_path) as writer:
        for step in range(1, 31):
            writer.write(step, "train", {"loss": 1.0, "accuracy": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 31))
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path}/tensorboard cannot be written" in said and "No space left on device" in said


def test_a_tensorboard_that_is_no_folder(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("mine")
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 1.0})
        writer.write(2, "train", {"loss": 1.0})
    assert len(lines(tmp_path)) == 2 and len(caplog.records) == 1 and "File exists" in caplog.text


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricsWriter(tmp_path) as writer:
        writer.truncate_after(3)
        writer.write(1, "train", {"loss": 1.0})
        assert writer.has(5, "train")
    stream = io.StringIO()
    with Progress(10, stream=stream) as progress:
        progress.note("a")
        progress.metrics(1, "train", {"loss": 1.0})
    assert list(tmp_path.iterdir()) == [] and stream.getvalue() == ""


def test_means():
    sums = {"loss": 6.0, "nll": 4.0, "correct": 1.0, "weight": 2.0}
    assert means(sums | {"next_correct": 3.0, "next_weight": 4.0, "aux_loss": 1.0}) == {
        "loss": 3.0, "perplexity": math.exp(2), "accuracy": 0.5, "next_accuracy": 0.75, "aux_loss": 0.5
    }  # fmt: skip
    assert means({"nll": 800.0, "rows": 1.0}, "rows") == {"perplexity": math.inf}
    assert math.isnan(means({"loss": 0.0, "weight": 0.0})["loss"])


def test_plain_progress_is_a_line_each_with_the_time_left():
    stream = io.StringIO()
    with Progress(100, start=10, stream=stream) as progress:
        progress.note("first step after 1.0 s")
        progress.metrics(10, "train", {"loss": 1.0})
        progress.advance(11)
        progress._begun = (11, progress._begun[1] - 20)
        progress.advance(21)
        metrics = {"loss": 1.23456, "learning_rate": 0.000123456, "rows": 3, "tokens_per_second": 1234.5, "seconds": 9}
        progress.metrics(21, "train", metrics)
        progress.metrics(21, "validation", {"bleu": 27.25, "evaluation_seconds": 3.0, "text": "x"})
    assert stream.getvalue().splitlines() == [
        "first step after 1.0 s",
        "step 10/100  loss 1",
        "step 21/100  loss 1.235  learning_rate 0.0001235  rows 3  tokens_per_second 1234  left 0:02:38",
        "step 21  validation: bleu 27.25  text x",
    ]


def test_on_a_terminal_the_line_moves():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(50, start=10, stream=stream) as progress:
        for step in range(11, 51):
            progress.advance(step)
        progress.metrics(50, "train", {"loss": 1.5, "tokens_per_second": 100.0})
        progress.metrics(50, "validation", {"bleu": 3.0})
    text = stream.getvalue()
    assert "50/50" in text and "loss 1.5" in text and "\r" in text and "step 50  validation: bleu 3\n" in text


def test_progress_can_be_silent():
    stream = io.StringIO()
    with Progress(5, stream=stream, shown=False) as progress:
        progress.advance(1)
        progress.metrics(1, "train", {"loss": 1.0})
        progress.metrics(1, "validation", {"loss": 1.0})
    assert stream.getvalue() == ""


def test_timing_keys_are_the_ones_that_may_differ():
    assert {"tokens_per_second", "seconds", "flops"} <= set(TIMING_KEYS)
    results = {"loss", "perplexity", "accuracy", "bleu", "learning_rate", "grad_norm", "step", "split"}
    assert not results & set(TIMING_KEYS)
