"""Runs on images from class folders: trained, stopped and resumed, evaluated, used and reported; and their mistakes."""

import json
import shutil

import numpy as np
import pytest
from launching import REPOSITORY, call, content, fails, metrics
from ml_collections import ConfigDict
from real_data import shared_data

from experiments import evaluate, finetune, predict, pretrain, report
from transformers_jax import config as configuration
from transformers_jax.runs import train as training
from transformers_jax.runs.experiment import Experiment

CLASSES = {"dark": (0, 0, 0), "light": (150, 150, 150), "red": (150, 0, 0)}
CONFIG = f"--config={REPOSITORY}/configs/perceptron.py"


def write(folder, counts: dict[str, int]) -> None:
    """Class folders of PNG files, no two alike, whose colours tell their class."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in counts.items():
        for name, colour in CLASSES.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 100, [20, 18, 3]) + colour
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write(folder, {"train": 14, "validation": 4, "test": 5})
    return folder


def flags(photos, *splits) -> list[str]:
    named = [f"--config.data.{split}={photos}/{split}" for split in splits or ("train", "validation", "test")]
    return [f"{CONFIG}:tiny", *named]


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    from experiments import launch

    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert launch.call(pretrain.main, pretrain.FLAGS, ["pretrain", *flags(photos), f"--workdir={workdir}"]) == 0
    return workdir


def test_classes_are_told_apart(trained, photos, capfd):
    config = configuration.read(trained)
    assert config.task.labels == tuple(CLASSES) and not (trained / "tokenizer.json").exists()
    lines = metrics(trained)
    test = lines[-1]
    assert test["split"] == "test" and test["accuracy"] == test["mean_class_accuracy"] == 1.0 and test["examples"] == 15
    assert "examples_per_second" in (trained / "metrics.jsonl").read_text()
    code, out, err = call(evaluate, capfd, f"--workdir={trained}", "--split=validation")
    found = json.loads(out.splitlines()[-1])
    assert code == 0 and found["accuracy"] == 1.0 and found["examples"] == 12, err
    assert np.isclose(found["loss"], [line for line in lines if line["split"] == "validation"][-1]["loss"], rtol=1e-5)


@pytest.mark.parametrize("average", ["--config.training.ema=0", "--config.training.ema=0.9"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(trained, photos, tmp_path, capfd, monkeypatch, average):
    to_device, seen, whole, given = training.global_batch, [], trained, [*flags(photos), average]
    if average.endswith("9"):
        whole = tmp_path / "whole"
        assert call(pretrain, capfd, *given, f"--workdir={whole}")[0] == 0

    def batch_of(batch, mesh, **options):
        seen.append(batch["image"])
        if len(seen) == 9:
            raise KeyboardInterrupt
        return to_device(batch, mesh, **options)

    monkeypatch.setattr(training, "global_batch", batch_of)
    workdir = tmp_path / "run"
    assert call(pretrain, capfd, *given, f"--workdir={workdir}")[0] == 130
    assert call(pretrain, capfd, *given, f"--workdir={workdir}")[0] == 0
    assert len(seen) == 9 + 6 and all(np.array_equal(seen[i], seen[i + 3]) for i in (6, 7, 8))  # from step 6 on once more
    assert not np.array_equal(seen[0], seen[1])
    (params, state), (wanted, wanted_state) = content(workdir), content(whole)
    assert metrics(workdir) == metrics(whole) and state == wanted_state
    np.testing.assert_equal(params, wanted)


def test_images_and_folders_are_answered_in_order(trained, photos, capfd, monkeypatch):
    code, out, err = call(predict, capfd, f"--workdir={trained}", photos / "test", photos / "train/red/3.png")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(found) == 16, err
    assert [answer["image"] for answer in found[:6]] == [f"{photos}/test/dark/{i}.png" for i in range(5)] + [
        f"{photos}/test/light/0.png"
    ]
    for answer in found:
        assert answer["image"].split("/")[-2] == answer["prediction"] == next(iter(answer["probabilities"]))
        assert set(answer["probabilities"]) == set(CLASSES)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-4)
    lines = f"{found[0]['image']}\n\n{json.dumps({'image': found[7]['image']})}\n".encode()
    code, out, err = call(predict, capfd, f"--workdir={trained}", stdin=lines, monkeypatch=monkeypatch)
    assert code == 0, err
    for answer, wanted in zip(map(json.loads, out.splitlines()), [found[0], {}, found[7]], strict=True):
        assert answer.keys() == wanted.keys() and answer.get("prediction") == wanted.get("prediction")


def test_predictions_end_at_what_is_no_image(trained, photos, tmp_path, capfd, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"no image")
    good = photos / "test/dark/0.png"
    out = fails(predict, capfd, f"--workdir={trained}", good, tmp_path / "a.png", says=["image 2", "a.png is no image"])
    assert json.loads(out)["prediction"] == "dark"
    fails(predict, capfd, f"--workdir={trained}", tmp_path / "none.png", says=["no file or folder", "none.png"])
    (tmp_path / "empty").mkdir()
    fails(predict, capfd, f"--workdir={trained}", tmp_path / "empty", says=["empty has no images"])
    lines = f"{good}\n{tmp_path}/b.png\n".encode()
    says = ["standard input, line 2", "b.png: no such file"]
    fails(predict, capfd, f"--workdir={trained}", stdin=lines, monkeypatch=monkeypatch, says=says)


def test_samples_and_report(trained, photos, capfd):
    samples = Experiment(configuration.read(trained), trained).samples()
    assert {sample["image"] for sample in samples} == {f"{photos}/test/{name}/{i}.png" for name in CLASSES for i in range(5)}
    assert all(sample["label"] == sample["prediction"] for sample in samples)
    code, out, err = call(report, capfd, f"--workdir={trained}")
    assert code == 0, err
    page = (trained / "report" / "index.html").read_text()
    assert "Confusions" in page and "dark/0.png" in page and "Positions" not in page
    assert (trained / "report" / "examples_per_second.png").exists() and (trained / "report" / "confusions.png").exists()
    fails(report, capfd, f"--workdir={trained}", "--word=bank", says=["reads images"])


def test_other_classes_are_learned_from_what_was_learned(trained, photos, tmp_path, capfd):
    for split in "train", "validation":
        for name, new in ("light", "light"), ("red", "rouge"):  # one that the pretrained head does not have
            shutil.copytree(photos / split / name, tmp_path / split / new)
    more = [f"--workdir={tmp_path}/run", f"--init_from={trained}", "--config.training.steps=6"]
    code, out, err = call(finetune, capfd, *flags(tmp_path, "train", "validation"), *more)
    assert code == 0 and json.loads(out.splitlines()[-1]) == {"metric": "accuracy", "best": 1.0, "step": 6, "last": 1.0}
    assert "newly initialised: classifier/bias, classifier/kernel" in err
    assert configuration.read(tmp_path / "run").task.labels == ("light", "rouge")
    code, out, _ = call(predict, capfd, f"--workdir={tmp_path}/run", photos / "test/red/0.png")
    assert code == 0 and list(json.loads(out)["probabilities"]) == ["rouge", "light"]


def test_a_dry_run_counts_examples(photos, capfd):
    code, out, err = call(pretrain, capfd, *flags(photos), "--dry_run")
    assert code == 0 and "parameters      6,179" in out and " an example" in out, err


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda p: (p / "train/red/3.png").write_bytes(b"no image"), ["train/red/3.png", "is no image"]),
        (lambda p: [shutil.rmtree(p / "train" / name) for name in ("red", "dark")], ["one class only, light"]),
        (lambda p: (p / "validation/red").rename(p / "validation/blue"), ["config.data.validation", "validation/blue"]),
        (lambda p: shutil.rmtree(p / "train"), ["config.data.train", "no folder"]),
    ],
)
def test_mistakes_in_the_data_end_in_one_line(photos, tmp_path, capfd, change, says):
    shutil.copytree(photos, tmp_path / "photos")
    change(tmp_path / "photos")
    fails(pretrain, capfd, *flags(tmp_path / "photos"), f"--workdir={tmp_path}/run", says=says)
    assert not list(tmp_path.glob("run/checkpoints/*/extra"))


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--config.data.batching=packing", ["config.data.batching=packing", "give rows"]),
        ("--config.data.channels=2", ["config.data.channels=2"]),
        ("--config.data.crop=middle", ["config.data.crop is 'middle'", "inception"]),
        ("--config.task.objective=linear", ["config.task.objective is 'linear'", "softmax"]),
        ("--config.task.labels=('dark','light')", ["red", "config.task.labels"]),
        ("--config.task.mixup=-1.0", ["config.task.mixup is -1.0"]),
        ("--config.model.mean=(0.5,0.5)", ["config.model.mean"]),
    ],
)
def test_mistakes_in_the_config_end_in_one_line(photos, tmp_path, capfd, flag, says):
    fails(pretrain, capfd, *flags(photos), flag, f"--workdir={tmp_path}/run", says=says)


def test_a_damaged_image_may_be_skipped(photos, tmp_path, capfd):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/train/red/3.png").write_bytes(b"no image")
    more = ["--config.data.on_error=skip", "--config.training.steps=6", f"--workdir={tmp_path}/run"]
    code, _, err = call(pretrain, capfd, *flags(tmp_path / "photos"), *more)
    assert code == 0 and "1 mistake is left out" in err and "red/3.png" in err


def test_several_labels_and_mixed_images_are_trained(photos, tmp_path, capfd):
    for split in "train", "validation":
        lines = [f"{photos}/{split}/{name}/{i}.png,{label}\n" for i in range(4) for name, label in LABELS.items()]
        (tmp_path / f"{split}.csv").write_text("path,labels\n" + "".join(lines))
    named = [f"--config.data.{split}={tmp_path}/{split}.csv" for split in ("train", "validation")]
    options = ["--config.data.source=image_lists", "--config.task.objective=sigmoid", "--config.task.mixup=0.2"]
    more = [*named, *options, f"--workdir={tmp_path}/run", "--config.optimizer.learning_rate=0.03"]
    code, _, err = call(pretrain, capfd, f"{CONFIG}:tiny", *more)
    assert code == 0, err
    last = metrics(tmp_path / "run")[-1]
    assert last["mean_average_precision"] > 0.9 and last["f1"] > 0.6 and last["examples"] == 12
    says = ["train.csv, line 2 has 0 labels", "config.task.objective=sigmoid", "config.task.real=True"]
    fails(pretrain, capfd, f"{CONFIG}:tiny", *named, options[0], f"--workdir={tmp_path}/other", says=says)


LABELS = {"dark": "", "light": "bright|grey", "red": "bright"}


@pytest.mark.slow
def test_workers_change_nothing_and_tell_what_is_wrong(trained, photos, tmp_path, capfd):
    code, _, err = call(pretrain, capfd, *flags(photos), f"--workdir={tmp_path}/run", "--config.data.workers=2")
    assert code == 0 and metrics(tmp_path / "run") == metrics(trained), err
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/train/red/3.png").write_bytes(b"no image")
    more = [f"--workdir={tmp_path}/other", "--config.data.workers=2"]
    fails(pretrain, capfd, *flags(tmp_path / "photos"), *more, says=["train/red/3.png", "is no image"])


def test_photographs_of_cifar10(tmp_path):
    """Real images make batches of what they are, and a step of training learns from them."""
    folder = shared_data("cifar10")
    config = configuration.load(f"{REPOSITORY}/configs/perceptron.py:folders")
    config.data.update(train=str(folder / "train"), validation=str(folder / "test"), batch_size=50)
    config.task.labels = tuple(sorted(path.name for path in (folder / "train").iterdir()))
    config.model.width = 8
    run = Experiment(ConfigDict(config), tmp_path, training=True)
    iterator = run.train_iterator()
    batch = next(iterator)
    iterator.close()
    assert batch["image"].shape == (50, 32, 32, 3) and len(set(batch["label"].tolist())) > 5
    assert len(run.source("train")) == 5000 and len(run.eval_batches("validation")) == 20
