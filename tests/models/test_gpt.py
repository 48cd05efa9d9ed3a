"""GPT and GPT-2: what each token sees, cached decoding after prompts, initial numbers, genomes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy as safetensors
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

from transformers_jax import models, parameters
from transformers_jax.decoding import cache as caches
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface
from transformers_jax.layers.blocks import CausalBlock
from transformers_jax.models import gpt
from transformers_jax.outputs import EncoderOutput

TINY = dict(name="gpt", width=16, num_heads=4, mlp_width=32, layers=2, max_length=24)
CONVOLUTIONS = """
    encoder ×2: 0*GLU 2 | 0:id ; 1*conv3 2 relu | 1:id ; 2*sep9 1 | 2:id ;
                3*att4 2 | 3:id ; 4*conv1 8 relu | dead ; 5:light7r4 2 | 4:id
    decoder ×2: 0*att4 2 | 0*sep11 2 ; 0:id | 1*enc 2 ; 2*sep5 4 relu | 2:id ; 3*light3r1 2 | 3:id ;
                4*att8 2 | 4:id ; 5:GLU 2 | 5:id ; 6*enc 8 swish | 6*conv3 2 | multiply ; 7*conv1 2 | 6:id
"""
"""A genome with convolutions of every kind."""
VARIANTS = {
    "gpt2": {},
    "openai-gpt": dict(variant="openai-gpt"),
    "scanned": dict(scan_layers=True, remat=True),
    "untied": dict(tie_embeddings=False),
    "decoder cells": dict(genome=CONVOLUTIONS),
    "encoder cells": dict(genome="evolved_transformer", genome_cell="encoder", scan_layers=True),
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
    (model, params), batch = build(TINY), make_batch([5, 3])
    scanned = models.build(TINY | dict(scan_layers=True), VOCAB)
    np.testing.assert_allclose(forward(scanned, stacked(params, 2), batch), forward(model, params, batch), atol=1e-5)


def test_prompts_stay_as_they_are():
    """Keys and values of prompts are leaves of their own, heads first, that steps hand on."""
    model, params = build(TINY)
    _, cache = model.apply({"params": params}, make_batch([5, 2]), 7, method="start", mutable=["cache"])
    own = cache["cache"]["decoder"]["layer_0"]["block"]["self_attention"]
    assert own["prompt_key"].shape == own["prompt_value"].shape == (2, 4, 5, 4)
    assert own["self_key"].shape == own["self_value"].shape == (2, 4, 7, 4)
    _, after = model.apply({"params": params, **cache}, jnp.array([3, 4]), method="step", mutable=["cache"])
    after = after["cache"]["decoder"]["layer_0"]["block"]["self_attention"]
    np.testing.assert_array_equal(after["prompt_key"], own["prompt_key"])
    assert np.abs(after["self_key"][:, :, 0]).min() > 0 and not np.any(after["self_key"][:, :, 1:])


@pytest.mark.parametrize("scan", [False, True])
def test_decoding_finds_the_prompts_in_the_cache(scan):
    """Rows and steps have their axes; what belongs to the prompt alone is moved by no step."""
    model, _ = build(TINY | dict(scan_layers=scan))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), make_batch([3])))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), nn.unbox(shapes))["params"]

    def start(rows, length):
        return model.apply({"params": params}, make_batch([4] * rows), length, method="start", mutable=["cache"])[1]["cache"]

    def step(cache, tokens):
        logits, changed = model.apply({"params": params, "cache": cache}, tokens, method="step", mutable=["cache"])
        return logits, changed["cache"]

    layout = caches.layout(start, step)
    names = [name.split("/")[-1] for name in parameters.flat(jax.eval_shape(lambda: start(2, 4)))]
    found = dict(zip(names, zip(layout.rows, layout.positions, layout.moving, strict=True), strict=True))
    rows = int(scan)  # scanned layers come first
    assert found == {
        "before": (0, None, False),
        "index": (None, None, True),
        "prompt_key": (rows, None, False),
        "prompt_value": (rows, None, False),
        "self_key": (rows, rows + 2, True),
        "self_value": (rows, rows + 2, True),
    }


def test_layers_without_a_head_give_hidden_states():
    model, params = build(TINY | dict(head="none", tie_embeddings=False))
    output = model.apply({"params": params}, make_batch([4]))
    assert isinstance(output, EncoderOutput) and output.hidden.shape == (1, 4, 16) and output.pooled is None
    assert "lm_head" not in params


@pytest.mark.parametrize("variant", gpt.VARIANTS)
def test_initial_numbers(variant):
    """N(0, 0.02²); of GPT-2's residual layers smaller by 1/√(2 · layers) (Radford et al. 2019, section 2.3)."""
    fields = dict(name="gpt", width=256, num_heads=4, mlp_width=1024, layers=2, max_length=64, variant=variant)
    params = nn.unbox(jax.jit(lambda: models.build(fields, 600).init(jax.random.key(0), make_batch([3])))())["params"]
    block = params["decoder"]["layer_1"]["block"]
    smaller = 0.5 if variant == "gpt2" else 1.0
    for kernel, scale in (
        (params["embedding"], 1.0),
        (params["position"]["embedding"], 1.0),
        (block["self_attention"]["query"]["kernel"], 1.0),
        (block["feed_forward"]["expand"]["kernel"], 1.0),
        (block["self_attention"]["out"]["kernel"], smaller),
        (block["feed_forward"]["contract"]["kernel"], smaller),
    ):
        assert 0.97 < np.std(kernel) / (0.02 * scale) < 1.03 and np.abs(kernel).max() > 3 * 0.02 * scale  # not cut off
    assert ("final_norm" in params) == (variant == "gpt2")


