"""Finetuning from the command line: every task a few steps on real data, what it begins with, what learns, and the sweep."""

import json
import shutil

import jax
import numpy as np
import pytest
from launching import REPOSITORY, call, fails, metrics
from real_data import shared_data

from configs import bert
from experiments import evaluate, finetune, pretrain
from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.interchange import huggingface
from transformers_jax.runs import adoption, glue
from transformers_jax.runs.experiment import Experiment

STEPS = ["--config.training.steps=2", "--config.data.batch_size=4", "--config.data.workers=0"]
SHORT = ["--config.task.max_length=32", "--config.data.lengths.tokens=32"]


def flags_of(variant, workdir, encoder, *more, file="bert"):
    config = f"--config={REPOSITORY}/configs/{file}.py:{variant}"
    return [config, f"--workdir={workdir}", f"--init_from={encoder}", *STEPS, *SHORT, *more]


def head(folder, source: str, count: int, name: str) -> str:
    """The first lines of a file of real data, in a file of their own."""
    lines = shared_data(source).read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    (folder / name).write_text("".join(lines), encoding="utf-8")
    return f"--config.data.{name.partition('.')[0]}={folder / name}"


def files(folder, train: str, validation: str, count: int = 24) -> list[str]:
    kind = train.rpartition(".")[2]
    return [head(folder, train, count, f"train.{kind}"), head(folder, validation, count, f"validation.{kind}")]


def squad_files(folder) -> list[str]:
    """Two passages of SQuAD's JSON."""
    content = json.loads(shared_data("squad/dev.json").read_text())
    passage = content["data"][0]["paragraphs"][:1]
    passage[0]["qas"] = passage[0]["qas"][:4]
    (folder / "squad.json").write_text(json.dumps({"data": [{"title": "", "paragraphs": passage}]}))
    return [f"--config.data.{s}={folder}/squad.json" for s in ("train", "validation", "test")]


def swag_files(folder) -> list[str]:
    rows = "".join(f"{i},He sits down.,He,sings.,eats {i}.,sleeps.,runs.,{i % 4}\n" for i in range(8))
    (folder / "swag.csv").write_text("id,sent1,sent2,ending0,ending1,ending2,ending3,label\n" + rows)
    return [f"--config.data.{split}={folder}/swag.csv" for split in ("train", "validation")]


WNUT = ("person", "location", "corporation", "product", "creative-work", "group")
TAGS = ("O", *(f"{mark}-{kind}" for kind in WNUT for mark in "BI"))
TASKS = {
    "sentences": lambda d: files(d, "sst2/train.tsv", "sst2/dev.tsv"),
    "nli": lambda d: files(d, "nli/sick_train.tsv", "nli/sick_dev.tsv"),
    "sts": lambda d: files(d, "sts/train.tsv", "sts/val.tsv"),
    "ner": lambda d: [*files(d, "ner/wnut17_train.conll", "ner/wnut17_dev.conll", 120), f"--config.task.labels={TAGS}"],
    "squad": lambda d: [*squad_files(d), "--config.task.stride=8", "--config.task.max_question=8"],
    "swag": swag_files,
    "sentence_bert:sts": lambda d: files(d, "sts/train.tsv", "sts/val.tsv"),
    "sentence_bert:sick": lambda d: files(d, "nli/sick_train.tsv", "nli/sick_dev.tsv"),
}
METRICS = {"sts": "spearman", "ner": "f1", "squad": "f1", "sentence_bert:sts": "spearman"}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_learns_from_real_data(name, encoder, tmp_path, capfd):
    file, _, variant = name.rpartition(":")
    flags = flags_of(variant, tmp_path / "w", encoder, *TASKS[name](tmp_path), file=file or "bert")
    code, out, err = call(finetune, capfd, *flags)
    assert code == 0, err
    best, metric = json.loads(out.splitlines()[-1]), METRICS.get(name, "accuracy")
    assert best["metric"] == metric and best["step"] in (1, 2) and -1 <= best["best"] <= 1
    lines = metrics(tmp_path / "w")
    assert [line["step"] for line in lines if line["split"] == "validation"] == [1, 2]
    assert all(metric in line and line["loss"] > 0 for line in lines if line["split"] == "validation")
    (train,) = (line for line in lines if line["split"] == "train")
    assert train["grad_norm"] > 0
    assert "newly initialised" in err or name == "sentence_bert:sts"  # which has no head


