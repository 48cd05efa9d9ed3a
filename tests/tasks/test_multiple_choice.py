"""One of several choices, each a row of a group."""

import jax.numpy as jnp
import numpy as np
import pytest
from small import Scorer, batch_of, tokenizer

from transformers_jax import batch as contract
from transformers_jax.errors import UserError
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.multiple_choice import Task

EXAMPLES = [
    {"context": "a king", "choices": ["with a jaw", "in Paris", "12"], "label": "1"},
    {"context": "it was the best of times", "choices": ["it was", "the worst of times", "!"], "label": "0"},
]


def test_choices_are_rows_of_a_group():
    task, t = Task(tokenizer(), choices=3), tokenizer()
    batch = contract.check(batch_of(task, EXAMPLES, rows=3))
    assert batch["tokens"].shape == (3, 3, 32) and batch["label"].tolist() == [1, 0, 0]
    for i, example in enumerate(EXAMPLES):
        for k, choice in enumerate(example["choices"]):
            joined = t.joined(t.encode(example["context"]), t.encode(choice))
            size = len(joined.ids)
            assert batch["tokens"][i, k, :size].tolist() == joined.ids
            assert batch["token_types"][i, k, :size].tolist() == joined.types and batch["segments"][i, k].sum() == size
    assert task.model_fields() == {"head": "multiple_choice"}


def test_loss_and_scores():
    task = Task(tokenizer(), choices=3)
    batch = batch_of(task, EXAMPLES, rows=3)
    logits = np.array([[0.0, 2.0, 1.0], [0.0, 1.0, 0.0], [9.0, 0.0, 0.0]])
    loss, weight, sums = task.loss(LabelOutput(jnp.asarray(logits)), batch, train=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert float(loss) == pytest.approx(-log_p[0, 1] - log_p[1, 0], rel=1e-5)
    assert float(weight) == 2 and float(sums["correct"]) == 1
    found = {k: np.asarray(v)[:2] for k, v in task.predict(LabelOutput(jnp.asarray(logits)), batch).items()}
    scores, samples = task.evaluate(Scorer(EXAMPLES, found), "test", {"params": {}, "model_state": {}})
    assert scores == {"loss": 0.5, "accuracy": 0.5, "examples": 2}
    assert samples[0]["prediction"] == "1" and samples[0]["choice"] == "in Paris"
    assert samples[0]["probabilities"] == [round(float(p), 4) for p in np.exp(log_p[0])]
    unknown = {"context": "a", "choices": ["b", "c", "d"]}
    assert task.score([unknown], {"probabilities": np.ones([1, 3])}) == {}
    again = task.loss(LabelOutput(jnp.asarray(logits)), batch_of(task, [*EXAMPLES, unknown]), train=True)
    assert float(again[0]) == pytest.approx(float(loss)) and float(again[1]) == 2


def test_mistakes_are_named():
    with pytest.raises(UserError, match="an example has 3 choices where config.task.choices is 4"):
        Task(tokenizer()).encode(EXAMPLES[0])
    with pytest.raises(UserError, match="the label '3' is not one of config.task.labels: 0, 1, 2"):
        Task(tokenizer(), choices=3).encode(EXAMPLES[0] | {"label": "3"})
    with pytest.raises(UserError, match="config.task.choices=1"):
        Task(tokenizer(), choices=1)
