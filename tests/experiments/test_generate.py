"""experiments.generate and experiments.evaluate --tasks, in this process, with a tiny GPT in a folder of Hugging Face's."""

import json
import sys
from pathlib import Path

import pytest
from launching import call, fails

sys.path.append(str(Path(__file__).resolve().parent.parent / "inference"))
import tiny_decoder

from experiments import evaluate, generate

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
    found = [json.loads(line) for line in lines_of(capfd, monkeypatch, *flags, "--format=jsonl",
             stdin=b'{"prompt": "the king of the", "id": 7}\n\n{"messages": [{"role": "user", "content": "so"}]}\n')]  # fmt: skip
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
