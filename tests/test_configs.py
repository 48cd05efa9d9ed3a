"""Every config builds its model, with its number of parameters pinned; loading, overriding and comparing configs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from configs import base
from transformers_jax import config as configuration
from transformers_jax import models, tasks
from transformers_jax.batch import FIELDS
from transformers_jax.errors import UserError
from transformers_jax.planning import counts

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
    "search:causal_lm": 232_192,
    "search:tiny_causal_lm": 13_504,
    "luong:wmt": 108_032_000,
    "luong:quickstart": 4_476_928,
    "luong:multi30k": 4_476_928,
    "luong:tiny": 34_560,
    "luong:lm": 8000 * 576 + 2 * (8 * 576**2 + 4 * 576),
    "luong:tiny_lm": 400 * 32 + 2 * (8 * 32**2 + 4 * 32),
    "bert:base": 110_106_428,
    "bert:large": 336_226_108,
    "bert:quickstart": 6_927_424,
    "bert:tiny": 34_706,
    "roberta:base": 124_697_433,
    "roberta:large": 355_412_057,
    "roberta:quickstart": 6_927_680,
    "roberta:tiny": 33_616,
    "albert:base": 11_813_810,
    "albert:large": 17_847_474,
    "albert:xlarge": 59_021_490,
    "albert:xxlarge": 223_158_450,
    "albert:quickstart": 1_987_522,
    "albert:tiny": 18_658,
    "distilbert:base": 66_985_530,
    "distilbert:quickstart": 4_557_632,
    "distilbert:tiny": 24_976,
    "camembert:base": 110_655_493,
    "camembert:large": 336_695_557,
    "camembert:quickstart": 6_927_680,
    "camembert:tiny": 33_616,
    "xlm_roberta:base": 278_295_186,
    "xlm_roberta:large": 560_142_482,
    "xlm_roberta:quickstart": 6_927_680,
    "xlm_roberta:tiny": 33_616,
    "flaubert:base": 138_301_817,
    "flaubert:large": 373_282_937,
    "flaubert:quickstart": 6_860_608,
    "flaubert:tiny": 32_400,
    "gpt:small": 124_439_808,
    "gpt:medium": 354_823_168,
    "gpt:large": 774_030_080,
    "gpt:xl": 1_557_611_200,
    "gpt:gpt": 116_534_784,
    "gpt:distilgpt2": 81_912_576,
    "gpt:quickstart": 10_040_320,
    "gpt:books": 10_040_320,
    "gpt:tiny": 32_000,
    "llama:llama3_8b": 8_030_261_248,
    "llama:llama3_70b": 70_553_706_496,
    "llama:mistral_7b": 7_241_732_096,
    "llama:qwen2_7b": 7_615_616_512,
    "llama:qwen3_8b": 8_190_735_360,
    "llama:smollm2_135m": 134_515_008,
    "llama:instruct": 134_515_008,
    "llama:tiny": 44_192,
    "perceptron:digits": 407_050,
    "perceptron:folders": 1_574_402,
    "perceptron:tiny": 6_170,
    "fcos:convnext": 35_857_390,
    "fcos:swin": 35_556_616,
    "fcos:bccd": 879_195,
    "fcos:tiny": 17_868,
    "vit:base_16": 85_800_194,
    "vit:base_32": 87_456_770,
    "vit:large_16": 303_303_682,
    "vit:large_32": 305_512_450,
    "vit:huge_14": 630_767_362,
    "vit:hybrid": 97_891_650,
    "vit:deit_tiny": 5_524_802,
    "vit:deit_small": 21_666_434,
    "vit:deit_base": 85_800_194,
    "vit:distilled": 5_524_802,
    "vit:digits": 306_634,
    "vit:folders": 1_804_994,
    "vit:finetune": 85_800_194,
    "vit:tiny": 5_586,
    "vit:tiny_distilled": 5_586,
    "convnext:imagenet_tiny": 27_821_666,
    "convnext:imagenet_small": 49_456_226,
    "convnext:imagenet_base": 87_568_514,
    "convnext:imagenet_large": 196_233_410,
    "convnext:digits": 102_186,
    "convnext:folders": 906_674,
    "convnext:finetune": 27_821_666,
    "convnext:tiny": 5_254,
    "swin:imagenet_tiny": 27_520_892,
    "swin:imagenet_small": 48_838_796,
    "swin:imagenet_base": 86_745_274,
    "swin:digits": 360_750,
    "swin:folders": 2_156_638,
    "swin:finetune": 27_520_892,
    "swin:tiny": 5_982,
    "segformer:b0": 3_752_694,
    "segformer:b1": 13_715_798,
    "segformer:b2": 27_461_974,
    "segformer:b3": 47_337_814,
    "segformer:b4": 64_108_374,
    "segformer:b5": 84_708_694,
    "segformer:convnext": 28_230_198,
    "segformer:swin": 27_929_424,
    "segformer:camvid": 1_426_907,
    "segformer:tiny": 5_319,
}
FINETUNING = {
    "bert": "mnli qqp qnli sst2 cola stsb mrpc rte wnli glue squad squad2 swag conll2003 ner sentences nli sts",
    "roberta": "mnli sst2 squad squad2",
    "albert": "mnli sst2 squad squad2",
    "distilbert": "mnli sst2 squad",
    "camembert": "xnli ner",
    "xlm_roberta": "xnli ner",
    "flaubert": "cls pawsx xnli ner",
    "sentence_bert": "nli sick sts stsb pairs",
}
"""Variants whose model comes from pretrained weights; by default it is the file's `base`."""


