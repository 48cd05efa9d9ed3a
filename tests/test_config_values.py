"""Every key of every config has its range or its choices, and no wrong value of it passes the check at the start."""

import importlib
import inspect

import pytest
from ml_collections import ConfigDict
from test_configs import CONFIGS, FINETUNING, PARAMETERS

from transformers_jax import config as configuration
from transformers_jax import config_values as values
from transformers_jax.errors import UserError

FREE = {
    "sweep", "tokenizer.path", "data.tfds_name", "data.data_dir", "data.train", "data.validation", "data.test", "data.begins",
    "data.languages", "data.columns", "finetuning.init_from", "model.genome", "task.labels", "task.prompts", "task.prompt",
    "task.teacher", "task.template", "search.seed_genome",
}  # fmt: skip
"""Keys that are free text, names of files, or lists of such: there is no wrong text."""

ONE_OR_SEVERAL = ("data.colour", "data.size", "model.image_size", "model.num_heads")
"""Keys that are one number, or several."""

NAMES = [*PARAMETERS, *(f"{name}:{variant}" for name, variants in FINETUNING.items() for variant in variants.split())]
WRONG = {str: ("no such value (",), bool: ("yes",), int: (-999_999, "one", 2.5), float: (-1e9, float("nan"), float("inf"), "x")}


def wrong(value) -> tuple:
    """Values of the same type, or nearly, that no key has."""
    return WRONG.get(type(value), ((-999_999,), ("no such value (",), 5) if isinstance(value, tuple) else ())


@pytest.mark.parametrize("name", NAMES)
def test_no_wrong_value_of_any_key_passes(name):
    file, _, variant = name.partition(":")
    config = configuration.load(f"{CONFIGS}/{file}.py:{variant}")
    configuration.check(config)
    leaves = dict(configuration.flatten(config))
    named = {key: leaves[key] for key in ("model.name", "task.name")}
    for key, value in leaves.items():
        given = [v for v in wrong(value) if not (key in FREE and isinstance(v, (str, tuple)))]
        given = [v for v in given if not (key in ONE_OR_SEVERAL and v == 5)]
        for bad in given:
            found = [text for text in values.mistakes((named | {key: bad}).items()) if text.startswith(f"config.{key} is ")]
            assert found, f"config.{key}={bad!r} of {name} passes: give the key a rule in transformers_jax/config_values.py"
            assert repr(bad) in found[0] and "\n" not in found[0]


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("model.norm", "foo", "config.model.norm is 'foo': it is one of pre, post"),
        ("model.activation", "foo", "config.model.activation is 'foo': it is one of relu, gelu, gelu_tanh, swish"),
        ("model.dropout", 1.5, "config.model.dropout is 1.5: give a number 0 or more, and below 1"),
        ("model.dropout", -1.0, "config.model.dropout is -1.0: give"),
        ("task.label_smoothing", 2.0, "config.task.label_smoothing is 2.0: give"),
        ("training.steps", -3, "config.training.steps is -3: give 0 or more"),
        ("optimizer.learning_rate", 0.1, "config.optimizer.learning_rate is 0.1: the schedule noam has none"),
        ("data.max_length", -1, "config.data.max_length is -1: give 0 or more"),
        ("data.source", "foo", "config.data.source is 'foo': it is one of files, bible, tfds"),
        ("tokenizer.kind", "foo", "config.tokenizer.kind is 'foo': it is one of wordpiece, unigram, byte_bpe, bpe"),
        ("decoding.method", "foo", "config.decoding.method is 'foo': it is one of greedy, beam, sample"),
        ("data.boundaries", (8, 0), r"config.data.boundaries is \(8, 0\): of each, give 1 or more"),
        ("prng", "foo", "config.prng is 'foo': it is one of rbg"),
        ("optimizer.decay_pattern", "(", "give a regular expression"),
    ],
)
def test_messages(key, value, says):
    config = configuration.load(f"{CONFIGS}/transformer.py:tiny")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=says):
        configuration.check(config)


def test_a_key_means_what_its_model_or_task_makes_of_it():
    for key, model, value, right in [
        ("model.positions", "vit", "sinusoidal_2d", True),
        ("model.positions", "transformer", "sinusoidal_2d", False),
        ("model.window", "swin", 0, False),
        ("model.window", "llama", 0, True),
        ("model.variant", "gpt", "roberta", False),
    ]:
        assert values.rule_of(key, value, model=model).allows(value) == right
    assert not list(values.mistakes([("model.depths", (2, 2)), ("task.name", "similarity"), ("task.objective", "regression")]))
    assert values.rule_of("model.new", -1).says() == "give 0 or more" and values.rule_of("model.other", "text") is None
    assert values.rule_of("finetuning.rank_pattern", ()).allows((("query", 4),))
    assert not values.rule_of("finetuning.rank_pattern", ()).allows((("(", 4),))
    assert list(values.mistakes(configuration.flatten(ConfigDict({"own": {"key": "text"}})))) == []


@pytest.mark.parametrize(
    "key, module, constant",
    [
        ("model.activation", "layers.feedforward", "ACTIVATIONS"),
        ("model.attention", "layers.attention", "IMPLEMENTATIONS"),
        ("luong/model.score", "models.luong", "SCORES"),
        ("bert/model.variant", "models.bert", "VARIANTS"),
        ("gpt/model.variant", "models.gpt", "VARIANTS"),
        ("llama/model.variant", "models.llama", "VARIANTS"),
        ("vit/model.positions", "models.vit", "POSITIONS"),
        ("vit/model.pooling", "models.vit", "POOLINGS"),
        ("vit/model.stem", "models.vit", "STEMS"),
        ("optimizer.name", "training.optimizers", "OPTIMIZERS"),
        ("optimizer.schedule", "training.optimizers", "SCHEDULES"),
        ("decoding.method", "decoding.decoder", "METHODS"),
        ("search.method", "search.evolution", "METHODS"),
        ("finetuning.method", "finetuning.trainable", "METHODS"),
        ("finetuning.quantization", "layers.quantized", "KINDS"),
        ("data.unit", "data.text.text_sources", "UNITS"),
        ("data.interpolation", "data.images.geometry", "INTERPOLATIONS"),
        ("data.crop", "data.images.augment", "CROPS"),
        ("data.on_error", "data.images.folders", "ON_ERROR"),
        ("similarity/task.objective", "tasks.similarity", "OBJECTIVES"),
        ("image_classification/task.objective", "tasks.image_classification", "OBJECTIVES"),
        ("task.pooling", "layers.pooling", "POOLINGS"),
        ("task.similarity", "layers.pooling", "SIMILARITIES"),
        ("task.relation", "tasks.bert_pretraining", "RELATIONS"),
        ("task.of", "tasks.distillation", "OF"),
    ],
)
def test_the_choices_are_those_of_the_code(key, module, constant):
    known = getattr(importlib.import_module(f"transformers_jax.{module}"), constant)
    assert set(values.TABLE[key].all()) - {""} == set(known)


def test_every_key_of_decoding_has_a_rule():
    from transformers_jax.decoding.decoder import Decoder

    options = [name for name, p in inspect.signature(Decoder).parameters.items() if isinstance(p.default, (int, float, str))]
    assert "top_p" in options
    for name in set(options) - {"bos_id", "eos_id", "pad_id"}:
        assert f"decoding.{name}" in values.TABLE, name
