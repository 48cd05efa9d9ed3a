"""The whole Transformer with its loss, pre- and post-norm, on packed rows: against torch.nn.Transformer.

PyTorch gets sinusoids, embeddings and the softmax by hand, the layers from torch.nn.Transformer. Attention biases are on,
as it cannot do without; post-norm models get no norm after the last layer, as in Vaswani et al. 2017.

Axes: B batch rows, T target length, S source length, N heads, D model width, V vocabulary, L layers.
"""

import functools

import jax
import numpy as np
from parity.attention import attention_weights, seen_by
from parity.case import Case, differentiate, differentiate_torch, draw_parameters, variables

from transformers_jax import models
from transformers_jax.layers.losses import cross_entropy

D, N, HIDDEN, L, V, SMOOTHING = 8, 2, 12, 2, 11, 0.1
SEGMENTS = {"source": [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]], "target": [[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]]}
SEGMENTS = {name: np.array(rows, np.int32) for name, rows in SEGMENTS.items()}
POSITIONS = {"source": [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]], "target": [[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]]}
POSITIONS = {name: np.array(rows, np.int32) for name, rows in POSITIONS.items()}


def build(norm: str, scan: bool):
    config = dict(name="transformer", width=D, num_heads=N, mlp_width=HIDDEN, encoder_layers=L, decoder_layers=L)
    return models.build(config | dict(norm=norm, scan_layers=scan, attention_bias=True, dropout=0.0), V)


def draw(norm: str, scan: bool, rng) -> dict:
    def tokens(stream):
        return rng.integers(1, V, SEGMENTS[stream].shape).astype(np.int32) * (SEGMENTS[stream] > 0)

    inputs = {"source": tokens("source"), "target_inputs": tokens("target"), "targets": tokens("target")}
    for stream in SEGMENTS:
        inputs |= {f"{stream}_positions": POSITIONS[stream], f"{stream}_segments": SEGMENTS[stream]}
    return inputs | draw_parameters(rng, build(norm, scan), inputs)


def ours(norm: str, scan: bool, inputs: dict) -> dict:
    def function(i):
        hidden, table, _ = build(norm, scan).apply(variables(i), i)
        weights = i["target_segments"] > 0
        sums = cross_entropy(hidden, table, i["targets"], weights, SMOOTHING)
        loss = sums.loss / sums.weight
        return loss, {"hidden": hidden * weights[..., None], "loss": loss}

    return differentiate(function, inputs)


def weights(torch, i: dict, norm: str, scan: bool) -> dict:
    """The parameters of torch.nn.Transformer from ours."""
    mapped = {}

    def take_norm(theirs: str, scale, bias):
        mapped.update({f"{theirs}.weight": scale, f"{theirs}.bias": bias})

    for stack, attentions in (("encoder", ["self"]), ("decoder", ["self", "cross"])):
        for number in range(L):

            def leaf(name, stack=stack, number=number):
                if scan:
                    return i[f"params/{stack}/layer/block/{name}"][number]
                return i[f"params/{stack}/layer_{number}/block/{name}"]

            layer = f"{stack}.layers.{number}."
            for order, kind in enumerate(attentions, 1):
                attention = {"self": "self_attn.", "cross": "multihead_attn."}[kind]
                part = functools.partial("{}_attention/{}".format, kind)
                mapped |= attention_weights(torch, lambda name, leaf=leaf, part=part: leaf(part(name)), layer + attention)
                take_norm(f"{layer}norm{order}", leaf(f"{kind}_norm/scale"), leaf(f"{kind}_norm/bias"))
            take_norm(f"{layer}norm{len(attentions) + 1}", leaf("feed_norm/scale"), leaf("feed_norm/bias"))
            for theirs, part in (("linear1", "expand"), ("linear2", "contract")):
                mapped[f"{layer}{theirs}.weight"] = leaf(f"feed_forward/{part}/kernel").T
                mapped[f"{layer}{theirs}.bias"] = leaf(f"feed_forward/{part}/bias")
        if norm == "pre":
            take_norm(f"{stack}.norm", i[f"params/{stack}_norm/scale"], i[f"params/{stack}_norm/bias"])
    return mapped


def build_torch(torch, norm: str):
    """torch.nn.Transformer, without dropout and, if post-norm, without final norms."""
    nn, pre = torch.nn, norm == "pre"
    options = dict(dropout=0.0, activation="relu", layer_norm_eps=1e-6, batch_first=True, norm_first=pre)

    def final():
        return nn.LayerNorm(D, eps=1e-6) if pre else None

    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(D, N, HIDDEN, **options), L, final(), enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(D, N, HIDDEN, **options), L, final())
    return nn.Transformer(D, N, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)


def sinusoids(torch, positions):
    """Vaswani et al. 2017, section 3.5: positions [B, T] → [B, T, D]."""
    angles = positions.unsqueeze(-1) / 10000 ** (torch.arange(0, D, 2) / D)
    encoded = torch.zeros(*positions.shape, D)
    encoded[..., 0::2], encoded[..., 1::2] = torch.sin(angles), torch.cos(angles)
    return encoded


def theirs(norm: str, scan: bool, torch, inputs: dict) -> dict:
    model = build_torch(torch, norm)

    def blocked(query_segments, key_segments, causal=False):
        """True where a query must not look, [B * N, T, S]; padding may look anywhere, as some key must be seen."""
        seen = seen_by(torch, query_segments, key_segments, causal)
        return (~seen & seen.any(2, keepdim=True)).repeat_interleave(N, 0)

    def function(i):
        table = i["params/embedding"]
        x, y = (
            table[i[name]] * D**0.5 + sinusoids(torch, i[f"{stream}_positions"])
            for name, stream in (("source", "source"), ("target_inputs", "target"))
        )
        source, target = i["source_segments"], i["target_segments"]
        masks = {
            "src_mask": blocked(source, source),
            "tgt_mask": blocked(target, target, causal=True),
            "memory_mask": blocked(target, source),
        }
        hidden = torch.func.functional_call(model, weights(torch, i, norm, scan), (x, y), masks, strict=True)
        logits = (hidden @ table.T).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(
            logits, i["targets"].flatten(), ignore_index=0, label_smoothing=SMOOTHING
        )
        return loss, {"hidden": hidden * (target > 0).unsqueeze(-1), "loss": loss}

    return differentiate_torch(torch, function, inputs)


def case(norm: str, scan: bool) -> Case:
    """Biases of keys add the same to all of a query's scores, which the softmax takes away again."""
    stacks = ("encoder", "decoder")
    layers = ["layer"] if scan else [f"layer_{n}" for n in range(L)]
    idle = [f"params/{s}/{n}/block/self_attention/key/bias" for s in stacks for n in layers]
    idle += [f"params/decoder/{n}/block/cross_attention/key/bias" for n in layers]
    parts = (functools.partial(part, norm, scan) for part in (draw, ours, theirs))
    drawn, our, their = parts
    return Case(f"transformer_{norm}_norm", drawn, jax.jit(our), their, tolerance=1e-4, idle=tuple(idle))


CASES = [case("pre", scan=True), case("post", scan=False)]
