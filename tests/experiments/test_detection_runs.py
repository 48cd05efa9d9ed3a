"""Runs that find objects: trained, stopped and resumed, evaluated and used; and their mistakes."""

import json

import numpy as np
import pytest
import scenes
from launching import REPOSITORY, call, content, fails, finish, metrics, start
from real_data import shared_data

from experiments import convert, evaluate, finetune, predict, pretrain, report
from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.layers.quantized import is_quantized
from transformers_jax.runs import initialise
from transformers_jax.runs import train as training
from transformers_jax.runs.experiment import Experiment

pytest.importorskip("pycocotools", reason="needs pycocotools: pip install transformers_jax[images]")
CONFIG = f"--config={REPOSITORY}/configs/fcos.py"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "voc"
    scenes.write_voc(folder, {"train": 40, "validation": 10, "test": 3})
    return folder


def flags(photos) -> list[str]:
    named = [f"--config.data.{s}={photos}/ImageSets/Main/{s}.txt" for s in ("train", "validation", "test")]
    return [f"{CONFIG}:tiny", *named]


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    from experiments import launch

    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert launch.call(pretrain.main, pretrain.FLAGS, ["pretrain", *flags(photos), f"--workdir={workdir}"]) == 0
    return workdir


def test_objects_are_found(trained, capfd):
    lines = metrics(trained)
    first, last = (line for line in lines if line["split"] == "validation")
    assert last["ap"] > max(0.2, first["ap"]) and last["examples"] == 10 and last["loss"] < first["loss"]
    assert configuration.read(trained).task.labels == ("blue", "red")
    code, out, err = call(evaluate, capfd, f"--workdir={trained}", "--split=validation")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and np.isclose(found["ap"], last["ap"]) and np.isclose(found["loss"], last["loss"], rtol=1e-5), err


def test_a_run_that_was_stopped_ends_as_one_that_was_not(trained, photos, tmp_path, capfd, monkeypatch):
    to_device, seen = training.global_batch, []

    def batch_of(batch, mesh, **options):
        seen.append(batch["boxes"])
        if len(seen) == 43:
            raise KeyboardInterrupt
        return to_device(batch, mesh, **options)

    monkeypatch.setattr(training, "global_batch", batch_of)
    workdir = tmp_path / "run"
    assert call(pretrain, capfd, *flags(photos), f"--workdir={workdir}")[0] == 130
    assert call(pretrain, capfd, *flags(photos), f"--workdir={workdir}")[0] == 0
    assert len(seen) == 43 + 40 and all(np.array_equal(seen[i], seen[i + 3]) for i in (40, 41, 42))
    (params, state), (wanted, wanted_state) = content(workdir), content(trained)
    assert metrics(workdir) == metrics(trained) and state == wanted_state
    np.testing.assert_equal(params, wanted)


def test_boxes_are_told_in_the_images_own_pixels(trained, photos, tmp_path, capfd):
    from PIL import Image

    given = photos / "JPEGImages/test_1.jpg"
    large = Image.open(given).resize((128, 96), Image.Resampling.NEAREST)
    large.save(tmp_path / "large.png")
    code, out, err = call(predict, capfd, f"--workdir={trained}", given, tmp_path / "large.png")
    small, large = (json.loads(line) for line in out.splitlines())
    assert code == 0 and small["image"] == str(given) and small["objects"] and "truth" not in small, err
    assert {thing["label"] for thing in small["objects"]} <= {"red", "blue"}
    best, other = small["objects"][0], large["objects"][0]
    assert 0 <= best["box"][0] < best["box"][2] <= 32 and best["label"] == other["label"]
    np.testing.assert_allclose(np.array(best["box"]) * 4, other["box"], atol=12)
    code, out, _ = call(predict, capfd, f"--workdir={trained}", f"--out={tmp_path}/x", given)
    drawn = np.array(Image.open(json.loads(out)["drawn"])).astype(int)
    changed = np.abs(drawn - np.array(Image.open(given)).astype(int)).sum(axis=-1) > 60
    assert code == 0 and drawn.shape == (24, 32, 3) and 10 < changed.sum() < 24 * 32
    (tmp_path / "y").write_text("a file")
    fails(predict, capfd, f"--workdir={trained}", f"--out={tmp_path}/y", given, says=["--out=", "cannot be made"])


def test_samples_and_report(trained, photos, capfd):
    samples = Experiment(configuration.read(trained), trained).samples()
    assert {sample["image"] for sample in samples} == {f"{photos}/JPEGImages/test_{i}.jpg" for i in range(3)}
    assert samples[2]["truth"] == [] and "ap50" not in samples[2]  # without objects
    assert samples[0]["ap50"] <= samples[1]["ap50"] and len(samples[0]["truth"]) == 2
    last = metrics(trained)[-1]
    assert np.isclose(last["ap"], (last["ap_red"] + last["ap_blue"]) / 2) and last["ap50_red"] >= last["ap_red"]
    code, _, err = call(report, capfd, f"--workdir={trained}")
    page = (trained / "report/index.html").read_text()
    assert code == 0 and all(f"<h2>{title}</h2>" in page for title in ("Worst images", "Average precision of each label")), err
    assert (trained / "report/objects.png").exists() and (trained / "report/precisions.png").exists()


