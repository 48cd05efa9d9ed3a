"""Beam search: against `generate` of Hugging Face's transformers, with one small language model written twice.

Its logits are a table's row of the last token, plus a decaying sum over all tokens before, plus what the source asks
for: outputs depend on their whole past, so a beam whose state is not reordered with it finds something else.

Ranked by log-probability (alpha 0): the length penalties of the two differ, as Wu et al. 2016 and transformers define
them. The end token gets likelier with every token, so that all outputs end before the limit; `generate` and ours differ in
what becomes of those that do not.

Axes: B sentences, K beams, L output length, V vocabulary.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from parity.case import Case, normal

from transformers_jax.decoding.decoder import Decoder

V, K, L, DECAY = 9, 4, 32, 0.7
PAD, BOS, EOS = 0, 1, 2
SOURCES = np.array([[3], [4], [5], [6], [7], [8]], np.int32)
TABLES = ("last", "past", "asked")


class Chain(nn.Module):
    """The model in the decoding protocol (`decoding/cache.py`)."""

    def setup(self):
        zeros = nn.initializers.zeros
        self.last, self.past, self.asked = (self.param(name, zeros, (V, V)) for name in TABLES)

    def start(self, batch, length):
        self.put_variable("cache", "asked", self.asked[batch["source"][:, 0]])
        self.put_variable("cache", "sum", jnp.zeros((batch["source"].shape[0], V)))
        return batch["first"]

    def step(self, tokens):
        total = self.get_variable("cache", "sum")
        self.put_variable("cache", "sum", DECAY * (total + self.past[tokens]))
        return self.last[tokens] + total + self.get_variable("cache", "asked")


def draw(rng) -> dict:
    inputs = {name: 1.3 * normal(rng, V, V) for name in TABLES}
    inputs["last"][:, [PAD, BOS]] = -30.0
    inputs["last"][:, EOS], inputs["past"][:, EOS], inputs["asked"][:, EOS] = -6.0, 5.0, 0.0
    return inputs


def padded(outputs: list[list[list[int]]]) -> np.ndarray:
    """[B, K, L] int32, filled up with zeros."""
    assert all(len(ids) < L for row in outputs for ids in row), "an output did not end"
    return np.array([[ids + [PAD] * (L - len(ids)) for ids in row] for row in outputs], np.int32)


@functools.cache
def decoder() -> Decoder:
    ids = dict(bos_id=BOS, eos_id=EOS, pad_id=PAD)
    return Decoder(Chain(), None, beam_size=K, n_best=K, alpha=0.0, max_ratio=0.0, extra_length=L, lengths=(2,), **ids)


def ours(inputs: dict) -> dict:
    found = decoder().decode(SOURCES.tolist(), inputs)
    scores = np.array([[output.score for output in row] for row in found], np.float32)
    return {"tokens": padded([[output.ids for output in row] for row in found]), "scores": scores}


def theirs(torch, inputs: dict) -> dict:
    model = build(torch, {name: torch.tensor(inputs[name]) for name in TABLES})
    prompts = torch.tensor([[int(source), BOS] for [source] in SOURCES])
    options = dict(num_beams=K, num_return_sequences=K, do_sample=False, length_penalty=0.0, early_stopping="never")
    options |= dict(max_new_tokens=L, use_cache=False, return_dict_in_generate=True, output_scores=True)
    found = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    outputs = [[p for p in ids if p not in (PAD, EOS)] for ids in found.sequences[:, prompts.shape[1] :].tolist()]
    rows = [outputs[i : i + K] for i in range(0, len(outputs), K)]
    return {"tokens": padded(rows), "scores": found.sequences_scores.reshape(-1, K).numpy()}


def build(torch, tables: dict):
    """The model in transformers; its inputs [B · K, 2 …] are the source, the first token, and what was written."""
    import transformers
    from transformers.modeling_outputs import CausalLMOutput

    class ChainLM(transformers.PreTrainedModel, transformers.GenerationMixin):
        config_class = transformers.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.anchor = torch.nn.Parameter(torch.zeros(1))  # tells device and dtype
            self.post_init()

        def forward(self, input_ids, **_):
            total = torch.zeros(input_ids.shape[0], V)
            for token in input_ids[:, 1:-1].T:
                total = DECAY * (total + tables["past"][token])
            logits = tables["last"][input_ids[:, -1]] + total + tables["asked"][input_ids[:, 0]]
            return CausalLMOutput(logits=logits[:, None])

    config = transformers.PretrainedConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, vocab_size=V)
    return ChainLM(config).eval()


CASES = [Case("beam_search", draw, ours, theirs, needs="transformers")]
