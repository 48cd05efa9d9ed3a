"""Answers from the command line: labels, tags, spans, choices and gaps, by the form of each line; and what is no such line."""

import json

import jax
import numpy as np
import pytest
from launching import REPOSITORY, call, fails

from experiments import finetune, launch, predict, pretrain
from transformers_jax import config as configuration
from transformers_jax.data.text import brackets
from transformers_jax.errors import UserError
from transformers_jax.inference.answers import example_of
from transformers_jax.interchange import huggingface
from transformers_jax.runs import convert
from transformers_jax.runs.experiment import Experiment
from transformers_jax.tasks import similarity
from transformers_jax.tasks.parts import entities

PASSAGE = "The  “module” object, it's said, has a name — naïve as it is; the name is bound in line 12 of the file. 🙂 Thus."


@pytest.fixture(scope="module")
def made(encoder, tmp_path_factory):
    """task → the workdir of a model that was finetuned for it, a step or two."""
    folder, found = tmp_path_factory.mktemp("made"), {}
    answer = {"text": "line 12", "answer_start": PASSAGE.index("line 12")}
    qas = [{"id": f"q{i}", "question": "Where is it bound?", "answers": [answer]} for i in range(4)]
    content = {"data": [{"paragraphs": [{"context": PASSAGE, "qas": qas}]}]}
    swag = "sent1,sent2,ending0,ending1,ending2,ending3,label\n" + "He sits.,He,a,b,c,d,1\n" * 8
    contents = {
        "sentences": ("tsv", "a good one\t1\na bad one\t0\n" * 4, []),
        "sts": ("tsv", "5\ta name\ta name\n1\ta name\tno value\n" * 4, []),
        "ner": ("conll", "Guido B-PER\nwrites O\n\nin O\nHaarlem B-LOC\n\n" * 4, []),
        "squad": ("json", json.dumps(content), ["--config.task.stride=12", "--config.data.tfds_name="]),
        "swag": ("csv", swag, []),
    }

    def make(variant: str):
        if variant not in found:
            kind, text, more = contents[variant]
            (folder / f"{variant}.{kind}").write_text(text, encoding="utf-8")
            flags = [f"--config={REPOSITORY}/configs/bert.py:{variant}", f"--workdir={folder}/{variant}"]
            flags += [f"--config.data.{split}={folder}/{variant}.{kind}" for split in ("train", "validation", "test")]
            flags += [f"--init_from={encoder}", "--config.training.steps=2", "--config.data.batch_size=4", *more]
            flags += ["--config.task.max_length=48", "--config.data.lengths.tokens=48", "--config.finetuning.evaluations=0"]
            assert launch.call(finetune.main, finetune.FLAGS, ["finetune", *flags]) == 0
            found[variant] = folder / variant
        return found[variant]

    return make


def answers(capfd, monkeypatch, lines: list[str], *flags) -> list[dict]:
    code, out, err = call(predict, capfd, *flags, stdin="\n".join(lines).encode(), monkeypatch=monkeypatch)
    assert code == 0, err
    found = [json.loads(line) for line in out.split("\n")[:-1]]
    assert len(found) == len(lines)
    return found


def test_labels_and_probabilities(made, capfd, monkeypatch):
    lines = ["a good one", "", json.dumps({"first": "a good one"}), "a name " * 60, "two\ttexts", "a good one"]
    found = answers(capfd, monkeypatch, lines, f"--workdir={made('sentences')}")
    assert found[1] == {} and found[0] == found[5] and found[2]["probabilities"] == found[0]["probabilities"]
    assert found[0]["first"] == "a good one" and found[4]["second"] == "texts"
    for row in (found[0], *found[2:]):
        assert set(row["probabilities"]) == {"0", "1"} and sum(row["probabilities"].values()) == pytest.approx(1, abs=2e-4)
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
    run = Experiment(configuration.read(made("sentences")), made("sentences"))
    fields = run.task.encode({"first": "a good one"})
    t = len(fields["tokens"])
    batch = {n: np.asarray(fields[n])[None] for n in ("tokens", "token_types")}
    batch |= {"positions": np.arange(t)[None], "segments": np.ones([1, t], np.int32)}
    logits = run.model.apply({"params": run.trained()["params"]}, batch).logits[0]
    assert found[0]["probabilities"]["1"] == pytest.approx(float(jax.nn.softmax(logits)[1]), abs=1e-3)


def test_numbers(made, capfd, monkeypatch):
    (row,) = answers(capfd, monkeypatch, ["a name\tno value"], f"--workdir={made('sts')}")
    assert isinstance(row["prediction"], float) and row["second"] == "no value"


