"""Runs that label pixels: trained, stopped and resumed, evaluated, used and reported; and their mistakes."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import scenes
from flax import linen as nn
from launching import REPOSITORY, call, content, fails, metrics
from real_data import shared_data

from experiments import convert, evaluate, finetune, predict, pretrain, report
from transformers_jax import config as configuration
from transformers_jax import models, parameters
from transformers_jax.interchange import huggingface
from transformers_jax.layers.quantized import is_quantized
from transformers_jax.runs import initialise
from transformers_jax.runs import train as training
from transformers_jax.runs.experiment import Experiment

CONFIG = f"--config={REPOSITORY}/configs/segformer.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    scenes.write(folder, {"train": 24, "validation": 5})
    scenes.write(folder, {"test": 3}, size=(30, 40))  # larger than what the model reads
    return folder


def flags(photos) -> list[str]:
    named = [f"--config.data.{s}={photos}/{s},{photos}/{s}_masks" for s in ("train", "validation", "test")]
    return [f"{CONFIG}:tiny", *named]


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    from experiments import launch

    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert launch.call(pretrain.main, pretrain.FLAGS, ["pretrain", *flags(photos), f"--workdir={workdir}"]) == 0
    return workdir


def test_pixels_are_told_apart(trained, photos, capfd):
    lines = metrics(trained)
    first, last = (line for line in lines if line["split"] == "validation")
    assert last["mean_iou"] > max(first["mean_iou"], 0.4) and last["pixel_accuracy"] > 0.7
    test = lines[-1]
    assert test["split"] == "test" and set(test) >= {"mean_iou", "iou_ground", "iou_red", "iou_blue", "mean_class_accuracy"}
    assert np.isclose(test["mean_iou"], np.mean([test[f"iou_{name}"] for name in scenes.LABELS]))
    code, out, err = call(evaluate, capfd, f"--workdir={trained}", "--split=validation")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and np.isclose(found["mean_iou"], last["mean_iou"]) and np.isclose(found["loss"], last["loss"]), err


def test_each_pixel_is_scored_once(trained, photos):
    samples = Experiment(configuration.read(trained), trained).samples()
    assert [sample["mean_iou"] for sample in samples] == sorted(sample["mean_iou"] for sample in samples)
    for sample in samples:
        counted = sum(sum(row.values()) for row in sample["pixels"].values())
        assert counted == 29 * 39 and sample["mask"].startswith(f"{photos}/test_masks")


def test_a_run_that_was_stopped_ends_as_one_that_was_not(trained, photos, tmp_path, capfd, monkeypatch):
    to_device, seen = training.global_batch, []

    def batch_of(batch, mesh, **options):
        seen.append(batch["mask"])
        if len(seen) == 33:
            raise KeyboardInterrupt
        return to_device(batch, mesh, **options)

    monkeypatch.setattr(training, "global_batch", batch_of)
    workdir = tmp_path / "run"
    assert call(pretrain, capfd, *flags(photos), f"--workdir={workdir}")[0] == 130
    assert call(pretrain, capfd, *flags(photos), f"--workdir={workdir}")[0] == 0
    assert len(seen) == 33 + 30 and all(np.array_equal(seen[i], seen[i + 3]) for i in (30, 31, 32))  # from step 30 on once more
    (params, state), (wanted, wanted_state) = content(workdir), content(trained)
    assert metrics(workdir) == metrics(trained) and state == wanted_state
    np.testing.assert_equal(params, wanted)


def test_masks_are_written_in_the_images_own_size(trained, photos, tmp_path, capfd):
    from PIL import Image

    given = photos / "test", photos / "train/0.png"
    code, out, err = call(predict, capfd, f"--workdir={trained}", f"--out={tmp_path}/out", *given)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(found) == 4 and found[3]["mask"].endswith("out/0_2.png"), err
    truth, right = np.array(Image.open(photos / "test_masks/0.png")), Image.open(found[0]["mask"])
    assert right.mode == "P" and right.size == (40, 30) == Image.open(found[0]["blended"]).size
    mask = np.array(right)
    shares = {name: np.mean(mask == k) for k, name in enumerate(scenes.LABELS)}
    assert all(np.isclose(shares[name], share, atol=1e-4) for name, share in found[0]["classes"].items())
    samples = Experiment(configuration.read(trained), trained).samples()
    wanted = next(sample for sample in samples if sample["image"].endswith("test/0.png"))
    assert np.isclose(np.mean(mask[truth != 255] == truth[truth != 255]), wanted["pixel_accuracy"])
    fails(predict, capfd, f"--workdir={trained}", photos / "none.png", says=["no file or folder", "none.png"])
    (tmp_path / "a.png").write_bytes(b"no image")
    given = photos / "test/0.png", tmp_path / "a.png"
    out = fails(predict, capfd, f"--workdir={trained}", *given, says=["image 2", "is no image"])
    assert json.loads(out) == {key: found[0][key] for key in ("image", "classes")}


def test_report(trained, capfd):
    code, out, err = call(report, capfd, f"--workdir={trained}")
    assert code == 0, err
    page = (trained / "report" / "index.html").read_text()
    for title in "Worst images", "Intersection over union", "Confusions", "Mean IoU":
        assert title in page
    assert (trained / "report" / "scenes.png").exists() and "<th>pixels</th>" not in page


def test_a_pretrained_model_gets_a_new_head(trained, photos, tmp_path, capfd):
    for split in "train", "validation":
        for name in split, f"{split}_masks":
            shutil.copytree(photos / name, tmp_path / name)
    more = [f"--workdir={tmp_path}/run", f"--init_from={trained}", "--config.training.steps=6", "--config.data.test="]
    labels = "--config.task.labels=('ground','red','blue','other')"
    code, out, err = call(finetune, capfd, *flags(tmp_path), labels, *more)
    assert code == 0 and json.loads(out.splitlines()[-1])["metric"] == "mean_iou", err
    assert "newly initialised: decode_head/classifier/bias, decode_head/classifier/kernel" in err
    answers = Experiment(configuration.read(tmp_path / "run"), tmp_path / "run").samples()
    assert {Path(answer["image"]).parent.name for answer in answers} == {"validation"}  # where there is no test split


@pytest.mark.parametrize("method", ["lora", "adapters"])
def test_few_parameters_learn_to_label_pixels(trained, photos, tmp_path, capfd, method):
    """By QLoRA or adapters, beside a base whose statistics of batches stay; the head learns whole."""
    more = {"lora": ["--config.finetuning.quantization=int8", "--config.finetuning.targets=('.',)"], "adapters": []}[method]
    more += [f"--config.finetuning.method={method}", "--config.training.steps=6", "--config.data.test="]
    code, out, err = call(finetune, capfd, *flags(photos), f"--workdir={tmp_path}/run", f"--init_from={trained}", *more)
    assert code == 0 and json.loads(out.splitlines()[-1])["metric"] == "mean_iou", err
    run = Experiment(configuration.read(tmp_path / "run"), tmp_path / "run")
    now, before = parameters.flat(run.trained()["params"]), initialise.read(trained)[0]
    added = {name for name in now if "lora_" in name or "adapter/" in name}
    learn = parameters.matching(now, r"^decode_head/|norm[^/]*/(scale|bias)$" if method == "adapters" else "^decode_head/")
    assert added and any(is_quantized(leaf) for leaf in now.values()) == (method == "lora")
    for name in set(now) - added - learn:
        if not is_quantized(now[name]):
            np.testing.assert_array_equal(now[name], np.asarray(before[name]), name)
    assert any(not np.array_equal(now[name], np.asarray(before[name])) for name in learn)
    code, out, err = call(predict, capfd, f"--workdir={tmp_path}/run", photos / "test/0.png")
    assert code == 0 and set(json.loads(out)["classes"]) <= set(scenes.LABELS), err


def test_a_classifiers_backbone_gets_a_head_for_pixels(photos, tmp_path, capfd):
    """From a folder of Hugging Face's: all but the head is what was pretrained."""
    config = configuration.load(f"{REPOSITORY}/configs/segformer.py:tiny")
    fields = {**config.model, "head": "classification", "labels": 4, "vocab_size": 0}
    picture = {"image": np.zeros((1, 24, 32, 3), np.uint8)}
    params = nn.unbox(models.build(fields, 0).init(jax.random.key(3), picture)["params"])
    huggingface.save(tmp_path / "hf", fields, jax.device_get(params))
    more = f"--init_from={tmp_path}/hf", "--config.optimizer.learning_rate=1e-12", "--config.training.steps=5"
    code, _, err = call(finetune, capfd, *flags(photos), *more, f"--workdir={tmp_path}/run")
    assert code == 0 and "newly initialised: " in err and "decode_head/" in err, err
    found, given = initialise.read(tmp_path / "run")[0], parameters.flat(params)
    kept = [name for name in found if "decode_head/" not in name]
    assert len(kept) > 20
    for name in kept:
        np.testing.assert_allclose(np.asarray(found[name]), np.asarray(given[name]), atol=1e-9, err_msg=name)


