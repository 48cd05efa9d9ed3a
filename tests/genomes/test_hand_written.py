"""The genomes of the Transformer and the Evolved Transformer equal the hand-written models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cells import BATCH, VOCAB, build, draw, forward, make_batch

from transformers_jax import models
from transformers_jax.genomes.genome import EVOLVED_TRANSFORMER, TRANSFORMER, replace
from transformers_jax.layers.dropout import Dropout
from transformers_jax.models import with_genome
from transformers_jax.planning import counts

PUBLISHED = {  # width: (heads, Transformer, Evolved Transformer), 33,288 rows (So, Liang, Le 2019)
    128: (4, 7_029_248, 7_242_496),
    432: (8, 45_786_816, 47_885_472),
    512: (8, 61_147_136, 64_064_512),
    768: (8, 124_750_848, 131_191_296),
    1024: (16, 210_374_656, 221_714_432),
}


def from_transformer(side, params):
    """The parameters of cells [cells, ...] from those of the Transformer's layers [2 · cells, ...]: where each goes."""
    found = {}
    for half in (0, 1):
        layer = jax.tree.map(lambda x, half=half: x[half::2], params)
        at = (4 if side == "decoder" else 3) * half
        found |= {f"norm_{at}": layer["self_norm"], f"left_{at}": {"self_attention": layer["self_attention"]}}
        if side == "decoder":
            at += 1
            found |= {f"norm_{at}": layer["cross_norm"], f"left_{at}": {"cross_attention": layer["cross_attention"]}}
        found |= {f"norm_{at + 1}": layer["feed_norm"], f"left_{at + 1}": {"linear": layer["feed_forward"]["expand"]}}
        found[f"left_{at + 2}"] = {"linear": layer["feed_forward"]["contract"]}
    return found


def from_evolved(side, p):
    """The parameters of cells from those of the Evolved Transformer's blocks."""
    norms = "gate branches close attention feed" if side == "encoder" else "wide - branches close attention cross feed contract"
    found = {f"norm_{i}": p[f"{name}_norm"] for i, name in enumerate(norms.split()) if name != "-"}
    if side == "encoder":
        found |= {"left_0": {"value": p["gate_values"], "gate": p["gates"]}, "left_1": {"linear": p["left"]}}
        found |= {"right_1": {"convolution": p["right"]}, "left_2": {"convolution": p["close"]}}
        found |= {"left_3": {"self_attention": p["self_attention"]}}
        return found | {"left_4": {"linear": p["expand"]}, "left_5": {"linear": p["contract"]}}
    found |= {"left_0": {"self_attention": p["wide_attention"]}, "right_0": {"cross_attention": p["cross_attention_1"]}}
    found |= {"left_2": {"convolution": p["left"]}, "right_2": {"convolution": p["right"]}}
    found |= {"left_3": {"convolution": p["close"]}, "left_4": {"self_attention": p["self_attention"]}}
    found |= {"left_5": {"cross_attention": p["cross_attention_2"]}}
    return found | {"left_6": {"linear": p["expand"]}, "left_7": {"linear": p["contract"]}}


HAND_WRITTEN = {
    "transformer": (TRANSFORMER, from_transformer, dict(mlp_width=64)),
    "evolved_transformer": (EVOLVED_TRANSFORMER, from_evolved, dict(encoder_layers=3, decoder_layers=4)),
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_genomes_of_hand_written_models_equal_them(name):
    genome, move, fields = HAND_WRITTEN[name]
    model = models.build(dict(name=name, width=16, num_heads=8, positions="concatenated") | fields, VOCAB)
    ours, batch = build(genome, num_heads=8), make_batch(3, 6, [7, 4, 2])
    params, shapes = draw(model), nn.unbox(counts.shapes(ours, batch))["params"]
    mapped = {name: value for name, value in params.items() if name not in ("encoder", "decoder")}
    for side in ("encoder", "decoder"):
        mapped[side] = {"layer": {"block": move(side, params[side]["layer"]["block"])}}
    assert jax.tree.map(jnp.shape, mapped) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_allclose(forward(ours, mapped, batch), forward(model, params, batch), atol=1e-5)


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_dropout_is_in_the_same_places(name):
    layers = 2 if name == "transformer" else 1  # of which a cell is made
    genome = replace(HAND_WRITTEN[name][0], {"encoder_cells": 1, "decoder_cells": 1})
    rates = dict(num_heads=8, dropout=0.1, mlp_dropout=0.3, scan_layers=False)
    fields = dict(name=name, width=16, encoder_layers=layers, decoder_layers=layers) | rates
    wanted = dropouts(models.build(fields | ({"mlp_width": 64} if name == "transformer" else {}), VOCAB))
    assert dropouts(build(genome, **rates)) == wanted and {rate for rate, _ in wanted} == {0.1, 0.3}


def dropouts(model):
    """(rate, shape) of every dropout of a training step's forward pass, sorted."""
    found = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, Dropout) and context.method_name == "__call__":
            assert not kwargs["deterministic"]
            found.append((context.module.rate, args[0].shape))
        return call(*args, **kwargs)

    def run():
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        with nn.intercept_methods(watch):
            return model.init(rngs, make_batch(2, 5), deterministic=False)

    jax.eval_shape(run)
    return sorted(found)


@pytest.mark.parametrize("width", PUBLISHED)
def test_parameters_are_those_published(width):
    heads, *wanted = PUBLISHED[width]
    for genome, number in zip((TRANSFORMER, EVOLVED_TRANSFORMER), wanted, strict=True):
        assert with_genome.count_parameters(genome, width, 0, 33_288, num_heads=heads) == number
        fields = dict(name="transformer", width=width, num_heads=heads, genome=genome.text())
        assert counts.count(counts.shapes(models.build(fields, 33_288), BATCH)["params"]) == number
