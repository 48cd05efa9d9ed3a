"""Every model, tiny, trained and decoded over meshes of the eight devices that the CPU is divided into: a script.

`python tiny_meshes.py MODEL …` prints one line of JSON: model → way → what `run` gives.
"""

import contextlib
import functools
import json
import sys

import jax
import numpy as np
import optax
from transformers_jax.search.genome import EVOLVED_TRANSFORMER, replace

from transformers_jax import models
from transformers_jax.decoding.decoder import Decoder
from transformers_jax.search import cell
from transformers_jax.tasks import masked_lm, translation
from transformers_jax.training import sharding
from transformers_jax.training.state import abstract_state
from transformers_jax.training.step import compile_eval_step, compile_step, make_eval_step, make_train_step

VOCAB = 500
"""So many that a top-k on CPUs goes by chunks, the last of which is padded: over `tensor` that is a collective permute."""

ROWS, LENGTH, STEPS = 8, 10, 2
PAD, BOS, EOS = 0, 1, 2
WAYS = {
    "data=2": (2, 1, 1),
    "data=2 tensor=2": (2, 1, 2),
    "fsdp=2 tensor=2": (1, 2, 2),
    "data=2 fsdp=2 tensor=2": (2, 2, 2),
    "pmap": (2, 1, 1),
}
"""Sizes of data, fsdp and tensor, by name of the way."""

LAYERS = {"encoder_layers": 1, "decoder_layers": 1}
GENOME = replace(EVOLVED_TRANSFORMER, {"encoder_cells": 1, "decoder_cells": 1}).text()
ENCODER = {"num_heads": 2, "hidden": 32, "layers": 2, "scan_layers": True, "max_length": 16, "head": "masked_lm"}
MODELS = {
    "transformer": {"num_heads": 2, "hidden": 32, **LAYERS},
    "evolved_transformer": {"num_heads": 2, **LAYERS},
    "luong": LAYERS,
    "genome": {"name": "transformer", "num_heads": 2, "hidden": 32, "genome": GENOME},
    "bert": ENCODER,
    "albert": ENCODER | {"embedding_width": 8},
    "distilbert": ENCODER,
    "flaubert": ENCODER,
}


@functools.cache
def build(name: str, dropout: float):
    config = {"name": name, "width": 16, "dropout": dropout, **MODELS[name]}
    if MODELS[name] is ENCODER or "embedding_width" in config:
        config |= {"attention_dropout": dropout}
    return (cell if "genome" in config else models).build(config, VOCAB)


class Masked:
    """The loss of a masked language model, without texts and therefore without a tokenizer."""

    def loss(self, output, batch, *, train):
        return masked_lm.Task.loss(self, output, batch, train=train)


def make_batch(seed: int) -> dict[str, np.ndarray]:
    """Rows of one or two examples and padding, of very unequal numbers of tokens, with the fields of both kinds of model."""
    random = np.random.default_rng(seed)
    first, second = random.integers(1, LENGTH // 2 + 1, (2, ROWS, 1)) * (np.arange(ROWS) > 0)[:, None]
    place = np.arange(LENGTH)
    segments = np.where(place < first, 1, np.where(place < first + second, 2, 0))
    positions = np.where(segments == 2, place - first, place) * (segments > 0)

    def tokens():
        return random.integers(3, VOCAB, segments.shape) * (segments > 0)

    batch = {f"{side}{field}": x for side in ("", "source_", "target_") for field, x in
             (("positions", positions), ("segments", segments))}  # fmt: skip
    batch |= {name: tokens() for name in ("tokens", "source", "target_inputs", "targets")}
    batch |= {"token_types": segments // 2, "weights": (place % 5 == 1) * (segments > 0)}
    return {name: field.astype(np.int32) for name, field in batch.items()}


def make_state(model, tx, mesh):
    """The same numbers on every mesh, none of them zeros or ones, without compiling the model's own."""
    random = np.random.default_rng(1)
    state = abstract_state(model, tx, make_batch(0), mesh)

    def draw(path, x):
        middle, size = (1.0, 0.2) if path[-1].key == "scale" else (0.0, 0.3)
        return (middle + size * random.standard_normal(x.shape)).astype(x.dtype)

    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    numbers = zeros.replace(params=jax.tree_util.tree_map_with_path(draw, state.params))
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.device_put(numbers, shardings), shardings


def run(name: str, sizes: tuple[int, int, int], *, parallelism: str = "jit", **options) -> dict:
    """What `measure` gives on a mesh of such sizes, which is in context as in a run."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)), devices)
    with jax.set_mesh(mesh) if parallelism == "jit" else contextlib.nullcontext():
        return measure(name, mesh, parallelism, **options)


def measure(name: str, mesh, parallelism: str, *, dropout: float = 0.1, decodes: bool = True) -> dict:
    """The mean loss and the gradient's norm of each step, the mean loss of an evaluation, and what the model of the start
    decodes: (token ids, score) of each sentence by method."""
    model, tx = build(name, dropout), optax.adam(0.01, eps=1e-3)
    task = Masked() if "layers" in MODELS[name] else translation.Task(None)
    state, shardings = make_state(model, tx, mesh)
    found = {}
    if decodes and "layers" not in MODELS[name]:
        found["decoded"] = {method: decode(model, state.params, mesh, method) for method in ("greedy", "beam")}

    step = make_train_step(model, task, tx, seed=2, parallelism=parallelism)
    step = compile_step(step, mesh, shardings, make_batch(0), parallelism=parallelism)
    found["steps"] = []
    for number in range(STEPS):
        state, sums = step(state, sharding.global_batch(make_batch(number), mesh, parallelism=parallelism))
        found["steps"].append([float(sums["loss"] / sums["weight"]), float(sums["grad_norm"])])
    evaluate = compile_eval_step(make_eval_step(model, task), mesh)
    sums = evaluate(state.model_params, state.model_state, sharding.global_batch(make_batch(9), mesh))
    return found | {"evaluated": float(sums["loss"] / sums["weight"])}


def decode(model, params, mesh, method):
    """Sentences of unequal limits, so that some devices' are done sooner than others'."""
    random = np.random.default_rng(3)
    sources = [[*random.integers(3, VOCAB, 1 + number % 7).tolist(), EOS] for number in range(11)]
    options = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "beam_size": 2, "extra_length": 0, "lengths": (8,), "mesh": mesh}
    decoder = Decoder(model, None, method=method, batch_size=16 if method == "beam" else 8, **options)
    decoder.sizes = decoder.sizes[-1:]  # one program
    return [[best.ids, best.score] for best, *_ in decoder.decode(sources, params)]


def every_way(name: str) -> dict:
    """What `run` gives on one device, and in every other way; "undropped" is one device without dropout, as under pmap."""
    ways = {"one": run(name, (1, 1, 1)), "undropped": run(name, (1, 1, 1), dropout=0.0, decodes=False)}
    for way, sizes in WAYS.items():
        options = {"parallelism": "pmap", "dropout": 0.0, "decodes": False} if way == "pmap" else {}
        ways[way] = run(name, sizes, **options)
    return ways


if __name__ == "__main__":
    print(json.dumps({name: every_way(name) for name in sys.argv[1:]}))
