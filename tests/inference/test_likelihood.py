"""Questions by likelihood: scores against full passes, files of every kind, examples in front."""

import functools
import json
import math

import jax
import numpy as np
import pytest
from tiny_decoder import there, tokenizer

from transformers_jax.errors import UserError
from transformers_jax.inference import likelihood, questions, written

CHOICES = [
    {"query": f"Question: how far is {place}?", "choices": ["far away", "near", "7 days"], "gold": i % 3}
    for i, place in enumerate(("the sea", "the land", "the king's end", "it", "the capital", "the old king"))
]


@functools.cache
def scorer():
    return likelihood.Likelihood(there())


@pytest.fixture
def asked(tmp_path):
    """Writes lines and reads them as questions."""

    def make(lines, name="some.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return questions.read(tmp_path / name)

    return make


def by_hand(prompt, answer):
    """(log-probability of the answer's tokens, whether each is the likeliest), by one full pass."""
    t, model = tokenizer(), there().model
    before, whole = t.encode(prompt), t.encode(prompt + answer)
    ids = np.array([[t.bos_id, *whole]], np.int32)[:, -33:]
    batch = {"tokens": ids[:, :-1], "segments": np.ones_like(ids[:, :-1]), "positions": np.arange(ids.shape[1] - 1)[None]}
    output = model.apply({"params": there().variables["params"]}, batch)
    logits = np.asarray(jax.nn.log_softmax(output.hidden @ output.table.T))[0]
    count = len(whole) - len(before)
    assert whole[: len(before)] == before
    places, targets = range(len(logits) - count, len(logits)), ids[0, -count:]
    return logits[places, targets].sum(), (logits[places].argmax(axis=1) == targets).all()


def test_scores_are_those_of_full_passes_whatever_stands_beside_them(monkeypatch):
    t = tokenizer()
    monkeypatch.setattr(t, "begun", lambda ids: [t.bos_id, *ids])
    prompts = ["the king", "the capital of the land is", "so it", "the king of the sea is old, and so " * 4]
    answers = [" of the sea", " old", " goes on. the end", " it goes"]
    found = scorer()(prompts, answers)
    for prompt, answer, score in zip(prompts, answers, found, strict=True):
        logprob, greedy = by_hand(prompt, answer)
        assert score.logprob == pytest.approx(logprob, abs=1e-3) and score.greedy == greedy
        assert score.by_byte == pytest.approx(logprob / len(answer.strip()), abs=1e-4)


def test_choices_are_answered_by_the_likeliest(asked):
    one = asked(CHOICES)
    assert one.kind == "choices" and one.questions[0].prompts[0] == "Question: how far is the sea?\nAnswer:"
    best = [int(np.argmax([s.logprob for s in scorer()(q.prompts, q.answers)])) for q in one.questions]
    found = likelihood.measure(scorer(), one)
    right = np.mean([b == q.gold for b, q in zip(best, one.questions, strict=True)])
    assert found["accuracy"] == pytest.approx(right) and found["chance"] == pytest.approx(1 / 3) and found["questions"] == 6
    assert found["stderr"] == pytest.approx(math.sqrt(right * (1 - right) / 6))
    assert likelihood.measure(scorer(), one, limit=2)["questions"] == 2


def test_gold_moves_the_accuracy(asked):
    one = asked(CHOICES)
    best = [int(np.argmax([s.logprob for s in scorer()(q.prompts, q.answers)])) for q in one.questions]
    right = [q._replace(gold=b) for q, b in zip(one.questions, best, strict=True)]
    assert likelihood.measure(scorer(), one._replace(questions=right))["accuracy"] == 1.0


def test_examples_in_front_are_others_of_the_file_drawn_by_seed_and_number(asked):
    one = asked(CHOICES)
    before = one.before(1, 3, seed=0)
    shown = [q.shown() for q in one.questions]
    parts = before.removesuffix("\n\n").split("\n\n")
    assert before.endswith("\n\n") and len(set(parts)) == 3 and set(parts) <= set(shown) - {shown[1]}
    assert before == one.before(1, 3, seed=0) and len({one.before(1, 3, seed=k) for k in range(5)}) > 1
    assert one.before(1, 0, seed=0) == ""
    assert all(shown[5] not in one.before(5, 5, seed=k) for k in range(3))
    plain, with_shots = (likelihood.measure(scorer(), one, shots=k) for k in (0, 2))
    assert plain["questions"] == with_shots["questions"]


def test_the_other_kinds(asked):
    beginnings = asked([{"context_options": ["the king", "the sea"], "continuation": "is old.", "gold": 1}])
    assert beginnings.questions[0] == (("the king", "the sea"), (" is old.", " is old."), 1)
    sentences = asked([{"sentence_good": "the king is old.", "sentence_bad": "the king old is."}])
    assert likelihood.measure(scorer(), sentences)["chance"] == 0.5
    with pytest.raises(UserError, match="--shots=1: some has sentences"):
        likelihood.measure(scorer(), sentences, shots=1)
    last = asked([{"context": "the king of the", "continuation": "sea"}, {"context": "so it", "continuation": "goes"}])
    found = likelihood.measure(scorer(), last)
    scores = scorer()(["the king of the", "so it"], [" sea", " goes"])
    assert found["perplexity"] == pytest.approx(math.exp(-np.mean([s.logprob for s in scores])), rel=1e-4)
    assert found["accuracy"] == np.mean([s.greedy for s in scores])


def test_numbers_of_worked_answers():
    assert written.number_of("3 and 4 make 7.\n#### 1,070") == 1070 and written.number_of("so 3, and then -12.50.") == -12.5
    assert written.number_of("#### $5 and 6") == 5 and written.number_of("none") is None


def test_written_answers_are_scored(asked):
    worked = asked([{"question": "how far?", "answer": "far.\n#### 7"}, {"question": "how old?", "answer": "old.\n#### 12"}])
    assert worked.kind == "worked answer" and worked.questions[0].shown() == "Question: how far?\nAnswer: far.\n#### 7"
    assert set(written.measure(there(), worked)) == {"exact_match", "questions"}
    passage = asked([{"question": "who?", "context": "the king is old.", "answers": [{"text": "the king", "start": 0}]}])
    found = written.measure(there(), passage)
    assert set(found) == {"exact_match", "f1", "questions"} and 0 <= found["exact_match"] <= found["f1"] <= 1


def test_squads_own_files_are_read(tmp_path):
    qas = [
        {"id": "a", "question": "who?", "answers": [{"text": "the king", "answer_start": 0}] * 2},
        {"id": "b", "question": "how?", "answers": [], "is_impossible": True},
    ]
    content = {"version": "1.1", "data": [{"paragraphs": [{"context": "the king is old.", "qas": qas}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(content))
    found = questions.read(tmp_path / "dev.json")
    assert (found.name, found.kind, len(found.questions)) == ("dev", "passage", 1)
    assert found.questions[0].prompts[0] == "the king is old.\nQuestion: who?\nAnswer:"
    assert found.questions[0].answers == (" the king", " the king")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["[1]"], "line 1 is not a JSON object"),
        (["{"], "line 1 is not JSON"),
        (['{"query": "a"}'], "line 1 is no question: it has query"),
        (['{"query": "a", "choices": ["b"], "gold": 1}'], "line 1: gold is 1, and the 1 choices"),
        (['{"query": "a", "choices": [], "gold": 0}'], r"line 1: choices is \[\]"),
        (['{"context": "a", "continuation": "b"}', '{"query": "a", "choices": ["b"], "gold": 0}'], "line 2 is of the kind"),
    ],
)
def test_lines_that_are_no_questions_are_refused_by_number(lines, message, tmp_path):
    (tmp_path / "q.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        questions.read(tmp_path / "q.jsonl")


def test_files_are_found_by_name_and_missing_ones_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert questions.paths_of(["a"], str(tmp_path)) == questions.paths_of([str(tmp_path / "a.jsonl")], None)
    with pytest.raises(UserError, match="--tasks=b: no file .*; .* has a.jsonl"):
        questions.paths_of(["b"], str(tmp_path))
