"""Weights held in blocks: what is computed is what their numbers as floats compute, and no float copy is there."""

import jax
import numpy as np
import pytest
import tiny_llama

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.inference import held, predictor
from transformers_jax.inference.generate import Generator, Options
from transformers_jax.inference.likelihood import Likelihood
from transformers_jax.layers.quantized import dequantize, is_quantized

PROMPTS = [{"prompt": "abc 1"}, {"prompt": "ab"}, {"prompt": "c 12"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made, folder = {}, tmp_path_factory.mktemp("held")

    def of(kind):
        if kind not in made:
            made[kind] = str(tiny_llama.write(folder / f"{kind}.gguf", kind))
        return made[kind]

    return of


def answers(there, prompts=PROMPTS) -> list[tuple]:
    found = Generator(there, Options(max_tokens=5, logprobs=True))(prompts)
    return [(one["outputs"][0]["text"], one["outputs"][0]["logprobs"]) for one in found]


def check_same(found, wanted, tolerance=2e-4):
    for (text, logprobs), (wanted_text, wanted_logprobs) in zip(found, wanted, strict=True):
        assert text == wanted_text
        np.testing.assert_allclose(logprobs, wanted_logprobs, atol=tolerance)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("scanned", [False, True])
def test_a_file_s_blocks_stay_as_they_are(file, monkeypatch, kind, scanned):
    """The same text as from float32, one prompt and several; each matrix in blocks, a stack, or layers apart as runs have."""
    if not scanned:
        monkeypatch.setattr(held, "in_blocks", lambda *_: False)
    there, floats = predictor.loaded(file(kind)), predictor.loaded(file(kind), quantization="none")
    leaves = parameters.flat(there.variables["params"])
    kernels = {name: leaf for name, leaf in leaves.items() if is_quantized(leaf)}
    assert len(kernels) == 2 + 7 * (1 if scanned else 2) and all(leaf.stacked == ("stacks" in n) for n, leaf in kernels.items())
    plain = [leaf for leaf in leaves.values() if not is_quantized(leaf)]
    assert max(leaf.size for leaf in plain) <= 2 * 64 and {leaf.kind for leaf in kernels.values()} == {kind.lower(), "q8_0"}
    wanted = answers(floats)
    check_same(answers(there), wanted)
    check_same(answers(there, PROMPTS[:1]), wanted[:1])
    scores = [Likelihood(one)(["ab", "abc"], [" 12", "c"]) for one in (there, floats)]
    np.testing.assert_allclose([s.logprob for s in scores[0]], [s.logprob for s in scores[1]], atol=1e-4)


@pytest.mark.parametrize("kind", held.KINDS[1:])
def test_floats_are_quantised_as_they_are_read(file, monkeypatch, kind):
    monkeypatch.setattr(held, "in_blocks", lambda *_: False)
    there = predictor.loaded(file("F32"), quantization=kind)
    leaves = parameters.flat(there.variables["params"])
    tables = {name: leaf for name, leaf in leaves.items() if name in ("embedding", "lm_head")}
    assert sum(is_quantized(leaf) and leaf.kind == kind for leaf in leaves.values()) >= 14
    assert all(is_quantized(leaf) == (kind in ("q8_0", "q4_0", "q4_1")) for leaf in tables.values())

    def plain(name, leaf):
        return (dequantize(leaf).T if name in tables else dequantize(leaf)) if is_quantized(leaf) else leaf

    numbers = parameters.nest({name: plain(name, leaf) for name, leaf in leaves.items()})
    check_same(answers(there), answers(there._replace(variables={"params": numbers, "model_state": {}})))


def test_mistakes(file):
    with pytest.raises(UserError, match="quantization=q5 is not one of none, nf4, int8, q8_0"):
        predictor.loaded(file("F32"), quantization="q5")


def test_another_type_than_the_file_s_is_made_of_its_numbers(file):
    there = predictor.loaded(file("Q4_1"), quantization="int8")
    assert {leaf.kind for leaf in parameters.flat(there.variables["params"]).values() if is_quantized(leaf)} == {"int8"}
    assert jax.tree.leaves(there.variables["params"])
