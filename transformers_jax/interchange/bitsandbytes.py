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
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.interchange.weights import Weights
from transformers_jax.layers.quantized import NESTED_BLOCK, NF4, QuantizedKernel, dequantize, dynamic_map

STATE = "quant_state.bitsandbytes__"
KEY = "quantization_config"
"""The key of config.json that says how weights are quantised."""

_BESIDE = re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$")


class FourBitWeights(Weights):
    """The arrays of a folder whose matrices are in four bits: dequantised when they are asked for, or kernels as they are."""

    def names(self) -> list[str]:
        return [name for name in super().names() if not _BESIDE.search(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(_state(self._arrays(name), name)["shape"]) if self._packed(name) else super().shape(name)

    def array(self, name: str) -> np.ndarray:
        if not self._packed(name):
            return super().array(name)
        return np.asarray(dequantize(from_bitsandbytes(self._arrays(name), name), "float32")).T

    def part(self, name: str, axis: int, start: int, stop: int) -> np.ndarray:
        if not self._packed(name):
            return super().part(name, axis, start, stop)
        return self.array(name)[(*[slice(None)] * axis, slice(start, stop))]

    def kernel(self, name: str) -> Callable | None:
        if not self._packed(name):
            return None
        return lambda shape, inputs: from_bitsandbytes(self._arrays(name), name, shape=shape, inputs=inputs)

    def _packed(self, name: str) -> bool:
        return f"{name}.absmax" in self._files

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        """Of one parameter."""
        own = [other for other in self._files if other == name or _BESIDE.sub("", other) == name]
        return {other: super(FourBitWeights, self).array(other) for other in own}


def is_four_bit(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of weights in four bits.

    Raises:
      UserError: they are quantised in another way.
    """
    given = config.get(KEY)
    if given is None:
        return False
    kind = given.get("quant_method", "bitsandbytes" if given.get("load_in_4bit") or given.get("load_in_8bit") else None)
    if kind != "bitsandbytes" or not given.get("load_in_4bit") or given.get("bnb_4bit_quant_type", "fp4") != "nf4":
        shown = {"quant_method": kind} | {k: given[k] for k in ("load_in_8bit", "bnb_4bit_quant_type") if k in given}
        raise UserError(f"config.json: {KEY} {shown} is not read; bitsandbytes' load_in_4bit with bnb_4bit_quant_type nf4 is")
    return True


def config_of(kept: Sequence[str]) -> dict[str, Any]:
    """What config.json says of weights in NF4 with double quantisation.

    kept: names of modules that are linear maps and not quantised.
    """
    return {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": list(kept),
    }  # fmt: skip


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
