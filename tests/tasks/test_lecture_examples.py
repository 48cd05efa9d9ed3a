"""The lecture's own examples, through the files that hold such data and the tasks that read them."""

import csv
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax.data import sources
from transformers_jax.data.text import brackets
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.inference.candidates import Candidates
from transformers_jax.tasks import multiple_choice, span_qa, tagging
from transformers_jax.tasks.masked_lm import FillMask
from transformers_jax.tasks.parts import entities

PASSAGE = (
    "In meteorology, precipitation is any product of the condensation of atmospheric water vapor that falls under gravity. "
    "The main forms of precipitation include drizzle, rain, sleet, snow, graupel and hail... Precipitation forms as smaller "
    "droplets coalesce via collision with other rain drops or ice crystals within a cloud. Short, intense periods of rain in "
    "scattered locations are called “showers”."
)
QUESTIONS = {
    "What causes precipitation to fall?": "gravity",
    "What is another main form of precipitation besides drizzle, rain, snow, sleet and hail?": "graupel",
    "Where do water droplets collide with ice crystals to form precipitation?": "within a cloud",
}
ENTITIES = "[ORG U.N.] official [PER Ekeus] heads for [LOC Baghdad] ."
PIANO = {
    "sent1": "On stage, a woman takes a seat at the piano.", "sent2": "She",
    "ending0": "sits on a bench as her sister plays with the doll.", "ending1": "smiles with someone as the music plays.",
    "ending2": "is in the crowd, watching the dancers.", "ending3": "nervously sets her fingers on the keys.", "label": "3",
}  # fmt: skip
GAP = "Let's stick to [MASK] in this skit"


@pytest.fixture(scope="module", params=["wordpiece", "byte_bpe", "unigram"])
def tokenizer(request):
    texts = [PASSAGE, *QUESTIONS, *PIANO.values(), GAP.replace("[MASK]", "improvisation comedy"), ENTITIES]
    return learn(request.param, texts * 2, 500, lowercase=request.param == "wordpiece")


@pytest.mark.parametrize("max_length", [500, 60])
def test_answers_about_precipitation(tokenizer, tmp_path, max_length):
    qas = [
        {"id": str(i), "question": question, "answers": [{"text": text, "answer_start": PASSAGE.index(text)}]}
        for i, (question, text) in enumerate(QUESTIONS.items())
    ]
    content = {"data": [{"title": "Precipitation", "paragraphs": [{"context": PASSAGE, "qas": qas}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(content))
    source = sources.open_source(ConfigDict({"source": "squad", "validation": str(tmp_path / "dev.json")}), "validation")
    task = span_qa.Task(tokenizer, max_length=max_length, stride=10, max_question=30)
    windows = task.examples(source)
    assert len(windows) == 3 if max_length == 500 else len(windows) > 6
    found = {"starts": np.zeros((len(windows), max_length)), "ends": np.zeros((len(windows), max_length))}
    for row, window in enumerate(windows):  # what a model that has learned them would say
        fields = task.encode(window)
        for name in found:
            found[name][row, fields[name]] = 9.0 if window["answer"] else 0.0
    answers = task.answers(source, found)
    assert [answer["answer"] for answer in answers] == list(QUESTIONS.values())
    assert [PASSAGE[answer["start"] : answer["end"]] for answer in answers] == list(QUESTIONS.values())
    assert task.score(source, found)["exact_match"] == 1


def test_entities_of_a_sentence(tokenizer, tmp_path):
    words, tags = brackets.read(ENTITIES)
    (tmp_path / "a.txt").write_text(f"{ENTITIES}\n")
    (tmp_path / "a.conll").write_text("".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True)))
    (source, columns) = (
        sources.open_source(ConfigDict({"source": kind, "train": str(tmp_path / file)}), "train")
        for kind, file in (("brackets", "a.txt"), ("conll", "a.conll"))
    )
    assert source[0] == columns[0] == {"words": words, "tags": tags}
    task = tagging.Task(tokenizer, labels=("O", "B-PER", "B-ORG", "B-LOC"), max_length=64)
    (window,) = task.examples(source)
    fields = task.encode(window)
    assert fields["weights"].sum() == len(words)
    found = {"tags": fields["targets"][None], "probability": np.ones((1, len(fields["targets"])))}
    (answer,) = task.answers(source, found)
    assert answer["prediction"] == tags and task.score(source, found)["f1"] == 1
    assert brackets.written(words, entities.spans(answer["prediction"])) == ENTITIES
    plain = task.of_line(["U.N. official Ekeus heads for Baghdad ."])
    assert plain["words"] == words


def test_how_she_goes_on_at_the_piano(tokenizer, tmp_path):
    with (tmp_path / "val.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, PIANO)
        writer.writeheader()
        writer.writerow(PIANO)
    source = sources.open_source(ConfigDict({"source": "swag", "validation": str(tmp_path / "val.csv")}), "validation")
    assert source[0]["context"] == PIANO["sent1"] and source[0]["label"] == "3"
    assert source[0]["choices"] == [f"She {PIANO[f'ending{k}']}" for k in range(4)]
    task = multiple_choice.Task(tokenizer)
    fields = task.encode(task.examples(source)[0])
    assert fields["label"] == 3 and len(fields["tokens"]) == 4
    for tokens, choice in zip(fields["tokens"], source[0]["choices"], strict=True):
        joined = tokenizer.encode_pair(PIANO["sent1"], choice)
        assert tokens.tolist() == joined.ids and tokens[joined.starts[1] : -1].tolist() == tokenizer.encode(choice)
    predictions = {"probabilities": np.array([[0.1, 0.2, 0.1, 0.6]])}
    (answer,) = task.answers(source, predictions)
    assert answer["choice"] == "She nervously sets her fingers on the keys."
    assert task.score(source, predictions)["accuracy"] == 1
    one = "\t".join([PIANO["sent1"], *source[0]["choices"]])
    assert task.of_line(one.split("\t")) == {key: source[0][key] for key in ("context", "choices")}
    asked, _ = task.answering(None, top=5)
    rows = [asked.encode(row) for row in asked.examples(source)]
    assert all(np.array_equal(row["tokens"], tokens) for row, tokens in zip(rows, fields["tokens"], strict=True))
    assert asked.answers(source, {"score": np.array([0.0, 1.0, 0.0, 3.0])})[0]["prediction"] == "3"


def test_what_we_stick_to_in_a_skit(tokenizer):
    task, example = FillMask(tokenizer), {"text": GAP}
    fields = task.encode(task.examples([example])[0])
    assert fields["targets"].sum() == 1 and fields["tokens"][fields["targets"] == 1] == tokenizer.mask_id
    ranked = Candidates(tokenizer, ("improvisation", "comedy", "improvisation"))
    assert ranked.words == ("improvisation", "comedy")
    whole = tokenizer.joined(tokenizer.encode(GAP.replace("[MASK]", "improvisation"))).ids
    rows = ranked.examples([example])
    sizes = {len(tokens) for tokens in ranked._tokens[True]}
    assert [row["size"] for row in rows] == sorted(sizes)
    size = len(ranked._tokens[True][0])
    row = ranked.encode(next(row for row in rows if row["size"] == size))
    filled = row["tokens"].copy()
    filled[row["targets"] == 1] = ranked._tokens[True][0]
    assert filled.tolist() == whole  # the gap is as wide as the word, which fills it as it would be written
