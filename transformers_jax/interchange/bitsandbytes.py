"""Kernels in four bits under bitsandbytes' names, as Hugging Face's files have them: both ways, byte for byte.

Of a parameter "weight" a safetensors file holds, next to the packed codes [n / 2, 1] uint8,

    weight.absmax                              uint8 codes, or float32 without double quantisation
    weight.quant_map                           float32 [16], NF4's values
    weight.nested_absmax                       float32, under double quantisation
    weight.nested_quant_map                    float32 [256], under double quantisation
    weight.quant_state.bitsandbytes__nf4       the bytes of a JSON object: block, dtype, shape [C, A], the mean of absmax
"""

import json
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.layers.quantized import NESTED_BLOCK, NF4, QuantizedKernel, dynamic_map

STATE = "quant_state.bitsandbytes__"


def to_bitsandbytes(kernel: QuantizedKernel, name: str = "weight") -> dict[str, np.ndarray]:
    """The arrays of one layer's kernel by the names they have in a file.

    Raises:
      UserError: the kernel is not NF4: bitsandbytes has no file of that kind.
      ValueError: the kernel is a stack of layers.
    """
    if not isinstance(kernel, QuantizedKernel) or kernel.kind != "nf4":
        raise UserError(f"{name}: bitsandbytes' files hold 4-bit kernels of the kind nf4, not {kernel.kind}")
    if kernel.stacked:
        raise ValueError(f"{name}: a stack of layers; write one layer at a time")
    inputs, outputs = kernel.matrix_shape
    state = {"quant_type": "nf4", "blocksize": kernel.block, "dtype": kernel.dtype, "shape": [outputs, inputs]}
    arrays = {
        name: np.asarray(kernel.codes).reshape(-1, 1),
        f"{name}.absmax": np.asarray(kernel.absmax).reshape(-1),
        f"{name}.quant_map": NF4,
    }
    if kernel.nested_absmax is not None:
        arrays[f"{name}.nested_absmax"] = np.asarray(kernel.nested_absmax)
        arrays[f"{name}.nested_quant_map"] = dynamic_map()
        offset = float(kernel.nested_offset)
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
    arrays[f"{name}.{STATE}nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return arrays


def from_bitsandbytes(
    arrays: Mapping[str, np.ndarray], name: str = "weight", *, shape: tuple[int, ...] | None = None, inputs: int = 1
) -> QuantizedKernel:
    """A kernel from a file's arrays, without rounding anything.

    Args:
      arrays: of a file, by name; other parameters may be among them.
      name: of the parameter.
      shape: of the kernel, if it is not the matrix [A, C] but, say, [D, N, H].
      inputs: how many leading axes of `shape` make up A.

    Raises:
      UserError: an array is missing, of another size, or the codes are of a kind that is not computed here.
    """
    state = _state(arrays, name)
    outputs, width = state["shape"]
    shape = tuple(shape or (width, outputs))
    if (math.prod(shape[:inputs]), math.prod(shape[inputs:])) != (width, outputs):
        raise UserError(f"{name}: 4-bit codes of a matrix {[width, outputs]} do not make a kernel {list(shape)}")
    block = state["blocksize"]
    lines = outputs if width % block == 0 else 1
    blocks = -(-width * outputs // block)
    codes = np.ascontiguousarray(arrays[name]).view(np.uint8)  # some files keep the bytes as bfloat16 or float32
    absmax, nested, offset = _array(arrays, f"{name}.absmax", blocks), None, None
    if "nested_offset" in state:
        nested = jnp.asarray(_array(arrays, f"{name}.nested_absmax", -(-blocks // NESTED_BLOCK)), jnp.float32)
        offset = jnp.float32(state["nested_offset"])
    if codes.size != -(-width * outputs // 2):
        raise UserError(f"{name}: {codes.size} bytes for {width * outputs} numbers of 4 bits")
    return QuantizedKernel(
        jnp.asarray(codes.reshape(lines, -1)),
        jnp.asarray(absmax.reshape(lines, -1), jnp.uint8 if nested is not None else jnp.float32),
        nested,
        offset,
        kind="nf4",
        shape=shape,
        inputs=inputs,
        block=block,
        dtype=state["dtype"],
    )


def _state(arrays, name) -> dict:
    """The JSON object of a parameter; refuses what it says that we do not compute."""
    kinds = [key.removeprefix(f"{name}.{STATE}") for key in arrays if key.startswith(f"{name}.{STATE}")]
    if kinds != ["nf4"]:
        raise UserError(f"{name}: 4-bit codes of the kind nf4 are read, not {', '.join(kinds) or 'a plain array'}")
    state = json.loads(bytes(np.asarray(arrays[f"{name}.{STATE}nf4"])))
    tables = {"quant_map": NF4}
    if "nested_offset" in state:
        tables["nested_quant_map"] = dynamic_map()
        if state["nested_blocksize"] != NESTED_BLOCK:
            raise UserError(f"{name}: nested_blocksize {state['nested_blocksize']}, only {NESTED_BLOCK} is read")
    for key, table in tables.items():
        if not np.allclose(_array(arrays, f"{name}.{key}", len(table)), table, rtol=0, atol=1e-6):
            raise UserError(f"{name}.{key}: other values than bitsandbytes' own are not read")
    if len(state["shape"]) != 2:
        raise UserError(f"{name}: 4-bit codes of shape {state['shape']}, only matrices are read")
    return state


def _array(arrays, name, size) -> np.ndarray:
    if name not in arrays:
        raise UserError(f"the file lacks {name}, which its 4-bit codes need")
    array = np.asarray(arrays[name]).reshape(-1)
    if array.size != size:
        raise UserError(f"{name}: {array.size} numbers, {size} are wanted")
    return array
