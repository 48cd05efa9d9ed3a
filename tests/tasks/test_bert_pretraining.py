"""Pairs of texts with tokens missing: what the second text is, what is masked, and the two losses together."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import Scorer, batch_of, tokenizer

from transformers_jax import batch as contract
from transformers_jax.data.pipeline import train_iterator
from transformers_jax.errors import UserError
from transformers_jax.outputs import LanguageModelOutput, PretrainingOutput
from transformers_jax.tasks.bert_pretraining import Starts, Task

WORDS = "apples belief cost darkness england face foolishness incredulity jaw king light paris pears plums queen season".split()
DRAWN = np.random.default_rng(0).choice(WORDS, [8, 5, 6])
DOCUMENTS = [[" ".join(line) for line in document] for document in DRAWN.tolist()]
SOURCE = [{"text": line} for document in DOCUMENTS for line in [*document, ""]][:-1]


def texts_of(task, fields) -> tuple[list[int], list[int]]:
    """The tokens of both texts, unmasked."""
    tokens = np.where(fields["weights"], fields["targets"], fields["tokens"]).tolist()
    t = task.tokenizer
    assert tokens[0] == t.bos_id and tokens[-1] == t.eos_id
    second = int(np.argmax(fields["token_types"]))
    assert tokens[second - 1] == t.eos_id
    return tokens[1 : second - 1], tokens[second:-1]


def goes_on(task, first, second) -> bool:
    """Whether the two texts follow each other in a document."""
    whole = [[p for line in document for p in task.tokenizer.encode(line)] for document in DOCUMENTS]
    both = first + second
    return any(document[i : i + len(both)] == both for document in whole for i in range(len(document)))


def test_next_sentences_follow_or_are_from_elsewhere():
    task = Task(tokenizer(), max_length=200, short=0.0, duplicates=6)
    examples = task.examples(SOURCE)
    assert len(examples) == 8 * 5 * 6
    labels = []
    for i in range(len(examples)):
        fields = task.encode(examples[i])
        first, second = texts_of(task, fields)
        assert first and second
        labels.append(fields["label"])
        assert goes_on(task, first, second) == (fields["label"] == 0), i
    assert 0.5 < np.mean(labels) < 0.7  # the last sentence of a document has nothing behind it
    assert task.encode(examples[3])["label"] == task.encode(examples[3])["label"]


def test_sentence_order():
    task = Task(tokenizer(), relation="sentence_order", max_length=200, short=0.0, duplicates=6)
    examples = task.examples(SOURCE)
    labels = []
    for i in range(len(examples)):
        fields = task.encode(examples[i])
        first, second = texts_of(task, fields)
        labels.append(fields["label"])
        assert goes_on(task, *((second, first) if fields["label"] else (first, second))), i
    assert np.mean(labels) == pytest.approx(0.5, abs=0.1)


def test_pairs_fill_the_room():
    task = Task(tokenizer(), max_length=48, short=0.0)
    examples = task.examples(SOURCE)
    sizes = [len(task.encode(examples[i])["tokens"]) for i in range(len(examples))]
    assert max(sizes) == 48 and np.mean(np.array(sizes) == 48) > 0.5
    short = Task(tokenizer(), max_length=48, short=1.0)
    assert np.mean([len(short.encode(examples[i])["tokens"]) for i in range(len(examples))]) < np.mean(sizes) - 5


def test_masks_are_those_of_the_masked_language_model():
    task = Task(tokenizer(), max_length=64, whole_words=True)
    fields = [task.encode(task.examples(SOURCE)[i]) for i in range(40)]
    for one in fields:
        assert not one["weights"][one["words"] < 0].any() and one["weights"].any()
        for word in np.unique(one["words"][one["words"] >= 0]):
            assert len(set(one["weights"][one["words"] == word].tolist())) == 1
    share = np.mean([one["weights"].sum() / (one["words"] >= 0).sum() for one in fields])
    assert share == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize("masking", ["static", "dynamic"])
def test_batches(masking):
    task = Task(tokenizer(), max_length=40, masking=masking)
    keys = ConfigDict(dict(batching="rows", batch_size=8, lengths={"tokens": 40}, cache=True))
    batches = list(itertools.islice(train_iterator(task.examples(SOURCE), task, keys, seed=0), 10))
    seen: dict[bytes, set] = {}
    for batch in batches:
        contract.check(batch)
        assert set(batch["label"].tolist()) <= {0, 1}
        for row in range(8):
            text = np.where(batch["weights"][row], batch["targets"][row], batch["tokens"][row]).tobytes()
            seen.setdefault(text, set()).add(batch["weights"][row].tobytes())
    assert (max(map(len, seen.values())) > 1) == (masking == "dynamic")


def test_loss_is_the_sum_of_both_means():
    task = Task(tokenizer(), max_length=40)
    batch = batch_of(task, [task.examples(SOURCE)[i] for i in range(6)], length=40, rows=8)
    rng = np.random.default_rng(0)
    hidden, table, next_ = rng.normal(size=[8, 40, 8]), rng.normal(size=[tokenizer().vocab_size, 8]), rng.normal(size=[8, 2])
    output = PretrainingOutput(LanguageModelOutput(jnp.asarray(hidden), jnp.asarray(table)), jnp.asarray(next_))
    loss, weight, sums = task.loss(output, batch, train=True)
    logits = hidden @ table.T
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, columns = np.nonzero(batch["weights"])
    tokens = -log_p[rows, columns, batch["targets"][rows, columns]].sum()
    log_next = next_ - np.log(np.exp(next_).sum(1, keepdims=True))
    relation = -log_next[np.arange(6), batch["label"][:6]].sum()
    assert float(weight) == len(rows) and float(sums["nll"]) == pytest.approx(tokens, rel=1e-5)
    assert float(loss) == pytest.approx(tokens + relation * 0.15 * 40, rel=1e-5)
    assert float(sums["next_weight"]) == 6
    assert float(sums["next_correct"]) == (next_.argmax(1) == batch["label"])[:6].sum()
    assert task.predict(output, batch)["probabilities"].shape == (8, 2)
    assert task.model_fields() == {"head": "pretraining"} and task.evaluate(Scorer((), {}), "test", {}) == ({"loss": 0.5}, [])


def test_sentences_begin_in_no_gap():
    starts = Starts([{"text": ""}, {"text": "a"}, {"text": "b"}, {"text": " "}, {"text": "c"}], room=9, duplicates=1)
    assert [starts[i]["lines"] for i in range(len(starts))] == [["a", "b"], ["b"], ["c"]]
    assert starts[0]["others"] == ["c"] and starts[2]["others"] in (["a", "b"], ["b"])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="config.task.relation='next' is not one of next_sentence, sentence_order"):
        Task(tokenizer(), relation="next")
    with pytest.raises(UserError, match="config.task.max_length=4 has no room"):
        Task(tokenizer(), max_length=4)
    with pytest.raises(UserError, match="there is no sentence to train on"):
        Task(tokenizer()).examples([{"text": " "}])