class Tokens:
    """Stands in for a tokenizer: what tasks ask one for when they are made."""

    bos_id, eos_id, unk_id, mask_id = 1, 2, 3, 4
    chat_template = None

    def textual_ids(self):
        return np.arange(5, 9)

    def token(self, i: int) -> str:
        return f"<{i}>"

    def surrounding(self, pair: bool) -> int:
        return 2 + pair

    def encode(self, text: str) -> list[int]:
        return [5]


def model_of(config):
    """The model of a config, with the head that its task asks for."""
    given = {"teacher": "given"} if config.task.name.endswith("distillation") else {}
    if tasks.named(config.task.name).reads == "images" and not config.task.labels:
        given |= {"labels": ("a", "b")}
    task = tasks.build(dict(config.task) | given, Tokens(), config.data)
    return models.build(dict(config.model) | task.model_fields(), config.tokenizer.vocab_size)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    file, _, variant = name.partition(":")
    config = configuration.load(f"{CONFIGS / file}.py:{variant}")
    model = model_of(config)
    batch = {name: np.zeros((1, 2)[: len(field.axes)], field.dtype) for name, field in FIELDS.items()}
    if "images" in model.protocol().reads:
        batch = model.protocol().example()
    assert counts.count(counts.shapes(model, batch)["params"]) == PARAMETERS[name]


def test_every_config_file_is_pinned():
    files = {f.stem for f in CONFIGS.glob("*.py")} - {"__init__", "base"}
    assert files == {name.partition(":")[0] for name in PARAMETERS} | set(FINETUNING)


@pytest.mark.parametrize("file", sorted({name.partition(":")[0] for name in PARAMETERS} | set(FINETUNING)))
def test_every_variant_is_pinned(file):
    with pytest.raises(UserError, match="known variants: ") as error:
        configuration.load(f"{CONFIGS / file}.py:no_such")
    variants = str(error.value).rpartition("known variants: ")[2].split(", ")
    own = FINETUNING.get(file, "").split()
    assert {f"{file}:{v}" for v in variants} - {f"{file}:{v}" for v in own} <= set(PARAMETERS)
    assert set(own) <= set(variants)


@pytest.mark.parametrize("name", [f"{file}:{variant}" for file, names in FINETUNING.items() for variant in names.split()])
def test_finetuning_variants(name):
    file, _, variant = name.partition(":")
    config = configuration.load(f"{CONFIGS / file}.py:{variant}")
    assert model_of(config).config.vocab_size == config.tokenizer.vocab_size
    assert config.data.lengths.tokens == config.task.max_length <= config.model.max_length
    assert config.training.steps == 0 and config.finetuning.epochs > 0
    assert config.data.batching == ("rows" if file == "sentence_bert" else "buckets")
    assert file == "sentence_bert" or config.data.tokens_per_batch == 0
    if file != "sentence_bert":
        base = configuration.load(f"{CONFIGS / file}.py:base").model
        same = {key: value for key, value in config.model.items() if key not in ("dtype", "scan_layers")}
        assert same == {key: base[key] for key in same}


def test_configs_import_nothing_but_ml_collections_and_each_other():
    for file in CONFIGS.glob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
        assert all(line.startswith(("from ml_collections ", "from configs ")) for line in imports), file


def test_every_config_has_the_keys_of_all_runs():
    """What code may take for granted: only a search has its own way to say how long it trains."""
    groups = ("tokenizer", "data", "optimizer", "training", "mesh", "finetuning")
    every = base.base()
    for name in [*PARAMETERS, *(f"{file}:{variant.split()[0]}" for file, variant in FINETUNING.items())]:
        file, _, variant = name.partition(":")
        config = configuration.load(f"{CONFIGS / file}.py:{variant}")
        lacks = {f"{group}.{key}" for group in groups for key in every[group] if key not in config.get(group, {})}
        assert file == "search" and "training.steps" in lacks or not lacks, name


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
        ("def get_config():\n  return x.y\n", "mine.py, line 2: name 'x' is not defined"),
        ("from configs import brt\n", "mine.py, line 1: cannot import name 'brt' .*; did you mean bert"),
        ("def get_config(variant):\n  raise ValueError(variant)\n", "mine.py: .*missing 1 required"),
    ],
)
def test_broken_config_file(tmp_path, text, says):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=says):
        configuration.load(str(tmp_path / "mine.py"))


MINE = """from configs import base, roberta

def get_config(variant="tiny"):
    config = roberta.get_config(variant)
    {}
    return config
"""


