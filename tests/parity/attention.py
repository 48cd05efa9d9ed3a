"""Attention and feed-forward: against torch.nn.functional.scaled_dot_product_attention, torch.nn.MultiheadAttention.

Axes: B batch rows, T target (query) length, S source (key) length, N heads, H head width, D model width, F hidden width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from parity.case import Case, differentiate, differentiate_torch, draw_parameters, normal, variables

from transformers_jax.layers.attention import MultiHeadAttention, dot_product_attention
from transformers_jax.layers.feedforward import FeedForward
from transformers_jax.layers.masks import Mask
from transformers_jax.layers.norms import LayerNorm

B, T, S, N, H, F = 2, 5, 6, 2, 4, 12
D = N * H
FULL = np.ones((B, S), np.int32)
PADDED = np.array([[1] * S, [1] * (S - 2) + [0] * 2], np.int32)
PACKED = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 3, 3]], np.int32)


def seen_by(torch, query_segments, key_segments, causal: bool):
    """Which query sees which key, bool [B, T, S], in PyTorch's words."""
    queries, keys = query_segments.unsqueeze(2), key_segments.unsqueeze(1)
    seen = (queries == keys) & (queries > 0)
    return torch.tril(seen) if causal else seen


# Scaled dot products ------------------------------------------------------------------------------------------------


def draw_dots(query_segments, key_segments, bias: bool, rng) -> dict:
    (rows, length), keys = query_segments.shape, key_segments.shape[1]
    inputs = {"q": normal(rng, rows, length, N, H), "k": normal(rng, rows, keys, N, H), "v": normal(rng, rows, keys, N, H)}
    inputs |= {"query_segments": query_segments, "key_segments": key_segments, "cotangent": normal(rng, rows, length, N, H)}
    return inputs | ({"bias": normal(rng, rows, N, length, keys)} if bias else {})


def our_dots(causal: bool, inputs: dict) -> dict:
    def function(i):
        mask = Mask(i["query_segments"], i["key_segments"], causal)
        out = dot_product_attention(i["q"], i["k"], i["v"], mask, bias=i.get("bias"))
        return jnp.sum(out * i["cotangent"]), {"out": out}

    return differentiate(function, inputs)


def their_dots(causal: bool, torch, inputs: dict) -> dict:
    """Queries that see nothing see everything here, and their result is left out: zeros, as ours promises."""

    def function(i):
        seen = seen_by(torch, i["query_segments"], i["key_segments"], causal)
        seeing = seen.any(2)
        mask = (seen | ~seeing.unsqueeze(2)).unsqueeze(1)  # [B, 1, T, S]
        if "bias" in i:
            mask = i["bias"].masked_fill(~mask, float("-inf"))
        q, k, v = (i[name].transpose(1, 2) for name in "qkv")  # [B, N, T, H]
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        out = torch.where(seeing[:, :, None, None], out, 0.0)
        return (out * i["cotangent"]).sum(), {"out": out}

    return differentiate_torch(torch, function, inputs)


def dots(name: str, query_segments, key_segments, *, causal: bool = False, bias: bool = False) -> Case:
    return Case(
        f"dot_product_attention_{name}",
        functools.partial(draw_dots, query_segments, key_segments, bias),
        jax.jit(functools.partial(our_dots, causal)),
        functools.partial(their_dots, causal),
    )


# Multi-head attention -----------------------------------------------------------------------------------------------


def draw_heads(cross: bool, rng) -> dict:
    inputs = {"x": normal(rng, B, T if cross else S, D)}
    inputs |= {"context": normal(rng, B, S, D)} if cross else {}
    module = MultiHeadAttention(N, use_bias=True)
    inputs |= draw_parameters(rng, module, inputs["x"], inputs.get("context"), mask=None)
    return inputs | {"key_segments": PADDED, "cotangent": normal(rng, *inputs["x"].shape)}


def our_heads(cross: bool, inputs: dict) -> dict:
    def function(i):
        mask = Mask(jnp.ones(i["x"].shape[:2], jnp.int32), i["key_segments"], not cross)
        options = {"mask": mask, "mutable": ["intermediates"]}
        out, pictures = MultiHeadAttention(N, use_bias=True).apply(variables(i), i["x"], i.get("context"), **options)
        [weights] = pictures["intermediates"]["weights"]
        return jnp.sum(out * i["cotangent"]), {"out": out, "weights": weights}

    return differentiate(function, inputs)


