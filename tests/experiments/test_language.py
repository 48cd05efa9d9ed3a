"""Language models by their launchers: a tiny GPT trains, evaluates and resumes bit for bit; token files; conversations."""

import json
import math

import jax
import numpy as np
import pytest
from launching import REPOSITORY, call, content, fails, metrics

from experiments import evaluate, generate, pretrain, tokenize
from transformers_jax.data.text.tokenizer import Tokenizer

GPT, LLAMA = (f"--config={REPOSITORY}/configs/{name}.py:tiny" for name in ("gpt", "llama"))
SHORT = ["--config.optimizer.schedule=constant", *(f"--config.training.{x}_every=3" for x in ("log", "eval", "checkpoint"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, prose):
    """The workdir of a tiny GPT that nothing disturbed, and its flags."""
    workdir, flags = tmp_path_factory.mktemp("gpt") / "w", [GPT, *prose, *SHORT]
    assert pretrain.launch.call(pretrain.main, pretrain.FLAGS, ["x", *flags, f"--workdir={workdir}", *steps(6)]) == 0
    return workdir, flags


def steps(count: int) -> list[str]:
    return [f"--config.training.steps={count}"]


def test_it_trains_evaluates_and_resumes_bit_for_bit(whole, tmp_path, capfd):
    workdir, flags = whole
    for count in 3, 6:
        code, out, err = call(pretrain, capfd, *flags, f"--workdir={tmp_path / 'w'}", *steps(count))
        assert code == 0 and out == "", err
    assert metrics(workdir) == metrics(tmp_path / "w")
    (params, extra), (other, other_extra) = content(workdir), content(tmp_path / "w")
    assert extra == other_extra and jax.tree.all(jax.tree.map(np.array_equal, params, other))
    scores = [line for line in metrics(workdir) if line["split"] == "validation"]
    assert [line["step"] for line in scores] == [3, 6] and scores[1]["loss"] < scores[0]["loss"] < math.log(400)
    assert scores[1]["perplexity"] == pytest.approx(math.exp(scores[1]["loss"])) and 1 < scores[1]["bits_per_byte"] < 8


def test_an_lstm_learns_evaluates_and_continues(prose, tmp_path, capfd):
    workdir, lstm = tmp_path / "w", f"--config={REPOSITORY}/configs/luong.py:tiny_lm"
    code, _, err = call(pretrain, capfd, lstm, *prose, *SHORT, *steps(6), f"--workdir={workdir}")
    assert code == 0, err
    scores = [line for line in metrics(workdir) if line["split"] == "validation"]
    assert scores[-1]["bits_per_byte"] < scores[0]["bits_per_byte"]
    code, out, err = call(evaluate, capfd, f"--workdir={workdir}", "--split=validation")
    assert code == 0 and {"bits_per_byte", "bits_per_byte_after_0", "bits_per_byte_after_16"} <= set(json.loads(out)), err
    code, out, err = call(generate, capfd, f"--workdir={workdir}", "--prompt=the", "--max_tokens=5", "--logprobs")
    assert code == 0 and len(json.loads(out)["outputs"][0]["tokens"]) == 5, err


def test_evaluation_with_a_stride_counts_the_same_tokens(whole, capfd):
    workdir, _ = whole
    found = []
    for more in [], ["--config.data.stride=8"]:
        code, out, err = call(evaluate, capfd, f"--workdir={workdir}", "--split=validation", *more)
        assert code == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    plain, strided = found
    assert plain["loss"] == pytest.approx(metrics(workdir)[-1]["loss"], rel=1e-6)
    share = [scores["loss"] / scores["bits_per_byte"] for scores in found]  # of tokens and bytes
    assert share[0] == pytest.approx(share[1], rel=1e-5) and strided["loss"] != plain["loss"]


def test_token_files_train_as_texts_do(whole, prose, tmp_path, capfd):
    workdir, _ = whole
    files = {flag.partition("=")[0].rpartition(".")[2]: flag.partition("=")[2] for flag in prose}
    for split, path in files.items():
        flags = [f"--tokenizer={workdir}", f"--files={path}", f"--out={tmp_path / split}.tokens"]
        code, out, err = call(tokenize, capfd, *flags)
        assert code == 0 and "documents" in out and "bytes a token" in out, err
    data = [f"--config.data.{split}={tmp_path / split}.tokens" for split in files] + ["--config.data.source=tokens"]
    flags = [GPT, *data, *SHORT, *steps(3), f"--workdir={tmp_path / 'w'}"]
    fails(pretrain, capfd, *flags, says=["config.tokenizer.path is empty: give the tokenizer that made"])
    code, _, err = call(pretrain, capfd, *flags, f"--config.tokenizer.path={workdir}")
    assert code == 0, err
    assert metrics(tmp_path / "w")[:2] == metrics(workdir)[:2]

    learn = ["--learn=byte_bpe", "--vocab_size=300", f"--files={files['train']}", f"--out={tmp_path / 'other.json'}"]
    code, out, err = call(tokenize, capfd, *learn, "--trace=another")
    assert code == 0 and "300 tokens, fingerprint" in out and "merge 3 " in out, err
    flags[-1] = f"--workdir={tmp_path / 'v'}"
    fails(
        pretrain, capfd, *flags, f"--config.tokenizer.path={tmp_path / 'other.json'}",
        says=["config.data.train", "train.tokens was made with another vocabulary (400 tokens"],
    )  # fmt: skip
    assert not (tmp_path / "v").exists()


TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + ':' + m.content + (eos_token if m.role == 'assistant' else '\n') }}{% endfor %}"
)


