"""experiments.generate and experiments.evaluate --tasks, in this process, with a tiny GPT in a folder of Hugging Face's."""

import json
import sys

import numpy as np
import pytest
import tiny_decoder
from launching import REPOSITORY, call, fails

from experiments import evaluate, generate, pretrain
from transformers_jax import parameters
from transformers_jax.interchange import huggingface, mapping, peft

PROMPTS = b"the king of the\n\nso it goes, the\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return f"--init_from={tiny_decoder.write(tmp_path_factory.mktemp('gpt') / 'hf')}"


def lines_of(capfd, monkeypatch, *flags, stdin=PROMPTS):
    code, out, err = call(generate, capfd, *flags, stdin=stdin, monkeypatch=monkeypatch)
    assert code == 0, err
    return out.split("\n")[:-1]


def test_a_line_in_a_line_out(model, capfd, monkeypatch):
    flags = [model, "--max_tokens=8"]
    texts = lines_of(capfd, monkeypatch, *flags)
    assert len(texts) == 3 and texts[1] == "" and texts[0] and texts[0] != texts[2]
    asked = b'{"prompt": "the king of the", "id": 7}\n\n{"messages": [{"role": "user", "content": "so"}]}\n'
    found = [json.loads(line) for line in lines_of(capfd, monkeypatch, *flags, "--format=jsonl", stdin=asked)]
    assert found[0]["id"] == 7 and found[0]["outputs"][0]["text"].replace("\n", "\\n") == texts[0] and found[1] == {}
    assert found[2]["outputs"][0]["finish"] in ("end", "length")
    drawn = lines_of(capfd, monkeypatch, *flags, "--temperature=1.5", "--num_samples=2", "--seed=3")
    assert [line.count("\t") for line in drawn] == [1, 0, 1]
    assert drawn == lines_of(capfd, monkeypatch, *flags, "--temperature=1.5", "--num_samples=2", "--seed=3")


def test_one_prompt_is_written_as_it_comes(model, capfd, monkeypatch):
    [whole] = lines_of(capfd, monkeypatch, model, "--max_tokens=8", "--format=text", stdin=b"the king of the\n")
    code, out, err = call(generate, capfd, model, "--max_tokens=8", "--prompt=the king of the")
    assert (code, out.removesuffix("\n").replace("\n", "\\n")) == (0, whole), err
    code, out, _ = call(generate, capfd, model, "--max_tokens=8", "--prompt=the king of the", f"--stop={whole[2:5]}")
    assert out == whole[: whole.index(whole[2:5])] + "\n"
    code, out, _ = call(generate, capfd, model, "--max_tokens=4", "--prompt=the", "--logprobs")
    assert len(json.loads(out)["outputs"][0]["tokens"]) <= 4


def test_an_adapter_beside_the_model_writes_what_the_merged_model_does(model, tmp_path, capfd, monkeypatch):
    built, params = tiny_decoder.parameters(tiny_decoder.tokenizer().vocab_size)
    random, learned, merged = np.random.default_rng(0), {}, {}
    for layer in (0, 1):
        name = f"decoder/layer_{layer}/block/feed_forward/expand/"
        a, b = random.normal(size=(16, 2)).astype(np.float32), random.normal(size=(2, 32)).astype(np.float32)
        learned |= {f"{name}lora_a": a, f"{name}lora_b": b, f"{name}lora_scale": np.float32(0.5)}
        merged[f"{name}kernel"] = parameters.flat(params)[f"{name}kernel"] + 0.5 * a @ b
    names = huggingface.names_of(tiny_decoder.FIELDS | {"vocab_size": tiny_decoder.tokenizer().vocab_size})
    plan = mapping.plan(names, "causal_lm", mapping.shapes(built))
    peft.write(tmp_path / "adapter", plan, learned, base="tiny", head="causal_lm")
    whole = f"--init_from={tiny_decoder.write(tmp_path / 'merged', merged)}"
    beside, alone, together = (
        lines_of(capfd, monkeypatch, *flags, "--max_tokens=8") for flags in
        ([model, f"--adapter={tmp_path}/adapter"], [model], [whole])
    )  # fmt: skip
    assert beside == together != alone


