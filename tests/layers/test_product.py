"""The product of activations and a kernel: quantised, and with a part of low rank, in every layer that multiplies."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.layers.attention import MultiHeadAttention
from transformers_jax.layers.blocks import EncoderBlock, Stack
from transformers_jax.layers.masks import Mask
from transformers_jax.layers.projections import FromHeads, Linear, ToHeads
from transformers_jax.layers.quantized import dequantize, quantize

RANK, D = 3, 16
LAYERS = {
    "linear": (Linear(24, ("embed", "mlp")), (5, D), 1, ()),
    "to_heads": (ToHeads(4, 6, True, None, jnp.float32), (5, D), 1, ()),
    "from_heads": (FromHeads(True, None, jnp.float32), (5, 4, 4), 2, (D,)),
}


def made(name):
    """(module, its parameters, an input, how many dimensions of the kernel are inputs, other arguments)."""
    module, shape, inputs, rest = LAYERS[name]
    x = jax.random.normal(jax.random.key(1), shape)
    params = nn.unbox(module.init(jax.random.key(0), x, *rest))["params"]
    return module, params | {"bias": jax.random.normal(jax.random.key(2), params["bias"].shape)}, x, inputs, rest


def with_low_rank(params, inputs, **more):
    """The parameters with a part of low rank, and what it adds to the kernel."""
    shape = params["kernel"].shape
    matrix = int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))
    a, b = (jax.random.normal(jax.random.key(i), s) for i, s in ((3, (matrix[0], RANK)), (4, (RANK, matrix[1]))))
    added = {"lora_a": a, "lora_b": b, "lora_scale": jnp.float32(0.5), **more}
    return params | added, (0.5 * a @ b).reshape(shape)


@pytest.mark.parametrize("name", LAYERS)
def test_low_rank_equals_merging(name):
    """Wx + s·BAx is (W + s·BA)x, in whatever form the kernel lies."""
    module, params, x, inputs, rest = made(name)
    adapted, added = with_low_rank(params, inputs)
    merged = params | {"kernel": params["kernel"] + added}
    got = module.apply({"params": adapted}, x, *rest)
    np.testing.assert_allclose(got, module.apply({"params": merged}, x, *rest), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_the_kernel_beside_low_rank_gets_no_gradient(name):
    module, params, x, inputs, rest = made(name)
    adapted, _ = with_low_rank(params, inputs)
    found = jax.grad(lambda p: jnp.sum(jnp.sin(module.apply({"params": p}, x, *rest))))(adapted)
    assert not np.any(found["kernel"]) and all(np.any(found[n]) for n in ("lora_a", "lora_b", "bias"))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_kernel_stands_in_the_plain_ones_place(name, kind):
    module, params, x, inputs, rest = made(name)
    quantised = params | {"kernel": quantize(params["kernel"], kind, block=8, inputs=inputs)}
    plain = params | {"kernel": dequantize(quantised["kernel"])}
    np.testing.assert_allclose(
        module.apply({"params": quantised}, x, *rest), module.apply({"params": plain}, x, *rest), atol=1e-5
    )


def test_dora_at_the_start_is_the_kernel_itself():
    module, params, x, inputs, _ = made("linear")
    zero = {"lora_b": jnp.zeros((RANK, 24)), "lora_magnitude": jnp.linalg.norm(params["kernel"], axis=0)}
    adapted, _ = with_low_rank(params, inputs)
    adapted |= zero
    got = module.apply({"params": {n: v for n, v in adapted.items() if n != "bias"} | {"bias": params["bias"] * 0}}, x)
    np.testing.assert_allclose(got, x @ params["kernel"], atol=1e-5)


def test_dropout_of_the_low_rank_part_is_for_training_alone():
    module, params, x, inputs, _ = made("linear")
    adapted, _ = with_low_rank(params, inputs)
    dropping = adapted | {"lora_dropout": jnp.float32(0.5)}
    plain = module.apply({"params": adapted}, x)
    np.testing.assert_array_equal(module.apply({"params": dropping}, x), plain)
    draws = [module.apply({"params": dropping}, x, rngs={"dropout": jax.random.key(i)}) for i in range(400)]
    assert not np.allclose(draws[0], draws[1])
    np.testing.assert_allclose(np.mean(draws, axis=0), plain, atol=1.5)  # the mean is kept


def test_stacked_layers_have_their_own():
    """In a scanned stack each layer has its own quantised kernel and its own part of low rank."""
    block = lambda **names: EncoderBlock(2, 32, **names)  # noqa: E731
    x, mask = jax.random.normal(jax.random.key(0), (2, 4, D)), Mask(jnp.ones((2, 4), int), jnp.ones((2, 4), int), causal=False)
    scanned, unrolled = Stack(block, 3, scan=True), Stack(block, 3)
    params = nn.unbox(scanned.init(jax.random.key(1), x, mask, True))["params"]
    layer = params["layer"]["block"]["feed_forward"]["expand"]
    shapes = {"lora_a": (3, D, RANK), "lora_b": (3, RANK, 32)}
    layer |= {n: jax.random.normal(jax.random.key(i), shape) for i, (n, shape) in enumerate(shapes.items())}
    layer |= {"lora_scale": jnp.array([0.1, 0.2, 0.3]), "kernel": quantize(layer["kernel"], "nf4", block=8, stacked=True)}
    apart = {f"layer_{i}": jax.tree.map(lambda v, i=i: v[i], params["layer"]) for i in range(3)}
    got = scanned.apply({"params": params}, x, mask, True)
    np.testing.assert_allclose(got, unrolled.apply({"params": apart}, x, mask, True), atol=1e-5)


def test_attention_with_quantised_projections():
    attention = MultiHeadAttention(num_heads=2, use_bias=True)
    x = jax.random.normal(jax.random.key(0), (2, 4, D))
    params = nn.unbox(attention.init(jax.random.key(1), x, mask=None))["params"]
    inputs = {n: 2 if n == "out" else 1 for n in params}
    quantised = {n: p | {"kernel": quantize(p["kernel"], "int8", block=8, inputs=inputs[n])} for n, p in params.items()}
    plain = {n: p | {"kernel": dequantize(p["kernel"])} for n, p in quantised.items()}
    got = attention.apply({"params": quantised}, x, mask=None)
    np.testing.assert_allclose(got, attention.apply({"params": plain}, x, mask=None), atol=1e-5)