def test_conversations_are_learned(whole, tmp_path, capfd):
    """A tiny Llama learns answers, written with the template that came with its vocabulary."""
    rows = [{"prompt": f"what is {i}", "response": "yes" if i % 2 else "no"} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "vocabulary").mkdir()
    Tokenizer.load(whole[0]).save(tmp_path / "vocabulary")
    (tmp_path / "vocabulary" / "chat_template.jinja").write_text(TEMPLATE)
    sizes = dict(layers=1, width=16, num_heads=2, kv_heads=1, mlp_width=32, remat=False)
    flags = [f"--config={REPOSITORY}/configs/llama.py:instruct", f"--config.tokenizer.path={tmp_path / 'vocabulary'}"]
    flags += [f"--config.model.{key}={value}" for key, value in sizes.items()]
    flags += [f"--config.data.train={tmp_path}/train.jsonl", f"--config.data.validation={tmp_path}/train.jsonl"]
    flags += ["--config.data.lengths.tokens=64", "--config.data.batch_size=4", "--config.mesh.fsdp=1", "--config.mesh.data=-1"]
    flags += ["--config.optimizer.learning_rate=0.03", "--config.optimizer.schedule=constant", *SHORT[1:]]
    code, _, err = call(pretrain, capfd, *flags, f"--workdir={tmp_path / 'w'}", *steps(12))
    assert code == 0, err
    losses = [line["loss"] for line in metrics(tmp_path / "w") if line["split"] == "validation"]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    assert Tokenizer.load(tmp_path / "w").chat_template == TEMPLATE

    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": "what is 40"}\n')
    says = ["train.jsonl, line 41 lacks an answer: give response"]
    fails(pretrain, capfd, *flags, f"--workdir={tmp_path / 'v'}", *steps(12), says=says)


@pytest.mark.parametrize(
    "flags, says",
    [
        ([], "give either --learn=KIND"),
        (["--learn=bpe"], "--files is missing"),
        (["--learn=bpee", "--files=x", "--out=y"], "--learn=bpee is not one of bpe, wordpiece"),
        (["--learn=bpe", "--files=x"], "--out is missing"),
        (["--learn=bpe", "--files=nowhere.txt", "--out=y"], "--files: no file nowhere.txt"),
        (["--tokenizer=nowhere", "--files=x"], "nowhere: no such file or folder"),
        (["--tokenizer=nowhere", "--files=x", "--out=no/where"], "--out=no/where: there is no folder no"),
    ],
)
def test_mistakes_of_tokenize(flags, says, capfd):
    fails(tokenize, capfd, *flags, says=[says])