def test_a_tag_for_each_word(made, capfd, monkeypatch):
    lines = ["Guido  writes\tmuch", "", "word " * 200, json.dumps({"words": ["in", "Haarlem", "日本"]})]
    found = answers(capfd, monkeypatch, lines, f"--workdir={made('ner')}")
    assert [len(row.get("prediction", ())) for row in found] == [3, 0, 200, 3]
    assert found[0]["words"] == ["Guido", "writes", "much"] and found[3]["words"][2] == "日本"
    tags = set(configuration.read(made("ner")).task.labels)
    assert all(tag in tags for row in found for tag in row.get("prediction", ()))


def test_answers_stand_in_the_passage(made, capfd, monkeypatch):
    question, long = "Where is it bound?", f"{PASSAGE} " * 12
    lines = [f"{question}\t{PASSAGE}", "", json.dumps({"id": "7", "question": question, "context": long})]
    found = answers(capfd, monkeypatch, lines, f"--workdir={made('squad')}")
    for row, context in ((found[0], PASSAGE), (found[2], long)):
        assert row["answer"] and row["answer"] == context[row["start"] : row["end"]]
        assert all(best["text"] == context[best["start"] : best["end"]] for best in row["best"])
    assert found[2]["id"] == "7" and found[1] == {}
    (row,) = answers(capfd, monkeypatch, [f"{question}\tIn line\t12."], f"--workdir={made('squad')}")
    assert row["context"] == "In line\t12."


def test_choices(made, capfd, monkeypatch):
    lines = ["He sits.\ta\tb\tc\td", json.dumps({"context": "He", "choices": ["a", "b", "c", "d"]})]
    (row,) = answers(capfd, monkeypatch, ["He sits.\ta\tb"], f"--workdir={made('swag')}")  # any number of them
    assert len(row["probabilities"]) == 2 and sum(row["probabilities"]) == pytest.approx(1, abs=2e-4)
    found = answers(capfd, monkeypatch, lines, f"--workdir={made('swag')}")
    assert all(row["choice"] == row["choices"][int(row["prediction"])] and len(row["probabilities"]) == 4 for row in found)
    text = f"{lines[0]}\n\n{lines[0]}\nHe\ta\n{lines[0]}\n".encode()
    says = ["standard input, line 4", "beginning TAB choice TAB choice"]
    out = fails(predict, capfd, f"--workdir={made('swag')}", stdin=text, monkeypatch=monkeypatch, says=says)
    for choices in "[]", '["a"]':
        text = f'{lines[0]}\n{{"context": "He", "choices": {choices}}}\n'.encode()
        says = ["standard input, line 2", "give two or more"]
        fails(predict, capfd, f"--workdir={made('swag')}", stdin=text, monkeypatch=monkeypatch, says=says)
    rows = [json.loads(line) for line in out.splitlines()]  # what came before is answered
    assert rows[1] == {} and rows[0] == rows[2] and rows[0]["choice"] == found[0]["choice"] and len(rows) == 3


