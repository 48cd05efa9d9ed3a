"""Answers in passages: windows, answers that reproduce the text, no answers, SQuAD's own measure."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from real_data import shared_data
from small import Scorer, batch_of, tokenizer

from transformers_jax import batch as contract
from transformers_jax.data.sources import open_source
from transformers_jax.errors import UserError
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import squad
from transformers_jax.tasks.span_qa import Task

CONTEXT = "It was the best of times, it was the worst of times: 90 plums (at 3.50) cost a  Königreich in Paris! " * 4
SHORT = "There were a king with a large jaw and a queen with a plain face."
ANSWER = "Königreich in Paris"
EXAMPLES = [
    {"id": "1", "question": "who?", "context": SHORT, "answers": [{"text": "a queen", "start": SHORT.index("a queen")}]},
    {"id": "2", "question": "what?", "context": CONTEXT, "answers": [{"text": ANSWER, "start": CONTEXT.index("Kö", 150)}]},
]
LENGTH = 64


def sure_of(task, examples, answers, length: int = LENGTH) -> dict:
    """What `predict` gives if each answer (start, end), None for none, is seen wherever it is whole in a window."""
    rows = []
    for window in task.examples(examples):
        fields, logits = task.encode(window), np.full([length, 2], -5.0)
        first = task.tokenizer.joined(window["question"], ()).starts[1]
        logits[0] = 0.0
        if (answer := answers[window["example"]]) is not None:
            places = window["places"]
            starts, ends = np.flatnonzero(places[:, 0] == answer[0]), np.flatnonzero(places[:, 1] == answer[1])
            starts = [i for i in starts if places[i, 1] > places[i, 0]]
            if len(starts) and len(ends):
                logits[first + starts[0], 0] = logits[first + ends[-1], 1] = 4.0
        assert len(fields["tokens"]) <= length
        rows.append(logits)
    segments = np.ones([len(rows), length], np.int32)
    return {k: np.asarray(v) for k, v in task.predict(LabelOutput(jnp.asarray(rows)), {"segments": segments}).items()}


def spans_of(examples):
    return [(a["start"], a["start"] + len(a["text"])) for e in examples for a in e["answers"][:1]]


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "unigram"])
class TestWindows:
    def test_labels_frame_the_answer(self, kind):
        task = Task(tokenizer(kind), max_length=LENGTH, stride=20)
        found = task.examples(EXAMPLES)
        batch = contract.check(batch_of(task, found, length=LENGTH, rows=len(found) + 1))
        assert len(found) > 5 and batch["row_weights"].sum() == len(found)
        whole = 0
        for row, window in enumerate(found):
            start, end, text = int(batch["starts"][row]), int(batch["ends"][row]), EXAMPLES[window["example"]]
            if start == 0:
                assert end == 0 and window["answer"] is None
                continue
            whole += 1
            first = task.tokenizer.joined(window["question"], ()).starts[1]
            places = window["places"][start - first : end - first + 1]
            answer = text["answers"][0]
            assert (places[0, 0], places[-1, 1]) == (answer["start"], answer["start"] + len(answer["text"]))
        assert whole >= 3
        assert batch["tokens"][0, 0] == task.tokenizer.bos_id
        assert batch["token_types"].max() == (1 if kind == "wordpiece" else 0)

    def test_answers_are_parts_of_the_passage(self, kind):
        task = Task(tokenizer(kind), max_length=LENGTH, stride=20)
        answers = task.answers(EXAMPLES, sure_of(task, EXAMPLES, spans_of(EXAMPLES)))
        for example, answer in zip(EXAMPLES, answers, strict=True):
            assert answer["answer"] == example["answers"][0]["text"]
            for best in (answer, *answer["best"]):
                text = best.get("answer", best.get("text"))
                assert example["context"][best["start"] : best["end"]] == text and text == text.strip() != ""
            assert answer["best"][0]["score"] == 8.0
            assert sum(best["probability"] for best in answer["best"]) == pytest.approx(1, abs=0.01)

    def test_random_scores_give_texts_of_the_passage_too(self, kind):
        task = Task(tokenizer(kind), max_length=LENGTH, stride=20, max_answer=5)
        scores = np.random.default_rng(0).normal(size=[2, len(task.examples(EXAMPLES)), LENGTH])
        for example, answer in zip(EXAMPLES, task.answers(EXAMPLES, {"starts": scores[0], "ends": scores[1]}), strict=True):
            assert 1 <= len(answer["best"]) <= 20
            assert answer["best"] == sorted(answer["best"], key=lambda best: -best["score"])
            assert len({best["text"] for best in answer["best"]}) == len(answer["best"])
            for best in answer["best"]:
                assert example["context"][best["start"] : best["end"]] == best["text"]
                assert len(task.tokenizer.encode(best["text"])) <= 8


def test_an_answer_begins_where_it_stands_deepest():
    task = Task(tokenizer(), max_length=LENGTH, stride=20)
    found, span = task.examples(EXAMPLES), spans_of(EXAMPLES)[1]
    seen = [i for i, w in enumerate(found) if w["example"] == 1 and (w["places"][:, 0] == span[0]).any()]
    assert len(seen) > 1
    predictions = sure_of(task, EXAMPLES, spans_of(EXAMPLES))
    owners = []
    for i in seen:
        best = task._best_of(found[i], predictions["starts"][i], predictions["ends"][i])
        owners.append(any((start, end) == span for _, start, end in best))
    assert sum(owners) == 1


def test_loss_is_the_mean_of_both_ends():
    task = Task(tokenizer(), max_length=LENGTH, stride=20)
    batch = batch_of(task, task.examples(EXAMPLES), length=LENGTH, rows=12)
    logits = np.random.default_rng(0).normal(size=[12, LENGTH, 2])
    loss, weight, sums = task.loss(LabelOutput(jnp.asarray(logits)), batch, train=True)
    wanted, right = 0.0, 0
    for row in np.flatnonzero(batch["row_weights"]):
        real = batch["segments"][row] > 0
        ends = [batch["starts"][row], batch["ends"][row]]
        for k in range(2):
            x = logits[row, real, k]
            wanted -= (x[ends[k]] - np.log(np.exp(x).sum())) / 2
        right += all(logits[row, real, k].argmax() == ends[k] for k in range(2))
    assert float(loss) == pytest.approx(wanted, rel=1e-5) and float(weight) == batch["row_weights"].sum()
    assert float(sums["correct"]) == right and task.model_fields() == {"head": "span"}


def test_questions_without_answers():
    examples = [*EXAMPLES, {"id": "3", "question": "why?", "context": CONTEXT, "answers": []}]
    task = Task(tokenizer(), max_length=LENGTH, stride=20, no_answers=True)
    found = sure_of(task, examples, [*spans_of(EXAMPLES), None])
    scores, samples = task.evaluate(Scorer(examples, found), "test", {"params": {}, "model_state": {}})
    assert [sample["answer"] for sample in samples] == ["a queen", "Königreich in Paris", ""]
    assert samples[2]["start"] is None and samples[2]["no_answer_score"] > 0 > samples[0]["no_answer_score"]
    assert scores["exact_match"] == scores["f1"] == scores["f1_unanswerable"] == scores["best_f1"] == 1
    assert samples[0]["no_answer_score"] <= scores["best_threshold"] < samples[2]["no_answer_score"]
    strict = Task(tokenizer(), max_length=LENGTH, stride=20, no_answers=True, threshold=-100.0)
    assert strict.score(examples, found)["f1"] == pytest.approx(1 / 3)
    unknown = {"question": "?", "context": "x"}
    assert task.score([unknown], {k: v[:1] for k, v in found.items()}) == {}
    batch = batch_of(task, task.examples([unknown, examples[2]]), length=LENGTH)
    assert batch["starts"][0] == batch["ends"][0] == -1 and not batch["starts"][1:].any()
    zeros = LabelOutput(jnp.zeros([len(batch["starts"]), LENGTH, 2]))
    assert float(task.loss(zeros, batch, train=True)[1]) == len(batch["starts"]) - 1


def test_white_space_around_an_answer_is_none_of_it():
    task, (start, end) = Task(tokenizer(), max_length=LENGTH, stride=20), spans_of(EXAMPLES)[0]
    assert SHORT[start - 1] == SHORT[end] == " "
    wide = EXAMPLES[0] | {"answers": [{"text": SHORT[start - 1 : end + 1], "start": start - 1}]}
    found = [[window["answer"] for window in task.examples([example])] for example in (wide, EXAMPLES[0])]
    assert found[0] == found[1] and any(found[0])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="config.task.stride=0"):
        Task(tokenizer(), stride=0)
    with pytest.raises(UserError, match="max_length leaves no room"):
        Task(tokenizer(), max_length=5).examples(EXAMPLES)


class TestMeasure:
    """Values of SQuAD's scripts."""

    def test_normalisation(self):
        assert squad.normalised("The  U.S.A., an island; a 'Café'!") == "usa island café"

    @pytest.mark.parametrize(
        "truth, found, exact, f1",
        [
            ("the Denver Broncos", "Denver Broncos!", 1, 1),
            ("Denver Broncos", "the Broncos of Denver", 0, 0.8),
            ("Saint Bernadette Soubirous", "Bernadette", 0, 0.5),
            ("gold gold", "gold", 0, 2 / 3),
            ("", "", 1, 1),
            ("", "gold", 0, 0),
            ("gold", "silver", 0, 0),
        ],
    )
    def test_exact_match_and_f1(self, truth, found, exact, f1):
        assert squad.exact_match(truth, found) == exact and squad.f1(truth, found) == pytest.approx(f1)

    def test_the_nearest_answer_counts(self):
        assert squad.score([["x", "the gold"], []], ["gold", ""]) == {
            "exact_match": 1.0, "f1": 1.0, "questions": 2, "exact_match_answered": 1.0, "f1_answered": 1.0,
            "exact_match_unanswerable": 1.0, "f1_unanswerable": 1.0,
        }  # fmt: skip

    def test_the_best_threshold(self):
        found = squad.at_best_threshold([["a"], ["b"], [], []], ["a", "x", "y", "z"], [-3.0, -2.0, -1.0, 5.0])
        assert found["best_exact_match"] == found["best_f1"] == 0.75 and found["best_threshold"] == -3.0
        nothing = squad.at_best_threshold([[], []], ["y", "z"], [1.0, 2.0])
        assert nothing["best_f1"] == 1 and nothing["best_threshold"] < 1


def test_real_passages():
    source = open_source(ConfigDict(dict(source="squad", train=str(shared_data("squad/dev.json")))), "train")
    examples = source.examples[:25]
    task = Task(tokenizer("byte_bpe"), max_length=384, stride=128, max_answer=200)
    scores = task.score(examples, sure_of(task, examples, spans_of(examples), length=384))
    assert scores["exact_match"] == scores["f1"] == 1 and scores["questions"] == 25
    assert len(task.examples(examples)) > 50
