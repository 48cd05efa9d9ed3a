"""Every config builds its model, with its number of parameters pinned; loading, overriding and comparing configs."""

import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from transformers_jax import configuration, models
from transformers_jax.batch import FIELDS
from transformers_jax.errors import UserError
from transformers_jax.planning import parameters

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TRANSFORMER = str(CONFIGS / "transformer.py")

PARAMETERS = {
    "transformer:quickstart": 4_705_280,
    "transformer:multi30k": 7_569_408,
    "transformer:base": 63_045_632,
    "transformer:base,en-fr": 60_485_632,
    "transformer:big": 214_171_648,
    "transformer:tiny": 33_920,
    "evolved_transformer:quickstart": 4_334_208,
    "evolved_transformer:multi30k": 7_241_984,
    "evolved_transformer:base": 64_064_512,
    "evolved_transformer:big": 221_714_432,
    "evolved_transformer:tiny": 68_176,
    "search:quickstart": 824_064,
    "search:multi30k": 824_064,
    "search:wmt": 61_147_136,
    "search:tiny": 51_392,
    "luong:wmt": 108_032_000,
    "luong:quickstart": 4_476_928,
    "luong:multi30k": 4_476_928,
    "luong:tiny": 34_560,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    file, _, variant = name.partition(":")
    config = configuration.load(f"{CONFIGS / file}.py:{variant}")
    model = models.build(config.model, config.tokenizer.vocab_size)
    batch = {field: np.zeros((1, 2), np.int32) for field in FIELDS}
    assert parameters.count(parameters.shapes(model, batch)["params"]) == PARAMETERS[name]


def test_every_config_file_is_pinned():
    files = {f.stem for f in CONFIGS.glob("*.py")} - {"__init__"}
    assert files == {name.partition(":")[0] for name in PARAMETERS}


@pytest.mark.parametrize("file", sorted({name.partition(":")[0] for name in PARAMETERS}))
def test_every_variant_is_pinned(file):
    with pytest.raises(UserError, match="known variants: ") as error:
        configuration.load(f"{CONFIGS / file}.py:no_such")
    variants = str(error.value).rpartition("known variants: ")[2].split(", ")
    assert {f"{file}:{v}" for v in variants} <= set(PARAMETERS)


def test_configs_import_nothing_but_ml_collections():
    for file in CONFIGS.glob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert all(line.startswith("from ml_collections") for line in imports), file


@pytest.mark.parametrize(
    "spec, says",
    [
        (TRANSFORMER + ":tiney", "unknown variant 'tiney'; known variants: quickstart"),
        (TRANSFORMER + ":tiny,en-it", "unknown languages 'en-it'"),
        (TRANSFORMER.replace("er.py", "ers.py"), "did you mean .*transformer.py"),
        ("nowhere.py:tiny", "no file nowhere.py"),
    ],
)
def test_load_errors(spec, says):
    with pytest.raises(UserError, match=says):
        configuration.load(spec)


@pytest.mark.parametrize(
    "text, says",
    [
        ("def get_config(:\n", "line 1"),
        ("x = 1\n", "no function get_config"),
        ("def get_config():\n  return 3\n", "returned int"),
        ("import no_such_module\n", "no_such_module"),
        ("def get_config():\n  return x.y\n", "'x' is not defined"),
    ],
)
def test_broken_config_file(tmp_path, text, says):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=says):
        configuration.load(str(tmp_path / "mine.py"))


def override(*arguments):
    config = configuration.load(TRANSFORMER + ":tiny")
    configuration.overrides(config, list(arguments))(["prog", *arguments])
    return config


def test_overrides_write_into_the_config():
    config = override(
        "--config.training.steps=7", "--noconfig.data.cache", "--config.optimizer.factor=2",
        "--config.data.languages=('en','fr')", "--config.model.norm", "post", "--config.data.lengths.source=48",
        "--config.model.width=64",
    )  # fmt: skip
    assert config.training.steps == 7 and config.data.cache is False and config.optimizer.factor == 2.0
    assert config.data.languages == ("en", "fr") and config.model.norm == "post" and config.data.lengths.source == 48
    assert config.optimizer.d_model == 64  # follows the model's width


@pytest.mark.parametrize(
    "argument, says",
    [
        ("--config.model.widht=3", "--config.model.widht: no such key; did you mean --config.model.width"),
        ("--config.steps=3", "did you mean --config.training.steps"),
        ("--config.model=3", "is a group; give one of its keys: model.activation"),
        ("--config.zzz=3", "no such key"),
        ("--config.a[0=3", "no such key"),
    ],
)
def test_unknown_keys(argument, says):
    with pytest.raises(UserError, match=says.replace("[", r"\[")):
        override(argument)


def test_wrong_type():
    with pytest.raises(flags.IllegalFlagValueError, match="training.steps=many"):
        override("--config.training.steps=many")


def test_saved_config_comes_back_equal(tmp_path):
    config = configuration.load(TRANSFORMER + ":tiny")
    configuration.save(config, tmp_path)
    back = configuration.read(tmp_path)
    assert configuration.flatten(back) == configuration.flatten(config)
    assert not configuration.differences(back, config)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["languages"] == ["en", "de"]
    assert [f.name for f in tmp_path.iterdir()] == ["config.json"]


def test_differences_name_what_hinders_resuming(tmp_path):
    saved = configuration.load(TRANSFORMER + ":tiny")
    allowed = override("--config.training.steps=99", "--config.decoding.alpha=1", "--config.training.eval_every=1")
    assert configuration.differences(saved, allowed) == []
    other = override("--config.model.hidden=128", "--config.seed=3")
    assert configuration.differences(saved, other) == [
        "model.hidden is 64 there and 128 here",
        "seed is 0 there and 3 here",
    ]


def test_reading_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        configuration.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        configuration.read(tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        configuration.read(tmp_path / "config.json")
