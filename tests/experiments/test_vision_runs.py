"""ViT, ConvNeXt and Swin as runs: converted both ways, finetuned by each method, measured, drawn."""

import json

import jax
import numpy as np
import pytest
from launching import REPOSITORY, call, fails, metrics
from test_images import CLASSES, write

from experiments import convert, evaluate, finetune, launch, predict, pretrain, report
from transformers_jax import config as configuration
from transformers_jax import models, parameters
from transformers_jax.interchange import huggingface, mapping
from transformers_jax.runs import initialise
from transformers_jax.runs.experiment import Experiment

FIELDS = {
    "vit": dict(width=16, num_heads=2, mlp_width=32, layers=2, patch_size=4, image_size=16),
    "convnext": dict(widths=(8, 12), depths=(1, 2), patch_size=2, layer_scale=0.5),
    "swin": dict(width=8, depths=(2, 1), num_heads=(1, 2), window=4, patch_size=2, image_size=16),
}
NAMES = tuple(CLASSES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write(folder, {"train": 10, "validation": 3, "test": 3})
    return folder


def made(folder, name: str, data: dict | None = None, **fields):
    """A folder of `transformers` with a classifier of random parameters."""
    fields = {"name": name, "vocab_size": 0, "labels": len(NAMES)} | FIELDS[name] | fields
    draw = np.random.default_rng(0)
    shapes = mapping.shapes(models.build(fields, 0))
    params = parameters.nest({n: 0.2 * draw.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    huggingface.save(folder, fields, params, labels=NAMES, data=data)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return made(tmp_path_factory.mktemp("vit"), "vit")


def flags(photos, workdir, source, *more) -> list[str]:
    named = [f"--config.data.{split}={photos}/{split}" for split in ("train", "validation")]
    short = ["--config.data.batch_size=6", "--config.training.steps=4", "--config.finetuning.evaluations=1"]
    return [
        f"--config={REPOSITORY}/configs/vit.py:finetune", f"--workdir={workdir}", f"--init_from={source}", *named, *short, *more
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, data, says",
    [
        ("vit", None, dict(size=16, crop="squash", interpolation="bilinear")),
        ("vit", dict(size=16, resize=20, crop="pad", interpolation="bicubic"), dict(size=16, resize=20)),
        ("convnext", dict(size=16, resize=20, interpolation="bicubic"), dict(size=16, resize=20, interpolation="bicubic")),
        ("swin", dict(size=16, crop="squash", interpolation="bicubic"), dict(size=16, crop="squash", interpolation="bicubic")),
    ],
)
def test_a_folder_becomes_a_workdir_and_comes_back(name, data, says, photos, tmp_path, capfd):
    folder = made(tmp_path / "folder", name, data, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)
    code, _, err = call(convert, capfd, f"--from={folder}", f"--to={tmp_path}/run")
    assert code == 0, err
    config = configuration.read(tmp_path / "run")
    assert config.task.labels == NAMES and config.model.mean == (0.4, 0.5, 0.6)
    assert {key: config.data[key] for key in says} == says
    code, out, err = call(predict, capfd, f"--workdir={tmp_path}/run", photos / "test/red/0.png")
    assert code == 0 and set(json.loads(out)["probabilities"]) == set(NAMES), err
    code, _, err = call(convert, capfd, f"--from={tmp_path}/run", f"--to={tmp_path}/back")
    assert code == 0, err
    for file in "config.json", "preprocessor_config.json":
        assert json.loads((tmp_path / "back" / file).read_text()) == json.loads((folder / file).read_text()), file
    assert (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_labels_that_are_right_or_wrong_for_themselves_are_told_to_transformers(tmp_path):
    fields = {"name": "vit", "vocab_size": 0, "labels": 2} | FIELDS["vit"]
    params = {name: np.zeros(shape, np.float32) for name, shape in mapping.shapes(models.build(fields, 0)).items()}
    huggingface.save(tmp_path, fields, parameters.nest(params), labels=("a", "b"), several=True)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "multi_label_classification"


def test_what_config_data_cannot_say_is_refused(tmp_path, capfd):
    folder = made(tmp_path / "folder", "vit")
    said = json.loads((folder / "preprocessor_config.json").read_text())
    said |= {"do_center_crop": True, "crop_size": {"height": 12, "width": 12}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    fails(convert, capfd, f"--from={folder}", f"--to={tmp_path}/run", says=["crop_size={'height': 12", "shorter edge"])


def test_another_resolution_begins_with_interpolated_positions(vit, photos, tmp_path, capfd):
    more = ["--config.data.size=24", "--config.optimizer.learning_rate=1e-9"]
    code, out, err = call(finetune, capfd, *flags(photos, tmp_path / "run", vit, *more))
    assert code == 0 and json.loads(out.splitlines()[-1])["metric"] == "accuracy", err
    config = configuration.read(tmp_path / "run")
    assert config.model.image_size == config.data.size == 24
    found = Experiment(config, tmp_path / "run").trained()["params"]["positions"]
    leaves, _, _ = initialise.read(vit)
    table = np.asarray(leaves["positions"])
    assert found.shape == (37, 16) and table.shape == (17, 16)
    np.testing.assert_allclose(found[0], table[0], atol=1e-6)
    grid, wanted = table[1:].reshape(4, 4, 16), np.asarray(found[1:]).reshape(6, 6, 16)
    np.testing.assert_allclose(wanted.mean((0, 1)), grid.mean((0, 1)), atol=0.05)
    fields = dict(config.model) | {"head": "classification", "labels": 3}
    same = models.build(fields | {"image_size": 16}, 0)  # which interpolates while it computes
    image = {"image": np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)}
    whole = parameters.nest({name: np.asarray(leaf) for name, leaf in leaves.items()})
    one = jax.jit(same.apply)({"params": whole}, image).logits
    there = parameters.nest(parameters.flat(whole) | {"positions": found})
    other = jax.jit(models.build(fields, 0).apply)({"params": there}, image).logits
    np.testing.assert_allclose(one, other, atol=1e-4)


METHODS = {
    "head": (["--config.finetuning.method=head"], r"^classifier/"),
    "lora": (["--config.finetuning.method=lora", "--config.finetuning.rank=2"], r"^classifier/|lora_[ab]$"),
    "qlora": (
        ["--config.finetuning.method=lora", "--config.finetuning.quantization=nf4", "--config.finetuning.targets=('.',)"],
        r"^classifier/|lora_[ab]$",
    ),
    "adapters": (
        ["--config.finetuning.method=adapters", "--config.finetuning.adapter_width=4"],
        r"^classifier/|_adapter/|norm/(scale|bias)$",
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_teaches_a_few_parameters(method, vit, photos, tmp_path, capfd):
    more, learns = METHODS[method]
    rate = ["--config.optimizer.name=adamw", "--config.optimizer.learning_rate=0.01"]
    code, _, err = call(finetune, capfd, *flags(photos, tmp_path / "run", vit, *more, *rate))
    assert code == 0, err
    run = Experiment(configuration.read(tmp_path / "run"), tmp_path / "run")
    now = parameters.flat(run.trained()["params"])
    before, _, _ = initialise.read(vit)
    learned = parameters.matching(now, learns)
    assert any("lora_a" in name or "adapter" in name for name in learned) == (method != "head")
    for name in set(now) & set(before) - learned:
        if parameters.is_whole(now[name]):
            assert method == "qlora"
        else:
            np.testing.assert_array_equal(now[name], np.asarray(before[name]), name)
    assert not np.array_equal(now["classifier/kernel"], np.asarray(before["classifier/kernel"]))
    line = [line for line in metrics(tmp_path / "run") if line["split"] == "validation"][-1]
    assert np.isfinite(line["loss"])
    code, out, err = call(predict, capfd, f"--workdir={tmp_path}/run", photos / "test/red/0.png")
    assert code == 0 and json.loads(out)["prediction"] in NAMES, err


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_an_adapter_goes_to_peft_and_back(name, photos, tmp_path, capfd):
    """By the names of modules of transformers 5; all that it learned stays the same."""
    base, found = made(tmp_path / "base", name), []
    more = [*METHODS["lora"][0], "--config.optimizer.learning_rate=0.01"]
    code, _, err = call(finetune, capfd, *flags(photos, tmp_path / "run", base, *more))
    assert code == 0, err
    for source, target in ("run", "peft"), ("peft", "back"):
        code, _, err = call(convert, capfd, f"--from={tmp_path / source}", f"--to={tmp_path / target}")
        assert code == 0, err
    described = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    modules = {module.rpartition(".")[2] for module in described["target_modules"]}
    assert modules == {"q_proj", "v_proj"} and described["task_type"] is None
    assert described["modules_to_save"] == ["classifier"]
    for workdir in tmp_path / "run", tmp_path / "back":
        found.append(parameters.flat(Experiment(configuration.read(workdir), workdir).trained()["params"]))
        code, out, err = call(predict, capfd, f"--workdir={workdir}", photos / "test/red/0.png")
        assert code == 0 and set(json.loads(out)["probabilities"]) == set(NAMES), err
    assert found[0].keys() == found[1].keys()
    for leaf, array in found[0].items():
        np.testing.assert_allclose(found[1][leaf], array, atol=1e-6, err_msg=leaf)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A tiny ViT that was trained from nothing."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    named = [f"--config.data.{split}={photos}/{split}" for split in ("train", "validation", "test")]
    flags = [f"--config={REPOSITORY}/configs/vit.py:tiny", *named, f"--workdir={workdir}"]
    assert launch.call(pretrain.main, pretrain.FLAGS, ["pretrain", *flags]) == 0
    return workdir


def test_features_are_measured(trained, capfd):
    code, out, err = call(evaluate, capfd, f"--workdir={trained}", "--knn=3", "--few_shot=4")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["known"] == 30 and found["examples"] == 9, err
    assert found["knn_accuracy"] > 0.5 and found["few_shot_accuracy"] > 0.5


def test_pictures_of_a_run(trained, photos, capfd):
    code, _, err = call(report, capfd, f"--workdir={trained}")
    assert code == 0, err
    names = {path.stem for path in (trained / "report").glob("*.png")}
    assert names >= {"attention_rollout", "mean_attention_distance", "similarity_of_positions", "filters_of_patches"}
    samples = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    samples[0] |= {"label": "dark", "prediction": "light"}
    (trained / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    assert call(report, capfd, f"--workdir={trained}")[0] == 0
    assert "Worst mistakes" in (trained / "report/index.html").read_text() and (trained / "report/worst_mistakes.png").exists()