def attention_weights(torch, leaf, prefix: str = "") -> dict:
    """The parameters of torch.nn.MultiheadAttention from ours, leaf(name): one matrix of query, key and value rows."""
    three, width = ("query", "key", "value"), leaf("query/kernel").shape[0]
    return {
        f"{prefix}in_proj_weight": torch.cat([leaf(f"{name}/kernel").reshape(width, -1).T for name in three]),
        f"{prefix}in_proj_bias": torch.cat([leaf(f"{name}/bias").reshape(-1) for name in three]),
        f"{prefix}out_proj.weight": leaf("out/kernel").reshape(-1, width).T,
        f"{prefix}out_proj.bias": leaf("out/bias"),
    }


def their_heads(cross: bool, torch, inputs: dict) -> dict:
    module = torch.nn.MultiheadAttention(D, N, batch_first=True)

    def function(i):
        context = i.get("context", i["x"])
        later = torch.ones(i["x"].shape[1], S, dtype=torch.bool).triu(1)
        options = {"key_padding_mask": i["key_segments"] == 0, "attn_mask": None if cross else later}
        weights = attention_weights(torch, lambda name: i[f"params/{name}"])
        arguments = (i["x"], context, context)
        out, weights = torch.func.functional_call(
            module, weights, arguments, {"average_attn_weights": False, **options}, strict=True
        )
        return (out * i["cotangent"]).sum(), {"out": out, "weights": weights}

    return differentiate_torch(torch, function, inputs)


def heads(name: str, cross: bool) -> Case:
    parts = (functools.partial(part, cross) for part in (draw_heads, our_heads, their_heads))
    draw, ours, theirs = parts
    return Case(f"multi_head_attention_{name}", draw, jax.jit(ours), theirs, idle=("params/key/bias",))


# Feed-forward, behind a layer norm ----------------------------------------------------------------------------------


def draw_feed(activation: str, rng) -> dict:
    """Rows of small variance, so that the norm's epsilon counts."""
    x = 0.03 * normal(rng, B, T, D)
    parts = {"norm": LayerNorm(), "feed": FeedForward(F)}
    inputs = {"x": x, "cotangent": normal(rng, B, T, D)}
    for name, module in parts.items():
        inputs |= {k.replace("params", name, 1): v for k, v in draw_parameters(rng, module, x).items()}
    return inputs


def our_feed(activation: str, inputs: dict) -> dict:
    def function(i):
        x = LayerNorm().apply(variables(i, "norm/"), i["x"])
        out = FeedForward(F, activation=activation).apply(variables(i, "feed/"), x)
        return jnp.sum(out * i["cotangent"]), {"out": out}

    return differentiate(function, inputs)


def their_feed(activation: str, torch, inputs: dict) -> dict:
    functions = torch.nn.functional
    activate = {
        "relu": functions.relu,
        "gelu": functions.gelu,
        "gelu_tanh": functools.partial(functions.gelu, approximate="tanh"),
        "swish": functions.silu,
    }[activation]

    def function(i):
        x = functions.layer_norm(i["x"], (D,), i["norm/scale"], i["norm/bias"], eps=1e-6)
        x = activate(functions.linear(x, i["feed/expand/kernel"].T, i["feed/expand/bias"]))
        out = functions.linear(x, i["feed/contract/kernel"].T, i["feed/contract/bias"])
        return (out * i["cotangent"]).sum(), {"out": out}

    return differentiate_torch(torch, function, inputs)


def feed(activation: str) -> Case:
    parts = (functools.partial(part, activation) for part in (draw_feed, our_feed, their_feed))
    draw, ours, theirs = parts
    return Case(f"feed_forward_{activation}", draw, jax.jit(ours), theirs)


CASES = [
    dots("unmasked", FULL[:, :T], FULL),
    dots("padding", FULL[:, :T], PADDED),
    dots("causal", FULL, FULL, causal=True),
    dots("causal_padding", PADDED, PADDED, causal=True),
    dots("packed", PACKED, PACKED, causal=True),
    dots("bias", FULL[:, :T], PADDED, bias=True),
    heads("self", cross=False),
    heads("cross", cross=True),
    feed("relu"),
    feed("gelu"),
    feed("gelu_tanh"),
    feed("swish"),
]
