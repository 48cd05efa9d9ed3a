"""Several runs, and the best evaluation of one."""

import json

from transformers_jax.runs.sweep import best, last_scores


def test_the_best_is_the_largest_or_the_smallest(tmp_path):
    values = [(1, 0.5), (2, 0.3), (3, 0.9), (4, 0.4)]
    lines = [json.dumps({"step": step, "split": "validation", "loss": value}) + "\n" for step, value in values]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert best(tmp_path, "loss", bigger=False) == {"metric": "loss", "best": 0.3, "step": 2, "last": 0.4}
    assert best(tmp_path, "loss", bigger=True) == {"metric": "loss", "best": 0.9, "step": 3, "last": 0.4}
    assert best(tmp_path, "f1", bigger=True) == {}


def test_scores_are_those_of_the_model_that_is_kept(tmp_path):
    lines = [
        {"step": 1, "split": "validation", "accuracy": 0.9},
        {"step": 2, "split": "train", "loss": 1.0},
        {"step": 2, "split": "validation", "accuracy": 0.5, "evaluation_seconds": 3.0},
        {"step": 2, "split": "test", "accuracy": 0.8},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_scores(tmp_path) == {"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.8}}
    (tmp_path / "best" / "1").mkdir(parents=True)
    assert last_scores(tmp_path) == {"validation": {"accuracy": 0.9}, "test": {"accuracy": 0.8}}