def test_a_conversation_keeps_what_was_said(model, capfd, monkeypatch):
    asked = iter(["the king?", "", "<s>", "and the sea?", "/exit", "never asked"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    given, prompt_ids = [], None
    from transformers_jax.inference.generate import Generator

    prompt_ids = Generator.prompt_ids
    monkeypatch.setattr(Generator, "prompt_ids", lambda self, x: given.append(list(x["messages"])) or prompt_ids(self, x))
    code, out, err = call(generate, capfd, model, "--chat", "--max_tokens=5", "--system=be brief")
    assert code == 0 and "spells '<s>'" in err, err
    assert [m["role"] for m in given[-1]] == ["system", "user", "assistant", "user"]
    answers = out.split("\n")
    assert given[-1][2]["content"] == answers[0] and len(answers) == 3


def test_a_run_writes_samples_and_goes_on_from_prompts(prose, tmp_path, capfd, monkeypatch):
    train, validation = prose
    flags = [f"--config={REPOSITORY}/configs/gpt.py:tiny", f"--workdir={tmp_path}/w", *prose, "--config.training.steps=6"]
    flags.append(validation.replace("validation=", "test="))
    code, out, err = call(pretrain, capfd, *flags)
    assert code == 0, err
    samples = [json.loads(line) for line in (tmp_path / "w" / "samples.jsonl").read_text().splitlines()]
    assert samples and all(set(sample) == {"prompt", "continuation", "reference"} for sample in samples)
    [text] = lines_of(capfd, monkeypatch, f"--workdir={tmp_path}/w", "--max_tokens=6", stdin=b"the value of\n")
    assert text
    code, out, err = call(generate, capfd, f"--workdir={tmp_path}/w", "--prompt=the value", "--logprobs", "--max_tokens=5")
    assert code == 0 and 1 <= len(json.loads(out)["outputs"][0]["tokens"]) <= 5, err
    fails(generate, capfd, f"--workdir={tmp_path}/w", "--prompt=a", "--adapter=x", says=["--adapter"])


def test_mistakes_end_in_one_line(model, tmp_path, capfd, monkeypatch):
    fails(generate, capfd, model, "--workdir=x", "--prompt=a", says=["x"])
    fails(generate, capfd, model, "--num_samples=2", "--method=greedy", "--prompt=a", says=["--num_samples"])
    fails(generate, capfd, f"--init_from={tmp_path}/no.gguf", "--prompt=a", says=["no.gguf", "no such file"])
    (tmp_path / "bad.gguf").write_bytes(b"GGML1234" * 8)
    fails(generate, capfd, f"--init_from={tmp_path}/bad.gguf", "--prompt=a", says=["bad.gguf"])
    out = fails(generate, capfd, model, "--max_tokens=3", stdin=b'{"prompt": "a"}\n{"text": "b"}\n{"prompt": "c"}\n',
                monkeypatch=monkeypatch, says=["standard input, line 2", "prompt"])  # fmt: skip
    assert len(out.splitlines()) == 1
    fails(generate, capfd, model, "--top_p=2", "--prompt=a", says=["top_p"])
    fails(evaluate, capfd, model, says=["--tasks"])
    fails(evaluate, capfd, model, "--tasks=none", says=["--tasks=none"])


def test_questions_by_likelihood_and_by_writing(model, tmp_path, capfd):
    choices = [{"query": "the king of the", "choices": ["sea", "land"], "gold": i % 2} for i in range(4)]
    worked = [{"question": "how far?", "answer": f"far #### {i}"} for i in range(3)]
    for name, lines in ("choice", choices), ("worked", worked):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [model, "--tasks=choice,worked", f"--tasks_dir={tmp_path}", "--shots=1", "--limit=2"]
    code, out, err = call(evaluate, capfd, *flags)
    assert code == 0, err
    scores = json.loads(out.splitlines()[-1])
    assert scores["choice"]["accuracy"] == 0.5 and scores["choice"]["questions"] == scores["worked"]["questions"] == 2
    fails(evaluate, capfd, model, f"--tasks={tmp_path}/choice.jsonl", "--shots=4", says=["--shots=4", "choice has 4"])
