"""Several runs, and the best evaluation of one."""

import json

from transformers_jax.runs.sweep import best


def test_the_best_is_the_largest_or_the_smallest(tmp_path):
    values = [(1, 0.5), (2, 0.3), (3, 0.9), (4, 0.4)]
    lines = [json.dumps({"step": step, "split": "validation", "loss": value}) + "\n" for step, value in values]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert best(tmp_path, "loss", bigger=False) == {"metric": "loss", "best": 0.3, "step": 2, "last": 0.4}
    assert best(tmp_path, "loss", bigger=True) == {"metric": "loss", "best": 0.9, "step": 3, "last": 0.4}
    assert best(tmp_path, "f1", bigger=True) == {}
