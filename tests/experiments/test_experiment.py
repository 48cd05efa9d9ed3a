"""The parts of a run: what does not go together is said when they meet, and several processes have the same ones."""

from pathlib import Path

import pytest
from launching import REPOSITORY
from processes import finish, free_port, start

from transformers_jax import config as configuration
from transformers_jax import models, tasks
from transformers_jax.data.text.train_tokenizer import placeholder
from transformers_jax.decoding.decoder import LENGTHS
from transformers_jax.errors import UserError
from transformers_jax.runs import checks
from transformers_jax.runs.experiment import Experiment

CONFIGS = REPOSITORY / "configs"


def experiment(variant, **keys):
    """Of a config, with other keys, dots as double underscores, and a vocabulary that knows no text."""
    config = configuration.load(f"{CONFIGS}/{variant}")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    run = Experiment(config, None, training=True)
    run.tokenizer = placeholder(config.tokenizer.vocab_size)
    return run


def variants():
    for file in sorted({*CONFIGS.glob("[!_]*.py")} - {CONFIGS / "base.py"}):
        with pytest.raises(UserError) as error:
            configuration.load(f"{file}:no_such")
        yield from (f"{file.name}:{name}" for name in str(error.value).rpartition("known variants: ")[2].split(", "))


@pytest.mark.parametrize("variant", [*variants()])
def test_every_config_goes_together(variant):
    config, tokenizer = configuration.load(f"{CONFIGS}/{variant}"), placeholder(1000)
    teacher = {"teacher": "given"} if config.task.get("teacher") == "" else {}
    from_data = config.task.get("labels") == () and tasks.named(config.task.name).reads == "images"
    read = {"labels": ("a", "b")} if from_data else {}
    task = tasks.build(dict(config.task) | teacher | read, tokenizer, config.data)
    model = models.build(dict(config.model) | task.model_fields(), 1000)
    configuration.check(config)
    checks.lengths(config, task, model)
    checks.shares(task, model)


@pytest.mark.parametrize(
    ("variant", "keys", "says"),
    [
        ("bert.py:squad", {"model__max_length": 256}, "config.task.max_length lets examples of 384 tokens .* at most 256 "),
        ("roberta.py:tiny", {"model__max_length": 33, "task__max_length": 0}, "config.data.max_length lets .* 32 .* most 31 "),
        ("bert.py:tiny", {"model__max_length": 31, "task__max_length": 32}, "config.task.max_length lets .* 32 .* most 31 "),
        ("transformer.py:tiny", {"model__positions": "learned", "model__max_length": 16}, "config.data.max_length .* 32 "),
        (
            "transformer.py:tiny",
            {"model__positions": "learned", "model__max_length": 100, "data__batching": "buckets", "data__max_length": 0},
            r"config.data.boundaries lets examples of 128 tokens .*\(config.model.max_length\): give at most 100",
        ),
    ],
)
def test_examples_longer_than_the_learned_positions(variant, keys, says):
    with pytest.raises(UserError, match=says):
        _ = experiment(variant, **keys).model


@pytest.mark.parametrize(
    ("variant", "keys"),
    [
        ("bert.py:squad", {"model__max_length": 256, "task__max_length": 256}),  # one bound is enough
        ("bert.py:quickstart", {"data__lengths__tokens": 512}),  # a packed row may be longer
        ("transformer.py:tiny", {"model__max_length": 16}),  # sinusoids
    ],
)
def test_examples_that_fit_the_positions(variant, keys):
    assert experiment(variant, **keys).model.config.max_length == keys.get("model__max_length", 256)


@pytest.mark.parametrize("name", ["bert.py:tiny", "bert.py:quickstart", "distilbert.py:tiny"])
def test_more_masks_than_are_predicted(name, monkeypatch):
    run = experiment(name, task__mask_rate=0.5)
    if "distil" in name:
        run.task = tasks.build(dict(run.config.task) | {"teacher": "given"}, run.tokenizer)
        monkeypatch.setattr("transformers_jax.runs.initialise.module_of", lambda path, fields: models.build(
            dict(run.config.model) | fields, run.tokenizer.vocab_size
        ))  # fmt: skip
    with pytest.raises(UserError, match="config.task.mask_rate=0.5 masks more than config.model.max_mask_rate=0.[24]"):
        _ = run.model
    run.training = False  # what is trained already can be read
    assert run.model.config.max_mask_rate < 0.5


@pytest.mark.parametrize(
    ("variant", "keys", "longest"),
    [
        ("transformer.py:tiny", {}, LENGTHS),
        ("transformer.py:tiny", {"data__max_length": 0, "data__lengths__source": 600}, (*LENGTHS, 384, 512, 600)),
        ("transformer.py:tiny", {"data__max_length": 300, "data__lengths__source": 600}, (*LENGTHS, 300)),
        ("luong.py:tiny", {"data__max_length": 0, "data__batching": "buckets", "data__boundaries": (64, 384)}, (*LENGTHS, 384)),
        ("transformer.py:tiny", {"data__max_length": 0, "data__lengths__source": 600, "model__positions": "learned"}, None),
    ],
)
def test_sources_are_read_as_far_as_they_were_trained(variant, keys, longest):
    run = experiment(variant, **keys)
    run.training = False
    learned = (*LENGTHS, 384, 512)
    assert run.decoder().lengths == (longest or learned)


@pytest.mark.parametrize("asked", [None, 20, 100])
def test_no_output_is_longer_than_the_model_writes(asked):
    run = experiment("transformer.py:tiny", model__positions="learned", model__max_length=40)
    run.training = False
    with run.config.unlocked():
        run.config.decoding.max_length = asked
    decoder = run.decoder()
    assert decoder.lengths[-1] == 40 and decoder.limit(40) == min(asked or 40, 40)
    assert run.decoder(max_length=64).limit(40) == 40 and experiment("transformer.py:tiny").decoder().limit(40) > 40


@pytest.mark.parametrize(("key", "value"), [("accumulate", 2), ("parallelism", "pmap")])
def test_a_batch_that_must_be_in_one_token(key, value):
    assert experiment("sentence_bert.py:pairs").model
    with pytest.raises(UserError, match=f"config.training.{key}={value} cuts the batch .*objective=multiple_negatives"):
        _ = experiment("sentence_bert.py:pairs", **{f"training__{key}": value}).model


def test_training_examples_without_what_is_learned(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"first": "a", "label": "1"}\n{"first": "b", "lable": "0"}\n')
    run = experiment("bert.py:sentences", data__source="jsonl", data__train=str(file), data__columns=())
    with pytest.raises(UserError, match="train.jsonl, line 2 has no label, which the task learns"):
        run.train_iterator()


def test_parts_of_a_batch():
    run = experiment("luong.py:tiny", data__batching="buckets", training__accumulate=3)
    assert run.parts == 3 * run.mesh.size
    assert run.batch_shapes()["source"].shape[0] == 25_000 // 128 // 24 * 24


def test_two_processes_share_plan_tokenizer_and_lock(tmp_path):
    (tmp_path / "text.txt").write_text("A sentence.\nAnother one.\n")
    script, arguments = Path(__file__).with_name("together.py"), [free_port(), tmp_path / "w", tmp_path / "text.txt"]
    first, second = (finish(process)[0] for process in [start(script, index, *arguments) for index in (0, 1)])
    assert first["plan"] > 5 and second["plan"] == 0
    assert first["vocabulary"] == second["vocabulary"] == 100
    assert "another process trains in it" in first["refused"] and "process 0 cannot have it" in second["refused"]
    assert {"config.json", "tokenizer.json", "lock"} == set(first["written"]) == set(second["written"])
