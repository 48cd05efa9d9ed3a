"""A path for a split at the first try: whatever the config's own data are, and with or without a test file."""

import json

import pytest
from launching import REPOSITORY, call

from experiments import evaluate, finetune
from transformers_jax import config as configuration

SHORT = ["--config.training.steps=2", "--config.data.batch_size=4"]
SHORT += ["--config.task.max_length=32", "--config.data.lengths.tokens=32"]


def squad(folder):
    passage = {"context": "Gravity pulls the rain down.", "qas": []}
    for number, start in enumerate((0, 18)):
        text = passage["context"][start : start + 7]
        passage["qas"].append({"id": str(number), "question": "What?", "answers": [{"text": text, "answer_start": start}]})
    (folder / "my.json").write_text(json.dumps({"data": [{"title": "", "paragraphs": [passage] * 2}]}))
    return folder / "my.json"


def swag(folder):
    row = {"sent1": "He sits down.", "sent2": "He", **{f"ending{i}": text for i, text in enumerate("abcd")}}
    (folder / "my.jsonl").write_text("".join(json.dumps(row | {"label": i % 4}) + "\n" for i in range(8)))
    return folder / "my.jsonl"


def tagged(folder):
    (folder / "my.conll").write_text("The O\nBRCA1 B-GENE\ngene O\n\nTP53 B-GENE\nis O\nhere O\n\n" * 4)
    return folder / "my.conll"


CASES = {
    "squad": (squad, "squad", "f1", []),
    "swag": (swag, "jsonl", "accuracy", []),
    "ner": (tagged, "conll", "f1", ["B-GENE", "O"]),
    "conll2003": (tagged, "conll", "f1", ["B-GENE", "O"]),
}


@pytest.mark.parametrize("variant", CASES)
def test_a_path_is_enough(variant, encoder, tmp_path, capfd):
    make, source, metric, labels = CASES[variant]
    path, more = make(tmp_path), ["--config.task.stride=8"] if variant == "squad" else []
    more += ["--config.task.max_question=8"] if variant == "squad" else []
    flags = [f"--config={REPOSITORY}/configs/bert.py:{variant}", f"--init_from={encoder}", *SHORT, *more]
    code, out, err = call(finetune, capfd, *flags, f"--workdir={tmp_path}/w", f"--config.data.train={path}", "--dry_run")
    assert code == 0, err
    flags += [f"--config.data.train={path}", f"--config.data.validation={path}"]
    code, out, err = call(finetune, capfd, *flags, f"--workdir={tmp_path}/w")
    assert code == 0, err
    said, config = json.loads(out.splitlines()[-1]), configuration.read(tmp_path / "w")
    assert (said["metric"], config.data.source, config.data.tfds_name, config.data.test) == (metric, source, "", "")
    assert list(config.task.get("labels", ())) == labels
    assert ("the labels are those of config.data.train" in err) == bool(labels)
    code, out, err = call(evaluate, capfd, f"--workdir={tmp_path}/w")
    assert code == 0 and "there is no test split (config.data.test): this is the validation split" in err, err
    found = json.loads(out.splitlines()[-1])
    assert found["split"] == "validation" and found[metric] == pytest.approx(said["best"], rel=1e-4)
    code, out, err = call(evaluate, capfd, f"--workdir={tmp_path}/w", f"--config.data.test={path}")
    assert code == 0 and json.loads(out.splitlines()[-1]) == found | {"split": "test", "seconds": pytest.approx(99, abs=99)}


def test_labels_that_the_config_names_stay_where_the_files_have_no_others(encoder, tmp_path, capfd):
    (tmp_path / "train.tsv").write_text("good\tpositive\nbad\tnegative\n" * 4)
    flags = [f"--config={REPOSITORY}/configs/bert.py:sst2", f"--init_from={encoder}", *SHORT, f"--workdir={tmp_path}/w"]
    code, _, err = call(finetune, capfd, *flags, f"--config.data.train={tmp_path}/train.tsv")
    assert code == 0 and "the labels are those" not in err, err
    config = configuration.read(tmp_path / "w")
    assert config.task.labels == ("negative", "positive") and config.data.columns == ("first", "label")
