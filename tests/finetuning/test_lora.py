"""Parts of low rank: which kernels get them, how they start, what they count, and merging."""

import jax
import numpy as np
import pytest
from adapted import MODELS, build, changed, close, outputs, plain, randomised

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.finetuning import lora
from transformers_jax.finetuning.trainable import Options
from transformers_jax.layers.places import KernelPlace

ALL = dict(method="lora", rank=3, targets=(".",))
HEADS = {"bert": 2, "scanned": 2, "albert": 1}  # pooler and classifier, which learn whole
QUERY = "encoder/layer_1/block/self_attention/query/"


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "luong"])
def test_the_model_starts_as_it_was_and_merging_keeps_what_was_learned(kind):
    """In every model and every form of kernel: folded into heads, stacked, of windows, shared by layers."""
    _, before, places = build(kind)
    params = plain(changed(kind, **ALL))
    names = parameters.matching(parameters.flat(params), "lora_a$")
    assert len(names) == sum(isinstance(p, KernelPlace) for p in places.values()) - HEADS.get(kind, 0)
    assert close(outputs(kind, params), outputs(kind, before), 1e-6)
    learned = randomised(params, "lora_b$")
    merged = lora.merged(learned)
    assert parameters.flat(merged).keys() == parameters.flat(plain(before)).keys()
    assert not close(outputs(kind, learned), outputs(kind, before), 1e-3)
    assert close(outputs(kind, merged), outputs(kind, learned), 1e-5)


@pytest.mark.parametrize("kind", ["bert", "scanned", "gpt"])
def test_dora_starts_as_it_was_and_merges(kind):
    before = build(kind)[1]
    params = plain(changed(kind, **ALL, dora=True, rslora=True))
    assert close(outputs(kind, params), outputs(kind, before), 1e-6)
    learned = randomised(params, "lora_(b|magnitude)$")
    assert not close(outputs(kind, learned), outputs(kind, before), 1e-3)
    assert close(outputs(kind, lora.merged(learned)), outputs(kind, learned), 1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_a_quantised_base_is_merged_as_the_numbers_that_it_stands_for(dora):
    params = plain(changed("scanned", **ALL, dora=dora, quantization="nf4", block=16))
    learned = randomised(params, "lora_b$")
    merged = lora.merged(learned)
    assert all(isinstance(x, jax.Array | np.ndarray) for x in parameters.flat(merged).values())
    assert close(outputs("scanned", merged), outputs("scanned", learned), 1e-5)


def test_shapes_counts_and_how_they_start():
    _, params, places = build("bert")
    got = parameters.flat(plain(changed("bert", method="lora", rank=4, alpha=6.0)))
    a, b, scale = (got[f"{QUERY}lora_{name}"] for name in ("a", "b", "scale"))
    assert a.shape == (16, 4) and b.shape == (4, 16) and scale == 1.5
    assert not b.any() and np.abs(a).max() <= 1 / 4 and np.std(a) == pytest.approx(1 / 4 / np.sqrt(3), rel=0.2)
    assert not np.array_equal(a, got[QUERY.replace("layer_1", "layer_0") + "lora_a"])
    learned = [x.size for name, x in got.items() if name.endswith(("lora_a", "lora_b"))]
    assert len(learned) == 2 * 4 and sum(learned) == 4 * lora.count(places[QUERY + "kernel"], 4) == 4 * 4 * (16 + 16)
    assert parameters.flat(plain(changed("bert", method="lora", rank=4, alpha=6.0, rslora=True)))[QUERY + "lora_scale"] == 3
    assert len(got) == len(parameters.flat(params)) + 4 * 3


def test_layers_have_their_own():
    """Stacked: each its own numbers and its share of every leaf. Apart: only those that are asked for."""
    stacked = parameters.flat(plain(changed("scanned", **ALL, dropout=0.5)))
    a = stacked["encoder/layer/block/self_attention/out/lora_a"]
    assert a.shape == (2, 16, 3) and not np.array_equal(a[0], a[1])
    assert stacked["encoder/layer/block/self_attention/out/lora_scale"].shape == (2,)
    apart = parameters.flat(changed("bert", **ALL, layers=(1,)))
    assert {name.split("/")[1] for name in apart if "lora" in name} == {"layer_1"}


def test_a_pattern_may_have_a_rank_of_its_own():
    got = parameters.flat(plain(changed("bert", **ALL, rank_pattern=(("query", 5),), alpha_pattern=(("value", 30.0),))))
    assert got[QUERY + "lora_a"].shape == (16, 5) and got[QUERY + "lora_scale"] == np.float32(16 / 5)
    assert got[QUERY.replace("query", "value") + "lora_scale"] == 10


def test_axes_are_those_of_the_kernel():
    boxed = parameters.flat(changed("scanned", **ALL, dora=True))
    prefix = "encoder/layer/block/self_attention/out/lora_"
    own = {leaf: boxed[prefix + leaf].names for leaf in ("a", "b", "scale", "magnitude")}
    assert own == {
        "a": ("layers", "heads", None), "b": ("layers", None, "embed"), "scale": ("layers",), "magnitude": ("layers", "embed"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("bert", dict(targets=("nothing",)), "targets: 'nothing' matches no parameter"),
        ("bert", dict(targets=("query", "embeddings/word")), "embeddings/word, which is no kernel of a linear map"),
        ("bert", dict(targets=("norm",)), "scale|bias, which is no kernel of a linear map"),
        ("bert", dict(targets=("classifier/kernel",)), "classifier/kernel, which learns whole"),
        ("luong", dict(targets=("recurrent",)), "recurrent, which is no kernel of a linear map"),
        ("evolved", dict(targets=("taps",)), "taps.*, which is no kernel of a linear map"),
        ("bert", dict(targets=("(",)), "is not a regular expression"),
        ("bert", dict(targets=()), "targets is empty"),
        ("bert", dict(rank=17), "rank: 17 is above the rank of .*, a matrix of 16 × 16: give at most 16"),
        ("bert", dict(rank=0), "rank is 0"),
        ("bert", dict(layers=(2,)), "there is no layer 2; there are 0 to 1"),
        ("scanned", dict(layers=(1,)), "scan_layers=False"),
        ("bert", dict(dropout=1.0), "dropout is 1.0"),
    ],
)  # fmt: skip
def test_mistakes_are_named_in_one_line(kind, options, says):
    with pytest.raises(UserError, match=says) as error:
        changed(kind, **({"method": "lora"} | options))
    assert "\n" not in str(error.value)


def test_methods_and_kinds_that_there_are_not():
    for options, says in (
        (dict(method="lorra"), "method is 'lorra'; known: full, head, bias, lora, adapters"),
        (dict(method="lora", quantization="nf3"), "quantization is 'nf3'; known: nf4, int8"),
        (dict(quantization="nf4"), "method=full"),
        (dict(method="head", layers=(0,)), "layers picks layers of method=lora and method=adapters"),
        (dict(method="adapters", adapter_width=0), "adapter_width is 0"),
    ):
        with pytest.raises(UserError, match=says):
            Options(**options)