def test_a_run_that_was_killed_ends_as_one_that_was_not(trained, photos, tmp_path, capfd):
    workdir = tmp_path / "run"
    process = start(["-m", "experiments.pretrain", *flags(photos), f"--workdir={workdir}"])
    assert any("step 60/80" in line for line in process.stderr)
    process.kill()
    finish(process)
    assert call(pretrain, capfd, *flags(photos), f"--workdir={workdir}")[0] == 0
    np.testing.assert_equal(content(workdir), content(trained))


def test_a_classifier_becomes_a_detector(trained, photos, tmp_path, capfd):
    """From a workdir, and from a folder of Hugging Face's: all but the head is what was pretrained."""
    from PIL import Image

    for name, ink in ("dark", 20), ("light", 220):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (16, 16), (ink + i,) * 3).save(tmp_path / "photos" / name / f"{i}.png")
    shape = "--config.model.widths=(8,16)", "--config.model.depths=(1,1)", "--config.model.patch_size=4"
    data = [f"--config.data.{split}={tmp_path}/photos" for split in ("train", "validation", "test")]
    settings = ["--config.model.layer_scale=0.0", "--config.training.steps=6", "--config.data.size=32"]
    classifier = f"--config={REPOSITORY}/configs/convnext.py:tiny"
    code, _, err = call(pretrain, capfd, classifier, *shape, *settings, *data, f"--workdir={tmp_path}/c")
    assert code == 0, err
    assert call(convert, capfd, f"--from={tmp_path}/c", f"--to={tmp_path}/hf")[0] == 0
    given = initialise.read(tmp_path / "c")[0]
    for folder in "c", "hf":
        more = f"--init_from={tmp_path}/{folder}", "--config.optimizer.learning_rate=1e-12", "--config.training.steps=5"
        code, _, err = call(finetune, capfd, *flags(photos), *more, f"--workdir={tmp_path}/{folder}_found")
        assert code == 0 and "newly initialised: detection_head/" in err, err
        found = initialise.read(tmp_path / f"{folder}_found")[0]
        kept = [name for name in found if not name.startswith("detection_head/")]
        assert len(kept) > 10
        for name in kept:
            np.testing.assert_allclose(np.asarray(found[name]), np.asarray(given[name]), atol=1e-9, err_msg=name)


def test_objects_of_labels_that_the_config_has_not_are_left_out(photos, tmp_path):
    config = configuration.load(f"{REPOSITORY}/configs/fcos.py:tiny")
    config.data.update(train=f"{photos}/ImageSets/Main/train.txt", on_error="skip")
    config.task.labels = ("red", "green")
    assert len(Experiment(config, tmp_path).examples("train")) == 1  # the one without objects


@pytest.mark.parametrize("method", ["lora", "adapters"])
def test_few_parameters_learn_to_find_objects(trained, photos, tmp_path, capfd, method):
    """By QLoRA or adapters: the body stays, the head learns whole."""
    more = {"lora": ["--config.finetuning.quantization=int8", "--config.finetuning.targets=('.',)"], "adapters": []}[method]
    more += [f"--config.finetuning.method={method}", "--config.training.steps=6", "--config.data.test="]
    code, out, err = call(finetune, capfd, *flags(photos), f"--workdir={tmp_path}/run", f"--init_from={trained}", *more)
    assert code == 0 and json.loads(out.splitlines()[-1])["metric"] == "ap", err
    run = Experiment(configuration.read(tmp_path / "run"), tmp_path / "run")
    now, before = parameters.flat(run.trained()["params"]), initialise.read(trained)[0]
    kernels = {name for name in set(now) & set(before) if name.endswith("/kernel") and not name.startswith("detection_head/")}
    assert all(is_quantized(now[name]) for name in kernels if "depthwise" not in name) == (method == "lora")
    assert method == "lora" or all(np.array_equal(now[name], np.asarray(before[name])) for name in kernels)
    assert len({name for name in now if "lora_a" in name or "adapter/up/kernel" in name}) > 0
    code, out, err = call(predict, capfd, f"--workdir={tmp_path}/run", photos / "JPEGImages/test_1.jpg")
    assert code == 0 and json.loads(out)["image"], err


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--config.data.train=nowhere/ImageSets/Main/train.txt", ["config.data.train", "no file nowhere"]),
        ("--config.task.labels=('red','green')", ["'blue'", "config.task.labels"]),
        ("--config.data.size=(2,2)", ["images of 2×2 pixels are too small"]),
        ("--config.data.source=coco", ["give a JSON file and the folder of its images"]),
    ],
)
def test_mistakes_end_in_one_line(photos, tmp_path, capfd, flag, says):
    fails(pretrain, capfd, *flags(photos), flag, f"--workdir={tmp_path}/run", says=says)


def test_real_cells_make_batches(tmp_path):
    folder = shared_data("bccd")
    config = configuration.load(f"{REPOSITORY}/configs/fcos.py:bccd")
    config.data.train = f"{folder}/BCCD/ImageSets/Main/train.txt"
    config.task.labels = ("Platelets", "RBC", "WBC")
    iterator = Experiment(config, tmp_path, training=True).train_iterator()
    batch = next(iterator)
    iterator.close()
    assert batch["image"].shape == (8, 240, 320, 3) and batch["boxes"].shape == (8, 100, 4)
    there = batch["boxes"][batch["box_labels"] >= 0]
    assert len(there) > 30 and (there[:, 2:] > there[:, :2]).all() and there.max() <= 320
