"""Every model, tiny, trained and decoded over meshes of the eight devices that the CPU is divided into: a script.

`python tiny_meshes.py MODEL …` prints one line of JSON: model → way → what `run` gives.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformers_jax import models
from transformers_jax.decoding.decoder import Decoder
from transformers_jax.decoding.prompts import PromptDecoder
from transformers_jax.genomes.genome import EVOLVED_TRANSFORMER, replace
from transformers_jax.layers.losses import label_sums
from transformers_jax.mesh import AXES, global_batch, make_mesh
from transformers_jax.models.protocol import IMAGES, TRANSLATES
from transformers_jax.tasks import masked_lm, translation
from transformers_jax.tasks.task import Task
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
ENCODER = {"num_heads": 2, "mlp_width": 32, "layers": 2, "scan_layers": True, "max_length": 16, "head": "masked_lm"}
DECODER = {"num_heads": 2, "mlp_width": 32, "layers": 2, "max_length": 16}
IMAGE = {"image_size": 16, "channels": 3, "labels": 5}
MODELS = {
    "transformer": {"num_heads": 2, "mlp_width": 32, **LAYERS},
    "evolved_transformer": {"num_heads": 2, **LAYERS},
    "luong": LAYERS,
    "genome": {"name": "transformer", "num_heads": 2, "mlp_width": 32, "genome": GENOME},
    "bert": ENCODER,
    "albert": ENCODER | {"embedding_width": 8},
    "distilbert": ENCODER,
    "flaubert": ENCODER,
    "gpt": DECODER | {"scan_layers": True},
    "llama": DECODER | {"kv_heads": 1},
    "lstm": {"layers": 2},
    "perceptron": IMAGE | {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    "vit": {"num_heads": 2, "mlp_width": 32, "layers": 1, "patch_size": 8} | IMAGE,
    "swin": {"depths": (1, 1), "num_heads": (2, 4), "window": 2, "patch_size": 2} | IMAGE,
    "segformer": {"depths": (1, 1), "widths": (8, 16), "num_heads": (1, 2), "reductions": (2, 1), "mlp_ratios": (2, 2),
                  "patch_sizes": (7, 3), "strides": (4, 2)} | IMAGE,  # fmt: skip
    "convnext": {"depths": (1, 1), "widths": (8, 16)} | IMAGE,
}

DECODING = ("transformer", "evolved_transformer", "luong", "genome")
"""Those that write a target after a source here."""

CONTINUING = ("gpt", "llama", "lstm")
"""Those that go on from prompts."""


@functools.cache
def build(name: str, dropout: float):
    config = {"name": name, "width": 16, **MODELS[name]}
    module = importlib.import_module(f"transformers_jax.models.{config['name']}")
    fields = {field.name for field in dataclasses.fields(module.Config)}
    dropouts = {field for field in fields if field.endswith("dropout")}
    config |= dict.fromkeys(dropouts, dropout) | dict.fromkeys({"drop_path"} & fields, 0.0)
    return models.build({key: value for key, value in config.items() if key in fields | {"name"}}, VOCAB)


class Labels(Task):
    """The loss of labels of images, five of them."""

    def loss(self, output, batch, *, train):
        sums = label_sums(output.logits, batch["label"], jnp.ones(batch["label"].shape))
        return sums.loss, sums.weight, {}


class Masked(Task):
    """The loss of a language model over tokens with weights, without texts and therefore without a tokenizer."""

    def loss(self, output, batch, *, train):
        return masked_lm.Task.loss(self, output, batch, train=train)


def task_of(model):
    """What a model learns here, by what it tells about itself."""
    about = model.protocol()
    if IMAGES in about.reads:
        return Labels()
    return translation.Task(None) if TRANSLATES in about.does else Masked()


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
    batch |= {"token_types": segments // 2, "weights": (place % 5 == 1) * (segments > 0), "label": random.integers(0, 5, ROWS)}
    batch = {name: field.astype(np.int32) for name, field in batch.items()}
    return batch | {"image": random.integers(0, 256, (ROWS, 16, 16, 3)).astype(np.uint8)}


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
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    with jax.set_mesh(mesh) if parallelism == "jit" else contextlib.nullcontext():
        return measure(name, mesh, parallelism, **options)


def measure(name: str, mesh, parallelism: str, *, dropout: float = 0.1, decodes: bool = True) -> dict:
    """The mean loss and the gradient's norm of each step, the mean loss of an evaluation, and what the model of the start
    decodes: (token ids, score) of each sentence by method."""
    model, tx = build(name, dropout), optax.adam(0.01, eps=1e-3)
    task = task_of(model)
    state, shardings = make_state(model, tx, mesh)
    found = {}
    if decodes and name in DECODING:
        found["decoded"] = {method: decode(model, state.params, mesh, method) for method in ("greedy", "beam")}
    if decodes and name in CONTINUING:
        found["decoded"] = {method: go_on(model, state.params, mesh, method) for method in ("greedy", "beam")}

    step = make_train_step(model, task, tx, seed=2, parallelism=parallelism)
    step = compile_step(step, mesh, shardings, make_batch(0), parallelism=parallelism)
    found["steps"] = []
    for number in range(STEPS):
        state, sums = step(state, global_batch(make_batch(number), mesh, parallelism=parallelism))
        found["steps"].append([float(sums["loss"] / sums["weight"]), float(sums["grad_norm"])])
    evaluate = compile_eval_step(make_eval_step(model, task), mesh)
    sums = evaluate(state.model_params, state.model_state, global_batch(make_batch(9), mesh))
    return found | {"evaluated": float(sums["loss"] / sums["weight"])}


def decode(model, params, mesh, method):
    """Sentences of unequal limits, so that some devices' are done sooner than others'."""
    random = np.random.default_rng(3)
    sources = [[*random.integers(3, VOCAB, 1 + number % 7).tolist(), EOS] for number in range(11)]
    options = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "beam_size": 2, "extra_length": 0, "lengths": (8,), "mesh": mesh}
    decoder = Decoder(model, None, method=method, batch_size=16 if method == "beam" else 8, **options)
    decoder.sizes = decoder.sizes[-1:]  # one program
    return [[best.ids, best.score] for best, *_ in decoder.decode(sources, params)]


def go_on(model, params, mesh, method):
    """Prompts of unequal lengths and limits; of each two beams, or one output."""
    random = np.random.default_rng(4)
    prompts = [random.integers(3, VOCAB, 1 + number % 6).tolist() for number in range(11)]
    options = {"longest": 16, "batch_size": 32, "mesh": mesh, "beam_size": 2, "n_best": 2 if method == "beam" else 1}
    found = PromptDecoder(model, params, ends=(EOS,), method=method, **options).decode(prompts, limits=[*range(1, 12)])
    return [[best.ids, best.score] for best, *_ in found]


def every_way(name: str) -> dict:
    """What `run` gives on one device, and in every other way; "undropped" is one device without dropout, as under pmap."""
    ways = {"one": run(name, (1, 1, 1)), "undropped": run(name, (1, 1, 1), dropout=0.0, decodes=False)}
    for way, sizes in WAYS.items():
        options = {"parallelism": "pmap", "dropout": 0.0, "decodes": False} if way == "pmap" else {}
        ways[way] = run(name, sizes, **options)
    return ways


if __name__ == "__main__":
    print(json.dumps({name: every_way(name) for name in sys.argv[1:]}))