def test_dropout_differs_by_key():
    model, params = build(TINY | dict(dropout=0.3, embedding_dropout=0.3, attention_dropout=0.3))

    @jax.jit
    def run(key):
        return model.apply({"params": params}, make_batch([5]), deterministic=False, rngs={"dropout": key}).hidden

    first, again, other = (run(jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_attention_to_an_encoder_is_left_out_or_refused():
    model, params = build(TINY | dict(genome="evolved_transformer"))
    assert model.config.layers == 4  # its decoder's cells
    names = {name for name in params["decoder"]["layer_0"]["block"]}
    assert "left_0" in names and "right_0" not in names and "left_5" not in names  # 0*att16 | 0*enc, and 5*enc | 5:id
    only = CONVOLUTIONS.replace("6*enc 8 swish | 6*conv3 2 | multiply", "6*enc 8 swish | 6*enc 2")
    with pytest.raises(UserError, match="genome: block 7 has no branch but attention to an encoder.*genome_cell=encoder"):
        models.build(TINY | dict(genome=only), VOCAB)
    with pytest.raises(UserError, match="genome_cell is 'both'"):
        models.build(TINY | dict(genome="evolved_transformer", genome_cell="both"), VOCAB)


def test_the_transformers_encoder_cell_made_causal_is_gpt_2():
    """With norms, biases and activations as the genome has them: the same numbers from the same parameters."""
    genome = dict(genome="transformer", genome_cell="encoder", genome_unit=8)
    cell, params = build(TINY | genome | dict(num_heads=8))
    assert cell.config.layers == 3
    plain = TINY | dict(num_heads=8, mlp_width=64, layers=6, activation="relu")
    block_fields = models.build(plain, VOCAB).config.block_fields() | {"attention_bias": False, "norm_epsilon": 1e-6}
    model = models.build(plain, VOCAB).clone(block=lambda **name: CausalBlock(**block_fields, **name))
    theirs = {}
    for i in range(3):
        own = params["decoder"][f"layer_{i}"]["block"]
        for half in range(2):
            at = 3 * half
            theirs[f"layer_{2 * i + half}"] = {"block": {
                "self_norm": own[f"norm_{at}"], "self_attention": own[f"left_{at}"]["self_attention"],
                "feed_norm": own[f"norm_{at + 1}"],
                "feed_forward": {"expand": own[f"left_{at + 1}"]["linear"], "contract": own[f"left_{at + 2}"]["linear"]},
            }}  # fmt: skip
    batch = make_batch([7, 4])
    found = forward(model, params | {"decoder": theirs}, batch)
    np.testing.assert_allclose(found, forward(cell, params, batch), atol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(head="sequence"), "config.model.head is 'sequence'; it is one of none, causal_lm"),
        (dict(variant="gpt3"), "config.model.variant is 'gpt3'"),
        (dict(activation="gelu_new"), "config.model.activation"),
        (dict(layers=0), "config.model.layers is 0"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        models.build(TINY | changes, VOCAB)


def test_configs_of_transformers():
    config = dict(model_type="gpt2", vocab_size=50_257, n_embd=32, n_head=4, n_layer=3, n_positions=64, n_inner=None)
    fields = gpt.from_hf(config | dict(activation_function="gelu_new", reorder_and_upcast_attn=True))
    assert fields["mlp_width"] == 128 and fields["activation"] == "gelu_tanh" and fields["tie_embeddings"]
    for key, value in dict(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True, add_cross_attention=True).items():
        with pytest.raises(UserError, match=f"{key} is {value}, which is not computed here"):
            huggingface.refuse_other_values(config | {key: value}, gpt.NAMES[0])
    for model_type in gpt.VARIANTS:
        ours = gpt.Config(**gpt.from_hf(config | dict(model_type=model_type)))
        assert ours.activation == "gelu_tanh"  # what openai-gpt calls gelu
        assert gpt.Config(**gpt.from_hf(gpt.to_hf(ours))) == ours
    with pytest.raises(UserError, match="openai-gpt has mlp_width 4"):
        gpt.to_hf(gpt.Config(40_478, variant="openai-gpt", mlp_width=100))


def test_files_as_the_hubs_gpt2_are(tmp_path):
    """Without the prefix, with masks among the leaves: the same parameters as of today's files."""
    model, params = build(TINY)
    fields = dict(model.config.__dict__) | {"name": "gpt"}
    huggingface.save(tmp_path, fields, params)
    (file,) = tmp_path.glob("*.safetensors")
    leaves = {name.removeprefix("transformer."): x for name, x in safetensors.load_file(file).items()}
    assert leaves["h.1.attn.c_attn.weight"].shape == (16, 48) and leaves["h.1.mlp.c_fc.weight"].shape == (16, 32)
    leaves |= {"h.0.attn.bias": np.ones((1, 1, 24, 24), np.float32), "h.1.attn.masked_bias": np.float32([-1e4])}
    safetensors.save_file(leaves, file)
    read = huggingface.load(tmp_path)
    assert {key: read.fields[key] for key in ("variant", "head", "tie_embeddings", "mlp_width")} == dict(
        variant="gpt2", head="causal_lm", tie_embeddings=True, mlp_width=32
    )
    jax.tree.map(np.testing.assert_array_equal, read.params, jax.tree.map(np.asarray, params))
