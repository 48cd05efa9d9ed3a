"""What every model tells about itself: that it is true of what it computes."""

import jax
import numpy as np
import pytest
from flax.core import meta

from transformers_jax import batch as batches
from transformers_jax import models
from transformers_jax.models import encoder
from transformers_jax.models.protocol import CONTINUES, ENCODES, IMAGES, TEXT, TRANSLATES, Protocol

SIZES = dict(width=8, max_length=12)
ENCODER = SIZES | dict(num_heads=2, mlp_width=16, layers=2)
MODELS = {
    "bert": ENCODER | dict(name="bert"),
    "roberta": ENCODER | dict(name="bert", variant="roberta", position_offset=2, token_types=1),
    "albert": ENCODER | dict(name="albert", embedding_width=4),
    "distilbert": ENCODER | dict(name="distilbert"),
    "flaubert": ENCODER | dict(name="flaubert"),
    "transformer": SIZES | dict(name="transformer", num_heads=2, mlp_width=16, encoder_layers=1, decoder_layers=1),
    "evolved": SIZES | dict(name="evolved_transformer", num_heads=2, encoder_layers=1, decoder_layers=1),
    "luong": dict(name="luong", width=8, encoder_layers=1, decoder_layers=1),
    "gpt": ENCODER | dict(name="gpt"),
    "llama": ENCODER | dict(name="llama", kv_heads=1),
    "lstm": dict(name="lstm", width=8, layers=1),
}
LEARNED = dict(positions="learned")


def build(kind: str, **more):
    return models.build(MODELS[kind] | more, 31)


@pytest.mark.parametrize("kind", MODELS)
def test_its_example_is_a_batch_that_it_takes(kind):
    model = build(kind)
    about = model.protocol()
    batch = batches.check(about.example(B=3))
    assert set(batch) == set(about.fields) and {x.shape[0] for x in batch.values()} == {3}
    assert all((batch[name] == 1).all() for name in batch if name.endswith("segments"))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), about.example()))
    longer = jax.eval_shape(lambda: model.init(jax.random.key(0), about.example(T=5, S=7)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), meta.unbox(shapes), meta.unbox(longer))


@pytest.mark.parametrize("kind", MODELS)
def test_what_it_does_it_has_methods_for(kind):
    model = build(kind)
    about = model.protocol()
    assert about.reads == (TEXT,) and set(about.does) <= {ENCODES, TRANSLATES, CONTINUES}
    assert (ENCODES in about.does) == isinstance(model, encoder.Encoder)
    assert hasattr(model, "encode") or ENCODES not in about.does
    assert all(hasattr(model, name) for name in ("start", "step")) or ENCODES in about.does
    assert about.head in about.heads and about.predicts_tokens == (ENCODES not in about.does)


@pytest.mark.parametrize(
    ("kind", "more", "longest"),
    [
        ("bert", {}, 12), ("roberta", {}, 10), ("distilbert", {}, 12), ("transformer", {}, 0),
        ("transformer", LEARNED, 12), ("evolved", LEARNED, 12), ("luong", {}, 0), ("gpt", {}, 12),
    ],
)  # fmt: skip
def test_its_longest_input_is_what_its_positions_can_tell(kind, more, longest):
    model = build(kind, **more)
    about = model.protocol()
    assert about.longest == longest
    if kind == "luong":
        return
    batch = about.example(B=1, T=13, S=13)
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    output = jax.jit(lambda b: model.apply({"params": params}, b).hidden)(batch)  # all positions, the last but one included
    bad = np.isnan(np.asarray(output)).any(axis=(0, 2))
    assert bad.any() == bool(longest)


def test_heads():
    for head, labels, tokens, groups in (
        ("none", 0, False, 2), ("masked_lm", 0, True, 2), ("tagging", 3, False, 2), ("multiple_choice", 3, False, 3),
    ):  # fmt: skip
        about = build("bert", head=head, labels=3).protocol()
        assert (about.head, about.labels, about.predicts_tokens) == (head, labels, tokens)
        assert about.example()["tokens"].ndim == groups and head in about.heads and head in about.configs
    assert build("bert").protocol().token_types and "token_types" not in build("roberta").protocol().fields
    assert build("bert", max_mask_rate=0.4).protocol().max_mask_rate == 0.4


def test_limits_and_sizes():
    about = Protocol(reads=(IMAGES,), does=(ENCODES,), fields=("tokens",), sizes={"T": 7})
    assert [about.within(n).longest for n in (0, 5)] == [0, 5]
    assert [about.within(9).within(n).longest for n in (0, 5, 12)] == [9, 5, 9]
    assert about.example()["tokens"].shape == (2, 7) and about.example(T=3, B=1)["tokens"].shape == (1, 3)
