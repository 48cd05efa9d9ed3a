"""Finetuning by every method from the command line: what learns, what the checkpoints hold, resuming, predicting."""

import json
import shutil

import jax
import numpy as np
import pytest
from launching import REPOSITORY, call, content, fails

from experiments import convert, evaluate, finetune, launch, predict, pretrain, translate
from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.finetuning import lora
from transformers_jax.genomes.genome import EVOLVED_TRANSFORMER, replace
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


@pytest.mark.parametrize("method", ["dora", "qlora", "adapters"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(runs, encoder, sentences, tmp_path, capfd, method):
    """As after kill -9 between two checkpoints: the last one and what was measured since are gone."""
    flags = flags_of(tmp_path / "w", encoder, sentences, *METHODS[method], "--config.training.keep_checkpoints=2")
    code, _, err = call(finetune, capfd, *flags)
    assert code == 0, err
    whole = content(tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / "checkpoints" / "10")
    code, out, err = call(finetune, capfd, *flags)
    assert code == 0 and json.loads(out.splitlines()[-1])["step"] <= 10, err
    again = content(tmp_path / "w")
    assert again[1] == whole[1] and whole[1]["steps"] == [5, 10]
    jax.tree.map(np.testing.assert_array_equal, again[0], whole[0])
    assert whole[1]["base"]["path"] == str(encoder) and len(whole[1]["base"]["fingerprint"]) == 64


def test_another_base_is_refused(runs, encoder, tmp_path, capfd):
    """The same command beside a base of other numbers, and of none."""
    workdir, other = tmp_path / "w", tmp_path / "other"
    shutil.copytree(runs("lora"), workdir)
    shutil.copytree(encoder, other)
    with Checkpoints(other / "checkpoints") as checkpoints:
        state = checkpoints.restore_params()
        state["params"]["encoder"]["layer_0"]["block"]["self_norm"]["bias"][0] += 1
        checkpoints.save(7, {name: value for name, value in state.items() if value})
    flags = [f"--workdir={workdir}", "--split=validation"]
    says = ["was trained beside another base", str(encoder), str(other)]
    fails(evaluate, capfd, *flags, f"--config.finetuning.init_from={other}", says=says)
    says = [f"{tmp_path}/no", "no such folder"]
    fails(evaluate, capfd, *flags, f"--config.finetuning.init_from={tmp_path}/no", says=says)
    code, out, _ = call(evaluate, capfd, *flags)
    assert code == 0 and json.loads(out.splitlines()[-1])["examples"] == 20


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
def test_a_merged_model_is_plain_and_gives_the_same(runs, tmp_path, capfd, method):
    code, out, err = call(convert, capfd, f"--from={runs(method)}", f"--to={tmp_path / 'merged'}", "--merge")
    assert code == 0 and "a folder of transformers" in out, err
    code, out, err = call(convert, capfd, f"--from={tmp_path / 'merged'}", f"--to={tmp_path / 'w'}")
    assert code == 0, err
    plain = variables(tmp_path / "w")
    assert not any("lora" in name or is_quantized(leaf) for name, leaf in plain.items())
    found = answers(runs(method)), answers(tmp_path / "w")
    np.testing.assert_allclose(*found, atol=1e-5)
    head = {n: x for n, x in initialise.plain(runs(method))["params"]["classifier"].items()}
    jax.tree.map(np.testing.assert_array_equal, head, {n: plain[f"classifier/{n}"] for n in head})


def test_an_adapter_goes_to_peft_and_back(runs, encoder, tmp_path, capfd):
    for method in "lora", "dora":
        code, out, err = call(convert, capfd, f"--from={runs(method)}", f"--to={tmp_path / method}")
        assert code == 0 and "a folder of PEFT" in out, err
        described = json.loads((tmp_path / method / "adapter_config.json").read_text())
        assert described["use_dora"] == described["use_rslora"] == (method == "dora")
        assert described["base_model_name_or_path"] == str(encoder) and described["r"] == 2
        code, out, err = call(convert, capfd, f"--from={tmp_path / method}", f"--to={tmp_path / 'w' / method}")
        assert code == 0, err
        np.testing.assert_allclose(answers(tmp_path / "w" / method), answers(runs(method)), atol=1e-6)


def test_adapters_are_never_dropped_in_silence(runs, tmp_path, capfd):
    for flags in [], ["--merge"]:
        says = ["Houlsby's adapters, which cannot be merged"]
        fails(convert, capfd, f"--from={runs('adapters')}", f"--to={tmp_path / 'x'}", *flags, says=says)
    assert not (tmp_path / "x").exists()


def test_damaged_and_foreign_adapters_are_refused(runs, tmp_path, capfd):
    call(convert, capfd, f"--from={runs('lora')}", f"--to={tmp_path / 'good'}")

    def refused(says, change):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        change(tmp_path / "bad" / "adapter_config.json", tmp_path / "bad" / "adapter_model.safetensors")
        fails(convert, capfd, f"--from={tmp_path / 'bad'}", f"--to={tmp_path / 'w'}", says=says)
        assert not (tmp_path / "w").exists()

    def keys(**changes):
        return lambda config, _: config.write_text(json.dumps(json.loads(config.read_text()) | changes))

    refused(["peft_type 'IA3' is not supported; LORA is"], keys(peft_type="IA3"))
    refused(["bias='all' is not supported"], keys(bias="all"))
    refused(["lora_A has shape"], keys(r=3))
    refused(["truncated"], lambda _, weights: weights.write_bytes(weights.read_bytes()[:-100]))
    refused(["adapter_model.safetensors"], lambda _, weights: weights.unlink())
    refused(["is a pickle"], lambda _, weights: weights.rename(weights.with_name("adapter_model.bin")))


def test_a_workdir_beside_a_base_is_a_base_itself(runs, sentences, tmp_path, capfd):
    """Finetuning goes on from the merged model."""
    more = ["--config.finetuning.method=bias", "--config.training.steps=1", "--config.finetuning.evaluations=1"]
    code, _, err = call(finetune, capfd, *flags_of(tmp_path / "w", runs("lora"), sentences, *more))
    assert code == 0, err
    merged, after = (parameters.flat(initialise.plain(w)["params"]) for w in (runs("lora"), tmp_path / "w"))
    assert merged.keys() == after.keys()
    same = {name for name in merged if np.array_equal(merged[name], after[name])}
    assert same == set(merged) - parameters.matching(merged, LEARNS["bias"])


def answers(workdir, lines=("good fine the", "bad the dull", "the", "fine dull")) -> np.ndarray:
    """The probabilities of a trained classifier for sentences, those of label 0 first."""
    from transformers_jax.inference import answers, predictor

    there = predictor.trained(Experiment(configuration.read(workdir), workdir))
    answer = answers.answerer(there, top=2)
    examples = [answer.example(line, "text", "here") for line in lines]
    return np.array([sorted(found["probabilities"].items()) for found in answer(examples, str)])[..., 1].astype(float)


QUICK = ["--config.training.steps=2", "--config.training.eval_every=2", "--config.training.bleu_every=2"]
SMALL = [*QUICK, "--config.training.checkpoint_every=2", "--config.training.average_checkpoints=1"]


def check_translation(base, workdir, corpus, capfd, monkeypatch, *more):
    """Finetunes a translation by LoRA for two steps, translates with it, and merges it into a workdir of its own."""
    config = f"--config={REPOSITORY}/configs/transformer.py:tiny"
    flags = [config, f"--workdir={workdir}", f"--init_from={base}", *corpus, *LORA, *SMALL, *more]
    code, _, err = call(finetune, capfd, *flags)
    assert code == 0 and "learn" in err, err
    before, after = parameters.flat(initialise.plain(base)["params"]), variables(workdir)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert {name.rpartition("_")[2] for name in after if name not in before} == {"a", "b", "scale"}
    code, _, err = call(convert, capfd, f"--from={workdir}", f"--to={workdir}-merged", "--merge")
    assert code == 0, err
    lines = b"a house\nthe green tree\n"
    found = []
    for there in workdir, f"{workdir}-merged":
        code, out, err = call(translate, capfd, f"--workdir={there}", "--nbest=2", stdin=lines, monkeypatch=monkeypatch)
        assert code == 0, err
        found.append([line.split(" ||| ") for line in out.splitlines()])
    assert len(found[0]) == 4 and [line[:2] for line in found[0]] == [line[:2] for line in found[1]]
    np.testing.assert_allclose(*[[float(line[2]) for line in lines] for lines in found], atol=1e-3)


def test_a_translation_is_finetuned(run, corpus, tmp_path, capfd, monkeypatch):
    check_translation(run, tmp_path / "w", corpus, capfd, monkeypatch, "--config.finetuning.targets=('.',)")


def test_a_genome_is_finetuned(corpus, tmp_path, capfd, monkeypatch):
    file = tmp_path / "genome.json"
    file.write_text(replace(EVOLVED_TRANSFORMER, {"encoder_cells": 1, "decoder_cells": 1}).to_json())
    genome = [f"--config.model.genome={file}", *SMALL]
    config = f"--config={REPOSITORY}/configs/transformer.py:tiny"
    code, _, err = call(pretrain, capfd, config, f"--workdir={tmp_path / 'base'}", *corpus, *genome)
    assert code == 0, err
    check_translation(tmp_path / "base", tmp_path / "w", corpus, capfd, monkeypatch)


def test_an_encoder_does_not_translate(encoder, corpus, tmp_path, capfd):
    config = f"--config={REPOSITORY}/configs/transformer.py:tiny"
    flags = [config, f"--workdir={tmp_path / 'w'}", f"--init_from={encoder}", *corpus]
    fails(finetune, capfd, *flags, says=["holds a bert, which does not translate", "config.task.name is translation"])


def test_mistakes_end_in_one_line_before_anything_is_written(encoder, sentences, tmp_path, capfd):
    for flag, says in (
        ("method=lorra", "one of full, head, bias, lora, adapters"),
        ("rank=400", "give at most"),
        ("targets=('nothing',)", "matches no parameter"),
        ("targets=('embeddings/word',)", "which is no kernel of a linear map"),
        ("quantization=nf3", "one of nf4, int8"),
    ):
        flags = flags_of(tmp_path / "w", encoder, sentences, *LORA, f"--config.finetuning.{flag}")
        fails(finetune, capfd, *flags, says=[f"config.finetuning.{flag.partition('=')[0]}", says])
    assert not (tmp_path / "w").exists()


def test_several_adapters_answer_over_one_base(runs, encoder, capfd, monkeypatch):
    """Each line by the run that it names; the base is read once, and each gives what it gives alone."""
    others = {"second": runs("dora"), "layers": runs("adapters")}
    texts, names = ["good fine the", "bad the dull", "the fine"], ["", "second", "layers"]
    alone = {"": answers(runs("lora"), texts)} | {name: answers(workdir, texts) for name, workdir in others.items()}
    lines = [json.dumps({"first": text, "adapter": name}) for text in texts for name in names]
    read = []
    monkeypatch.setattr(initialise, "read", lambda folder, own=initialise.read: read.append(folder) or own(folder))
    flags = [f"--workdir={runs('lora')}", *(f"--adapter={name}={workdir}" for name, workdir in others.items())]
    stdin = "\n".join([*lines, texts[0]]).encode()
    code, out, err = call(predict, capfd, *flags, stdin=stdin, monkeypatch=monkeypatch)
    assert code == 0, err
    assert read == [encoder] * 2  # its fingerprint, and its numbers
    got = [json.loads(line)["probabilities"]["0"] for line in out.splitlines()]
    wanted = [alone[name][i, 0] for i in range(len(texts)) for name in names]
    np.testing.assert_allclose(got, [*wanted, alone[""][0, 0]], atol=1e-5)
    assert len(set(got[:3])) > 1

    def refused(says, *more, line=b"{}"):
        fails(predict, capfd, *more, stdin=line, monkeypatch=monkeypatch, says=says)

    refused(["names the adapter 'third'; there are second, layers"], *flags, line=b'{"first": "a", "adapter": "third"}')
    refused(["--adapter=x: no such folder"], flags[0], "--adapter=x")
    refused(["holds a whole model"], flags[0], f"--adapter=x={encoder}")
    refused(["its base is quantised otherwise"], flags[0], f"--adapter=x={runs('qlora')}")
    refused(["as the base has it"], f"--workdir={runs('adapters')}", f"--adapter=x={runs('lora')}")
