"""Houlsby's adapters: where they stand, what they compute, how they start."""

import jax
import numpy as np
import pytest
from adapted import build, changed, close, outputs, plain, randomised

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.finetuning import adapters
from transformers_jax.layers.adapter import ADAPTER, adapted
from transformers_jax.layers.places import AdapterPlace

OPTIONS = dict(method="adapters", adapter_width=5)
PLACES = {"bert": 4, "scanned": 2, "albert": 2, "transformer": 5, "genome": 2, "gpt": 4, "llama": 2}


@pytest.mark.parametrize("kind", PLACES)
def test_every_sublayer_has_one_and_the_model_starts_as_it_was(kind):
    before, params = build(kind)[1], plain(changed(kind, **OPTIONS))
    own = parameters.matching(parameters.flat(params), ADAPTER)
    assert len(own) == 4 * PLACES[kind]
    assert close(outputs(kind, params), outputs(kind, before), 1e-6 if kind != "genome" else 5e-6)  # fused otherwise
    assert not close(outputs(kind, randomised(params, ADAPTER)), outputs(kind, before), 1e-3)


def test_what_it_computes():
    """h + W_up · gelu(W_down · h), by hand."""
    import flax.linen as nn

    class Place(nn.Module):
        def __call__(self, h):
            return adapted(self, "self_adapter", h)

    random = np.random.default_rng(0)
    h, down, up = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 8), (8, 5), (5, 8)))
    layers = {"down": {"kernel": down, "bias": np.full(5, 0.1, np.float32)}}
    layers["up"] = {"kernel": up, "bias": np.ones(8, np.float32)}
    got = Place().apply({"params": {"self_adapter": layers}}, h)
    np.testing.assert_allclose(got, h + jax.nn.gelu(h @ down + 0.1, approximate=False) @ up + 1, atol=1e-5)
    np.testing.assert_array_equal(Place().apply({"params": {}}, h), h)


def test_shapes_counts_and_layers():
    _, _, places = build("bert")
    got = parameters.flat(plain(changed("bert", **OPTIONS, layers=(1,))))
    own = {name: x for name, x in got.items() if "adapter" in name}
    assert {name.split("/")[1] for name in own} == {"layer_1"}
    place = next(place for place in places.values() if isinstance(place, AdapterPlace))
    assert sum(x.size for x in own.values()) == 2 * adapters.count(place, 5) == 2 * (2 * 5 * 16 + 16 + 5)
    down = own["encoder/layer_1/block/self_adapter/down/kernel"]
    assert 0 < np.abs(down).max() <= 2e-2 and not own["encoder/layer_1/block/self_adapter/up/kernel"].any()
    stacked = changed("scanned", **OPTIONS)["encoder"]["layer"]["block"]["feed_adapter"]["down"]["kernel"]
    assert stacked.value.shape == (2, 16, 5) and stacked.names == ("layers", "embed", None)


def test_models_without_a_place_say_so():
    with pytest.raises(UserError, match="method=adapters: the blocks of this model have no place for them"):
        changed("luong", **OPTIONS)