def test_there_and_back_nothing_is_lost(trained, tmp_path, capfd):
    """As SegformerForSemanticSegmentation, with running statistics and the names of the classes."""
    for source, target in (trained, tmp_path / "hf"), (tmp_path / "hf", tmp_path / "back"):
        code, _, err = call(convert, capfd, f"--from={source}", f"--to={target}")
        assert code == 0, err
    described = json.loads((tmp_path / "hf/config.json").read_text())
    assert described["architectures"] == ["SegformerForSemanticSegmentation"]
    assert configuration.read(tmp_path / "back").task.labels == scenes.LABELS
    before, after = (initialise.read(folder)[0] for folder in (trained, tmp_path / "back"))
    assert before.keys() == after.keys() and "batch_stats:decode_head/norm/mean" in before
    for name in before:
        np.testing.assert_array_equal(np.asarray(before[name]), np.asarray(after[name]), err_msg=name)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda p: (p / "train/3.png").write_bytes(b"no image"), ["train/3.png", "is no image"]),
        (lambda p: (p / "train_masks/3.png").unlink(), ["train/3.png has no mask", "train_masks/3.png"]),
        (lambda p: (p / "train/3.png").unlink(), ["train_masks/3.png has no image"]),
        (lambda p: resave(p / "train_masks/3.png", lambda m: m[:-1]), ["train_masks/3.png has 23×32 pixels", "24×32"]),
        (lambda p: resave(p / "train_masks/3.png", lambda m: m + 3), ["train_masks/3.png has the class 3"]),
        (lambda p: shutil.rmtree(p / "train_masks"), ["config.data.train: no folder"]),
    ],
)
def test_mistakes_in_the_data_end_in_one_line_or_are_left_out(photos, tmp_path, capfd, change, says):
    shutil.copytree(photos, tmp_path / "photos")
    change(tmp_path / "photos")
    fails(pretrain, capfd, *flags(tmp_path / "photos"), f"--workdir={tmp_path}/run", says=says)
    if "no folder" not in says[0]:
        config = configuration.load(f"{REPOSITORY}/configs/segformer.py:tiny")
        folder = tmp_path / "photos"
        config.data.update(train=f"{folder}/train,{folder}/train_masks", on_error="skip")
        run = Experiment(config, None)
        assert len(run.task.to_train(run.source("train"))) == len(run.examples("train")) == 23


