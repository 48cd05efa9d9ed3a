"""Quantised kernels of `benchmarks.adapters` beside bitsandbytes': bytes a parameter, relative errors of weights and products.

    python -m benchmarks.adapters_bytes MODEL COUNT

The matrices are those of normal numbers, and of MODEL (what --init_from takes), the first COUNT or with 0 all. A row is a
line of JSON: of NF4 with double quantisation in blocks of 64, of int8 with a constant for each output (LLM.int8's, which
bitsandbytes has), and of int8 in blocks of 64 with double quantisation, which it has not. An error is ‖X − X̂‖ / ‖X‖, over all
matrices together; products are with 64 rows of normal numbers.
"""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from bitsandbytes import functional as bnb

from transformers_jax import models
from transformers_jax.finetuning.method import places_of
from transformers_jax.interchange.weights import Leaf
from transformers_jax.layers.places import KernelPlace
from transformers_jax.layers.quantized import dequantize, product, quantize
from transformers_jax.runs import initialise

KINDS = ("nf4", "int8 of an output", "int8")


def main(path: str, count: str) -> None:
    random = np.random.default_rng(0)
    normal = [random.standard_normal((1024, 1024)).astype(np.float32) for _ in range(4)]
    folder = initialise.folder_of(path)
    fields, (leaves, _, _) = initialise.described(folder), initialise.read(folder)
    places = places_of(models.build(fields, fields["vocab_size"]))
    kernels = {name: place for name, place in places.items() if isinstance(place, KernelPlace) and name in leaves}
    kernels = [as_matrix(leaves[name], place.inputs) for name, place in kernels.items()]
    kernels = kernels[: int(count) or None]
    for name, matrices in (("normal numbers", normal), ("the model's matrices", kernels)):
        for kind in KINDS:
            print(json.dumps({"name": f"{kind}, {name}", "matrices": len(matrices)} | errors(kind, matrices)), flush=True)
    print(json.dumps({"name": "all"}))


def as_matrix(leaf, inputs: int) -> Leaf:
    """A kernel, unread, as its matrix [A, C]."""
    shape = math.prod(leaf.shape[:inputs]), math.prod(leaf.shape[inputs:])
    return Leaf(shape, lambda: np.asarray(leaf, np.float32).reshape(shape))


def errors(kind: str, matrices) -> dict:
    """Bytes a parameter, and errors of both sides."""
    sums = {"ours": np.zeros(4), "bitsandbytes": np.zeros(4)}  # squares of errors and numbers, of weights and products
    held, size, random = {"ours": 0, "bitsandbytes": 0}, 0, np.random.default_rng(1)
    for leaf in matrices:
        matrix = np.asarray(leaf)
        rows, size = random.standard_normal((64, matrix.shape[0])).astype(np.float32), size + matrix.size
        for side, quantised in (("ours", ours), ("bitsandbytes", theirs)):
            if (found := quantised(kind, matrix, rows)) is None:
                continue
            bytes_, weights, products = found
            held[side] += bytes_
            for i, (x, y) in enumerate(((weights, matrix), (products, rows @ matrix))):
                sums[side][2 * i : 2 * i + 2] += np.sum((x - y) ** 2, dtype=float), np.sum(y**2, dtype=float)
    row = {}
    for side, (w, all_w, p, all_p) in sums.items():
        if held[side]:
            row[side] = {"bytes": round(held[side] / size, 5), "weights": round(math.sqrt(w / all_w), 5)}
            row[side]["products"] = round(math.sqrt(p / all_p), 5)
    return row


def ours(kind: str, matrix: np.ndarray, rows: np.ndarray):
    """(bytes of the live arrays, the weights again, the product)."""
    before = {id(x) for x in jax.live_arrays()}
    how = {"block": matrix.shape[0], "double": False} if kind == "int8 of an output" else {}
    kernel = jax.block_until_ready(quantize(jnp.asarray(matrix), kind.split()[0], **how))
    held = sum(x.nbytes for x in jax.live_arrays() if id(x) not in before)
    return held, np.asarray(dequantize(kernel, jnp.float32)), np.asarray(product(jnp.asarray(rows), kernel))


def theirs(kind: str, matrix: np.ndarray, rows: np.ndarray):
    """The same of bitsandbytes, whose matrices are [C, A]; None where it has no such kind."""
    x = torch.from_numpy(np.ascontiguousarray(matrix.T))
    if kind == "nf4":
        codes, state = bnb.quantize_4bit(x, blocksize=64, compress_statistics=True, quant_type="nf4")
        parts = [codes, state.absmax, state.offset, state.state2.absmax]
        weights = bnb.dequantize_4bit(codes, state).numpy().T
    elif kind == "int8 of an output":
        codes, absmax, _ = bnb.int8_vectorwise_quant(x)
        parts, weights = [codes, absmax], bnb.int8_vectorwise_dequant(codes, absmax).float().numpy().T
    else:
        return None
    return sum(part.numel() * part.element_size() for part in parts), weights, rows @ weights


if __name__ == "__main__":
    main(*sys.argv[1:])
