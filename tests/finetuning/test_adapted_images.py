"""Models of images, with the heads of labels, pixels and objects: adapters, LoRA and QLoRA."""

import functools

import jax
import numpy as np
import optax
import pytest
from adapted import plain, randomised
from models.images import build, image, variables

from transformers_jax import parameters
from transformers_jax.finetuning import lora
from transformers_jax.finetuning.method import Finetuning, places_of
from transformers_jax.finetuning.trainable import Options, patterns
from transformers_jax.layers.adapter import ADAPTER
from transformers_jax.layers.places import AdapterPlace, KernelPlace
from transformers_jax.layers.quantized import is_quantized

HEADS = {
    "classification": {},
    "segmentation": dict(decoder_width=6),
    "detection": dict(decoder_width=8, decoder_layers=1),
}
CASES = [("vit", "classification"), ("convnext", "segmentation"), ("swin", "detection"), ("segformer", "segmentation")]
METHODS = {
    "adapters": dict(method="adapters", adapter_width=3),
    "lora": dict(method="lora", rank=2, targets=(".",)),
    "qlora": dict(method="lora", rank=2, targets=(".",), quantization="nf4", block=4),
    "head too": dict(method="lora", rank=1, targets=(".",), new_head=False),
}


@functools.cache
def model_of(kind: str, head: str):
    """(model, its variables); nothing drops out."""
    model = build(kind, head=head, drop_path=0.0, **HEADS[head])
    return model, variables(model)


def changed(kind: str, head: str, method: str) -> tuple[dict, tuple]:
    """(parameters after the transform, patterns of what learns)."""
    model, given = model_of(kind, head)
    boxes = jax.eval_shape(lambda: model.init(jax.random.key(0), model.protocol().example(B=1)))["params"]
    boxed = jax.tree.map(lambda box, x: box.replace_boxed(x), boxes, given["params"], is_leaf=parameters.is_boxed)
    own = patterns({"finetuning": METHODS[method]})
    adapt = Finetuning(Options(**METHODS[method]), places_of(model), own)
    return plain(adapt(jax.random.key(1), boxed)), own


def outputs(kind: str, head: str, params) -> list[np.ndarray]:
    model, given = model_of(kind, head)
    found = _apply(model, given | {"params": params}, image(32, 32))
    return [np.asarray(x) for x in jax.tree.leaves(found)]


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, pixels):
    return model.apply(variables, {"image": pixels})


def largest(first, second) -> float:
    return max(np.abs(x - y).max() / max(1, np.abs(y).max()) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("kind, head", CASES)
def test_models_start_as_they_were_and_merge(kind, head):
    model, given = model_of(kind, head)
    before, places = outputs(kind, head, given["params"]), places_of(model)

    params, _ = changed(kind, head, "adapters")
    count = sum(isinstance(place, AdapterPlace) for place in places.values())
    assert len(parameters.matching(parameters.flat(params), ADAPTER)) == 4 * count > 0
    assert largest(outputs(kind, head, params), before) < 1e-5
    assert largest(outputs(kind, head, randomised(params, ADAPTER)), before) > 1e-3

    params, _ = changed(kind, head, "lora")
    assert largest(outputs(kind, head, params), before) < 1e-5
    learned = randomised(params, "lora_b$")
    found = outputs(kind, head, learned)
    assert largest(found, before) > 1e-3 and largest(outputs(kind, head, lora.merged(learned)), found) < 1e-5

    learned = randomised(changed(kind, head, "qlora")[0], "lora_b$")
    kernels = {name for name, leaf in parameters.flat(learned).items() if is_quantized(leaf)}
    assert kernels and largest(outputs(kind, head, lora.merged(learned)), outputs(kind, head, learned)) < 1e-5

    params, own = changed(kind, head, "head too")
    learn = parameters.matching(parameters.flat(params), own)
    kernels = {name for name, place in places.items() if isinstance(place, KernelPlace)}
    assert {name.replace("lora_a", "kernel") for name in learn if name.endswith("lora_a")} == kernels
    assert all("lora_" in name for name in learn)


@pytest.mark.parametrize("method", ["adapters", "qlora"])
@pytest.mark.parametrize("kind, head", [CASES[0], CASES[2]])
def test_only_what_learns_changes(kind, head, method):
    """Three updates towards other outputs: bit for bit, and a quantised base not at all."""
    (model, given), (params, own) = model_of(kind, head), changed(kind, head, method)
    learn, frozen = parameters.split(params, own)
    rest = {name: tree for name, tree in given.items() if name != "params"}
    tx = optax.adam(1e-2)

    @jax.jit
    def update(learn, state, frozen):
        def loss(learn):
            found = model.apply({"params": parameters.merge(learn, frozen), **rest}, {"image": image(32, 32)})
            return sum(((x - 1.0) ** 2).mean() for x in jax.tree.leaves(found) if x.dtype == np.float32)

        value, gradients = jax.value_and_grad(loss)(learn)
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(learn, updates), state, frozen, value

    now, state, after, losses = learn, tx.init(learn), frozen, []
    for _ in range(3):
        now, state, after, value = update(now, state, after)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(frozen), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    moved = {name for name, x in parameters.flat(now).items() if not np.array_equal(x, parameters.flat(learn)[name])}
    assert moved >= parameters.matching(parameters.flat(learn), r"lora_b$|adapter/up/kernel$")
