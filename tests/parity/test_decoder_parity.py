"""Decoders of `transformers`, of random numbers, in its files: the same logits here, and the same files written back.

Axes: B rows, T length, V vocabulary.
"""

import jax
import numpy as np
import pytest

from transformers_jax import models
from transformers_jax.interchange import huggingface, mapping
from transformers_jax.models import gpt, llama

pytestmark = pytest.mark.slow

VOCABULARY, LENGTHS = 31, (9, 4)
GPT = dict(vocab_size=VOCABULARY, n_embd=16, n_head=4, n_layer=2, n_positions=24)
LLAMA = dict(
    vocab_size=VOCABULARY, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
    num_hidden_layers=2, max_position_embeddings=64,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
SLIDING = dict(use_sliding_window=True, sliding_window=3, max_window_layers=0)
CASES = {
    "gpt2": ("GPT2LMHeadModel", GPT | dict(n_inner=40)),
    "gpt2, body": ("GPT2Model", GPT),
    "gpt2, untied": ("GPT2LMHeadModel", GPT | dict(tie_word_embeddings=False, activation_function="gelu")),
    "openai-gpt": ("OpenAIGPTLMHeadModel", GPT),
    "openai-gpt, body": ("OpenAIGPTModel", GPT),
    "llama": ("LlamaForCausalLM", LLAMA | dict(rope_parameters=LLAMA3)),
    "llama, body": ("LlamaModel", LLAMA | dict(head_dim=6)),
    "llama, tied": ("LlamaForCausalLM", LLAMA | dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "llama, linear": (
        "LlamaForCausalLM",
        LLAMA | dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=50.0), num_key_value_heads=1),
    ),
    "mistral": ("MistralForCausalLM", LLAMA | dict(sliding_window=3)),
    "mistral, body": ("MistralModel", LLAMA | dict(sliding_window=None)),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen2, window": ("Qwen2ForCausalLM", LLAMA | SLIDING),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | dict(head_dim=6)),
    "qwen3, window": ("Qwen3ForCausalLM", LLAMA | SLIDING | dict(head_dim=8, tie_word_embeddings=True, attention_bias=True)),
}


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="needs PyTorch: run `make parity`")
    pytest.importorskip("transformers", reason="needs transformers: run `make parity`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def make(torch, name: str):
    """A model of `transformers` in which no parameter is 0 or 1, and its config."""
    import transformers

    torch.manual_seed(0)
    made, changes = getattr(transformers, CASES[name][0]), CASES[name][1]
    model = made(made.config_class(**changes, attn_implementation="eager")).eval()
    with torch.no_grad():
        for leaf in model.parameters():
            leaf.add_(0.3 * torch.randn(leaf.shape))
    return model


def batch_of(lengths=LENGTHS) -> dict:
    positions = np.tile(np.arange(max(lengths), dtype=np.int32), (len(lengths), 1))
    segments = (positions < np.array(lengths)[:, None]).astype(np.int32)
    tokens = np.random.default_rng(1).integers(3, VOCABULARY, segments.shape).astype(np.int32)
    return {"tokens": tokens, "positions": positions * segments, "segments": segments}


def theirs_of(torch, model, batch) -> np.ndarray:
    """Logits [B, T, V], or hidden states of a body."""
    inputs = dict(input_ids=torch.tensor(batch["tokens"], dtype=torch.long), attention_mask=torch.tensor(batch["segments"]))
    with torch.no_grad():
        output = model(**inputs)
    return (output.logits if "logits" in output else output.last_hidden_state).numpy()


def ours_of(model, params, batch) -> np.ndarray:
    output = jax.jit(lambda batch: model.apply({"params": params}, batch))(batch)
    return np.asarray(output.hidden @ output.table.T if hasattr(output, "table") else output.hidden)


@pytest.mark.parametrize("name", CASES)
def test_files_of_transformers(torch, tmp_path, name):
    """Read, the same numbers; written back, loaded there with nothing missing, the same numbers again."""
    import transformers

    (model, batch) = make(torch, name), batch_of()
    wanted, real = theirs_of(torch, model, batch), batch["segments"] > 0
    model.save_pretrained(tmp_path / "theirs")
    read = huggingface.load(tmp_path / "theirs")
    own = models.build(read.fields, VOCABULARY)
    np.testing.assert_allclose(ours_of(own, read.params, batch)[real], wanted[real], atol=1e-4, rtol=1e-4)

    huggingface.save(tmp_path / "ours", read.fields, read.params)
    kind = getattr(transformers, CASES[name][0])
    again, loading = kind.from_pretrained(tmp_path / "ours", output_loading_info=True, attn_implementation="eager")
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    np.testing.assert_allclose(theirs_of(torch, again.eval(), batch)[real], wanted[real], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen3"])
def test_greedy_texts(torch, tmp_path, name):
    """After prompts of different lengths, one at a time there and together here: the same tokens."""
    model, steps, lengths = make(torch, name), 6, (5, 1, 3)
    model.save_pretrained(tmp_path)
    read = huggingface.load(tmp_path)
    own, batch = models.build(read.fields, VOCABULARY), batch_of(lengths)
    variables = {"params": read.params}
    tokens, cache = own.apply(variables, batch, steps, method="start", mutable=["cache"])
    step = jax.jit(lambda cache, tokens: own.apply({**variables, **cache}, tokens, method="step", mutable=["cache"]))
    found = []
    for _ in range(steps):
        logits, cache = step(cache, tokens)
        tokens = logits.argmax(-1).astype(np.int32)
        found.append(np.asarray(tokens))
    for b, n in enumerate(lengths):
        prompt = torch.tensor(batch["tokens"][b : b + 1, :n], dtype=torch.long)
        options = dict(max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0)
        text = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        np.testing.assert_array_equal(text[0, n:].numpy(), np.stack(found)[:, b])


PUBLISHED = {
    "GPT-2 small": ("GPT2LMHeadModel", {}, 124_439_808),
    "GPT-2 XL": ("GPT2LMHeadModel", dict(n_embd=1600, n_head=25, n_layer=48), 1_557_611_200),
    "GPT": ("OpenAIGPTLMHeadModel", {}, 116_534_784),
    "Llama 3 8B": (
        "LlamaForCausalLM",
        dict(vocab_size=128_256, num_key_value_heads=8, intermediate_size=14_336),
        8_030_261_248,
    ),
    "Mistral 7B": ("MistralForCausalLM", {}, 7_241_732_096),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(torch, name):
    """On the meta device there, by shapes here."""
    import transformers

    architecture, changes, wanted = PUBLISHED[name]
    kind = getattr(transformers, architecture)
    config = kind.config_class(**changes)
    with torch.device("meta"):
        model = kind(config)
    assert sum(x.numel() for x in model.parameters()) == wanted
    module = llama if hasattr(config, "num_key_value_heads") else gpt
    fields = module.from_hf(config.to_dict()) | {"name": module.__name__.split(".")[-1], "scan_layers": True}
    shapes = mapping.shapes(models.build(fields, fields["vocab_size"]))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == wanted
