"""Tiny models of every kind, as finetuning changes their parameters."""

import functools

import flax.linen as nn
import jax
import numpy as np

from transformers_jax import models, parameters
from transformers_jax.finetuning.method import Finetuning, places_of
from transformers_jax.finetuning.trainable import Options, patterns

VOCAB = 37
SIZES = dict(width=16, num_heads=2, mlp_width=32)
ENCODER = SIZES | dict(max_length=12, stddev=0.3)
MODELS = {
    "bert": ENCODER | dict(name="bert", layers=2, head="sequence", labels=2),
    "scanned": ENCODER | dict(name="bert", layers=2, head="sequence", labels=2, scan_layers=True, remat=True),
    "albert": ENCODER | dict(name="albert", layers=2, groups=1, inner=1, embedding_width=8, head="none"),
    "transformer": SIZES | dict(name="transformer", encoder_layers=1, decoder_layers=2),
    "genome": SIZES | dict(name="transformer", genome="evolved_transformer", encoder_layers=1, decoder_layers=1),
    "evolved": dict(name="evolved_transformer", width=16, num_heads=2, encoder_layers=1, decoder_layers=1),
    "luong": dict(  # none of whose products goes through the seam
        name="luong", width=8, lstm_width=8, encoder_layers=1, decoder_layers=1
    ),
    "gpt": SIZES | dict(name="gpt", layers=2, max_length=24),
    "llama": SIZES | dict(name="llama", layers=2, kv_heads=1, max_length=24, scan_layers=True),
}
"""Fields of config.model; every one has another way of its kernels."""


@functools.cache
def build(kind: str):
    """(model, its parameters boxed, its places)."""
    model = models.build(MODELS[kind], VOCAB)
    batch = model.protocol().example(T=5)
    return model, jax.jit(model.init)(jax.random.key(0), batch)["params"], places_of(model)


def changed(kind: str, seed: int = 1, **options):
    """The boxed parameters after finetuning's transform; options are those of config.finetuning."""
    _, params, places = build(kind)
    own = patterns({"finetuning": options})
    return Finetuning(Options(**options), places, own)(jax.random.key(seed), params)


def plain(boxed) -> dict:
    return jax.tree.map(lambda x: x.value if parameters.is_boxed(x) else x, boxed, is_leaf=parameters.is_boxed)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model, params, batch):
    return [x for x in jax.tree.leaves(model.apply({"params": params}, batch)) if x.ndim > 2 or x.shape == (2, 2)]


def outputs(kind: str, params) -> list[np.ndarray]:
    """What the model gives for a batch of random tokens."""
    model, random = build(kind)[0], np.random.default_rng(0)
    batch = model.protocol().example(T=5)
    for name in ("tokens", "source", "target_inputs"):
        if name in batch:
            batch[name] = random.integers(3, VOCAB, batch[name].shape).astype(np.int32)
    return [np.asarray(x) for x in _outputs(model, nn.unbox(params), batch)]


def close(first, second, atol: float) -> bool:
    """Whether two models gave the same."""
    assert len(first) == len(second) > 0
    return all(np.allclose(x, y, atol=atol, rtol=0) for x, y in zip(first, second, strict=True))


def randomised(params: dict, pattern: str, size: float = 0.1) -> dict:
    """Parameters with random numbers where the pattern matches: as if they had learned."""
    leaves, random = parameters.flat(params), np.random.default_rng(3)
    for name in parameters.matching(leaves, pattern):
        x = leaves[name]
        leaves[name] = x + size * random.standard_normal(x.shape).astype(x.dtype)
    return parameters.nest(leaves)
