"""From the command line: what finetune calls the best is what is evaluated, predicted with, embedded and converted."""

import json

import numpy as np
import pytest
from launching import REPOSITORY, call, fails

from experiments import convert, embed, evaluate, finetune, launch, predict, pretrain, report
from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.runs import initialise
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.checkpoint import Checkpoints

CONFIG = f"--config={REPOSITORY}/configs/bert.py:sentences"
SENTENCES = [CONFIG, "--config.data.lengths.tokens=16", "--config.task.max_length=16"]
SHORT = ["--config.training.steps=6", "--config.data.batch_size=4", "--config.optimizer.learning_rate=0.03"]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Files of "sentence TAB label", of which the second says the opposite of the first; the flags that name them."""
    folder, random = tmp_path_factory.mktemp("sentences"), np.random.default_rng(0)
    for split, words in ("train", {"0": ["bad", "dull"], "1": ["good", "fine"]}), ("validation", {"1": ["bad"], "0": ["good"]}):
        rows = [" ".join(random.choice([*words[label], "the"], 4)) + f"\t{label}\n" for label in "01" * 10]
        (folder / f"{split}.tsv").write_text("".join(rows))
    return [f"--config.data.{split}={folder}/{split}.tsv" for split in ("train", "validation")]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, encoder, sentences):
    """{method: (workdir, what finetune has said)} of runs whose last model is not their best."""
    found = {}
    for method in "full", "lora":
        workdir = tmp_path_factory.mktemp("best") / method
        flags = [*SENTENCES, f"--workdir={workdir}", f"--init_from={encoder}", *SHORT, *sentences]
        flags.append(f"--config.finetuning.method={method}")
        assert launch.call(finetune.main, finetune.FLAGS, ["finetune", *flags]) == 0
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        scores = {line["step"]: line for line in lines if line["split"] == "validation"}
        best = max(scores, key=lambda step: (scores[step]["accuracy"], -step))
        assert best < 6
        found[method] = workdir, scores, best
    return found


def params_of(workdir, step=None):
    trained = Experiment(configuration.read(workdir), workdir).trained(step=step)
    return {name: np.asarray(x) for name, x in parameters.flat(trained["params"]).items()}


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_best_is_what_is_evaluated(tuned, capfd, method):
    workdir, scores, best = tuned[method]
    assert [int(p.name) for p in (workdir / "checkpoints").iterdir()] == [6]  # to be resumed from
    chosen = {"--step=best": best, f"--step={best}": best, "--step=last": 6, "--average=1": 6}
    for flags, step in ([], best), *(([flag], step) for flag, step in chosen.items()):
        code, out, err = call(evaluate, capfd, f"--workdir={workdir}", "--split=validation", *flags)
        assert code == 0, err
        assert json.loads(out.splitlines()[-1])["loss"] == pytest.approx(scores[step]["loss"], rel=1e-4), flags
        assert (f"that of step {best}" in err) == (flags == [])
    assert not same(params_of(workdir), params_of(workdir, "last"))


def test_finetune_says_it_again_and_the_others_take_it(tuned, encoder, sentences, tmp_path, capfd, monkeypatch):
    workdir, scores, best = tuned["full"]
    code, out, _ = call(finetune, capfd, *SENTENCES, f"--workdir={workdir}", f"--init_from={encoder}", *SHORT, *sentences)
    said = {"metric": "accuracy", "best": scores[best]["accuracy"], "step": best, "last": scores[6]["accuracy"]}
    assert code == 0 and json.loads(out.splitlines()[-1]) == said

    def answers(launcher, *flags):
        code, out, err = call(launcher, capfd, *flags, stdin=b"good fine the\n", monkeypatch=monkeypatch)
        assert code == 0, err
        return json.loads(out)

    of_best, of_last = (answers(predict, f"--workdir={workdir}", f"--step={step}") for step in ("best", "last"))
    assert answers(predict, f"--workdir={workdir}") == of_best != of_last
    of_best, of_last = (answers(embed, f"--init_from={workdir}", f"--step={step}") for step in ("best", "last"))
    assert answers(embed, f"--init_from={workdir}") == of_best != of_last
    for step in None, "last":
        folder = tmp_path / f"folder {step}"
        code, _, err = call(convert, capfd, f"--from={workdir}", f"--to={folder}", *[f"--step={step}"] * bool(step))
        assert code == 0, err
        leaves = initialise.read(folder)[0]
        assert np.array_equal(leaves["classifier/kernel"], params_of(workdir, step)["classifier/kernel"])
    assert same(params_of(workdir), {n: np.asarray(x) for n, x in parameters.flat(initialise.plain(workdir)["params"]).items()})
    code, _, err = call(report, capfd, f"--workdir={workdir}", "--step=last")
    assert code == 0 and "the best model" not in err
    fails(evaluate, capfd, f"--workdir={workdir}", "--step=first", says=["--step", "best, last, or a number"])


def test_low_rank_parts_that_are_converted_are_the_best(tuned, tmp_path, capfd, encoder):
    workdir = tuned["lora"][0]
    code, _, err = call(convert, capfd, f"--from={workdir}", f"--to={tmp_path / 'merged'}", "--merge")
    assert code == 0, err
    merged, best = initialise.read(tmp_path / "merged")[0], initialise.plain(workdir, "best")["params"]
    assert np.allclose(merged["classifier/kernel"], best["classifier"]["kernel"])
    assert not np.allclose(merged["classifier/kernel"], initialise.plain(workdir, "last")["params"]["classifier"]["kernel"])
    with Checkpoints(workdir / "best") as checkpoints:
        assert checkpoints.saved_base() and "embeddings" not in checkpoints.restore_params()["frozen"]


def test_patience_ends_a_pretraining(tmp_path, prose, capfd):
    flags = [f"--config={REPOSITORY}/configs/bert.py:tiny", *prose, "--config.model.layers=1", "--config.training.eval_every=1"]
    flags += ["--config.optimizer.learning_rate=3.0", "--config.optimizer.warmup_steps=1", "--config.training.patience=2"]
    code, _, err = call(pretrain, capfd, *flags, f"--workdir={tmp_path / 'w'}", "--config.training.steps=40")
    assert code == 0 and "stays the best (config.training.patience)" in err, err
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["split"] == "validation"}
    best = min(losses, key=losses.get)
    assert max(losses) == best + 2 < 40 and [int(p.name) for p in (tmp_path / "w" / "best").iterdir()] == [best]


def test_patience_needs_evaluations(tmp_path, prose, capfd):
    flags = [f"--config={REPOSITORY}/configs/bert.py:tiny", f"--workdir={tmp_path / 'w'}", "--config.training.patience=2"]
    fails(pretrain, capfd, *flags, prose[0], says=["patience=2", "give config.data.validation"])
    fails(pretrain, capfd, *flags, *prose, "--config.training.eval_every=0", says=["give config.training.eval_every"])
    fails(pretrain, capfd, *flags, prose[0], "--dry_run", says=["give config.data.validation"])


def test_the_best_is_the_average_of_weights_where_there_is_one(encoder, sentences, tmp_path):
    flags = [*SENTENCES, f"--workdir={tmp_path}/ema", f"--init_from={encoder}", *SHORT, *sentences]
    flags += ["--config.training.ema=0.5", "--config.training.keep_checkpoints=9"]
    assert launch.call(finetune.main, finetune.FLAGS, ["finetune", *flags]) == 0
    (best,) = (int(path.name) for path in (tmp_path / "ema/best").iterdir())
    with Checkpoints(tmp_path / "ema/checkpoints") as checkpoints:
        there = parameters.flat(checkpoints.restore_params(best)["params"])
    assert same(params_of(tmp_path / "ema", "best"), {name: np.asarray(x) for name, x in there.items()})