def resave(path, change) -> None:
    from PIL import Image

    mask = np.array(Image.open(path))
    Image.fromarray(change(mask)).save(path)


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--config.data.size=(24,)", ["config.data.size is (24,)"]),
        ("--config.data.scale=(2.0,1.0)", ["config.data.scale=(2.0, 1.0)"]),
        ("--config.task.labels=()", ["config.task.labels is empty", "image_masks"]),
        ("--config.task.overlap=1.0", ["config.task.overlap is 1.0"]),
        ("--config.data.train=photos", ["config.data.train='photos'", "a folder of images and one of their masks"]),
    ],
)
def test_mistakes_in_the_config_end_in_one_line(photos, tmp_path, capfd, flag, says):
    fails(pretrain, capfd, *flags(photos), flag, f"--workdir={tmp_path}/run", says=says)


def test_street_scenes_of_camvid(tmp_path):
    """Real images and masks make batches of what they are."""
    folder = shared_data("camvid")
    config = configuration.load(f"{REPOSITORY}/configs/segformer.py:camvid")
    for split, name in {"train": "train", "validation": "val"}.items():
        config.data[split] = f"{folder}/{name},{folder}/{name}annot"
    run = Experiment(config, tmp_path, training=True)
    assert len(run.source("train")) == 367 and len(run.source("validation")) == 101 == len(run.examples("validation"))
    iterator = run.train_iterator()
    batch = next(iterator)
    iterator.close()
    assert batch["image"].shape == (8, 180, 240, 3) and batch["mask"].shape == (8, 180, 240)
    assert set(np.unique(batch["mask"])) <= {*range(11), 255} and len(np.unique(batch["mask"])) > 8
