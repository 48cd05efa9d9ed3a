"""Llamas in GGUF files under Hugging Face's names: written, read back, and what is refused."""

import numpy as np
import pytest
from tiny_llama import CONFIG, leaves

from transformers_jax.errors import UserError
from transformers_jax.interchange import gguf, gguf_llama
from transformers_jax.interchange.gguf import GgufFile
from transformers_jax.interchange.gguf_llama import GgufWeights, to_halves, to_pairs
from transformers_jax.interchange.gguf_values import Value

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def written(tmp_path, config: dict, kind: str = "F32", **metadata) -> GgufFile:
    tensors, types = gguf_llama.gguf_tensors(leaves(config).items(), config, kind)
    path = tmp_path / "llama.gguf"
    found = gguf_llama.gguf_metadata(config, kind) | {key.replace("__", "."): value for key, value in metadata.items()}
    gguf.write(path, {key: value for key, value in found.items() if value is not None}, tensors, types)
    return GgufFile(path)


def test_rows_are_ordered_and_back():
    rows = np.arange(12).reshape(12, 1)  # two heads, six wide
    assert to_pairs(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert np.array_equal(to_halves(to_pairs(rows, 2), 2), rows)
    assert np.array_equal(to_pairs(to_halves(rows, 2), 2), rows)


def test_turning_pairs_and_turning_halves_is_the_same():
    """Scores of queries and keys at two positions, in llama.cpp's way on its rows and in Hugging Face's on its own."""
    rng = np.random.default_rng(1)
    q_rows, k_rows = rng.standard_normal((2, 16, 8))  # [H, D]
    x, y = rng.standard_normal((2, 8))
    speeds = 100.0 ** (-np.arange(8) / 8)

    def halves(vector, position):
        (a, b), angle = vector.reshape(2, 8), position * speeds
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    def pairs(vector, position):
        (a, b), angle = vector.reshape(8, 2).T, position * speeds
        return np.stack([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=1).reshape(-1)

    expected = halves(q_rows @ x, 5) @ halves(k_rows @ y, 2)
    found = pairs(to_pairs(q_rows, 1) @ x, 5) @ pairs(to_pairs(k_rows, 1) @ y, 2)
    assert found == pytest.approx(expected)
    assert pairs(q_rows @ x, 5) @ pairs(k_rows @ y, 2) != pytest.approx(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 32, "num_key_value_heads": 1},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192}, "rope_theta": 500000.0},
    ],
)
def test_a_llama_comes_back(tmp_path, changes):
    config = CONFIG | changes
    weights = GgufWeights(written(tmp_path, config))
    assert weights.config == config
    expected = leaves(config)
    assert sorted(weights.names()) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(weights.array(name), array)
        assert weights.shape(name) == array.shape
        np.testing.assert_array_equal(weights.part(name, array.ndim - 1, 1, 3), array[..., 1:3])


def test_the_file_has_llama_cpps_names_and_order(tmp_path):
    file = written(tmp_path, CONFIG)
    query = leaves(CONFIG)["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(file.tensor("blk.1.attn_q.weight")[[0, 1, 2, 16]], query[[0, 8, 1, 16]])
    np.testing.assert_array_equal(file.tensor("output.weight"), leaves(CONFIG)["lm_head.weight"])
    assert file.metadata.typed("llama.block_count") == Value("uint32", 2)
    assert file.metadata["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "F16"])
def test_types_of_a_quantised_file(tmp_path, kind):
    config = CONFIG | {"intermediate_size": 80, "attention_bias": True}  # rows of 80 are no whole blocks
    weights = GgufWeights(written(tmp_path, config, kind))
    types = {name: entry.type for name, entry in weights.file.tensors.items()}
    assert types["blk.0.attn_q.weight"] == types["blk.1.ffn_up.weight"] == kind
    assert types["token_embd.weight"] == types["output.weight"] == ("F16" if kind == "F16" else "Q8_0")
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == types["blk.0.attn_q.bias"] == "F32"


@pytest.mark.parametrize("leaf", ["q_proj.weight", "k_proj.bias", "v_proj.weight"])
def test_stored_rows_are_in_hugging_faces_order(tmp_path, leaf):
    weights = GgufWeights(written(tmp_path, CONFIG | {"attention_bias": True}, "Q4_1"))
    name = f"model.layers.0.self_attn.{leaf}"
    stored = weights.stored(name)
    values = gguf.gguf_blocks.dequantise(stored.raw, stored.type)
    np.testing.assert_array_equal(values.reshape(stored.shape), weights.array(name))
    expected = leaves(CONFIG | {"attention_bias": True})[name]
    assert np.abs(weights.array(name) - expected).max() < 0.4


def test_factors_of_llama_3():
    """The quickest pairs keep their speed, the slowest have an eighth of it."""
    factors = gguf_llama.rope_factors(128, 500000.0, LLAMA3 | {"original_max_position_embeddings": 8192})
    assert factors.shape == (64,) and factors[0] == 1 and factors[-1] == 8
    assert np.all(np.diff(factors) >= 0) and 20 < np.sum(factors == 1) < 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "qwen2"}, "general.architecture is qwen2"),
        ({"general__architecture": None}, "general.architecture is None"),
        ({"general__type": "adapter"}, "general.type is adapter"),
        ({"split__count": 3}, "one part of several"),
        ({"llama__expert_count": 8}, "llama.expert_count is 8"),
        ({"llama__logit_scale": 2.0}, "llama.logit_scale is 2.0"),
        ({"llama__rope__scaling__type": "yarn"}, "scaling.type is yarn"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"llama__feed_forward_length": [96, 96]}, "number for each layer"),
        ({"llama__rope__dimension_count": 8}, "dimension_count is 8"),
        ({"llama__vocab_size": None}, "vocab_size is missing"),
    ],
)
def test_files_that_are_no_llama_here_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=f"llama.gguf: .*{message}"):
        GgufWeights(written(tmp_path, CONFIG, **changes))


def test_keys_that_ask_for_nothing_are_passed_over(tmp_path):
    unset = {"llama__expert_count": 0, "llama__expert_used_count": 0, "llama__rope__scaling__type": "none"}
    assert GgufWeights(written(tmp_path, CONFIG, **unset)).config == CONFIG


def test_tensors_that_are_no_llamas(tmp_path):
    tensors, types = gguf_llama.gguf_tensors(leaves(CONFIG).items(), CONFIG, "F32")
    metadata = gguf_llama.gguf_metadata(CONFIG)
    for name, message in (("blk.0.attn_q_norm.weight", "attn_q_norm"), ("rope_freqs.weight", "Llama 3.1")):
        gguf.write(tmp_path / "a.gguf", metadata, tensors | {name: np.full(8, 3, np.float32)}, types)
        with pytest.raises(UserError, match=message):
            GgufWeights(GgufFile(tmp_path / "a.gguf"))
    with pytest.raises(UserError, match="transformer.h.0.attn belongs to no Llama"):
        gguf_llama.gguf_tensors([("transformer.h.0.attn", np.zeros(3))], CONFIG, "F32")
    with pytest.raises(UserError, match="has no model.layers.7"):
        GgufWeights(written(tmp_path, CONFIG)).array("model.layers.7.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "is of a gpt2"),
        ({"hidden_act": "gelu"}, "with gelu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type dynamic"),
        ({"rms_norm_eps": None}, "no rms_norm_eps"),
    ],
)
def test_configs_that_are_not_written_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        gguf_llama.gguf_metadata(CONFIG | changes)
