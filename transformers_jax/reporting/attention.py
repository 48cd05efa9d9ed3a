"""Attention weights out of any model of this codebase, for pictures.

Axes: L layers, B batch rows, N heads, T target (query) length, S source (key) length.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from transformers_jax.data import collate as collating
from transformers_jax.errors import UserError
from transformers_jax.runs.experiment import SAMPLES, Experiment


class Attention(NamedTuple):
    """What one picture shows.

    weights: [N, T, S].
    target_tokens: T labels: the tokens that were predicted while attending so.
    source_tokens: S labels: the tokens attended to.
    title: where the weights come from.
    down, across: what the two kinds of tokens are.
    """

    weights: np.ndarray
    target_tokens: list[str]
    source_tokens: list[str]
    title: str = "Attention"
    down: str = "target tokens, predicted"
    across: str = "source tokens, attended to"


def attention_weights(model, params, batch, model_state=None) -> dict[str, np.ndarray]:
    """Runs the model on a batch and returns the weights of every attention layer.

    Args:
      model: a module whose attention sows "weights" when the collection "intermediates" is mutable.
      params: its parameters.
      batch: what it reads.
      model_state: other collections it needs, e.g. {"batch_stats": …}.

    Returns:
      [B, N, T, S] by the path of the layer, sorted by name and number, e.g. "decoder/layer_1/block/cross_attention".
      Layers that the model scans, whose weights come stacked [L, B, N, T, S], have the names they would have unscanned.

    Raises:
      UserError: the model has no attention that shows its weights.
    """

    @jax.jit
    def run(variables, batch):
        return model.apply(variables, batch, deterministic=True, mutable=["intermediates"])[1]["intermediates"]

    sown = flatten_dict(jax.device_get(run({"params": nn.unbox(params), **(model_state or {})}, dict(batch))))
    found = {}
    for path, values in sown.items():
        if path[-1] == "weights":
            for weights in values:
                found.update(_by_layer(path[:-1], np.asarray(weights, np.float32)))
    if not found:
        raise UserError(f"{type(model).__module__} has no attention weights to show")
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _by_layer(path: tuple[str, ...], weights: np.ndarray) -> dict[str, np.ndarray]:
    """{name: [B, N, T, S]}, taking stacked layers apart: their "layer" becomes "layer_0", "layer_1", …"""
    if weights.ndim == 4:
        return {"/".join(path) or "attention": weights}
    found = {}
    for number, layer in enumerate(weights):
        named = tuple(f"layer_{number}" if part == "layer" else part for part in path)
        found |= _by_layer(named if named != path else (*path, str(number)), layer)
    return found


def _natural(name: str) -> list:
    """A key that sorts layer_2 before layer_10."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return ["".join(c for c in name if not c.isdigit()), [int(d) for d in digits]]


def encoder_decoder_layers(weights: dict[str, np.ndarray]) -> list[str]:
    """Names of the layers that attend from target to source, from the input on.

    Raises:
      UserError: there are none.
    """
    names = [name for name in weights if "cross" in name] or [name for name in weights if name == "attention"]
    if not names:
        raise UserError(f"no layer attends from target to source; there are: {', '.join(weights)}")
    return names


def attention_of(
    model, params, batch, source_tokens: list[str], target_tokens: list[str], *, layer: int = -1, model_state=None
) -> Attention:
    """The weights with which one sentence pair is translated.

    Args:
      model, params, model_state: as in `attention_weights`.
      batch: its first row begins with the pair.
      source_tokens: the tokens of the source, as many as are to be shown.
      target_tokens: the tokens predicted, one for each target position.
      layer: which of the layers that attend from target to source; the last if not given.

    Raises:
      UserError: there is no such layer.
    """
    weights = attention_weights(model, params, batch, model_state)
    names = encoder_decoder_layers(weights)
    if not -len(names) <= layer < len(names):
        raise UserError(f"there is no layer {layer} that attends from target to source; there are {len(names)}")
    pair = weights[names[layer]][0, :, : len(target_tokens), : len(source_tokens)]  # [N, T, S]
    number = layer % len(names) + 1
    title = "Attention from target to source" + (f", layer {number} of {len(names)}" if len(names) > 1 else "")
    return Attention(pair, list(target_tokens), list(source_tokens), title)


def attention_example(experiment: Experiment):
    """The attention with which a trained run translates one short sentence, for a picture.

    Raises:
      UserError: there is no trained model, no sentence, or no attention in the model.
    """
    translated = (s for s in experiment.samples() if "source" in s and "translation" in s)
    chosen = next((s for s in translated if 5 <= len(s["source"].split()) <= 12), None)
    if chosen is None:
        raise UserError(f"no short sentence in {experiment.workdir / SAMPLES}, which a run writes when it ends")
    t, streams = experiment.tokenizer, experiment.task.streams
    fields = experiment.task.encode({"source": chosen["source"], "target": chosen["translation"]})
    example = tuple(np.array([fields[name] for name in names], np.int32) for names in streams.values())
    shape = collating.BatchShape(1, tuple(part.shape[1] for part in example))
    batch = collating.assemble([[example]], streams=streams, shape=shape)
    model = experiment.trained()
    tokens = [[t.token(i) for i in fields[name]] for name in ("source", "targets")]
    return attention_of(experiment.model, model["params"], batch, *tokens, model_state=model["model_state"])
