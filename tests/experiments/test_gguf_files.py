"""experiments.convert from and to GGUF files: what is untouched stays so bit by bit, the tokenizer goes with it."""

import json

import numpy as np
import pytest
import tiny_llama
from launching import call, fails

from experiments import convert, generate
from transformers_jax.finetuning import lora
from transformers_jax.inference import adapters, predictor
from transformers_jax.inference.generate import Generator, Options
from transformers_jax.interchange import gguf_adapter, gguf_llama, peft
from transformers_jax.interchange.gguf import GgufFile


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Type → a tiny Llama in a file whose matrices are of it."""
    folder, made = tmp_path_factory.mktemp("gguf"), {}

    def file(kind):
        if kind not in made:
            made[kind] = tiny_llama.write(folder / f"{kind}.gguf", kind)
        return made[kind]

    return file


def converted(capfd, source, target, *flags):
    code, _, err = call(convert, capfd, f"--from={source}", f"--to={target}", *flags)
    assert code == 0, err
    return target


def same_bits(first, second) -> bool:
    first, second = GgufFile(first), GgufFile(second)
    assert first.tensors.keys() == second.tensors.keys()
    return all(np.array_equal(first.raw(name), second.raw(name)) for name in first.tensors)


def test_a_file_is_the_same_again(small, tmp_path, capfd):
    again = converted(capfd, small("Q4_1"), tmp_path / "again.gguf")
    assert again.read_bytes() == small("Q4_1").read_bytes()
    same_type = converted(capfd, small("Q4_1"), tmp_path / "same.gguf", "--dtype=q4_1")
    assert same_type.read_bytes() == small("Q4_1").read_bytes()


def test_only_what_is_of_another_type_is_written_anew(small, tmp_path, capfd):
    made = GgufFile(converted(capfd, small("Q4_1"), tmp_path / "made.gguf", "--dtype=q8_0"))
    before = GgufFile(small("Q4_1"))
    assert made.metadata["general.file_type"] == 7 and made.metadata["tokenizer.chat_template"]
    for name, entry in made.tensors.items():
        kind = "F32" if len(entry.shape) == 1 else "Q8_0"
        assert entry.type == kind
        if before.tensors[name].type == kind:
            assert np.array_equal(made.raw(name), before.raw(name))
        else:
            np.testing.assert_allclose(made.tensor(name), before.tensor(name), atol=0.01)


def test_file_to_workdir_to_folder_and_back(small, tmp_path, capfd):
    """The same numbers, the same tokens, the same chat template on every way; a folder's file goes on as the first one."""
    workdir = converted(capfd, small("F32"), tmp_path / "w")
    folder = converted(capfd, workdir, tmp_path / "hf")
    for source in workdir, folder:
        assert same_bits(converted(capfd, source, tmp_path / f"{source.name}.gguf"), small("F32"))
    first, last = GgufFile(small("F32")).metadata, GgufFile(tmp_path / "hf.gguf").metadata
    for key in ("model", "pre", "tokens", "token_type", "merges", "eos_token_id", "bos_token_id"):
        assert last[f"tokenizer.ggml.{key}"] == first[f"tokenizer.ggml.{key}"]
    assert last["tokenizer.chat_template"] == first["tokenizer.chat_template"]
    halved = GgufFile(converted(capfd, folder, tmp_path / "half.gguf", "--dtype=q4_0"))
    assert {entry.type for entry in halved.tensors.values()} == {"F32", "Q8_0", "Q4_0"}


def test_prompts_begin_as_the_file_says(small, tmp_path, capfd):
    """From the file, from a workdir and from the folder made of it the same text: no begin token is put in front, or it is."""
    workdir = converted(capfd, small("F32"), tmp_path / "w")
    folder = converted(capfd, workdir, tmp_path / "hf")
    makers = [Generator(predictor.loaded(str(path)), Options(max_tokens=5)) for path in (small("F32"), workdir, folder)]
    assert len({tuple(maker.prompt_ids({"prompt": "abc 1"})) for maker in makers}) == 1
    assert len({maker([{"prompt": "abc 1"}])[0]["outputs"][0]["text"] for maker in makers}) == 1


