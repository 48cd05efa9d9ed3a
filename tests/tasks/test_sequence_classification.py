"""Labels and numbers for texts and pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import Scorer, batch_of, tokenizer

from transformers_jax import batch as contract
from transformers_jax.errors import UserError
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.sequence_classification import Task

EXAMPLES = [
    {"first": "the best of times", "label": "good"},
    {"first": "the worst of times", "label": "bad"},
    {"first": "the season of Light, a large jaw and a plain face", "label": "good"},
]
PAIRS = [
    {"first": "a king", "second": "a queen with a plain face", "score": 3.5},
    {"first": "a king with a large jaw", "second": "a king", "score": 1.0},
    {"first": "12 apples", "second": "7 pears", "score": 2.0},
]
LABELS = ("bad", "good")


def test_single_sentences():
    task = Task(tokenizer(), labels=LABELS)
    batch = contract.check(batch_of(task, EXAMPLES, rows=4))
    assert batch["label"].tolist() == [1, 0, 1, 0] and batch["row_weights"].tolist() == [1, 1, 1, 0]
    assert batch["tokens"][0].tolist()[:6] == tokenizer().joined(tokenizer().encode("the best of times")).ids[:6]
    assert not batch["token_types"].any()
    assert task.model_fields() == {"head": "sequence", "labels": 2} and task.main_metric == "accuracy"


@pytest.mark.parametrize("kind, separators", [("wordpiece", 1), ("byte_bpe", 2)])
def test_pairs(kind, separators):
    t = tokenizer(kind)
    task = Task(t)
    batch = contract.check(batch_of(task, PAIRS))
    first, second = t.encode("a king"), t.encode("a queen with a plain face")
    ids = [t.bos_id, *first, *[t.eos_id] * separators, *second, t.eos_id]
    assert batch["tokens"][0].tolist() == ids + [0] * (32 - len(ids))
    types = [0] * (len(first) + 2) + [1] * (len(second) + 1) if separators == 1 else []
    assert batch["token_types"][0].tolist() == types + [0] * (32 - len(types))
    assert batch["score"].tolist() == [3.5, 1.0, 2.0]
    assert task.model_fields() == {"head": "sequence", "labels": 1}


def test_long_pairs_are_cut_where_they_are_longer():
    fields = Task(tokenizer(), max_length=12).encode({"first": "a king", "second": " ".join(["a queen"] * 20), "score": 0.0})
    first = tokenizer().encode("a king")
    assert len(fields["tokens"]) == 12 and fields["tokens"][1 : len(first) + 1].tolist() == first
    assert fields["tokens"][-1] == tokenizer().eos_id


def test_loss_of_labels():
    task = Task(tokenizer(), labels=LABELS, label_smoothing=0.2)
    batch = batch_of(task, EXAMPLES, rows=4)
    logits = np.random.default_rng(0).normal(size=[4, 2])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss, weight, sums = task.loss(LabelOutput(jnp.asarray(logits)), batch, train=False)
    assert float(loss) == pytest.approx(-(log_p[0, 1] + log_p[1, 0] + log_p[2, 1]), rel=1e-5) and float(weight) == 3
    assert float(sums["correct"]) == (logits[:3].argmax(1) == [1, 0, 1]).sum()
    smooth, _, _ = task.loss(LabelOutput(jnp.asarray(logits)), batch, train=True)
    assert float(smooth) == pytest.approx(0.8 * float(loss) - 0.2 * log_p[:3].mean(1).sum(), rel=1e-5)


def test_loss_of_numbers():
    task = Task(tokenizer())
    batch = batch_of(task, PAIRS, rows=4)
    loss, weight, sums = task.loss(LabelOutput(jnp.asarray([[3.0], [1.0], [0.0], [99.0]])), batch, train=True)
    assert float(loss) == pytest.approx(0.25 + 0 + 4) and float(weight) == 3 and sums == {}


def test_scores_and_samples():
    task = Task(tokenizer(), labels=LABELS, metrics=("f1", "accuracy", "matthews"))
    logits = np.array([[0, 2.0], [0, 1.0], [0, 1.0]])
    found = {k: np.asarray(v) for k, v in task.predict(LabelOutput(jnp.asarray(logits)), {}).items()}
    scores, samples = task.evaluate(Scorer(EXAMPLES, found), "test", {"params": {}, "model_state": {}})
    assert task.main_metric == "f1"
    assert scores == {"loss": 0.5, "f1": pytest.approx(0.8), "accuracy": pytest.approx(2 / 3), "matthews": 0, "examples": 3}
    assert samples[1] == EXAMPLES[1] | {"prediction": "good", "probabilities": {"bad": 0.2689, "good": 0.7311}}


def test_regression_scores():
    task = Task(tokenizer())
    found = {k: np.asarray(v) for k, v in task.predict(LabelOutput(jnp.asarray([[7.0], [2.0], [4.0]])), {}).items()}
    scores = task.score(PAIRS, found)
    assert scores == {"pearson": pytest.approx(1), "spearman": pytest.approx(1), "examples": 3}
    assert task.samples(PAIRS, found)[0]["prediction"] == 7.0


def test_unlabelled_examples_are_predicted_and_not_scored():
    task = Task(tokenizer(), labels=LABELS)
    examples = [*EXAMPLES, {"first": "7 pears"}]
    found = {"probabilities": np.array([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])}
    assert task.score(examples, found) == {"accuracy": 1.0, "examples": 3}
    assert task.score(examples[3:], {"probabilities": np.array([[0.5, 0.5]])}) == {}
    assert len(task.samples(examples, found)) == 4

    logits = jnp.asarray(np.random.default_rng(0).normal(size=[4, 2]))
    known, every = (task.loss(LabelOutput(logits), batch_of(task, x, rows=4), train=True) for x in (EXAMPLES, examples))
    assert float(every[0]) == pytest.approx(float(known[0])) and float(every[1]) == 3
    assert float(every[2]["correct"]) == float(known[2]["correct"])

    task, found = Task(tokenizer()), LabelOutput(jnp.asarray([[3.0], [1.0], [0.0], [99.0]]))
    batch = batch_of(task, [*PAIRS, {"first": "a king"}])
    loss, weight, _ = task.loss(found, batch, train=True)
    assert float(loss) == pytest.approx(4.25) and float(weight) == 3
    gradient = jax.grad(lambda x: task.loss(LabelOutput(x), batch, train=True)[0])(found.logits)
    assert gradient[:, 0].tolist() == [-1, 0, -4, 0]


def test_mistakes_are_named():
    task = Task(tokenizer(), labels=LABELS)
    with pytest.raises(UserError, match="the label 'fair' is not one of config.task.labels: bad, good"):
        task.encode({"first": "x", "label": "fair"})
    with pytest.raises(UserError, match="config.task.labels"):
        Task(tokenizer(), labels=("a", "a"))
    with pytest.raises(UserError, match="config.task.metrics: 'pearson'"):
        Task(tokenizer(), labels=LABELS, metrics=("pearson",))
    with pytest.raises(UserError, match="max_length leaves 0 tokens"):
        Task(tokenizer(), labels=LABELS, max_length=2).encode(EXAMPLES[0])
