"""Counting parameters and operations against arithmetic by hand, memory against array sizes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from transformers_jax import models
from transformers_jax.batch import FIELDS
from transformers_jax.planning import counts, flops, memory, peak

A = jax.ShapeDtypeStruct((4, 8), jnp.float32)
B = jax.ShapeDtypeStruct((8, 16), jnp.float32)
PRODUCT = 2 * 4 * 8 * 16


def test_matrix_product_and_its_gradient():
    assert flops.count(jnp.matmul, A, B) == PRODUCT
    assert flops.count(jax.grad(lambda a, b: jnp.sum(a @ b), argnums=(0, 1)), A, B) == 3 * PRODUCT


def test_batched_product_counts_batch_once():
    q = jax.ShapeDtypeStruct((2, 5, 3, 7), jnp.float32)  # [B, T, N, H]
    assert flops.count(lambda q: jnp.einsum("BTNH,BSNH->BNTS", q, q), q) == 2 * 2 * 3 * 5 * 5 * 7


def test_calls_loops_and_branches():
    square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    one = 2 * 8**3

    def scanned(a):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, a), None), a, None, length=5)[0]

    assert flops.count(scanned, square) == 5 * one
    assert flops.count(jax.vmap(scanned), jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)) == 3 * 5 * one
    assert flops.count(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a), square) == 2 * one
    assert flops.count(lambda a: jax.lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ a, a), square) == one


def test_rematerialised_work_counts_again():
    def twice(a):
        return jnp.sum(jnp.sin(jnp.sin(a @ a) @ a))

    square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    plain, again = flops.count(jax.grad(twice), square), flops.count(jax.grad(jax.checkpoint(twice)), square)
    assert plain == 6 * 2 * 8**3 and again >= plain + 2 * 8**3


def test_convolution():
    x, kernel = jnp.zeros((2, 10, 6)), jnp.zeros((3, 6, 12))  # [B, W, C], [k, C, O]
    dims = ("NWC", "WIO", "NWC")

    def convolve(x, kernel, groups=1):
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=dims, feature_group_count=groups)

    assert flops.count(convolve, x, kernel) == 2 * (2 * 10 * 12) * 3 * 6
    depthwise = flops.count(lambda x, kernel: convolve(x, kernel, 6), x, jnp.zeros((3, 1, 6)))
    assert depthwise == 2 * (2 * 10 * 6) * 3


def test_shard_map_counts_all_devices():
    mesh, spec = AbstractMesh((4,), ("data",)), PartitionSpec("data")
    product = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert flops.count(product, jnp.zeros((8, 8))) == 4 * (2 * 2 * 8 * 2)
    assert flops.count(jax.pmap(lambda a: a @ a.T), jnp.zeros((1, 4, 8))) == 2 * 4 * 8 * 4


def transformer(scan_layers):
    fields = dict(name="transformer", width=16, num_heads=2, mlp_width=32, encoder_layers=2, decoder_layers=3)
    return models.build(fields | {"scan_layers": scan_layers}, vocab_size=50)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_transformer_forward(scan_layers):
    """Each kernel once a position, and two products of every query with every key."""
    rows, source, target, width, hidden = 3, 5, 4, 16, 32
    axes = {"B": rows, "S": source, "T": target}
    batch = {n: jax.ShapeDtypeStruct([axes[a] for a in f.axes], f.dtype) for n, f in FIELDS.items() if {*f.axes} <= {*axes}}
    model = transformer(scan_layers)
    variables = counts.shapes(model, batch)
    attention, feed = 4 * width**2, 2 * width * hidden
    encoder = 2 * (source * (attention + feed) + 2 * source**2 * width)
    decoder = 3 * (target * (attention + feed + attention // 2) + source * attention // 2)
    decoder += 3 * 2 * (target**2 + target * source) * width
    counted = flops.count(lambda v, b: model.apply(v, b).hidden, variables, batch)
    assert counted == 2 * rows * (encoder + decoder)


def test_parameters_by_module_sum_to_all():
    batch = {name: np.zeros((1, 2), np.int32) for name in FIELDS}
    params = counts.shapes(transformer(True), batch)["params"]
    for depth in (1, 2, 5):
        assert sum(counts.by_module(params, depth).values()) == counts.count(params)
    assert {"encoder", "decoder", "embedding"} <= set(counts.by_module(params))
    assert counts.by_module(params)["embedding"] == 50 * 16
    assert counts.bytes_of(params) == 4 * counts.count(params)


def test_depthwise_convolutions_of_convnext(monkeypatch):
    """As many operations as are told of it, 4.5 G multiply-adds, on devices that compute its convolutions as such."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    model = models.build({"name": "convnext", "labels": 1000}, 0)
    images = {"image": jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.uint8)}
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), {"image": jnp.zeros((1, 224, 224, 3), jnp.uint8)}))

    def loss(params, images):
        return model.apply(params, images).logits.sum()

    forward = flops.count(loss, params, images)
    assert 8.9e9 < forward < 8.95e9
    assert 2.9 * forward < flops.count(jax.grad(loss), params, images) < 3 * forward


def test_memory_counts_one_device_s_share():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharded = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("data")))
    assert memory.per_device({"a": sharded, "b": jnp.zeros((3,))}) == 8 * 4 * 2 + 3 * 4


def test_memory_of_a_step():
    def step(state, batch):
        return jax.tree.map(lambda w: w - jnp.mean(jnp.sin(batch @ w)), state), jnp.sum(batch)

    state, batch = {"w": jnp.ones((64, 64))}, jnp.ones((32, 64))
    found = memory.of_step(jax.jit(step).lower(state, batch).compile(), state, batch)
    assert found.state == 64 * 64 * 4 and found.batch == 32 * 64 * 4
    assert found.temporaries is None or found.temporaries >= 0
    assert found.total >= found.state + found.batch


def test_peak_is_that_of_the_quickest_product(monkeypatch):
    clock = iter([0.0, 0.0, 8.0, 9.0, 10.0, 14.0, 20.0])  # products of 8 and of 4 seconds
    monkeypatch.setattr(peak, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert peak.matmul_peak(seconds=10.0) == 2 * 1024**3 / 4
