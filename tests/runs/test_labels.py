"""Labels of the training data, where a config names none."""

import pytest

from transformers_jax import config as configuration
from transformers_jax.runs import labels
from transformers_jax.runs.experiment import settled


@pytest.mark.parametrize(
    "variant, source, content, changes, wanted",
    [
        ("bert.py:ner", "conll", "Anna B-PER\nruns O\n\nB B-LOC\n", {}, ("B-LOC", "B-PER", "O")),
        ("bert.py:sentences", "tsv", "a\tpos\nb\tneg\n", {"data.columns": ("first", "label")}, ("neg", "pos")),
        ("bert.py:sentences", "jsonl", '{"first": "a", "label": 1}\n{"first": "b"}\n', {"data.columns": ()}, ("1",)),
        ("bert.py:sentences", "jsonl", '{"first": "a", "score": 1}\n', {"data.columns": ()}, ()),
        ("bert.py:sts", "tsv", "1\ta\tb\n", {}, ()),
    ],
)
def test_labels_of_files(tmp_path, variant, source, content, changes, wanted):
    (tmp_path / "train").write_text(content)
    config = configuration.load(f"configs/{variant}")
    changes = {"data.source": source, "data.train": str(tmp_path / "train"), "task.labels": (), "training.steps": 4} | changes
    config.update_from_flattened_dict(changes)
    assert labels.of_training(config) == wanted
    assert settled(config).task.labels == wanted and config.task.labels == ()
