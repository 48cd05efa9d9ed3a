"""Llama, Mistral, Qwen: grouped heads, rotations, windows, norms of heads; cached decoding after prompts; configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from causal import (
    VOCAB,
    build,
    check_that_no_token_sees_later_ones,
    check_that_packed_rows_equal_separate_ones,
    check_that_steps_equal_the_whole_row,
    forward,
    make_batch,
    stacked,
)

from transformers_jax import models
from transformers_jax.errors import UserError
from transformers_jax.models import llama

TINY = dict(name="llama", width=16, num_heads=4, kv_heads=2, mlp_width=24, layers=2, max_length=64, rope_theta=100.0)
LLAMA3 = dict(rope_scaling="llama3", rope_factor=8.0, rope_original_length=16)
VARIANTS = {
    "llama 3": LLAMA3,
    "one head of keys, linear": dict(kv_heads=1, tie_embeddings=True, rope_scaling="linear", rope_factor=2.0),
    "mistral": dict(variant="mistral", window=3, kv_heads=0),
    "qwen2, scanned": dict(variant="qwen2", qkv_bias=True, scan_layers=True, window=4),
    "qwen3": dict(variant="qwen3", qk_norm=True, head_width=6, num_heads=3, kv_heads=1),
    "encoder cells": dict(genome="evolved_transformer", genome_cell="encoder"),
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def built(request):
    return build(TINY | VARIANTS[request.param])


def test_a_token_never_sees_later_ones(built):
    check_that_no_token_sees_later_ones(*built)


def test_steps_after_prompts_equal_the_whole_row(built):
    check_that_steps_equal_the_whole_row(*built)


def test_packed_examples_equal_separate_ones(built):
    check_that_packed_rows_equal_separate_ones(*built)


def test_scanned_layers_compute_what_separate_layers_do():
    (model, params), batch = build(TINY | LLAMA3), make_batch([5, 3])
    scanned = models.build(TINY | LLAMA3 | dict(scan_layers=True), VOCAB)
    np.testing.assert_allclose(forward(scanned, stacked(params, 2), batch), forward(model, params, batch), atol=1e-5)


def test_a_window_hides_what_is_as_far_away_or_farther():
    """With one layer, token 0 reaches the logits of tokens nearer than the window alone."""
    model, params = build(TINY | dict(layers=1, window=3))
    batch = make_batch([6])
    changed = batch | {"tokens": batch["tokens"] + (batch["positions"] == 0)}
    difference = np.abs(forward(model, params, changed) - forward(model, params, batch))[0].max(-1)
    assert np.all(difference[:3] > 1e-4) and not np.any(difference[3:])


def test_bfloat16_computes_near_float32():
    """Parameters stay float32, and so are a step's logits; cached keys are bfloat16."""
    (plain, params), batch = build(TINY | LLAMA3), make_batch([5, 3])
    half = models.build(TINY | LLAMA3 | dict(dtype="bfloat16"), VOCAB)
    shapes = jax.eval_shape(lambda: half.init(jax.random.key(0), batch))["params"]
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    wanted = np.asarray(forward(plain, params, batch))
    found = np.asarray(forward(half, params, batch), np.float32)
    assert np.abs(found - wanted)[batch["segments"] > 0].max() < 0.05 * np.abs(wanted).max()
    first, cache = half.apply({"params": params}, batch, 4, method="start", mutable=["cache"])
    own = cache["cache"]["decoder"]["layer_0"]["block"]["self_attention"]
    assert {x.dtype for x in own.values()} == {jnp.dtype("bfloat16")}
    logits, _ = half.apply({"params": params, **cache}, first, method="step", mutable=["cache"])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, found[[0, 1], [4, 2]], atol=0.05 * np.abs(wanted).max())