@pytest.fixture
def sentences(tmp_path):
    """Files of "sentence TAB label"; the flags that name them."""
    random = np.random.default_rng(0)
    words = {"0": ["bad", "dull", "the"], "1": ["good", "fine", "the"]}
    for split in "train", "validation":
        rows = [" ".join(random.choice(words[label], 4)) + f"\t{label}\n" for label in "01" * 10]
        (tmp_path / f"{split}.tsv").write_text("".join(rows))
    return [f"--config.data.{split}={tmp_path}/{split}.tsv" for split in ("train", "validation")]


def params_of(workdir, step: int | None = None) -> dict:
    trained = Experiment(configuration.read(workdir), workdir).trained(step=step)
    return {name: np.asarray(x) for name, x in parameters.flat(trained["params"]).items()}


def test_only_the_head_learns(encoder, sentences, tmp_path, capfd):
    flags = flags_of("sentences", tmp_path / "w", encoder, *sentences, "--config.finetuning.trainable=('head',)")
    code, _, err = call(finetune, capfd, *flags)
    assert code == 0, err
    before, first, last = params_of(encoder), params_of(tmp_path / "w", 2), params_of(tmp_path / "w")
    body = [name for name in last if name.startswith(("embeddings/", "encoder/"))]
    assert body and all(np.array_equal(before[name], last[name]) for name in body)
    assert {name.partition("/")[0] for name in set(last) - set(body)} == {"pooler", "classifier"}
    assert not np.array_equal(before["pooler/kernel"], first["pooler/kernel"])
    code, out, _ = call(evaluate, capfd, f"--workdir={tmp_path / 'w'}", "--split=validation")  # reads frozen ones as well
    assert code == 0 and json.loads(out.splitlines()[-1])["examples"] == 20


def test_a_head_whose_labels_stand_in_another_order_is_as_good(encoder, sentences, tmp_path, capfd):
    code, _, err = call(finetune, capfd, *flags_of("sentences", tmp_path / "w", encoder, *sentences))
    assert code == 0, err
    still = ["--config.optimizer.learning_rate=1e-12", "--config.optimizer.weight_decay=0.0", "--config.task.labels=('1', '0')"]
    code, _, err = call(finetune, capfd, *flags_of("sentences", tmp_path / "again", tmp_path / "w", *sentences, *still))
    assert code == 0, err
    before, after = ([x for x in metrics(tmp_path / w) if x["split"] == "validation"][-1] for w in ("w", "again"))
    assert after["accuracy"] == before["accuracy"] and after["loss"] == pytest.approx(before["loss"], rel=1e-5)


def test_labels_are_those_of_the_training_data_where_none_are_given(encoder, tmp_path, capfd):
    for split in "train", "validation":
        (tmp_path / f"{split}.tsv").write_text("a film\tpos\na play\tneg\n" * 4)
    files = [f"--config.data.{split}={tmp_path}/{split}.tsv" for split in ("train", "validation")]
    flags = flags_of("sentences", tmp_path / "w", encoder, *files, "--config.task.labels=()")
    code, out, err = call(finetune, capfd, *flags)
    assert code == 0 and json.loads(out.splitlines()[-1])["metric"] == "accuracy", err
    assert configuration.read(tmp_path / "w").task.labels == ("neg", "pos")
    assert call(finetune, capfd, *flags)[:2] == (0, out)  # resumed


def test_without_labels_nothing_is_scored_and_the_last_line_is_json(encoder, sentences, tmp_path, capfd):
    assert call(finetune, capfd, *flags_of("sentences", tmp_path / "w", encoder, *sentences))[0] == 0
    (tmp_path / "unlabelled.jsonl").write_text('{"first": "a good film"}\n{"first": "a bad film"}\n')
    saved = configuration.read(tmp_path / "w")
    saved.data.update(source="jsonl", columns=(), test=str(tmp_path / "unlabelled.jsonl"))
    configuration.save(saved, tmp_path / "w")
    code, out, err = call(evaluate, capfd, f"--workdir={tmp_path / 'w'}")
    assert code == 0 and "NaN" not in out, err
    last = json.loads(out.splitlines()[-1])
    assert last["note"] == "no example of the test split has a label" and last["examples"] == 2
    assert not {"loss", "accuracy"} & last.keys()


def test_epochs_make_steps_and_a_finished_run_does_nothing(encoder, sentences, tmp_path, capfd):
    more = ["--config.training.steps=0", "--config.finetuning.epochs=2"]
    flags = flags_of("sentences", tmp_path / "w", encoder, *sentences, *more)
    code, out, err = call(finetune, capfd, *flags)
    assert code == 0, err
    assert max(line["step"] for line in metrics(tmp_path / "w")) == 10  # 2 · 20 / 4
    assert configuration.read(tmp_path / "w").finetuning.init_from == str(encoder)
    before = (tmp_path / "w" / "metrics.jsonl").read_bytes()
    code, again, err = call(finetune, capfd, *flags)
    assert code == 0 and again == out and (tmp_path / "w" / "metrics.jsonl").read_bytes() == before


