"""Feed-forward networks: against their definitions."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from transformers_jax.layers.feedforward import FeedForward, GatedFeedForward


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("use_bias", [False, True])
def test_gated_feed_forward_is_swiglu(use_bias):
    """(swish(x W) ⊙ x V) W₂ (Shazeer 2020, equation 6), with biases if they are asked for."""
    x, layer = normal(2, 3, 8), GatedFeedForward(12, use_bias=use_bias)
    shapes = nn.unbox(jax.eval_shape(lambda: layer.init(jax.random.key(0), x)))["params"]
    params = jax.tree.map(lambda s: normal(*s.shape, seed=1), shapes)
    params["gate"]["kernel"] = params["gate"]["kernel"][::-1]  # other than expand's
    assert {name: set(leaves) for name, leaves in params.items()} == dict.fromkeys(
        ("gate", "expand", "contract"), {"kernel", "bias"} if use_bias else {"kernel"}
    )

    def linear(x, p):
        return x @ p["kernel"] + p.get("bias", 0.0)

    gate = linear(x, params["gate"])
    wanted = linear(gate / (1 + np.exp(-gate)) * linear(x, params["expand"]), params["contract"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_the_last_kernel_may_start_otherwise(kind):
    layer = kind(256, stddev=nn.initializers.normal(0.5), out_stddev=nn.initializers.normal(0.1))
    params = nn.unbox(layer.init(jax.random.key(0), normal(1, 128)))["params"]
    assert abs(np.std(params["expand"]["kernel"]) - 0.5) < 0.01 and abs(np.std(params["contract"]["kernel"]) - 0.1) < 0.002
