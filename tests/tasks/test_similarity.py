"""Sentence vectors: three objectives, the classifier around an encoder, scores."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from real_data import shared_data
from small import Scorer, batch_of, tokenizer

from transformers_jax import batch as contract
from transformers_jax import models, parameters
from transformers_jax.data.sources import open_source
from transformers_jax.errors import UserError
from transformers_jax.outputs import EncoderOutput
from transformers_jax.tasks.similarity import Related, Task

PAIRS = [
    {"first": "a king", "second": "a queen with a plain face", "score": 2.5, "label": "neutral"},
    {"first": "the best of times", "second": "the best of times", "score": 5.0, "label": "same"},
    {"first": "12 apples", "second": "7 pears", "score": 1.0, "label": "neutral"},
]
LABELS = ("neutral", "same")


def hidden_of(batch, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[*batch["tokens"].shape, 6])


def vectors_of(hidden, batch) -> np.ndarray:
    real = (batch["segments"] > 0)[..., None]
    means = (hidden * real).sum(-2) / np.maximum(real.sum(-2), 1)
    return means / np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-12)


@pytest.fixture(scope="module")
def batch():
    return batch_of(Task(tokenizer()), PAIRS, rows=4)


def test_pairs_are_groups_of_two_rows(batch):
    contract.check(batch)
    assert batch["tokens"].shape == (4, 2, 32) and batch["score"].tolist() == [2.5, 5, 1, 0]
    assert np.array_equal(batch["tokens"][1, 0], batch["tokens"][1, 1]) and not batch["token_types"].any()


def test_regression(batch):
    task, hidden = Task(tokenizer()), hidden_of(batch)
    vectors = vectors_of(hidden, batch)
    cosines = (vectors[:, 0] * vectors[:, 1]).sum(-1)
    loss, weight, _ = task.loss(EncoderOutput(jnp.asarray(hidden)), batch, train=True)
    wanted = ((cosines[:3] - np.array([0.5, 1, 0.2])) ** 2).sum()
    assert float(loss) == pytest.approx(wanted, rel=1e-4) and float(weight) == 3
    found = task.predict(EncoderOutput(jnp.asarray(hidden)), batch)
    assert np.allclose(found["cosine"], cosines, atol=1e-6)
    unknown = batch_of(task, [*PAIRS, {"first": "a king", "second": "a queen"}])
    again = task.loss(EncoderOutput(jnp.asarray(hidden)), unknown, train=True)
    assert float(again[0]) == pytest.approx(wanted, rel=1e-4) and float(again[1]) == 3


def test_multiple_negatives(batch):
    task, hidden = Task(tokenizer(), objective="multiple_negatives"), hidden_of(batch)
    vectors = vectors_of(hidden, batch)[:3]
    logits = 20 * vectors[:, 0] @ vectors[:, 1].T  # the empty row is no candidate
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss, weight, sums = task.loss(EncoderOutput(jnp.asarray(hidden)), batch, train=True)
    assert float(loss) == pytest.approx(-np.trace(log_p), rel=1e-4) and float(weight) == 3
    assert float(sums["correct"]) == (logits.argmax(1) == np.arange(3)).sum()


def test_classification_has_a_classifier_beside_the_encoders_parameters():
    task = Task(tokenizer(), objective="classification", labels=LABELS)
    fields = dict(name="bert", width=16, num_heads=2, mlp_width=32, layers=1, max_length=64, dropout=0.0, **task.model_fields())
    encoder = models.build(fields, tokenizer().vocab_size)
    model = task.wrap(encoder, None)
    batch = batch_of(task, PAIRS, rows=4)
    params = nn.meta.unbox(model.init(jax.random.key(0), batch))["params"]
    alone = nn.meta.unbox(encoder.init(jax.random.key(0), batch))["params"]
    assert set(parameters.flat(params)) == {*parameters.flat(alone), "classifier/kernel"}
    assert params["classifier"]["kernel"].shape == (48, 2)

    output = model.apply({"params": params}, batch, deterministic=True)
    own = {name: value for name, value in params.items() if name != "classifier"}
    hidden = encoder.apply({"params": own}, batch, deterministic=True).hidden
    assert isinstance(output, Related) and np.array_equal(output.hidden, hidden)
    real = (batch["segments"] > 0)[..., None]
    u, v = np.moveaxis((hidden * real).sum(-2) / np.maximum(real.sum(-2), 1), 1, 0)
    logits = np.concatenate([u, v, np.abs(u - v)], -1) @ np.asarray(params["classifier"]["kernel"])
    assert np.allclose(output.logits, logits, atol=1e-5)
    loss, weight, sums = task.loss(output, batch, train=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert float(loss) == pytest.approx(-log_p[0, 0] - log_p[1, 1] - log_p[2, 0], rel=1e-4) and float(weight) == 3
    assert model.config is encoder.config

    found = {k: np.asarray(v)[:3] for k, v in task.predict(output, batch).items()}
    scores = task.score(PAIRS, found)
    assert {"accuracy", "spearman", "pearson", "pairs"} == set(scores)
    assert {"cosine", "prediction", "probabilities"} == set(task.answers(PAIRS, found)[0])


def test_scores_and_samples():
    task = Task(tokenizer())
    found = {"cosine": np.array([0.5, 0.9, 0.1])}
    scores, samples = task.evaluate(Scorer(PAIRS, found), "test", {"params": {}, "model_state": {}})
    assert scores == {"loss": 0.5, "pairs": 3, "spearman": pytest.approx(1), "pearson": pytest.approx(0.98, abs=0.02)}
    assert samples[1] == PAIRS[1] | {"cosine": 0.9} and task.main_metric == "spearman"
    assert task.model_fields() == {"head": "none"}


def test_wrapping_is_for_classification_only():
    assert Task(tokenizer()).wrap("model", None) == "model"


def test_mistakes_are_named():
    with pytest.raises(UserError, match="config.task.objective='cosine' is not one of regression, classification, multiple"):
        Task(tokenizer(), objective="cosine")
    with pytest.raises(UserError, match="config.task.pooling='middle'"):
        Task(tokenizer(), pooling="middle")
    with pytest.raises(UserError, match="config.task.labels"):
        Task(tokenizer(), objective="classification", labels=("a", "a"))


def test_real_pairs():
    keys = ConfigDict(dict(source="tsv", test=str(shared_data("sts/val.tsv")), columns=("score", "first", "second")))
    source = open_source(keys, "test")
    task = Task(tokenizer(), max_length=64)
    batch = contract.check(batch_of(task, source.examples[:20], length=64))
    assert batch["tokens"].shape == (20, 2, 64) and (batch["segments"].sum(-1) >= 4).all()
    assert np.allclose(batch["score"], [e["score"] for e in source.examples[:20]])