def test_begins_with_the_pretrained_numbers_or_afresh(encoder, sentences, tmp_path, capfd):
    flags = ["--config.optimizer.learning_rate=1e-12", "--config.optimizer.weight_decay=0.0", *sentences]
    pretrained = params_of(encoder)
    for name, more in {"w": [], "fresh": ["--config.finetuning.fresh"]}.items():
        assert call(finetune, capfd, *flags_of("sentences", tmp_path / name, encoder, *flags, *more))[0] == 0
        found = params_of(tmp_path / name)
        kernels = [n for n in found if n.startswith("encoder/") and n.endswith("kernel")]
        near = [np.allclose(found[n], pretrained[n], atol=1e-6) for n in kernels]
        assert near and all(near) == (name == "w")
        assert Tokenizer.load(tmp_path / name).fingerprint() == Tokenizer.load(encoder).fingerprint()


@pytest.fixture
def folder(encoder, tmp_path):
    """The pretrained model as a folder of `transformers`."""
    from transformers_jax.runs.experiment import Experiment

    run, path = Experiment(configuration.read(encoder), encoder), tmp_path / "folder"
    fields = dict(run.config.model) | {"vocab_size": run.tokenizer.vocab_size, "head": "pretraining"}
    huggingface.save(path, fields, jax.device_get(run.trained()["params"]), run.tokenizer)
    return path


def test_begins_with_a_folder_of_hugging_face(folder, sentences, tmp_path, capfd):
    more = ["--config.model.dropout=0.2", "--config.model.attention=xla"]
    code, out, err = call(finetune, capfd, *flags_of("sentences", tmp_path / "w", folder, *sentences, *more))
    assert code == 0 and "accuracy" in out, err
    model = configuration.read(tmp_path / "w").model
    assert (model.width, model.layers, model.dropout, model.dtype) == (16, 1, 0.2, "float32")


def test_dropout_is_the_runs_own_unless_a_folder_says_it(encoder, folder):
    config = bert.get_config("sentences")
    config.model.dropout = 0.3
    assert adoption.adopted(config, str(encoder)).model.dropout == 0.3
    assert adoption.adopted(config, str(folder)).model.dropout == configuration.read(encoder).model.dropout != 0.3


def test_sweep_makes_the_table_and_goes_on(encoder, sentences, tmp_path, capfd):
    (tmp_path / "mine.py").write_text(SWEEP.format(file=REPOSITORY / "configs" / "bert.py"))
    flags = [f"--config={tmp_path}/mine.py:all", *flags_of("", tmp_path / "g", encoder, *sentences)[1:]]
    code, out, err = call(finetune, capfd, *flags)
    assert code == 0, err
    table = (tmp_path / "g" / "glue.md").read_text()
    ours = [cell.strip() for cell in next(line for line in table.splitlines() if "(ours)" in line).split("|")[2:-1]]
    scores = json.loads((tmp_path / "g" / "glue.json").read_text())
    assert ours[3] == f"{100 * scores['scores']['sst2']['validation']['accuracy']:.1f}" == f"{scores['row']['SST-2']:.1f}"
    assert ours[4] != "–" and ours[0] == "–/–" and ours[-1] == "–" and scores["average"] is None
    assert "| BERT base | 84.6/83.4 |" in table and table in out
    assert configuration.read(tmp_path / "g" / "cola").training.steps == 2
    code, out_of_plan, err = call(finetune, capfd, *flags, "--dry_run")
    assert code == 0 and [x for x in out_of_plan.splitlines() if x.startswith("--")] == ["-- sst2", "-- cola"], err
    assert out_of_plan.count("for 2 steps: all steps as wide as the widest") == 2

    shutil.rmtree(tmp_path / "g" / "cola")
    kept = (tmp_path / "g" / "sst2" / "metrics.jsonl").stat().st_mtime_ns
    code, again, err = call(finetune, capfd, *flags)
    assert code == 0 and json.loads(again.splitlines()[-1]) == json.loads(out.splitlines()[-1])
    assert (tmp_path / "g" / "sst2" / "metrics.jsonl").stat().st_mtime_ns == kept


SWEEP = '''
import importlib.util
spec = importlib.util.spec_from_file_location("bert", "{file}")
bert = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bert)


def get_config(variant):
    config = bert.get_config("sentences")
    if variant == "cola":
        config.task.metrics = ("matthews",)
    if variant == "all":
        config.sweep = ("sst2", "cola")
    return config
'''


