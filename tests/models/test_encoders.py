"""BERT and its descendants: what each head gives, what a position may see, scanned layers, other blocks."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax import models
from transformers_jax.errors import UserError
from transformers_jax.genomes.genome import EVOLVED_TRANSFORMER, replace
from transformers_jax.layers import gather as masked
from transformers_jax.layers.blocks import EncoderBlock
from transformers_jax.models.encoder import HEADS
from transformers_jax.planning import flops

VOCAB, LENGTH = 31, 8
SIZES = dict(width=12, num_heads=2, mlp_width=48, layers=2, max_length=12, labels=3)
MODELS = {
    "bert": dict(name="bert"),
    "roberta": dict(name="bert", variant="roberta", position_offset=2, token_types=1),
    "albert": dict(name="albert", embedding_width=6, groups=2, inner=2),
    "distilbert": dict(name="distilbert"),
    "flaubert": dict(name="flaubert", norm="pre", languages=3, token_types_as_tokens=True),
}
SHAPES = {
    "next_sentence": (2, 2),
    "sequence": (2, 3),
    "tagging": (2, LENGTH, 3),
    "span": (2, LENGTH, 2),
    "multiple_choice": (2, 3),
}


def make_batch(segments, seed=0, shape=()):
    """Rows of segments, tokens and types drawn; `shape` is of axes in front."""
    rng = np.random.default_rng(seed)
    segments = np.broadcast_to(np.asarray(segments, np.int32), (*shape, *np.shape(segments)))
    place = np.arange(segments.shape[-1])
    first = np.argmax(segments[..., None, :] == segments[..., :, None], axis=-1)
    real = segments > 0
    batch = {
        "tokens": np.where(real, rng.integers(3, VOCAB, segments.shape), 0),
        "token_types": np.where(real, rng.integers(0, 2, segments.shape), 0),
        "positions": np.where(real, place - first, 0),
        "segments": segments,
    }
    return {name: value.astype(np.int32) for name, value in batch.items()}


@functools.cache
def build(kind: str, head: str = "none", **fields):
    model = models.build(SIZES | MODELS[kind] | dict(head=head) | fields, VOCAB)
    shapes = jax.eval_shape(model.init, jax.random.key(0), make_batch(np.ones((2, LENGTH))))
    rng = np.random.default_rng(1)  # initial norms and biases are ones and zeros: none are here, so that a forgotten one shows
    draw = lambda x: (0.3 * rng.standard_normal(x.shape) + (x.ndim == 1)).astype(x.dtype)  # noqa: E731
    return model, jax.tree.map(draw, nn.unbox(shapes["params"]))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, batch):
    return model.apply({"params": params}, batch)


def logits(output):
    return np.asarray(output.hidden @ output.table.T + output.bias)


@pytest.mark.parametrize("kind", MODELS)
def test_every_head_gives_what_it_says(kind):
    batch = make_batch([[1] * LENGTH, [1] * 5 + [0] * 3])
    for head in HEADS:
        model = models.build(SIZES | MODELS[kind] | dict(head=head, layers=2), VOCAB)
        given = make_batch([[1] * LENGTH, [1] * 5 + [0] * 3, [1] * 6 + [0] * 2], shape=(2,)) if "choice" in head else batch
        output, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), given)
        if head in SHAPES:
            assert output.logits.shape == SHAPES[head]
        elif head == "none":
            pooled = None if kind in ("distilbert", "flaubert") else (2, 12)
            assert output.hidden.shape == (2, LENGTH, 12) and (output.pooled and output.pooled.shape) == pooled
        else:
            lm = output.lm if head == "pretraining" else output
            width = 6 if kind == "albert" else 12
            assert (lm.hidden.shape, lm.table.shape, lm.bias.shape) == ((2, LENGTH, width), (VOCAB, width), (VOCAB,))
            assert head != "pretraining" or output.next.shape == (2, 2)


@pytest.mark.parametrize("kind", MODELS)
def test_packed_examples_equal_separate_ones_and_padding_changes_nothing(kind):
    model, params = build(kind)
    packed = make_batch([[1, 1, 1, 2, 2, 2, 2, 0]])
    first = {name: np.pad(value[:, :3], ((0, 0), (0, 5))) for name, value in packed.items()}
    second = {name: np.pad(value[:, 3:7], ((0, 0), (0, 4))) for name, value in packed.items()}
    got = np.asarray(apply(model, params, packed).hidden)
    np.testing.assert_allclose(got[:, :3], apply(model, params, first).hidden[:, :3], atol=1e-5)
    np.testing.assert_allclose(got[:, 3:7], apply(model, params, second).hidden[:, :4], atol=1e-5)
    filled = packed | {"tokens": packed["tokens"] + 5 * (packed["segments"] == 0)}
    np.testing.assert_array_equal(np.asarray(apply(model, params, filled).hidden)[:, :7], got[:, :7])
    other = packed | {"tokens": (packed["tokens"] + (packed["segments"] == 1)) % VOCAB}
    changed = np.asarray(apply(model, params, other).hidden)
    np.testing.assert_array_equal(changed[:, 3:7], got[:, 3:7])
    assert np.abs(changed[:, :3] - got[:, :3]).max(axis=-1).min() > 1e-3  # every position sees its whole segment


@pytest.mark.parametrize("kind", MODELS)
def test_scanned_layers_compute_what_separate_layers_do(kind):
    model, params = build(kind)
    batch = make_batch([[1] * LENGTH])
    wanted = apply(model, params, batch).hidden
    if kind != "albert":  # whose layers share one set of parameters either way
        layers = [params["encoder"][f"layer_{i}"] for i in range(2)]
        params = params | {"encoder": {"layer": jax.tree.map(lambda *x: jnp.stack(x), *layers)}}
    for remat in (False, True) if kind == "bert" else (False,):
        scanned, _ = build(kind, scan_layers=True, remat=remat)
        np.testing.assert_allclose(apply(scanned, params, batch).hidden, wanted, atol=1e-5)


def test_masked_language_model_predicts_the_masked_positions_only():
    model, params = build("bert", "masked_lm", max_mask_rate=0.3)
    batch = make_batch([[1] * LENGTH, [1] * LENGTH])
    every = logits(apply(model, params, batch))
    weights = np.zeros((2, LENGTH), np.int32)
    weights[0, [2, 5]], weights[1, [0, 3, 7]] = 1, 1
    got = logits(apply(model, params, batch | {"weights": weights}))
    positions = np.asarray(masked.masked_positions(weights, masked.predicted(0.3, LENGTH)))
    assert positions.tolist() == [[2, 5, 0], [0, 3, 7]]
    np.testing.assert_allclose(got, np.asarray(masked.gather(every, positions)), atol=1e-5)

    model, _ = build("bert", "masked_lm", max_mask_rate=1.0)  # where all are predicted, they stay in their order
    got = logits(apply(model, params, batch | {"weights": weights}))
    np.testing.assert_allclose(got, every, atol=1e-5)
    assert masked.aligned(LENGTH, weights, weights)[0] is weights


@pytest.mark.parametrize("kind", ["bert", "albert", "flaubert"])
def test_the_last_block_computes_only_what_the_head_reads(kind):
    model, params = build(kind, "pretraining", max_mask_rate=0.3)
    batch = make_batch([[1] * LENGTH, [1] * 6 + [0] * 2])
    batch["weights"] = np.zeros((2, LENGTH), np.int32)
    batch["weights"][0, [2, 5]], batch["weights"][1, [1, 3, 5]] = 1, 1

    def read(params):
        return model.apply({"params": params}, batch)

    def whole(params):  # attention for a picture has every query
        output, pictures = model.apply({"params": params}, batch, mutable=["intermediates"])
        assert {weights.shape[-2:] for weights in jax.tree.leaves(pictures)} == {(LENGTH, LENGTH)}
        return output

    def total(output):
        return jnp.sum(jnp.sin(output.lm.hidden)) + jnp.sum(jnp.sin(output.next))

    quick = {"xla_backend_optimization_level": 0}
    got, wanted = (
        jax.jit(jax.value_and_grad(lambda p, f=f: total(f(p))), compiler_options=quick)(params) for f in (read, whole)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max())), got, wanted)
    assert flops.count(read, params) < flops.count(whole, params)
    first, its = build(kind, "sequence")
    assert flops.count(lambda: first.apply({"params": its}, batch)) < flops.count(read, params)


def test_groups_of_rows_are_kept_together():
    model, params = build("bert")
    batch = make_batch([[1] * LENGTH, [1] * 3 + [0] * 5], shape=(2,))
    one = {name: value.reshape(4, LENGTH) for name, value in batch.items()}
    got, wanted = apply(model, params, batch), apply(model, params, one)
    np.testing.assert_allclose(got.hidden.reshape(4, LENGTH, -1), wanted.hidden, atol=1e-6)
    np.testing.assert_allclose(got.pooled.reshape(4, -1), wanted.pooled, atol=1e-6)


def test_dropout_is_off_by_default_and_differs_by_key():
    model, params = build("bert", "sequence")
    batch = make_batch([[1] * LENGTH])

    @jax.jit
    def run(seed):
        return model.apply({"params": params}, batch, deterministic=False, rngs={"dropout": jax.random.key(seed)}).logits

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    without, _ = build("bert", "sequence", dropout=0.0, attention_dropout=0.0, classifier_dropout=0.0)
    np.testing.assert_array_equal(apply(model, params, batch).logits, apply(without, params, batch).logits)


class Doubled(nn.Module):
    """The least of blocks."""

    @nn.compact
    def __call__(self, x, mask, deterministic):
        return 2 * x


@pytest.mark.parametrize("kind", MODELS)
def test_another_block_stands_in(kind):
    model, params = build(kind)
    batch = make_batch([[1] * LENGTH])
    own = functools.partial(EncoderBlock, **model.config.block_fields() | {"norm": getattr(model.config, "norm", "post")})
    same = model.clone(block=own)
    np.testing.assert_array_equal(apply(same, params, batch).hidden, apply(model, params, batch).hidden)
    short, long = (model.clone(block=Doubled, config=dataclasses.replace(model.config, layers=n)) for n in (4, 8))
    blocks = 2 if kind == "albert" else 1
    ratio = np.asarray(apply(long, params, batch).hidden) / np.asarray(apply(short, params, batch).hidden)
    np.testing.assert_allclose(ratio, 2.0 ** (4 * blocks), rtol=1e-5)


def test_a_genome_is_a_block():
    genome = replace(EVOLVED_TRANSFORMER, {"encoder_cells": 1}).text()
    config = SIZES | MODELS["bert"] | dict(head="masked_lm", genome=genome, width=16)
    model = models.build(config, VOCAB)
    batch = make_batch([[1] * LENGTH])
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch))["params"]
    assert "final_norm" in params and np.isfinite(logits(apply(model, params, batch))).all()


def test_wrong_fields_are_named():
    for fields, says in (
        (dict(name="bert", head="sequnce"), "config.model.head.*masked_lm"),
        (dict(name="bert", variant="electra"), "config.model.variant.*camembert"),
        (dict(name="bert", layers=0), "config.model.layers is 0"),
        (dict(name="bert", activation="gleu"), "config.model.activation.*gelu_tanh"),
        (dict(name="albert", layers=5, groups=2), "config.model.groups"),
        (dict(name="flaubert", norm="middle"), "config.model.norm"),
        (dict(name="bert", vocab_size=10), "31 tokens do not fit"),
        (dict(name="encoder"), "known models: .*albert"),
    ):
        with pytest.raises(UserError, match=says):
            models.build(fields, VOCAB)
