"""The genomes of the Transformer and the Evolved Transformer equal the hand-written models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cells import BATCH, VOCAB, build, draw, forward, make_batch

from transformers_jax import models
from transformers_jax.layers.dropout import Dropout
from transformers_jax.planning import parameters
from transformers_jax.search import cell
from transformers_jax.search.genome import EVOLVED_TRANSFORMER, TRANSFORMER

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
    "transformer": (TRANSFORMER, from_transformer, dict(hidden=64)),
    "evolved_transformer": (EVOLVED_TRANSFORMER, from_evolved, dict(encoder_layers=3, decoder_layers=4)),
}


@pytest.fixture(scope="module", params=HAND_WRITTEN)
def pair(request):
    """A function of rates that makes (a hand-written model, its parameters, its genome's model, the same parameters)."""
    genome, move, fields = HAND_WRITTEN[request.param]
    fields = dict(name=request.param, width=16, num_heads=8, positions="concatenated") | fields
    params = draw(models.build(fields, VOCAB))
    mapped = {name: value for name, value in params.items() if name not in ("encoder", "decoder")}
    for side in ("encoder", "decoder"):
        mapped[side] = {"layer": {"block": move(side, params[side]["layer"]["block"])}}
    return lambda **rates: (models.build(fields | rates, VOCAB), params, build(genome, num_heads=8, **rates), mapped)


def test_genomes_of_hand_written_models_equal_them(pair):
    model, params, ours, mapped = pair()
    batch = make_batch(3, 6, [7, 4, 2])
    shapes = jax.eval_shape(lambda: nn.unbox(ours.init(jax.random.key(0), batch)))["params"]
    assert jax.tree.map(jnp.shape, mapped) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_allclose(forward(ours, mapped, batch), forward(model, params, batch), atol=1e-5)


def test_dropout_is_in_the_same_places(pair):
    model, params, ours, mapped = pair(dropout=0.1, hidden_dropout=0.3)
    wanted = dropouts(model, params)
    assert dropouts(ours, mapped) == wanted and len(wanted) > 12 and {rate for rate, _ in wanted} == {0.1, 0.3}


def dropouts(model, params):
    """(rate, shape) of every dropout of a training step's forward pass, sorted."""
    found = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, Dropout) and context.method_name == "__call__" and not kwargs["deterministic"]:
            found.append((context.module.rate, args[0].shape))
        return call(*args, **kwargs)

    def run(params):
        with nn.intercept_methods(watch):
            rngs = {"dropout": jax.random.key(0)}
            return model.apply({"params": params}, make_batch(2, 5), deterministic=False, rngs=rngs).hidden

    jax.eval_shape(run, params)
    return sorted(found)


@pytest.mark.parametrize("width", PUBLISHED)
def test_parameters_are_those_published(width):
    heads, *wanted = PUBLISHED[width]
    for genome, number in zip((TRANSFORMER, EVOLVED_TRANSFORMER), wanted, strict=True):
        assert cell.count_parameters(genome, width, 0, 33_288, num_heads=heads) == number
        fields = dict(name="transformer", width=width, num_heads=heads, genome=genome.text())
        assert parameters.count(parameters.shapes(cell.build(fields, 33_288), BATCH)["params"]) == number