def test_published_averages_are_those_of_their_rows():
    for *numbers, published in glue.PUBLISHED.values():
        assert len(numbers) == len(glue.COLUMNS) and glue.average(numbers) == pytest.approx(published, abs=0.1)
    full = {c.part: {"validation": {c.metric: 0.5}, "test": {c.metric: 0.7}} for c in glue.COLUMNS}
    assert glue.row(full) == [50, 70, *[50] * 7] and glue.average(glue.row(full)) == pytest.approx(470 / 9)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant, name, text, says",
    [
        ("sentences", "tsv", "good\t1\nbad\t2\n", ["train.tsv, line 2", "the label '2'", "0, 1"]),
        ("sentences", "tsv", "good\n", ["train.tsv, line 1", "1 columns"]),
        ("sentences", "tsv", "", ["train.tsv is empty"]),
        ("sts", "tsv", "much\ta\tb\n", ["train.tsv, line 1", "'much' is no number"]),
        ("ner", "conll", "Paris B-LOC\nis\n", ["train.conll, line 2: one column"]),
        ("ner", "conll", "Paris B-CITY\n", ["train.conll, line 1", "'B-CITY'"]),
        ("squad", "json", "{\n]", ["train.json, line 2 is not JSON"]),
        ("sentences", "jsonl", '{"first": "a", "label": "1"}\n{"first": \n', ["train.jsonl, line 2 is not JSON"]),
    ],
)
def test_files_with_a_mistake(variant, name, text, says, encoder, tmp_path, capfd):
    (tmp_path / f"train.{name}").write_text(text)
    more = [f"--config.task.labels={labels}" for labels in {"ner": ["O,B-LOC"], "sentences": ["0,1"]}.get(variant, [])]
    flags = flags_of(variant, tmp_path / "w", encoder, f"--config.data.train={tmp_path}/train.{name}", *more)
    fails(finetune, capfd, *flags, says=says)
    assert not (tmp_path / "w").exists()


def test_answer_beyond_its_passage(encoder, tmp_path, capfd):
    answer = {"text": "much later", "answer_start": 40}
    qas = [{"id": "q7", "question": "When?", "answers": [answer]}]
    content = {"data": [{"paragraphs": [{"context": "Nothing happened.", "qas": qas}]}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    flags = flags_of("squad", tmp_path / "w", encoder, f"--config.data.train={tmp_path}/train.json")
    fails(finetune, capfd, *flags, says=["question q7", "'much later' at 40", "17 characters"])


def test_weights_with_a_mistake(folder, sentences, tmp_path, capfd):
    def refused(*says):
        fails(finetune, capfd, *flags_of("sentences", tmp_path / "w", folder, *sentences), says=says)
        assert not (tmp_path / "w" / "checkpoints").exists()

    described, weights = (folder / "config.json").read_text(), (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused("model.safetensors", "truncated")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused("pytorch_model.bin", "pickle", "refused")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads(described) | {"model_type": "t5", "architectures": ["T5Model"]}))
    refused("'t5'", "T5Model", "not supported", "BertModel")


def test_flags(encoder, sentences, tmp_path, capfd):
    flags = flags_of("sentences", tmp_path / "w", encoder, *sentences)
    without = [flag for flag in flags if not flag.startswith("--init_from")]
    fails(finetune, capfd, *without, says=["--init_from is missing", "experiments.pretrain"])
    fails(finetune, capfd, *without, "--init_from=no/such/folder", says=["--init_from=no/such/folder"])
    fails(finetune, capfd, *without, f"--init_from={tmp_path}", says=["config.json"])
    fails(finetune, capfd, *flags, "--config.model.width=32", says=["does not fit config.model", "embeddings/word"])
    fails(finetune, capfd, *flags, "--config.finetuning.trainable=('no',)", says=["config.finetuning.trainable", "'no'"])
    none = [flag for flag in flags if not flag.startswith("--config.data.validation")] + ["--config.data.batching=packing"]
    none[1] = f"--workdir={tmp_path}/another"
    fails(finetune, capfd, *none, says=["config.data.batching=packing", "rows"])
    assert not list(tmp_path.glob("*/checkpoints"))


def test_from_nothing_it_is_pretraining(encoder, sentences, tmp_path, capfd):
    """The same config without pretrained weights, as the measure of what pretraining is worth."""
    flags = flags_of("sentences", tmp_path / "w", encoder, *sentences, "--config.model.width=16", "--config.model.layers=1")
    flags = [*(f for f in flags if not f.startswith("--init_from")), f"--config.tokenizer.path={encoder}"]
    code, _, err = call(pretrain, capfd, *flags, "--config.model.num_heads=2", "--config.model.mlp_width=32", "--dry_run")
    assert code == 0, err
