"""Scores of a split: sums of batches added up, predictions in order, samples written whatever they hold, decoding when due."""

import json
from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax.mesh import make_mesh
from transformers_jax.runs import train
from transformers_jax.runs.evaluate import Scorer, evaluate
from transformers_jax.runs.experiment import Experiment, write_samples
from transformers_jax.tasks.task import Task

ROWS, CLASSES = 2, 3


class Same(nn.Module):
    """Gives back its input, times a parameter."""

    @nn.compact
    def __call__(self, batch, *, deterministic=True):
        return batch["score"] * self.param("scale", nn.initializers.ones, ())


class Parity(Task):
    """Whether the model's number is odd; the counts by true and by found class add up."""

    row_fields, scored_by = ("label", "score"), "sums"

    def loss(self, output, batch, *, train):
        weights = batch["row_weights"].astype(jnp.float32)
        return jnp.sum(output * weights), jnp.sum(weights), {"correct": jnp.sum(weights * (output % 2 == batch["label"]))}

    def sums(self, output, batch):
        matrix = jnp.zeros((CLASSES, CLASSES), jnp.int32)
        matrix = matrix.at[batch["label"], (output % 2).astype(jnp.int32)].add(batch["row_weights"])
        return {"matrix": matrix, "total": jnp.sum(output * batch["row_weights"])}

    def score_sums(self, totals):
        assert totals["matrix"].dtype == np.int64 and totals["total"].dtype == np.float64
        return {"matrix": totals["matrix"].tolist(), "total": float(totals["total"])}

    def predict(self, output, batch):
        return {"number": output}

    def score(self, source, predictions):
        return {"in_order": predictions["number"].tolist() == [e["score"] for e in source]}

    def answers(self, source, predictions):
        return [{"odd": x % 2 == 1, "mask": np.ones((8, 8), bool)} for x in predictions["number"]]


class Predicted(Parity):
    scored_by = "predictions"


SOURCE = [{"score": float(i), "label": i % 2 if i else 1, "image": np.zeros((9, 9, 3), np.uint8)} for i in range(5)]


def run_of(task):
    """An experiment's parts as a scorer takes them: three batches, of which the last has an empty row."""
    def batches(split):
        for first in range(0, len(SOURCE), ROWS):
            rows = SOURCE[first : first + ROWS]
            fields = {name: np.zeros(ROWS, kind) for name, kind in (("label", np.int32), ("score", np.float32))}
            for name in fields:
                fields[name][: len(rows)] = [row[name] for row in rows]
            yield fields | {"row_weights": (np.arange(ROWS) < len(rows)).astype(np.int32)}

    model = {"params": {"scale": jnp.ones(())}, "model_state": {}}
    return SimpleNamespace(
        model=Same(), task=task, mesh=make_mesh({}), eval_batches=lambda split: list(batches(split)),
        source=lambda split: SOURCE, trained=lambda **which: model,
    )  # fmt: skip


def test_sums_add_up_over_batches_and_empty_rows_count_for_nothing():
    scores, samples = evaluate(run_of(Parity()), "test")
    assert scores.pop("seconds") >= 0 and samples == []
    assert scores == {
        "split": "test", "loss": pytest.approx(2.0), "accuracy": pytest.approx(0.8), "total": 10.0,
        "matrix": [[2, 0, 0], [1, 2, 0], [0, 0, 0]],
    }  # fmt: skip


def test_predictions_come_in_the_order_of_the_examples():
    scores, samples = evaluate(run_of(Predicted()), "test")
    assert scores["in_order"] and scores["loss"] == pytest.approx(2.0) and len(samples) == 5
    scorer, model = Scorer(run_of(Predicted())), {"params": {"scale": jnp.float32(2)}, "model_state": {}}
    losses, predictions = scorer.predictions("test", **model)
    assert losses == scorer.losses("test", **model) == scorer.totals("test", **model)[0]
    assert predictions["number"].tolist() == [0, 2, 4, 6, 8] and losses["loss"] == pytest.approx(4.0)


def test_samples_with_arrays_are_written_and_read(tmp_path):
    run = Experiment(ConfigDict(), tmp_path)
    assert run.samples() == []
    _, samples = evaluate(run_of(Predicted()), "test")
    write_samples(run, samples)
    (first, *_), raw = run.samples(), [{"image": np.zeros((9, 9, 3), np.uint8), "number": np.int64(3)}]
    assert first == {"score": 0.0, "label": 1, "image": "uint8 [9, 9, 3]", "odd": False, "mask": "bool [8, 8]"}
    write_samples(run, raw)  # also of a task that makes its samples itself
    assert run.samples() == [{"image": "uint8 [9, 9, 3]", "number": 3}]
    assert json.loads((tmp_path / "samples.jsonl").read_text())["number"] == 3


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"bleu_every": 4, "bleu_sentences": 7}, [None, 7, None, 7, 7]),
        ({"bleu_every": 0, "bleu_sentences": 7}, [None] * 5),
        ({"bleu_every": 8}, [None, None, None, 0, 0]),
        ({}, [None] * 5),
    ],
)
def test_validation_decodes_every_so_many_steps_and_at_the_end(options, wanted):
    asked = []
    task = SimpleNamespace(validate=lambda scorer, model, *, sentences=None: asked.append(sentences) or {})
    run = SimpleNamespace(task=task, config=ConfigDict({"training": {"steps": 9, **options}}))
    evaluator = train.validation(run, None)
    for step in 2, 4, 6, 8, 9:
        evaluator.run(SimpleNamespace(evaluated_params={}, model_state={}), step)
    assert asked == wanted