@pytest.mark.parametrize(
    "line, says",
    [
        (
            "config.optimizer.learning_rte = 1.0",
            "config.optimizer.learning_rte: no such key; did you mean config.optimizer.lea",
        ),
        ("config.optimzer.learning_rate = 1.0", "config.optimzer: no such key; did you mean config.optimizer?"),
        ("config.sede = 1", "config.sede: no such key; did you mean config.seed?"),
        ("config.steps = 1", "config.steps: no such key; did you mean config.training.steps?"),
        ("config.zzz = 1", "config.zzz: no such key"),
        ("config.model.update(widht=64)", "config.model.widht: no such key; did you mean config.model.width?"),
        ("config.update({'task': {'shre': 0.2}})", "config.task.shre: no such key"),
        ("config.data['max_lenght'] = 3", "config.data.max_lenght: no such key; did you mean config.data.max_length?"),
        ("config.model.layers = config.model.layer", "config.model.layer: no such key; did you mean config.model.layers?"),
        ("config.training.steps = 'many'", "config.training.steps is 12, of type int: it cannot be 'many'"),
        ("config.training.update(steps=1.5)", "config.training.steps is 12, of type int: it cannot be 1.5"),
        ("config.model = 3", "config.model is a group of keys: it cannot be 3"),
        ("del config.model.layers", "config.model.layers: .*locked"),
        ("cofnig.seed = 3", "name 'cofnig' is not defined; did you mean config?"),
        ("base.finetunning(config, 1e-3)", "has no attribute 'finetunning'; did you mean finetuning?"),
        ("base.finetuning(config)", "missing 1 required positional argument: 'learning_rate'"),
        ("config.seed = = 3", "invalid syntax"),
        ("config.seed = int('x')", "invalid literal"),
    ],
)
def test_a_typo_in_a_config_file(tmp_path, line, says):
    """File, line and key are named, whatever is written there."""
    (tmp_path / "mine.py").write_text(MINE.format(line))
    with pytest.raises(
        UserError, match=f"^--config: {tmp_path}/mine.py, line 5: .*{re.escape(says).replace(re.escape('.*'), '.*')}"
    ):
        configuration.load(f"{tmp_path}/mine.py:tiny")


def test_a_config_file_elsewhere_builds_on_these(tmp_path):
    (tmp_path / "mine.py").write_text(MINE.format("config.model.width = 64"))
    config, path = configuration.load(f"{tmp_path}/mine.py"), list(sys.path)
    assert config.model.width == 64 and config.model.variant == "roberta" and sys.path == path
    with pytest.raises(UserError, match=f"^--config={tmp_path}/mine.py:tinny: unknown variant 'tinny'; known variants: base, "):
        configuration.load(f"{tmp_path}/mine.py:tinny")


def test_a_config_file_adds_a_key_on_purpose(tmp_path):
    (tmp_path / "mine.py").write_text(MINE.format("with config.unlocked(): config.mine = 3"))
    assert configuration.load(f"{tmp_path}/mine.py").mine == 3


def test_configs_are_found_wherever_the_launcher_runs_from(tmp_path):
    """With the package alone on the path, and another `configs` in the folder it runs from."""
    (tmp_path / "configs").mkdir()
    code = f"from transformers_jax import config; print(config.load('{CONFIGS}/roberta.py:tiny').model.variant)"
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "transformers_jax").symlink_to(CONFIGS.parent / "transformers_jax")
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "place")},
        capture_output=True,
    )
    assert ran.stdout.decode() == "roberta\n", ran.stderr.decode()


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


def launched(*arguments):
    config = configuration.load(str(CONFIGS / "bert.py") + ":ner")
    arguments = configuration.spelled(config, list(arguments))
    configuration.overrides(config, arguments)(["prog", *arguments])
    return config


def test_commas_part_texts_as_they_part_numbers():
    assert launched("--config.task.labels=a,b, c-d").task.labels == ("a", "b", "c-d")
    assert launched("--config.task.labels", "O,B-PER,I-PER").task.labels == ("O", "B-PER", "I-PER")
    assert launched("--config.task.labels=a").task.labels == ("a",)
    assert launched("--config.task.labels=('a,b','c')").task.labels == ("a,b", "c")
    assert launched("--config.task.labels=()").task.labels == ()
    assert launched("--config.data.boundaries=8,16").data.boundaries == (8, 16)
    assert launched("--config.data.train=a.conll,b.conll").data.train == "a.conll,b.conll"
    assert launched("--config.data.cache", "--noconfig.data.header").data.cache is True


@pytest.mark.parametrize(
    "argument, says",
    [
        ("--config.training.steps=1e2", "--config.training.steps=1e2: give a whole number .int., written with digits alone"),
        ("--config.training.steps=2.5", "give a whole number"),
        ("--config.data.cache=yes", "--config.data.cache=yes: give true or false"),
        ("--config.model.dropout=low", "--config.model.dropout=low: give a number"),
    ],
)
def test_what_is_wanted_is_said(argument, says):
    with pytest.raises(UserError, match=says):
        launched(argument)


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
    other = override("--config.model.mlp_width=128", "--config.seed=3")
    assert configuration.differences(saved, other) == [
        "model.mlp_width is 64 there and 128 here",
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
