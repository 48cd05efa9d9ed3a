"""Tiny models of genomes, their parameters and batches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax import models
from transformers_jax.planning import counts

VOCAB = 37
BATCH = {
    name: jax.ShapeDtypeStruct((1, 3), jnp.int32)
    for name in "source source_positions source_segments target_inputs targets target_positions target_segments".split()
}

def build(genome, **fields):
    fields = dict(name="transformer", genome=genome.text(), width=16, num_heads=2, positions="concatenated") | fields
    return models.build(fields, VOCAB)


def draw(model):
    """Parameters without compiling their initialisation: as large as usual ones, and none of them zeros or ones."""
    rng = np.random.default_rng(1)

    def leaf(x):
        scale = 0.1 if len(x.shape) == 1 else x.shape[0] ** -0.5  # [C] or [fan in, ...], give or take
        return (scale * rng.standard_normal(x.shape)).astype(x.dtype)

    params = jax.tree.map(leaf, nn.unbox(counts.shapes(model, BATCH))["params"])
    return jax.tree_util.tree_map_with_path(lambda path, x: x + (path[-1].key == "scale"), params)


def make_batch(rows, length, source_lengths=None, seed=0):
    """`rows` examples of `length` tokens, and of source lengths as given, padded to the longest."""
    rng, source_lengths = np.random.default_rng(seed), source_lengths or [length] * rows

    def stream(sizes):
        positions = np.tile(np.arange(max(sizes), dtype=np.int32), (len(sizes), 1))
        segments = (positions < np.array(sizes)[:, None]).astype(np.int32)
        return rng.integers(3, VOCAB, segments.shape).astype(np.int32) * segments, positions * segments, segments

    batch = {}
    batch["source"], batch["source_positions"], batch["source_segments"] = stream(source_lengths)
    batch["target_inputs"], batch["target_positions"], batch["target_segments"] = stream([length] * rows)
    return batch


def compiled(function, **options):
    """Compiled quickly rather than well."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


@functools.partial(compiled, static_argnums=0)
def forward(model, params, batch):
    """Logits [B, T, V]."""
    output = model.apply({"params": params}, batch)
    return output.hidden @ output.table.T


@functools.partial(compiled, static_argnums=0)
def forward_and_backward(model, params, batch):
    """Logits [B, T, V], and the gradient of some function of them."""

    def loss(params):
        output = model.apply({"params": params}, batch)
        logits = output.hidden @ output.table.T
        return jnp.sum(jnp.sin(logits)), logits

    return jax.grad(loss, has_aux=True)(params)[::-1]
