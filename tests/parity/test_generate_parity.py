"""Decoding after prompts against `transformers`' generate: tiny random GPT-2 and Llama, prompts of different lengths."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers_jax import models  # noqa: E402
from transformers_jax.decoding.prompts import PromptDecoder  # noqa: E402
from transformers_jax.interchange import huggingface, mapping  # noqa: E402

V, END = 53, 2
PROMPTS = [[5, 7, 9, 11, 4], [3], [8, 8, 30], [6, 12, 19, 4, 7, 3, 20, 21, 5, 9, 40]]
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.5)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, rope_theta=100.0,
        )  # fmt: skip
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory):
    """(their model, our model, our parameters)."""
    torch.manual_seed(3)
    theirs = MODELS[request.param]().eval()
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    fields, leaves, _ = huggingface.opened(folder)
    model = models.build(fields, 0)
    params = mapping.variables(mapping.streamed(leaves))["params"]
    return theirs, model, params


def generated(theirs, prompt, **options):
    given = {"eos_token_id": END, "pad_token_id": 0, "bos_token_id": 1, "max_new_tokens": 16} | options
    config = transformers.GenerationConfig(**given)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        found = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [row[len(prompt) :].tolist() for row in found]


def without_end(ids):
    return ids[: ids.index(END)] if END in ids else ids


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_texts_are_the_same(both, penalty):
    theirs, model, params = both
    ours = PromptDecoder(model, params, ends=(END,), longest=64, repetition_penalty=penalty)
    found = ours.decode(PROMPTS, limits=16)
    assert len({tuple(one.ids) for [one] in found}) == len(PROMPTS)
    for prompt, [one] in zip(PROMPTS, found, strict=True):
        [expected] = generated(theirs, prompt, do_sample=False, repetition_penalty=penalty)
        assert one.ids == without_end(expected)


def test_beams_find_the_same_of_what_ends(both):
    """With end tokens enough for outputs to end: what the limit cuts comes last with us, whatever its score."""
    theirs, model, params = both
    ends = tuple(range(2, V, 5))
    ours = PromptDecoder(model, params, ends=ends, longest=64, method="beam", beam_size=4, n_best=2, alpha=0.0)
    for prompt, best in zip(PROMPTS, ours.decode(PROMPTS, limits=14), strict=True):
        assert [one.finish for one in best] == ["end", "end"]
        options = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.0, "early_stopping": "never"}
        expected = generated(theirs, prompt, do_sample=False, max_new_tokens=14, eos_token_id=list(ends), **options)
        firsts = [next(i for i, token in enumerate(ids) if token in ends) for ids in expected]
        assert [one.ids for one in best] == [ids[:i] for ids, i in zip(expected, firsts, strict=True)]


def test_log_probabilities_are_the_same(both):
    theirs, model, params = both
    for prompt, [one] in zip(PROMPTS, PromptDecoder(model, params, ends=(), longest=64).decode(PROMPTS, limits=9), strict=True):
        with torch.no_grad():
            table = torch.log_softmax(theirs(torch.tensor([[*prompt, *one.ids]])).logits[0].float(), -1).numpy()
        places = np.arange(len(one.ids)) + len(prompt) - 1
        np.testing.assert_allclose(one.logprobs, table[places, one.ids], atol=1e-4)
