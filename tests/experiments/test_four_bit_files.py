"""experiments.convert to folders of transformers whose matrices are in bitsandbytes' four bits, and from them."""

import json

import jax
import numpy as np
import pytest
import tiny_llama
from launching import call, fails

from experiments import convert
from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.finetuning.quantization import quantized_like
from transformers_jax.inference import held, predictor
from transformers_jax.interchange import bitsandbytes, huggingface
from transformers_jax.layers.quantized import dequantize, is_quantized, quantize


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_llama.write(tmp_path_factory.mktemp("llama") / "tiny.gguf")


@pytest.fixture
def folder(file, tmp_path, capfd):
    for source, target, *flags in (file, tmp_path / "w"), (tmp_path / "w", tmp_path / "nf4", "--quantization=nf4"):
        code, out, err = call(convert, capfd, f"--from={source}", f"--to={target}", *flags)
        assert code == 0, err
    assert "in four bits: 0.09" in out  # of numbers from the normal distribution
    return tmp_path / "nf4"


def kernels(there) -> dict:
    return {name: leaf for name, leaf in parameters.flat(there.variables["params"]).items() if is_quantized(leaf)}


def test_matrices_of_layers_are_read_as_they_were_written(folder, file, monkeypatch):
    """Codes and constants are those of the same numbers quantised here; tables stay floats; so it is as floats."""
    monkeypatch.setattr(held, "in_blocks", lambda *_: False)  # layers apart
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert "lm_head" in config["quantization_config"]["llm_int8_skip_modules"]
    read, made = kernels(predictor.loaded(str(folder))), kernels(predictor.loaded(str(file), quantization="nf4"))
    assert read.keys() == made.keys() and len(read) == 14
    for name, kernel in read.items():
        jax.tree.map(np.testing.assert_array_equal, kernel, made[name])
    floats = parameters.flat(predictor.loaded(str(folder), quantization="none").variables["params"])
    for name, kernel in made.items():
        np.testing.assert_array_equal(floats[name], dequantize(kernel))


def test_a_base_that_is_quantised_so_is_taken_as_it_is(folder):
    name = "decoder/layer_0/block/self_attention/out/kernel"
    leaf = huggingface.opened(folder).leaves[name]
    like = quantize(np.zeros(leaf.shape, np.float32), inputs=2)
    jax.tree.map(np.testing.assert_array_equal, quantized_like(leaf, like), leaf.kernel(leaf.shape, 2))


def test_mistakes(folder, file, tmp_path, capfd):
    fails(convert, capfd, f"--from={file}", f"--to={tmp_path}/x", "--quantization=nf4", says=["--from=WORKDIR"])
    for given in {"quant_method": "gptq"}, {"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}:
        with pytest.raises(UserError, match="is not read; bitsandbytes' load_in_4bit with"):
            bitsandbytes.is_four_bit({"quantization_config": given})
