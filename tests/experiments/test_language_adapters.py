"""LoRA and QLoRA of a language model whose base is a GGUF file, from the command line: learned, switched off, killed."""

import json
import os
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest
import tiny_gguf
from launching import REPOSITORY, call, content, fails, finish, metrics, start

from experiments import evaluate, finetune, generate, launch
from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.interchange import gguf_model
from transformers_jax.layers.quantized import is_quantized
from transformers_jax.runs import initialise
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.checkpoint import Checkpoints

LORA = [
    "--config.finetuning.method=lora", "--config.finetuning.rank=4", "--config.finetuning.targets=('.',)",
    "--config.finetuning.dropout=0.1", "--config.optimizer.learning_rate=0.02", "--config.optimizer.schedule=constant",
]  # fmt: skip
METHODS = {
    "lora": LORA,
    "qlora": [*LORA, "--config.finetuning.quantization=nf4", "--config.model.scan_layers", "--config.model.remat"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(scope="module")
def flags(base):
    """All of a run but its workdir and method: conversations whose answer depends on the question."""
    rows = [{"prompt": f"what is {i}", "response": "yes" if i % 2 else "no"} for i in range(24)]
    (base.parent / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--config.data.lengths.tokens=48", "--config.data.batch_size=4", "--config.mesh.fsdp=1", "--config.mesh.data=-1"]
    often = [f"--config.training.{key}=4" for key in ("log_every", "eval_every", "checkpoint_every")]
    files = [f"--config.data.{split}={base.parent}/talks.jsonl" for split in ("train", "validation")]
    config = f"--config={REPOSITORY}/configs/llama.py:instruct"
    steps = ["--config.training.steps=12", "--config.training.keep_checkpoints=3"]
    return [config, f"--init_from={base}", *files, *sizes, *often, *steps]


@pytest.fixture(scope="module")
def runs(flags, tmp_path_factory):
    """Method → the workdir of a run that nothing disturbed, made when it is first asked for."""
    made, folder = {}, tmp_path_factory.mktemp("runs")

    def run(method):
        if method not in made:
            arguments = ["finetune", *map(str, flags), f"--workdir={folder / method}", *METHODS[method]]
            assert launch.call(finetune.main, finetune.FLAGS, arguments) == 0
            made[method] = folder / method
        return made[method]

    return run


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_learned_and_the_base_stays(runs, base, method, capfd):
    workdir = runs(method)
    losses = [line["loss"] for line in metrics(workdir) if line["split"] == "validation"]
    assert losses[-1] < 0.9 * losses[0]
    run = Experiment(configuration.read(workdir), workdir)
    assert run.tokenizer.chat_template == tiny_gguf.TEMPLATE and run.base.fingerprint == initialise.fingerprint_of(str(base))
    now, wanted = parameters.flat(run.trained()["params"]), gguf_model.opened(base).leaves
    quantised = {name for name, leaf in now.items() if is_quantized(leaf)}
    assert len(quantised) == (7 if method == "qlora" else 0)
    for name in set(now) & set(wanted) - quantised:
        np.testing.assert_array_equal(now[name], np.asarray(wanted[name]), name)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        held = parameters.flat(checkpoints.restore_params())
    assert all("lora_" in name for name in held)
    code, out, err = call(evaluate, capfd, f"--workdir={workdir}", "--split=validation")
    assert code == 0 and json.loads(out.splitlines()[-1])["loss"] == pytest.approx(losses[-1], abs=1e-5), err
    code, out, err = call(generate, capfd, f"--workdir={workdir}", "--chat", "--prompt=what is 3", "--max_tokens=4")
    assert code == 0 and out.strip(), err


@pytest.mark.parametrize("method", METHODS)
def test_switched_off_the_model_is_what_it_was(runs, method):
    """With a scale of zero the outputs are those of the base alone, bit for bit."""
    run = Experiment(configuration.read(runs(method)), runs(method))
    leaves = parameters.flat(run.trained()["params"])
    batch = run.model.protocol().example(B=2, T=6)
    batch |= {"tokens": np.random.default_rng(0).integers(4, 200, batch["tokens"].shape).astype(np.int32)}

    def hidden(leaves):
        return np.asarray(jax.jit(run.model.apply)({"params": parameters.nest(leaves)}, batch).hidden)

    off = {name: 0 * leaf if name.endswith("lora_scale") else leaf for name, leaf in leaves.items()}
    alone = {name: leaf for name, leaf in leaves.items() if "lora_" not in name}
    np.testing.assert_array_equal(hidden(off), hidden(alone))
    assert np.abs(hidden(leaves) - hidden(alone)).max() > 1e-3


MOMENTS = ("parameters, of which", "step 8/12")
"""What is seen on stderr when kill -9 comes: before the first step, and beside the second checkpoint."""


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_killed_ends_as_one_that_was_not(runs, flags, tmp_path, method):
    command = ["-m", "experiments.finetune", *flags, f"--workdir={tmp_path}/w", *METHODS[method]]
    for words in MOMENTS:
        with start(command, stdout=subprocess.DEVNULL) as process:
            seen = []
            for line in process.stderr:
                seen.append(line)
                if words in line:
                    process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "".join(seen)
    code, _, err = finish(start(command))
    assert code == 0, err
    assert metrics(tmp_path / "w") == metrics(runs(method))
    (params, extra), (wanted, other) = content(tmp_path / "w"), content(runs(method))
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert extra == other


def test_a_run_goes_on_over_four_devices(runs, flags, tmp_path):
    """From the second of three checkpoints: the base is read onto another mesh, and the end is the same but for rounding."""
    shutil.copytree(runs("qlora"), tmp_path / "w")
    shutil.rmtree(tmp_path / "w/checkpoints/12")
    devices = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    command = ["-m", "experiments.finetune", *flags, f"--workdir={tmp_path}/w", *METHODS["qlora"]]
    code, _, err = finish(start(command, env=os.environ | {"XLA_FLAGS": devices}))
    assert code == 0, err
    (params, _), (wanted, _) = content(tmp_path / "w"), content(runs("qlora"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), params, wanted)


def test_mistakes_end_in_one_line(flags, base, tmp_path, capfd):
    more = [*flags, f"--workdir={tmp_path}/w", *METHODS["qlora"]]
    fails(finetune, capfd, *more, f"--init_from={tmp_path}/no.gguf", says=["no.gguf", "no such folder"])
    (tmp_path / "cut.gguf").write_bytes(base.read_bytes()[:-500])
    fails(finetune, capfd, *more, f"--init_from={tmp_path}/cut.gguf", says=["cut.gguf is cut short"])
    fails(finetune, capfd, *more, "--config.finetuning.quantization=nf3", says=["one of nf4, int8"])
    assert not (tmp_path / "w").exists()
