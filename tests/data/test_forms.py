"""A path that is given for a split means local files: their source, and which splits are used then."""

import pytest

from transformers_jax import config as configuration
from transformers_jax.data import forms, sources
from transformers_jax.tasks import known


def settled(name, **given):
    """config.data of a config after the command line has named splits."""
    config = configuration.load(f"{configuration.REPOSITORY}/configs/{name}")
    given = {f"data.{key}": value for key, value in given.items()}
    config.update_from_flattened_dict(given)
    forms.settle(config, given)
    configuration.check(config)
    return config.data


def splits(data):
    return data.train, data.validation, data.test


@pytest.mark.parametrize(
    "name, path, source",
    [
        ("bert.py:squad", "my.json", "squad"),
        ("bert.py:squad2", "my.jsonl.gz", "jsonl"),
        ("bert.py:ner", "my.conll", "conll"),
        ("bert.py:conll2003", "my.conll", "conll"),
        ("bert.py:swag", "my.csv", "swag"),
        ("bert.py:swag", "my.jsonl", "jsonl"),
        ("bert.py:sentences", "a.jsonl,b.jsonl", "jsonl"),
        ("bert.py:sst2", "my.tsv", "tsv"),
        ("bert.py:base", "my.txt", "text"),
        ("bert.py:quickstart", "my.txt.gz", "text"),
        ("gpt.py:quickstart", "my.tokens", "tokens"),
        ("llama.py:instruct", "my.json", "conversations"),
        ("sentence_bert.py:stsb", "my.tsv", "tsv"),
        ("transformer.py:base", "my.en,my.de", "files"),
        ("transformer.py:quickstart", "my.en,my.de", "files"),
        ("vit.py:digits", "photos/train", "image_folders"),
        ("vit.py:base_16", "photos.csv", "image_lists"),
        ("perceptron.py:folders", "photos/train", "image_folders"),
        ("segformer.py:camvid", "images/train,masks/train", "image_masks"),
        ("fcos.py:bccd", "VOC/ImageSets/Main/train.txt", "voc"),
        ("fcos.py:bccd", "instances.json,photos", "coco"),
    ],
)
def test_a_path_makes_the_source_that_of_its_files(name, path, source):
    data = settled(name, train=path)
    assert (data.source, data.tfds_name, splits(data)) == (source, "", (path, "", ""))
    assert sources.has(data, "train") and not sources.has(data, "validation") and not sources.has(data, "test")


def test_what_is_not_used_is_said(caplog):
    caplog.set_level("INFO")
    settled("bert.py:mnli", train="a.tsv", validation="b.tsv")
    assert [record.getMessage() for record in caplog.records] == [
        "config.data.test=validation_mismatched is of other data, and not used: give it to use it"
    ]


def test_every_task_has_a_form_that_there_is():
    assert set(forms.FORMS) == set(known())
    assert {source for rows in forms.FORMS.values() for _, source in rows} <= set(sources.FILES)


@pytest.mark.parametrize(
    "name, columns",
    [
        ("bert.py:sst2", ("first", "label")),
        ("bert.py:mnli", ("first", "second", "label")),
        ("bert.py:stsb", ("score", "first", "second")),
        ("sentence_bert.py:nli", ("first", "second", "label")),
        ("sentence_bert.py:stsb", ("score", "first", "second")),
        ("sentence_bert.py:sick", ("first=sentence_A", "second=sentence_B", "label=entailment_judgment")),
    ],
)
def test_columns_of_tables(name, columns):
    assert settled(name, train="my.tsv").columns == columns
    assert settled(name, train="my.jsonl").columns == ()


def test_what_is_given_stays():
    data = settled("bert.py:sst2", train="a.tsv", validation="b.tsv", columns=("label", "first"))
    assert splits(data) == ("a.tsv", "b.tsv", "") and data.columns == ("label", "first")
    assert settled("bert.py:ner", train="a.tsv", source="tsv").source == "tsv"


def test_names_of_splits_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = settled("bert.py:mnli", train="train[:90%]", validation="train[90%:]")
    assert (data.source, data.tfds_name) == ("glue", "glue/mnli") and splits(data)[2] == "validation_mismatched"
    assert settled("vit.py:digits", train="validation").source == "mnist_5k"
    assert settled("bert.py:squad", train="my.json", tfds_name="squad/v2.0").tfds_name == "squad/v2.0"
    (tmp_path / "photos").mkdir()
    assert settled("vit.py:digits", train="photos").source == "image_folders"


def test_another_test_leaves_training_files_as_they_are_but_not_those_of_another_source():
    before = configuration.load(f"{configuration.REPOSITORY}/configs/segformer.py:camvid").data
    assert splits(settled("segformer.py:camvid", train="a,b")) == ("a,b", "", "")
    data = settled("segformer.py:camvid", test="x/a,x/b")
    assert splits(data) == (before.train, before.validation, "x/a,x/b")
    data = settled("bert.py:squad", test="my.json")
    assert splits(data) == ("", "", "my.json") and data.source == "squad"
