"""Finetuning by every method from the command line: what learns, what the checkpoints hold, resuming, predicting."""

import json
import shutil

import jax
import numpy as np
import pytest
from launching import REPOSITORY, call, command, content, fails, finish, start

from experiments import convert, evaluate, finetune, launch, predict, pretrain
from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.finetuning import lora
from transformers_jax.layers.quantized import bytes_per_parameter, is_quantized
from transformers_jax.runs import initialise
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.checkpoint import Checkpoints

LORA = ["--config.finetuning.method=lora", "--config.finetuning.rank=2"]
METHODS = {
    "head": ["--config.finetuning.method=head"],
    "bias": ["--config.finetuning.method=bias"],
    "lora": LORA,
    "dora": [*LORA, "--config.finetuning.dora", "--config.finetuning.rslora", "--config.finetuning.dropout=0.1"],
    "qlora": [
        *LORA, "--config.finetuning.quantization=nf4", "--config.finetuning.targets=('.',)", "--config.model.scan_layers"
    ],
    "adapters": ["--config.finetuning.method=adapters", "--config.finetuning.adapter_width=4"],
}
LEARNS = {
    "head": r"^(pooler|classifier)/",
    "bias": r"^(pooler|classifier)/|bias$",
    "lora": r"^(pooler|classifier)/|lora_[ab]$",
    "dora": r"^(pooler|classifier)/|lora_(a|b|magnitude)$",
    "qlora": r"^(pooler|classifier)/|lora_[ab]$",
    "adapters": r"^(pooler|classifier)/|_adapter/|norm/(scale|bias)$",
}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Files of "sentence TAB label"; the flags that name them."""
    folder, random = tmp_path_factory.mktemp("sentences"), np.random.default_rng(0)
    words = {"0": ["bad", "dull", "the"], "1": ["good", "fine", "the"]}
    for split in "train", "validation":
        rows = [" ".join(random.choice(words[label], 4)) + f"\t{label}\n" for label in "01" * 10]
        (folder / f"{split}.tsv").write_text("".join(rows))
    return [f"--config.data.{split}={folder}/{split}.tsv" for split in ("train", "validation")]


def flags_of(workdir, encoder, sentences, *more):
    short = ["--config.task.max_length=32", "--config.data.lengths.tokens=32", "--config.data.batch_size=4"]
    speed = ["--config.training.steps=10", "--config.finetuning.evaluations=2", "--config.optimizer.learning_rate=0.01"]
    config = f"--config={REPOSITORY}/configs/bert.py:sentences"
    return [config, f"--workdir={workdir}", f"--init_from={encoder}", *sentences, *short, *speed, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, encoder, sentences):
    """Method → the workdir of ten steps by it, made when it is first asked for."""
    made, folder = {}, tmp_path_factory.mktemp("runs")

    def run(method):
        if method not in made:
            flags = flags_of(folder / method, encoder, sentences, *METHODS[method])
            assert launch.call(finetune.main, finetune.FLAGS, ["finetune", *map(str, flags)]) == 0
            made[method] = folder / method
        return made[method]

    return run


def variables(workdir) -> dict:
    return parameters.flat(Experiment(configuration.read(workdir), workdir).trained()["params"])


@pytest.mark.parametrize("method", METHODS)
def test_only_what_should_learn_has_changed(runs, encoder, method):
    """Bit for bit: the base of the workdir is that of --init_from, quantised where it is, and its checkpoint holds no more."""
    workdir = runs(method)
    run = Experiment(configuration.read(workdir), workdir)
    before, after = first(run), variables(workdir)
    learns = parameters.matching(after, LEARNS[method])
    assert learns and before.keys() == after.keys()
    for name in after:
        same = all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True))
        assert same == (name not in learns), name
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        held = checkpoints.restore_params()
        assert checkpoints.saved_base() == run.base
    assert set(parameters.flat(held["params"])) == learns
    assert all(lora.LEAF.search(name) for name in parameters.flat(held["frozen"]))
    if method == "qlora":
        kernels = [leaf for leaf in after.values() if is_quantized(leaf)]
        assert len(kernels) == 6 and not any(is_quantized(after[name]) for name in learns)
        assert all(bytes_per_parameter(kernel) < 0.8 for kernel in kernels)  # of so few numbers


def first(run) -> dict:
    import optax

    from transformers_jax.runs.train import first_state

    return parameters.flat(first_state(run, optax.identity()).model_params)
