"""Quantised bases: which kernels, how many bytes, leaf by leaf, over a mesh."""

import jax
import numpy as np
import optax
import pytest
from adapted import build, changed, plain

from transformers_jax import models, parameters
from transformers_jax.finetuning.method import Finetuning, places_of
from transformers_jax.finetuning.quantization import quantized_like
from transformers_jax.finetuning.trainable import Options, patterns
from transformers_jax.interchange.weights import Leaf, stacked
from transformers_jax.layers.quantized import QuantizedKernel, bytes_per_parameter, dequantize, is_quantized
from transformers_jax.mesh import make_mesh
from transformers_jax.planning import counts
from transformers_jax.runs import initialise
from transformers_jax.training.state import abstract_state, create_state

QLORA = dict(method="lora", rank=2, quantization="nf4", block=16)


def test_kernels_that_do_not_learn_are_quantised_and_nothing_else():
    got = parameters.flat(plain(changed("scanned", **QLORA)))
    kernels = {name for name, leaf in got.items() if is_quantized(leaf)}
    assert kernels == {name for name in got if name.endswith("/kernel") and not name.startswith(("pooler", "classifier"))}
    assert len(kernels) == 6 and all(got[name].stacked for name in kernels)
    before = parameters.flat(plain(build("scanned")[1]))
    assert counts.count({n: x for n, x in got.items() if "lora" not in n}) == counts.count(before)


def test_bytes_of_a_model_s_kernels():
    """NF4 with double quantisation at BERT's width, from shapes alone."""
    model = models.build(dict(name="bert", layers=12, max_length=512, head="sequence", labels=2, scan_layers=True), 30_522)
    options = dict(method="lora", quantization="nf4")
    adapt = Finetuning(Options(**options), places_of(model), patterns({"finetuning": options}))
    place = {"trainable": adapt.patterns, "adapt": adapt}
    state = abstract_state(model, optax.adam(1.0), model.protocol().example(), make_mesh({}), **place)
    kernels = [leaf for leaf in parameters.flat(state.frozen).values() if is_quantized(leaf)]
    assert len(kernels) == 6 and all(bytes_per_parameter(kernel) <= 0.517 for kernel in kernels)
    assert counts.count(kernels) == 12 * (4 * 768 * 768 + 2 * 768 * 3072)


def test_a_base_is_read_layer_by_layer():
    """The largest array that is read is one layer's kernel, and the codes are those of the whole stack's."""
    params, read = plain(changed("scanned", **QLORA)), []
    name = "encoder/layer/block/feed_forward/expand/kernel"
    whole = np.asarray(build("scanned")[1]["encoder"]["layer"]["block"]["feed_forward"]["expand"]["kernel"].value)

    def leaf(i):
        return Leaf(whole.shape[1:], lambda: read.append(i) or whole[i])

    like = parameters.flat(params)[name]
    got = quantized_like(stacked([leaf(0), leaf(1)]), like)
    assert read == [0, 1] and isinstance(got, QuantizedKernel)
    jax.tree.map(np.testing.assert_array_equal, got, like)
    jax.tree.map(np.testing.assert_array_equal, quantized_like(whole, like), like)


@pytest.mark.parametrize("method", ["lora", "adapters"])
def test_only_what_is_new_is_drawn(method):
    """What is given is kept as it is, quantised; the rest is what the seed gives without it."""
    model, boxed, places = build("scanned")
    options = QLORA | {"method": method, "dora": method == "lora"}
    adapt = Finetuning(Options(**options), places, patterns({"finetuning": options}))
    args = (model, optax.adam(1.0), model.protocol().example(), make_mesh({}))
    place = {"trainable": adapt.patterns, "adapt": adapt}
    abstract, (fresh, _) = abstract_state(*args, **place), create_state(*args, seed=5, **place)
    base = {n: np.asarray(x) for n, x in parameters.flat(plain(boxed)).items() if not n.startswith(("pooler", "classifier"))}
    given = initialise.placed(base, abstract.variables)
    state, _ = create_state(*args, seed=5, **place, given=given)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), fresh)
    got, other = parameters.flat(state.model_params), parameters.flat(fresh.model_params)
    for name, leaf in got.items():
        if name in base:
            assert leaf is parameters.flat(given["params"])[name]
        elif not name.endswith("magnitude"):
            np.testing.assert_array_equal(leaf, other[name])
    if method == "lora":
        query = "encoder/layer/block/self_attention/query/"
        lengths = np.linalg.norm(np.asarray(dequantize(got[query + "kernel"])).reshape(2, 16, 16), axis=1)
        np.testing.assert_allclose(got[query + "lora_magnitude"], lengths, rtol=1e-6)
    with pytest.raises(ValueError, match="not params of the model: other"):
        create_state(*args, seed=5, **place, given={"params": {"other": np.zeros(1)}})
