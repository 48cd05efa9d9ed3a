"""Our 4-bit kernels and bitsandbytes': the same bytes of the same numbers, and files read both ways."""

import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.interchange.bitsandbytes import from_bitsandbytes, to_bitsandbytes
from transformers_jax.layers import quantized
from transformers_jax.layers.quantized import dequantize, product, quantize

torch = pytest.importorskip("torch", reason="needs PyTorch: run `make parity`")
functional = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes: run `make parity`")

SHAPES = [(64, 8), (768, 192), (96, 10), (30, 9), (5, 7)]
"""(A, C): lines of their own; more than one block of constants; blocks across outputs; a short last block; an odd number."""


def normal(*shape):
    """Numbers whose size differs from output to output, with zeros and an outlier among them."""
    rng = np.random.default_rng(len(shape) + shape[0])
    numbers = rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1]))
    numbers[0, 0], numbers[-1, -1] = 0, 50
    return numbers.astype(np.float32)


def theirs(kernel, block=64, double=True):
    """The codes and the state of a kernel [A, C], which is their weight [C, A] turned around."""
    weight = torch.from_numpy(np.ascontiguousarray(kernel.T))
    return functional.quantize_4bit(weight, blocksize=block, quant_type="nf4", compress_statistics=double)


def decoded(codes, state):
    """Their dequantised weight [C, A], decoded as one row: their CPU kernel goes wrong where a block crosses rows."""
    shape, state.shape = state.shape, torch.Size([1, state.shape.numel()])
    found = functional.dequantize_4bit(codes, state)
    state.shape = shape
    return found.numpy().reshape(shape)


def test_tables():
    np.testing.assert_array_equal(quantized.NF4, functional.get_4bit_type("nf4", device="cpu").numpy())
    np.testing.assert_array_equal(quantized.dynamic_map(), functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_constants(shape, block):
    kernel = normal(*shape)
    found, (codes, state) = quantize(kernel, block=block, double=False), theirs(kernel, block, double=False)
    np.testing.assert_array_equal(found.codes.reshape(-1), codes.numpy().reshape(-1))
    np.testing.assert_array_equal(found.absmax.reshape(-1), state.absmax.numpy())
    np.testing.assert_array_equal(dequantize(found).T, decoded(codes, state))


@pytest.mark.parametrize("shape", SHAPES)
def test_double_quantisation(shape):
    """The codes are the same bytes. The mean is the same up to the order of a sum; from the same mean all is the same."""
    kernel = normal(*shape)
    found, (codes, state) = quantize(kernel), theirs(kernel)
    np.testing.assert_array_equal(found.codes.reshape(-1), codes.numpy().reshape(-1))
    np.testing.assert_array_equal(found.absmax.reshape(-1), state.absmax.numpy())
    assert float(found.nested_offset) == pytest.approx(float(state.offset), rel=5e-7)
    np.testing.assert_allclose(found.nested_absmax, state.state2.absmax.numpy(), atol=5e-7 * float(state.offset))
    np.testing.assert_allclose(dequantize(found).T, decoded(codes, state), rtol=2e-6, atol=1e-6 * float(state.offset))

    plain = quantize(kernel, double=False)
    same, nested, _ = quantized.quantize_absmax(plain.absmax, jnp.float32(state.offset))
    np.testing.assert_array_equal(same.reshape(-1), state.absmax.numpy())
    np.testing.assert_array_equal(nested, state.state2.absmax.numpy())


def test_many_constants():
    """A million constants of blocks, every one of which falls to the code that bitsandbytes gives it."""
    absmax = np.abs(np.random.default_rng(0).normal(2, 0.5, 2**20)).astype(np.float32)
    offset = torch.from_numpy(absmax).mean()
    codes, state = functional.quantize_blockwise(torch.from_numpy(absmax) - offset, blocksize=256)
    found, nested, _ = quantized.quantize_absmax(absmax, jnp.float32(offset))
    np.testing.assert_array_equal(found, codes.numpy())
    np.testing.assert_array_equal(nested, state.absmax.numpy())


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_files(shape, double):
    """Their arrays become our kernel and are the same bytes again; ours make a state that they dequantise to the same."""
    kernel = normal(*shape)
    codes, state = theirs(kernel, double=double)
    arrays = {"weight": codes} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    arrays = {name: array.numpy() for name, array in arrays.items()}
    read = from_bitsandbytes(arrays)
    wanted = decoded(codes, state)
    np.testing.assert_allclose(dequantize(read).T, wanted, rtol=2e-6, atol=1e-7)
    again = to_bitsandbytes(read)
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].tobytes() == array.tobytes(), name

    ours = {name: torch.from_numpy(array.copy()) for name, array in to_bitsandbytes(quantize(kernel, double=double)).items()}
    weight = ours.pop("weight")
    rebuilt = functional.QuantState.from_dict(ours, "cpu")
    np.testing.assert_allclose(decoded(weight, rebuilt), wanted, rtol=2e-6, atol=5e-6)


def test_layer():
    """Linear4bit's state dict, and its output."""
    import bitsandbytes

    kernel, x = normal(64, 32), np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bitsandbytes.nn.Params4bit(torch.from_numpy(kernel.T.copy()), quant_type="nf4", requires_grad=False)
    layer = layer.to("cpu").train()
    arrays = {name: array.numpy() for name, array in layer.state_dict().items()}
    wanted = layer(torch.from_numpy(x).requires_grad_()).detach().numpy()
    np.testing.assert_allclose(product(x, from_bitsandbytes(arrays)), wanted, rtol=1e-4, atol=1e-4)
