"""4-bit kernels under bitsandbytes' names: there and back, and what is refused. The files themselves: tests/parity."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from transformers_jax.errors import UserError
from transformers_jax.interchange.bitsandbytes import from_bitsandbytes, to_bitsandbytes
from transformers_jax.layers.quantized import quantize


def kernel(*shape, **options):
    return quantize(np.random.default_rng(0).normal(size=shape).astype(np.float32), **options)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape,inputs", [((64, 10), 1), ((30, 9), 1), ((64, 2, 16), 1), ((2, 32, 16), 2)])
def test_there_and_back(shape, inputs, double):
    wanted = kernel(*shape, inputs=inputs, double=double)
    arrays = to_bitsandbytes(wanted, "query.weight")
    assert set(arrays) >= {"query.weight", "query.weight.absmax", "query.weight.quant_state.bitsandbytes__nf4"}
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    found = from_bitsandbytes(arrays, "query.weight", shape=shape, inputs=inputs)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        np.testing.assert_array_equal(one, other)


def test_bytes_kept_as_another_type():
    arrays = to_bitsandbytes(kernel(64, 8))
    flat = arrays["weight"].reshape(-1).view(ml_dtypes.bfloat16).reshape(-1, 1)
    found = from_bitsandbytes({**arrays, "weight": flat})
    np.testing.assert_array_equal(found.codes, kernel(64, 8).codes)


def changed(arrays, **values):
    """The arrays with other entries in their state."""
    name = "weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(arrays[name])) | values
    return {**arrays, name: np.frombuffer(json.dumps(state).encode(), np.uint8)}


def test_refused():
    arrays = to_bitsandbytes(kernel(64, 8))
    state = arrays["weight.quant_state.bitsandbytes__nf4"]
    without = {name: array for name, array in arrays.items() if "quant_state" not in name}
    for given, message in [
        (without, "not a plain array"),
        ({**without, "weight.quant_state.bitsandbytes__fp4": state}, "not fp4"),
        ({name: array for name, array in arrays.items() if "nested_absmax" not in name}, "lacks weight.nested_absmax"),
        ({**arrays, "weight": arrays["weight"][1:]}, "255 bytes for 512 numbers"),
        ({**arrays, "weight.absmax": arrays["weight.absmax"][1:]}, "weight.absmax: 7 numbers, 8"),
        ({**arrays, "weight.quant_map": arrays["weight.quant_map"] * 2}, "weight.quant_map: other values"),
        (changed(arrays, nested_blocksize=64), "nested_blocksize 64"),
        (changed(arrays, shape=[8, 4, 16]), r"shape \[8, 4, 16\]"),
    ]:
        with pytest.raises(UserError, match=message):
            from_bitsandbytes(given)
    with pytest.raises(UserError, match=r"do not make a kernel \[32, 2, 16\]"):
        from_bitsandbytes(arrays, shape=(32, 2, 16))
    with pytest.raises(UserError, match="not int8"):
        to_bitsandbytes(kernel(64, 8, kind="int8"))
    with pytest.raises(ValueError, match="one layer"):
        to_bitsandbytes(kernel(2, 64, 8, stacked=True))
