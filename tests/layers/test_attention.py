"""Multi-head attention: against plain loops, against its own cache, with masks, dropout, pictures, scanned layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.errors import UserError
from transformers_jax.layers.attention import MultiHeadAttention, dot_product_attention
from transformers_jax.layers.masks import Mask, Place, cross_mask, self_mask
from transformers_jax.layers.positions import Rotary

B, T, S, N, H, D = 2, 6, 5, 2, 4, 12
TARGET = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]], np.int32)
SOURCE = np.array([[1, 2, 2, 2, 0], [1, 1, 1, 0, 0]], np.int32)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def loops(q, k, v, seen, bias=None, keys_by_offset=None, values_by_offset=None):
    """Attention in plain loops, in float64: (output [B, T, N, H], weights [B, N, T, S]).

    keys_by_offset, values_by_offset: Shaw's vectors [2 k + 1, H].
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, weights = np.zeros(q.shape), np.zeros((q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
    distance = 0 if keys_by_offset is None else len(keys_by_offset) // 2
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [s for s in range(k.shape[1]) if seen[b, 0, t, s]]
        if not keys:
            continue
        offset = {s: min(max(s - t, -distance), distance) + distance for s in keys}
        vectors = {s: k[b, s, n] + (0 if keys_by_offset is None else keys_by_offset[offset[s]]) for s in keys}
        scores = np.array([q[b, t, n] @ vectors[s] / np.sqrt(q.shape[3]) for s in keys])
        scores += 0 if bias is None else bias[b, n, t, keys]
        powers = np.exp(scores - scores.max())
        weights[b, n, t, keys] = powers / powers.sum()
        for s in keys:
            value = v[b, s, n] + (0 if values_by_offset is None else values_by_offset[offset[s]])
            out[b, t, n] += weights[b, n, t, s] * value
    return out, weights


def module_and_params(*args, seed=0, **kwargs):
    module = MultiHeadAttention(**kwargs)
    params = nn.meta.unbox(jax.jit(lambda key: module.init(key, *args, mask=None))(jax.random.key(seed)))
    return module, params


def run(module, variables, *args, mask=None):
    """module(*args, mask=mask), compiled as one program."""
    return jax.jit(lambda *args: module.apply(variables, *args, mask=mask))(*args)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_kernel_equals_plain_loops(causal, with_bias):
    q, k, v = normal(B, T, N, H), normal(B, S, N, H, seed=1), normal(B, S, N, H, seed=2)
    bias = normal(B, N, T, S) if with_bias else None
    mask = Mask(TARGET, SOURCE, causal)
    wanted, wanted_weights = loops(q, k, v, np.asarray(mask.dense()), bias)
    out, weights = dot_product_attention(q, k, v, mask, bias=bias, return_weights=True)
    np.testing.assert_allclose(out, wanted, atol=1e-5)
    np.testing.assert_allclose(weights, wanted_weights, atol=1e-5)
    dense = dot_product_attention(q, k, v, mask.dense(), bias=bias)
    np.testing.assert_array_equal(dense, out)
    assert not np.any(wanted[TARGET == 0]) and np.abs(wanted[0, 0]).min() > 0


def test_without_a_mask_every_key_is_seen():
    q, k, v = normal(B, T, N, H), normal(B, S, N, H, seed=1), normal(B, S, N, H, seed=2)
    wanted, _ = loops(q, k, v, np.ones((B, 1, T, S), bool))
    np.testing.assert_allclose(dot_product_attention(q, k, v), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["segments", "dense"])
def test_a_fully_masked_row_is_zero_in_value_and_gradient(kind):
    q, k, v = 50 * normal(B, T, N, H), normal(B, T, N, H, seed=1), normal(B, T, N, H, seed=2)
    mask = Mask(np.array([[1, 1, 0, 2, 2, 2]] * B), np.array([[1, 1, 0, 3, 3, 3]] * B))  # rows 2 to 5 see nothing
    mask = mask if kind == "segments" else mask.dense()

    def total(q, k, v):
        out = dot_product_attention(q, k, v, mask)
        return (out * normal(B, T, N, H, seed=3)).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    np.testing.assert_array_equal(out[:, 2:], 0)
    assert np.abs(out[:, :2]).min() > 0
    for grad in grads:
        assert np.isfinite(grad).all() and np.abs(grad[:, :2]).max() > 0
        np.testing.assert_array_equal(grad[:, 2:], 0)


def test_bfloat16_keeps_the_softmax_in_float32():
    q, k, v = (normal(B, T, N, H, seed=s) for s in range(3))
    wanted, _ = loops(q, k, v, np.ones((B, 1, T, T), bool))
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = dot_product_attention(*half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, atol=0.05)
    jaxpr = str(jax.make_jaxpr(dot_product_attention)(*half))
    assert f"f32[{B},{N},{T},{T}] = exp" in jaxpr and f"bf16[{B},{N},{T},{T}] = exp" not in jaxpr


def test_dropout_drops_weights_and_keeps_their_mean():
    q, k, v = (normal(8, 16, N, H, seed=s) for s in range(3))
    drop = jax.jit(lambda key: dot_product_attention(q, k, v, dropout_rate=0.25, dropout_rng=key, return_weights=True))
    plain, wanted = dot_product_attention(q, k, v, return_weights=True)
    out, weights = drop(jax.random.key(0))
    dropped = np.asarray(weights) == 0
    assert 0.22 < dropped.mean() < 0.28
    np.testing.assert_allclose(np.asarray(weights)[~dropped], (wanted / 0.75)[~dropped], rtol=1e-5)
    np.testing.assert_allclose(out, np.einsum("BNTS,BSNH->BTNH", weights, v), atol=1e-5)
    assert not np.array_equal(dropped, np.asarray(drop(jax.random.key(1))[1]) == 0)
    np.testing.assert_array_equal(drop(jax.random.key(0))[0], out)


def test_module_equals_projections_around_plain_loops():
    x, context = normal(B, T, D), normal(B, S, 10, seed=1)
    module, variables = module_and_params(x, context, num_heads=N, head_width=H, use_bias=True)
    params = jax.tree.map(lambda p: p + 0.1 * normal(*p.shape), variables["params"])
    shapes = {
        "query": {"kernel": (D, N, H), "bias": (N, H)},
        "key": {"kernel": (10, N, H), "bias": (N, H)},
        "value": {"kernel": (10, N, H), "bias": (N, H)},
        "out": {"kernel": (N, H, D), "bias": (D,)},
    }
    assert jax.tree.map(jnp.shape, params) == shapes
    mask = cross_mask(TARGET, SOURCE)
    q, k, v = (
        np.einsum("btd,dnh->btnh", source, params[name]["kernel"]) + params[name]["bias"]
        for name, source in (("query", x), ("key", context), ("value", context))
    )
    heads, _ = loops(q, k, v, np.asarray(mask.dense()))
    wanted = np.einsum("btnh,nhd->btd", heads, params["out"]["kernel"]) + params["out"]["bias"]
    np.testing.assert_allclose(run(module, {"params": params}, x, context, mask=mask), wanted, atol=1e-5)


def test_parameters_carry_logical_axes_and_xavier_of_the_unfolded_matrix():
    module = MultiHeadAttention(num_heads=8, use_bias=True, relative_distance=3)
    variables = jax.jit(lambda key: module.init(key, jnp.zeros((1, 2, 64)), mask=None))(jax.random.key(0))
    axes = jax.tree.map(
        lambda p: p.names, variables["params"], is_leaf=lambda p: isinstance(p, nn.LogicallyPartitioned)
    )
    into = {"kernel": ("embed", "heads", "kv"), "bias": ("heads", "kv")}
    out = {"kernel": ("heads", "kv", "embed"), "bias": ("embed",)}
    table = {"embedding": (None, "kv")}
    assert axes == {
        "query": into, "key": into, "value": into, "out": out, "relative_keys": table, "relative_values": table
    }  # fmt: skip
    limit = np.sqrt(6 / (64 + 64))
    for name in ("query", "key", "value", "out"):
        kernel = np.asarray(variables["params"][name]["kernel"].value)
        assert 0.98 * limit < np.abs(kernel).max() <= limit and abs(kernel.mean()) < 0.05 * limit


def test_widths_that_do_not_fit():
    with pytest.raises(UserError, match="from width 12 to a context of width 10: give head_width"):
        module_and_params(normal(B, T, 12), normal(B, S, 10), num_heads=N)
    with pytest.raises(UserError, match="num_heads 5 does not divide the model width 12"):
        jax.eval_shape(
            lambda: MultiHeadAttention(num_heads=5).init(jax.random.key(0), jnp.zeros((1, 2, 12)), mask=None)
        )


@pytest.mark.parametrize("to_values", [False, True])
def test_relative_positions_equal_plain_loops(to_values):
    """Shaw et al. 2018, equations 3 and 4, in a packed row."""
    x = normal(B, T, D)
    module, variables = module_and_params(x, num_heads=N, relative_distance=2, relative_to_values=to_values)
    params = variables["params"]
    assert params["relative_keys"]["embedding"].shape == (5, D // N) and ("relative_values" in params) == to_values
    mask = self_mask(TARGET)
    q, k, v = (np.einsum("btd,dnh->btnh", x, params[name]["kernel"]) for name in ("query", "key", "value"))
    tables = [np.asarray(params[f"relative_{name}"]["embedding"]) for name in ("keys", "values")[: 1 + to_values]]
    heads, _ = loops(q, k, v, np.asarray(mask.dense()), None, *tables)
    wanted = np.einsum("btnh,nhd->btd", heads, params["out"]["kernel"])
    np.testing.assert_allclose(run(module, variables, x, mask=mask), wanted, atol=1e-5)


def test_relative_positions_are_for_self_attention():
    with pytest.raises(ValueError, match="relative positions"):
        module_and_params(normal(B, T, D), normal(B, S, D), num_heads=N, relative_distance=2)


@pytest.mark.parametrize("relative_distance", [0, 2])
def test_cached_steps_equal_the_whole_row(relative_distance):
    x = normal(B, T, D)
    module, variables = module_and_params(x, num_heads=N, relative_distance=relative_distance, use_bias=True)
    wanted = run(module, variables, x, mask=self_mask(np.ones((B, T), np.int32), causal=True))
    _, cache = module.apply(variables, B, T + 3, method="start", mutable=["cache"])  # longer than is used
    assert jax.tree.map(jnp.shape, cache["cache"]) == dict.fromkeys(("self_key", "self_value"), (B, N, T + 3, D // N))
    step = jax.jit(lambda cache, x, i: module.apply({**variables, **cache}, x, i, method="step", mutable=["cache"]))
    for t in range(T):
        out, cache = step(cache, x[:, t : t + 1], t)
        np.testing.assert_allclose(out[:, 0], wanted[:, t], atol=1e-5)


@pytest.mark.parametrize("kind", [np.int32, bool])
def test_cached_context_equals_the_whole_row_with_padding(kind):
    x, context, valid = normal(B, T, D), normal(B, S, D, seed=1), SOURCE > 0
    module, variables = module_and_params(x, context, num_heads=N)
    mask = Mask(np.ones((B, T), np.int32), valid.astype(np.int32))
    wanted = run(module, variables, x, context, mask=mask)
    assert np.abs(wanted - run(module, variables, x, context)).max() > 1e-3  # the padding matters
    _, cache = module.apply(variables, context, method="start_context", mutable=["cache"])
    step = jax.jit(lambda x: module.apply({**variables, **cache}, x, jnp.asarray(valid, kind), method="step_context"))
    for t in range(T):
        np.testing.assert_allclose(step(x[:, t : t + 1])[:, 0], wanted[:, t], atol=1e-5)


def test_steps_without_a_cache_say_so():
    x = normal(B, T, D)
    module, variables = module_and_params(x, num_heads=N)
    with pytest.raises(ValueError, match="call start"):
        module.apply(variables, x[:, :1], 0, method="step", mutable=["cache"])
    with pytest.raises(ValueError, match="call start_context"):
        module.apply(variables, x[:, :1], method="step_context")


class Layer(nn.Module):
    """One layer of a decoder, as a stack scans it: self-attention with offsets, then attention to a context."""

    def setup(self):
        self.own, self.cross = MultiHeadAttention(N, relative_distance=2), MultiHeadAttention(N)

    def __call__(self, x, context, mask, context_mask):
        x = x + self.own(x, mask=mask)
        return x + self.cross(x, context, mask=context_mask), None

    def start(self, context):
        self.own.start(context.shape[0], T)
        self.cross.start_context(context)
        return context, None

    def step(self, x, index, segments):
        x = x + self.own.step(x, index)
        return x + self.cross.step_context(x, segments), None


def test_scanned_layers_keep_their_caches():
    layers, x, context = 3, normal(B, T, D), normal(B, S, D, seed=1)
    axes = {"params": 0, "cache": 0, "intermediates": 0}
    scanned = nn.scan(
        Layer, variable_axes=axes, split_rngs={"params": True}, in_axes=nn.broadcast, length=layers,
        methods=["__call__", "start", "step"], metadata_params={nn.PARTITION_NAME: "layers"},
    )()  # fmt: skip
    own = self_mask(np.ones((B, T), np.int32), causal=True)
    valid = (SOURCE > 0).astype(np.int32)
    cross = Mask(np.ones((B, T), np.int32), valid)
    boxed = jax.jit(lambda key: scanned.init(key, x, context, own, cross))(jax.random.key(0))
    assert boxed["params"]["own"]["query"]["kernel"].names == ("layers", "embed", "heads", "kv")
    variables, looped = nn.meta.unbox(boxed), x
    layer = jax.jit(lambda params, x: Layer().apply(params, x, context, own, cross)[0])
    for i in range(layers):
        looped = layer(jax.tree.map(lambda p, i=i: np.asarray(p)[i], variables), looped)
    whole = jax.jit(lambda x: scanned.apply(variables, x, context, own, cross, mutable=["intermediates"]))
    (wanted, _), pictures = whole(x)
    np.testing.assert_allclose(wanted, looped, atol=1e-5)
    assert pictures["intermediates"]["cross"]["weights"][0].shape == (layers, B, N, T, S)

    _, cache = jax.jit(lambda c: scanned.apply(variables, c, method="start", mutable=["cache"]))(context)
    assert cache["cache"]["own"]["self_key"].shape == (layers, B, N, T, D // N)
    step = jax.jit(
        lambda cache, x, i: scanned.apply({**variables, **cache}, x, i, valid, method="step", mutable=["cache"])
    )
    for t in range(T):
        (out, _), cache = step(cache, x[:, t : t + 1], t)
        np.testing.assert_allclose(out[:, 0], wanted[:, t], atol=1e-5)


@pytest.mark.parametrize("relative_distance", [0, 2])
def test_pictures_change_nothing_and_cost_nothing(relative_distance):
    x, mask = normal(B, T, D), self_mask(TARGET, causal=True)
    module, variables = module_and_params(x, num_heads=N, relative_distance=relative_distance)
    assert set(variables) == {"params"}
    plain = run(module, variables, x, mask=mask)
    seen, pictures = jax.jit(lambda x: module.apply(variables, x, mask=mask, mutable=["intermediates"]))(x)
    np.testing.assert_allclose(seen, plain, atol=1e-6)
    (weights,) = pictures["intermediates"]["weights"]
    assert weights.shape == (B, N, T, T)
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(TARGET[:, None] > 0, (B, N, T)), atol=1e-5)
    outputs = jax.make_jaxpr(lambda x: module.apply(variables, x, mask=mask))(x).out_avals
    assert [o.shape for o in outputs] == [(B, T, D)]


def test_module_drops_only_when_training():
    x = normal(B, T, D)
    module, variables = module_and_params(x, num_heads=N, dropout_rate=0.5)
    plain = run(module, variables, x)
    np.testing.assert_array_equal(plain, run(module.clone(dropout_rate=0.0), variables, x))
    train = jax.jit(lambda key: module.apply(variables, x, mask=None, deterministic=False, rngs={"dropout": key}))
    first, again, other = (train(jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - plain).max() > 1e-3


def test_compute_and_parameter_dtypes_are_separate():
    x = normal(B, T, D)
    module, variables = module_and_params(x, num_heads=N, dtype=jnp.bfloat16, relative_distance=2)
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert jax.eval_shape(lambda: module.apply(variables, x, mask=None)).dtype == jnp.bfloat16
    _, cache = jax.eval_shape(lambda: module.apply(variables, B, T, method="start", mutable=["cache"]))
    assert {c.dtype for c in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}


GROUPED = dict(num_heads=4, kv_heads=2, head_width=H)


def test_grouped_heads_equal_repeated_ones():
    """Head n of the queries reads head n // 2 of the keys (Ainslie et al. 2023); nothing is repeated in memory."""
    q, k, v = normal(B, T, 4, H), normal(B, S, 2, H, seed=1), normal(B, S, 2, H, seed=2)
    mask = cross_mask(TARGET, SOURCE)
    wanted, wanted_weights = loops(q, np.repeat(k, 2, 2), np.repeat(v, 2, 2), np.asarray(mask.dense()))
    out, weights = dot_product_attention(q, k, v, mask, return_weights=True)
    np.testing.assert_allclose(out, wanted, atol=1e-5)
    np.testing.assert_allclose(weights, wanted_weights, atol=1e-5)
    jaxpr = str(jax.make_jaxpr(dot_product_attention)(q, k, v))
    assert f"f32[{B},4,{S},{H}]" not in jaxpr and f"f32[{B},{S},4,{H}]" not in jaxpr
    own = dict(module_and_params(normal(B, T, D), **GROUPED)[1]["params"])
    assert own["key"]["kernel"].shape == own["value"]["kernel"].shape == (D, 2, H)
    assert own["query"]["kernel"].shape == (D, 4, H) and own["out"]["kernel"].shape == (4, H, D)


def test_biases_of_the_projections_into_heads_alone():
    params = module_and_params(normal(B, T, D), num_heads=N, use_bias=True, out_bias=False)[1]["params"]
    assert {name: "bias" in p for name, p in params.items()} == dict(query=True, key=True, value=True, out=False)


def test_rotated_and_normed_heads_equal_plain_loops():
    """In packed rows: positions count within segments; the norm comes before the rotation."""
    x, rotary = normal(B, T, D), Rotary(theta=50.0)
    positions = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]], np.int32)
    mask = self_mask(TARGET, causal=True).replace(positions=positions, window=2)
    module = MultiHeadAttention(num_heads=N, head_norm=1e-5, rotary=rotary)
    params = nn.meta.unbox(module.init(jax.random.key(0), x, mask=mask))["params"]
    params = jax.tree.map(lambda p: p + 0.2 * normal(*p.shape), params)
    assert params["query_norm"]["scale"].shape == (D // N,)
    q, k, v = (np.einsum("btd,dnh->btnh", x, params[name]["kernel"]) for name in ("query", "key", "value"))

    def turned(heads, scale):
        normed = heads / np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + 1e-5) * np.asarray(scale)
        return rotary.rotate(jnp.asarray(normed, jnp.float32), jnp.asarray(positions))

    q, k = turned(q, params["query_norm"]["scale"]), turned(k, params["key_norm"]["scale"])
    heads, _ = loops(q, k, v, np.asarray(mask.dense()))
    wanted = np.einsum("btnh,nhd->btd", heads, params["out"]["kernel"])
    np.testing.assert_allclose(run(module, {"params": params}, x, mask=mask), wanted, atol=1e-5)


@pytest.mark.parametrize("options", [{}, dict(rotary=Rotary(theta=50.0), head_norm=1e-6)], ids=["plain", "rotary"])
@pytest.mark.parametrize("window", [0, 3])
def test_steps_after_prompts_equal_the_whole_row(options, window):
    """Prompts of 4, 1 and 2 tokens, then 4 steps a row; keys of the prompts stay apart, and as they are."""
    prompts, steps = np.array([4, 1, 2]), 4
    lengths = prompts - 1 + steps
    x, rows = normal(3, lengths.max(), D), np.arange(3)
    positions = np.tile(np.arange(lengths.max(), dtype=np.int32), (3, 1))

    def mask_of(lengths, width):
        segments = (positions[:, :width] < lengths[:, None]).astype(np.int32)
        return Mask(segments, segments, True, window, positions[:, :width])

    module = MultiHeadAttention(**GROUPED, **options)
    variables = nn.meta.unbox(module.init(jax.random.key(0), x, mask=mask_of(lengths, x.shape[1])))
    wanted = run(module, variables, x, mask=mask_of(lengths, x.shape[1]))
    start = jax.jit(lambda x, mask: module.apply(variables, x, mask, 6, method="start_prompt", mutable=["cache"]))
    out, cache = start(x[:, :5], mask_of(prompts, 5))
    for b, n in enumerate(prompts):
        np.testing.assert_allclose(out[b, :n], wanted[b, :n], atol=1e-5)
    own, prompt = ("self_key", "self_value"), ("prompt_key", "prompt_value")
    shapes = dict.fromkeys(own, (3, 2, 6, H)) | dict.fromkeys(prompt, (3, 2, 5, H))
    assert jax.tree.map(jnp.shape, cache["cache"]) == shapes
    step = jax.jit(lambda cache, x, p: module.apply({**variables, **cache}, x, p, method="step_prompt", mutable=["cache"]))
    before, first = jnp.asarray(prompts - 1), cache["cache"]["prompt_key"]
    for i in range(steps):
        out, cache = step(cache, x[rows, prompts - 1 + i][:, None], Place(jnp.int32(i), before, window))
        np.testing.assert_allclose(out[:, 0], wanted[rows, prompts - 1 + i], atol=1e-5)
    np.testing.assert_array_equal(cache["cache"]["prompt_key"], first)


def test_what_does_not_go_together_is_named():
    x, mask = normal(B, T, D), self_mask(TARGET)
    with pytest.raises(UserError, match="kv_heads 3 does not divide num_heads 4"):
        module_and_params(x, num_heads=4, kv_heads=3, head_width=H)
    with pytest.raises(UserError, match="2 heads of keys for 4 of queries: give head_width"):
        module_and_params(x, num_heads=4, kv_heads=2)
    with pytest.raises(ValueError, match="rotary positions need a Mask with positions"):
        module_and_params(x, num_heads=N, rotary=Rotary())
    with pytest.raises(ValueError, match="relative positions are offsets within one sequence"):
        module_and_params(x, normal(B, S, D), num_heads=N, rotary=Rotary())
    module, variables = module_and_params(x, num_heads=N, relative_distance=2)
    with pytest.raises(ValueError, match="relative positions do not go on from prompts"):
        module.apply(variables, x, mask, 3, method="start_prompt", mutable=["cache"])
    module, variables = module_and_params(x, num_heads=N)
    with pytest.raises(ValueError, match="call start_prompt"):
        module.apply(variables, x[:, :1], Place(jnp.int32(0), jnp.zeros(B, int)), method="step_prompt", mutable=["cache"])