def test_parameters():
    """Names, shapes, and no biases but those that are asked for."""
    _, params = build(TINY | dict(qkv_bias=True, head_width=6, qk_norm=True, layers=1))
    block = params["decoder"]["layer_0"]["block"]
    assert set(params) == {"embedding", "lm_head", "decoder", "final_norm"}
    assert {name: x.shape for name, x in block["self_attention"]["key"].items()} == {"kernel": (16, 2, 6), "bias": (2, 6)}
    assert {name: x.shape for name, x in block["self_attention"]["out"].items()} == {"kernel": (4, 6, 16)}
    assert block["self_attention"]["query_norm"]["scale"].shape == (6,)
    assert set(block["feed_forward"]) == {"gate", "expand", "contract"}
    assert all(set(x) == {"kernel"} for x in block["feed_forward"].values())
    assert set(block["self_norm"]) == {"scale"}


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(width=18), "num_heads 4 does not divide config.model.width 18: give head_width"),
        (dict(kv_heads=3), "kv_heads 3 does not divide config.model.num_heads 4"),
        (dict(variant="gemma"), "config.model.variant is 'gemma'"),
        (dict(rope_scaling="yarn"), "rotary scaling 'yarn' is none of"),
        (dict(head_width=5), "the head width 5 is odd"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        build(TINY | changes)


HF = dict(
    model_type="llama", vocab_size=99, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
    num_hidden_layers=2, max_position_embeddings=64, rms_norm_eps=1e-6, hidden_act="silu",
)  # fmt: skip
LLAMA3_HF = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)


@pytest.mark.parametrize(
    "changes, wanted",
    [
        (dict(rope_theta=500.0, rope_scaling=None), dict(rope_theta=500.0, rope_scaling="")),
        (dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)), dict(rope_theta=500.0, rope_scaling="")),
        (dict(rope_scaling=dict(type="linear", factor=3.0)), dict(rope_theta=1e4, rope_scaling="linear", rope_factor=3.0)),
        (
            dict(rope_theta=500.0, rope_scaling=LLAMA3_HF),
            dict(rope_theta=500.0, rope_scaling="llama3", rope_factor=8.0, rope_original_length=32),
        ),
        (dict(attention_bias=True, mlp_bias=True), dict(qkv_bias=True, out_bias=True, mlp_bias=True)),
        (dict(tie_word_embeddings=True, head_dim=16), dict(tie_embeddings=True, head_width=16)),
        (dict(model_type="mistral", sliding_window=7), dict(variant="mistral", window=7)),
        (dict(model_type="mistral", sliding_window=None), dict(window=0)),
        (dict(model_type="qwen2", sliding_window=7), dict(qkv_bias=True, out_bias=False, window=0)),
        (dict(model_type="qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=0), dict(window=7)),
        (dict(model_type="qwen3", head_dim=16), dict(qk_norm=True, head_width=16, qkv_bias=False)),
        (dict(model_type="qwen3"), dict(head_width=128)),
    ],
)
def test_configs_of_transformers(changes, wanted):
    fields = llama.from_hf(HF | changes)
    assert {key: fields[key] for key in wanted} == wanted
    ours = llama.Config(**fields)
    again = llama.Config(**llama.from_hf(llama.to_hf(ours)))
    assert again == llama.dataclasses.replace(ours, head_width=ours.head_width or 8)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(rope_scaling=dict(rope_type="yarn", factor=4.0)), "rope_scaling 'yarn' is not supported"),
        (dict(rope_parameters=dict(rope_type="dynamic", factor=4.0)), "rope_scaling 'dynamic' is not supported"),
        (dict(rope_parameters=dict(full_attention=dict(rope_type="default"))), "by kind of layer"),
        (dict(rope_scaling=dict(rope_type="llama3", factor=4.0)), "rope_scaling llama3 has no low_freq_factor"),
        (dict(rope_parameters=dict(partial_rotary_factor=0.5)), "partial_rotary_factor 0.5 is not computed"),
        (dict(hidden_act="quick_gelu"), "activation 'quick_gelu'"),
        (dict(model_type="qwen2", use_sliding_window=True, max_window_layers=1), "all layers have one window"),
        (dict(model_type="qwen3", layer_types=["sliding_attention"] * 2), "sliding_window or use_sliding_window is not given"),
        (dict(hidden_size=None), "no hidden_size"),
    ],
)
def test_what_is_not_computed_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        llama.from_hf(HF | changes)


def test_what_transformers_has_no_model_for_is_not_written():
    config = llama.Config(99, width=32, num_heads=4, kv_heads=2, layers=2)
    for changes, message in (
        (dict(window=4), "config.model.window is 4: transformers' llama has only 0"),
        (dict(qkv_bias=True), "config.model.qkv_bias is True: transformers' llama has only False"),
        (dict(variant="qwen2"), "config.model.qkv_bias is False: transformers' qwen2 has only True"),
        (dict(qk_norm=True), "config.model.qk_norm"),
    ):
        with pytest.raises(UserError, match=message):
            llama.to_hf(llama.dataclasses.replace(config, **changes))