@pytest.mark.parametrize("variant, line", [
    ("sentences", "a good one"), ("sts", "a name\tno value"), ("ner", "Guido writes in Haarlem"),
    ("swag", "He sits.\ta\tb\tc\td"), ("squad", f"Where is it bound?\t{PASSAGE}"),
])  # fmt: skip
def test_heads_of_a_folder_answer_as_their_run(variant, line, made, tmp_path, capfd, monkeypatch):
    convert.convert(str(made(variant)), str(tmp_path / "folder"), None)
    (row,) = answers(capfd, monkeypatch, [line], f"--init_from={tmp_path}/folder")
    (wanted,) = answers(capfd, monkeypatch, [line], f"--workdir={made(variant)}")
    if variant == "squad":  # its windows are longer
        assert row["answer"] == PASSAGE[row["start"] : row["end"]] and row.keys() == wanted.keys()
    else:
        assert row == wanted
    if variant == "ner":
        flags = [f"--init_from={tmp_path}/folder", "--format=brackets"]
        code, out, err = call(predict, capfd, *flags, stdin=f"{line}\n\n".encode(), monkeypatch=monkeypatch)
        shown, empty = out.split("\n")[:2]
        assert code == 0 and empty == "" and entities.spans(brackets.read(shown)[1]) == entities.spans(row["prediction"]), err
    elif variant == "sentences":
        flags, says = [f"--init_from={tmp_path}/folder", "--format=brackets"], ["--format=brackets is of tags"]
        fails(predict, capfd, *flags, stdin=b"a\n", monkeypatch=monkeypatch, says=says)
        said = json.loads((tmp_path / "folder" / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
        (tmp_path / "folder" / "config.json").write_text(json.dumps(said))
        fails(predict, capfd, flags[0], stdin=b"a\n", monkeypatch=monkeypatch, says=["problem_type multi_label_class"])


def test_what_follows_what(encoder, folder, made, capfd, monkeypatch):
    lines = ["a name is bound\tto the value", "", json.dumps({"first": "a name is bound", "second": "to the value"})]
    found = answers(capfd, monkeypatch, lines, f"--workdir={encoder}", "--task=next_sentence")
    assert answers(capfd, monkeypatch, lines, f"--init_from={folder}", "--task=next_sentence") == found
    run = Experiment(configuration.read(encoder), encoder)
    joined = run.tokenizer.encode_pair("a name is bound", "to the value")
    batch = {"tokens": np.array([joined.ids]), "token_types": np.array([joined.types])}
    batch |= {"positions": np.arange(len(joined.ids))[None], "segments": np.ones([1, len(joined.ids)], np.int32)}
    chances = jax.nn.softmax(run.model.apply({"params": run.trained()["params"]}, batch).next[0])
    assert list(found[0]["probabilities"].values()) == pytest.approx(chances.tolist(), abs=2e-4) and found[1] == {}
    assert found[0]["prediction"] == list(found[0]["probabilities"])[int(chances.argmax())]
    flags = [f"--workdir={made('sentences')}", "--task=next_sentence"]
    fails(predict, capfd, *flags, stdin=b"a\tb\n", monkeypatch=monkeypatch, says=["does not tell what follows", "sequence"])


def test_candidates_for_a_gap(encoder, folder, made, capfd, monkeypatch):
    lines = ["the value of an [MASK] is bound", "[MASK] name , [MASK] value"]
    (best, _) = answers(capfd, monkeypatch, lines, f"--workdir={encoder}", "--top=100")
    whole = [word for word in best["gaps"][0] if word["word"].isalpha()][:2]
    words = [word["word"] for word in reversed(whole)]
    found = answers(capfd, monkeypatch, lines, f"--init_from={folder}", f"--candidates={','.join(words)},unboundable")
    assert [len(row["gaps"]) for row in found] == [1, 2] and all(len(gap) == 3 for row in found for gap in row["gaps"])
    ranked = {word["word"]: word["probability"] for word in found[0]["gaps"][0]}
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True) and ranked["unboundable"] > 0
    for word in whole:  # one token each, as the whole vocabulary has them
        assert ranked[word["word"]] == pytest.approx(word["probability"], abs=2e-4)
    run = Experiment(configuration.read(encoder), encoder)  # of several tokens: all missing at once
    t, several = run.tokenizer, run.tokenizer.encode("unboundable")
    ids = [t.bos_id, *t.encode("the value of an"), *[t.mask_id] * len(several), *t.encode("is bound"), t.eos_id]
    batch = {"tokens": np.array([ids]), "positions": np.arange(len(ids))[None], "segments": np.ones([1, len(ids)], np.int32)}
    lm = run.model.apply({"params": run.trained()["params"]}, batch | {"token_types": 0 * batch["tokens"]}).lm
    chances = jax.nn.softmax(lm.hidden[0] @ lm.table.T + lm.bias)
    wanted = np.prod([chances[ids.index(t.mask_id) + k, i] for k, i in enumerate(several)])
    assert len(several) > 1 and ranked["unboundable"] == pytest.approx(float(wanted), rel=1e-3)
    flags = [f"--workdir={made('sentences')}", "--candidates=a,b"]
    fails(predict, capfd, *flags, stdin=b"a\n", monkeypatch=monkeypatch, says=["--candidates are words for a gap"])
    fails(predict, capfd, f"--workdir={encoder}", "--candidates=a,", says=["empty word"])
    fails(predict, capfd, f"--workdir={encoder}", "--candidates=\U0001f642", says=["cannot write"])


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    """The pretrained model as a folder of `transformers`."""
    run, path = Experiment(configuration.read(encoder), encoder), tmp_path_factory.mktemp("folder")
    fields = dict(run.config.model) | {"vocab_size": run.tokenizer.vocab_size, "head": "pretraining"}
    huggingface.save(path, fields, jax.device_get(run.trained()["params"]), run.tokenizer)
    return path


def test_words_for_gaps(encoder, folder, capfd, monkeypatch):
    lines = ["the value of an [MASK] is bound", "", "[MASK] name , [MASK] value", json.dumps({"text": "the [MASK]"})]
    found = answers(capfd, monkeypatch, lines, f"--workdir={encoder}", "--top=3")
    assert [len(row.get("gaps", ())) for row in found] == [1, 0, 2, 1]
    for gap in (gap for row in found for gap in row.get("gaps", ())):
        chances = [word["probability"] for word in gap]
        assert len(gap) == 3 and chances == sorted(chances, reverse=True) and all(word["word"] for word in gap)
    for more in [], ["--task=fill_mask"]:
        assert answers(capfd, monkeypatch, lines, f"--init_from={folder}", *more, "--top=3") == found
    run = Experiment(configuration.read(encoder), encoder)  # the same by the model itself
    t = run.tokenizer
    (all_words,) = answers(capfd, monkeypatch, [lines[0]], f"--workdir={encoder}", "--top=999999")
    assert len(all_words["gaps"][0]) == t.vocab_size
    ids = [t.bos_id, *t.encode("the value of an"), t.mask_id, *t.encode("is bound"), t.eos_id]
    place = ids.index(t.mask_id)
    batch = {"tokens": np.array([ids]), "positions": np.arange(len(ids))[None], "segments": np.ones([1, len(ids)], np.int32)}
    batch["token_types"] = 0 * batch["tokens"]
    lm = run.model.apply({"params": run.trained()["params"]}, batch).lm
    logits = lm.hidden[0, place] @ lm.table.T + lm.bias
    assert found[0]["gaps"][0][0]["probability"] == pytest.approx(float(jax.nn.softmax(logits).max()), abs=1e-3)


@pytest.mark.parametrize(
    "variant, line, says",
    [
        ("sentences", b'{"first": "a"\n', ["standard input, line 2 is not JSON"]),
        ("sentences", b'{"text": "a"}\n', ["standard input, line 2", "no key first"]),
        ("sentences", b"a\tb\tc\n", ["standard input, line 2", "two with a TAB"]),
        ("sentences", b"\xff\n", ["line 2 is not UTF-8"]),
        ("squad", b"Where?\n", ["standard input, line 2", "question TAB passage"]),
    ],
)
def test_lines_with_a_mistake(variant, line, says, made, capfd, monkeypatch):
    first = b"Where?\tIt is there.\n" if variant == "squad" else b"a good one\n"
    out = fails(predict, capfd, f"--workdir={made(variant)}", stdin=first + line, monkeypatch=monkeypatch, says=says)
    assert len(out.splitlines()) == 1 and json.loads(out)  # what came before is answered


def test_two_texts_are_two():
    task = similarity.Task(None)
    assert example_of("a\tb", task, "auto", "line 1") == {"first": "a", "second": "b"}
    for line in "a", "a\tb\tc":
        with pytest.raises(UserError, match="line 1 is not what similarity reads: two texts with a TAB between them"):
            example_of(line, task, "auto", "line 1")


def test_other_mistakes(made, encoder, run, capfd, monkeypatch):
    fails(predict, capfd, says=["--workdir is missing"])
    fails(predict, capfd, f"--workdir={encoder}", f"--init_from={encoder}", says=["one of --workdir and --init_from"])
    fails(predict, capfd, f"--workdir={run}", stdin=b"a\n", monkeypatch=monkeypatch, says=["translation"])
    says = ["standard input, line 2", "nothing to fill in", "[MASK]"]
    fails(predict, capfd, f"--workdir={encoder}", stdin=b"a [MASK]\nb\n", monkeypatch=monkeypatch, says=says)
    flags = [f"--workdir={made('sentences')}", "--task=fill_mask"]
    fails(predict, capfd, *flags, stdin=b"a [MASK]\n", monkeypatch=monkeypatch, says=["fills no gaps", "sequence"])
    text = f"--workdir={made('sentences')}", "--format=text"
    assert answers(capfd, monkeypatch, ['{"not json'], *text)[0]["first"] == '{"not json'


def test_a_student_learns_from_its_teacher_and_fills_gaps(encoder, prose, tmp_path, capfd, monkeypatch):
    flags = [f"--config={REPOSITORY}/configs/distilbert.py:tiny", f"--workdir={tmp_path}/w", *prose]
    flags += ["--config.model.width=16", "--config.model.mlp_width=32", "--config.training.steps=2"]
    code, _, err = call(pretrain, capfd, *flags, f"--config.task.teacher={encoder}")
    assert code == 0, err
    student = Experiment(configuration.read(tmp_path / "w"), tmp_path / "w").trained()["params"]
    theirs = Experiment(configuration.read(encoder), encoder)
    table = student["teacher"]["embeddings"]["word"]
    assert np.array_equal(table, theirs.checkpoints().restore_params()["params"]["embeddings"]["word"])
    assert not np.array_equal(table, student["embeddings"]["word"])  # it began so, and has learned
    (row,) = answers(capfd, monkeypatch, ["the value of an [MASK] is bound"], f"--workdir={tmp_path}/w", "--top=2")
    assert [len(gap) for gap in row["gaps"]] == [2]