def test_mistakes(small, tmp_path, capfd, encoder):
    taken = tmp_path / "taken.gguf"
    taken.write_bytes(b"")
    fails(convert, capfd, f"--from={small('F32')}", f"--to={taken}", says=["taken.gguf", "is there already"])
    fails(convert, capfd, f"--from={small('F32')}", f"--to={tmp_path}/w", "--dtype=f16", says=["--dtype", "--to=FILE.gguf"])
    fails(convert, capfd, f"--from={encoder}", f"--to={tmp_path}/bert.gguf", says=["bert", "llama is written to GGUF"])
    fails(generate, capfd, f"--init_from={taken}", "--prompt=a", says=["taken.gguf is empty"])


@pytest.fixture(scope="module")
def lora_files(small, tmp_path_factory):
    """(an adapter as GGUF, another as a folder of PEFT) beside the tiny model."""
    folder, there = tmp_path_factory.mktemp("adapters"), predictor.loaded(str(small("F32")))
    plan = adapters._plan(there)
    config = gguf_llama.GgufWeights(GgufFile(small("F32"))).config
    gguf_adapter.write(folder / "one.gguf", config, plan, tiny_llama.parts(1))
    peft.write(folder / "two", plan, tiny_llama.parts(2), base="tiny", head="causal_lm")
    return folder / "one.gguf", folder / "two"


def test_an_adapter_comes_back(small, lora_files):
    there = predictor.loaded(str(small("F32")))
    found, wanted = gguf_adapter.read(lora_files[0], adapters._plan(there)), tiny_llama.parts(1)
    assert found.keys() == wanted.keys()
    for name in (name for name in wanted if name.endswith("lora_a")):
        a, b, scale = (name[:-1] + leaf for leaf in ("a", "b", "scale"))
        product = found[scale] * found[a] @ found[b]
        np.testing.assert_allclose(product, wanted[scale] * wanted[a] @ wanted[b], rtol=1e-5, atol=1e-6)


def expected(file, leaves: dict) -> str:
    """What the merged model writes, layers apart and in float32."""
    there = predictor.loaded(str(file), quantization="none")
    params = lora.merged(adapters.over(there, leaves, "here").variables["params"])
    merged = there._replace(variables={"params": params, "model_state": {}})
    [found] = Generator(merged, Options(max_tokens=5))([{"prompt": "abc 1"}])
    return found["outputs"][0]["text"]


@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
@pytest.mark.parametrize("scanned", [False, True])
def test_adapters_are_chosen_by_name_and_by_line(small, lora_files, capfd, monkeypatch, kind, scanned):
    """One base, two adapters, layers apart or one stack, floats or blocks: each line as the merged model has it."""
    plan, base = adapters._plan(predictor.loaded(str(small("F32")))), f"--init_from={small(kind)}"
    one, two = gguf_adapter.read(lora_files[0], plan), peft.read(lora_files[1], plan).leaves
    wanted = {"": expected(small(kind), {}), "one": expected(small(kind), one), "two": expected(small(kind), two)}
    assert len(set(wanted.values())) == 3
    monkeypatch.setattr(predictor, "SCANNED", 1 if scanned else 8)
    named = [f"--adapter=one={lora_files[0]}", f"--adapter=two={lora_files[1]}"]

    def texts(*more, stdin=b"abc 1\n"):
        code, out, err = call(generate, capfd, base, "--max_tokens=5", *more, stdin=stdin, monkeypatch=monkeypatch)
        assert code == 0, err
        return out.splitlines()

    asked = "".join(json.dumps({"prompt": "abc 1", "adapter": name}) + "\n" for name in ("two", "one", "", "two"))
    found = [json.loads(line)["outputs"][0]["text"] for line in texts(*named, "--format=jsonl", stdin=asked.encode())]
    assert found == [wanted["two"], wanted["one"], wanted[""], wanted["two"]]
    assert texts(*named, "--use=one") == texts(f"--adapter={lora_files[0]}") == [wanted["one"]]
    fails(generate, capfd, base, *named, "--use=none", "--prompt=a", says=["--use=none", "one, two"])
