"""The choice of a kernel as a table; and the kernels of GPUs and TPUs on a CPU: what they lower to and compute."""

import functools
import importlib
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from transformers_jax.errors import UserError
from transformers_jax.layers import attention, kernels
from transformers_jax.layers.attention import choose, dot_product_attention
from transformers_jax.layers.masks import Mask

HALF, FULL = jnp.bfloat16, jnp.float32
GROUPED = (8, 256, 2, 64)
LONG, WIDE, ODD, ONE = (8, 256, 4, 64), (8, 256, 4, 256), (8, 255, 4, 64), (8, 1, 4, 64)


@pytest.mark.parametrize(
    "backend,q,k,dtype,options,name,reason",
    [
        ("cpu", LONG, LONG, FULL, {}, "xla", "no other kernel for cpu"),
        ("cpu", LONG, LONG, HALF, {"wanted": "cudnn"}, "xla", "cudnn does not run on cpu"),
        ("gpu", LONG, LONG, HALF, {"wanted": "splash"}, "xla", "splash does not run on gpu"),
        ("gpu", LONG, LONG, HALF, {"wanted": "xla"}, "xla", "asked for"),
        ("gpu", LONG, LONG, HALF, {}, "cudnn", "supports"),
        ("gpu", LONG, LONG, HALF, {"wanted": "cudnn"}, "cudnn", "asked for"),
        ("gpu", LONG, LONG, jnp.float16, {"capability": "8.6"}, "cudnn", "supports"),
        ("gpu", LONG, LONG, HALF, {"mask": "dense"}, "cudnn", "supports"),
        ("gpu", LONG, LONG, HALF, {"shares": None}, "cudnn", "supports"),
        ("gpu", LONG, LONG, FULL, {}, "xla", "bfloat16 or float16, not float32"),
        ("gpu", WIDE, WIDE, HALF, {}, "xla", "at most 128, not 256"),
        ("gpu", (8, 256, 4, 60), (8, 256, 4, 60), HALF, {}, "xla", "multiple of 8 and at most 128, not 60"),
        ("gpu", ODD, LONG, HALF, {}, "xla", "even lengths under a mask, not 255 and 256"),
        ("gpu", ODD, LONG, HALF, {"mask": "none"}, "cudnn", "supports"),
        ("gpu", ONE, LONG, HALF, {}, "xla", "single query"),
        ("gpu", LONG, LONG, HALF, {"dropout": True}, "xla", "dropout"),
        ("gpu", LONG, LONG, HALF, {"bias": True}, "xla", "bias"),
        ("gpu", LONG, LONG, HALF, {"weights": True}, "xla", "returning weights"),
        ("gpu", LONG, LONG, HALF, {"capability": "7.5"}, "xla", "capability 8.0 or later, this one says 7.5"),
        ("gpu", LONG, LONG, HALF, {"capability": "gfx90a"}, "xla", "NVIDIA"),
        ("tpu", LONG, LONG, HALF, {}, "splash", "supports"),
        ("tpu", LONG, LONG, FULL, {"wanted": "splash"}, "splash", "asked for"),
        ("tpu", WIDE, WIDE, HALF, {"mask": "none", "shares": (4, 2)}, "splash", "supports"),
        ("tpu", LONG, LONG, HALF, {"wanted": "cudnn"}, "xla", "cudnn does not run on tpu"),
        ("tpu", LONG, LONG, HALF, {"mask": "dense"}, "xla", "not a dense mask"),
        ("tpu", LONG, ODD, HALF, {}, "xla", "multiples of 128, not 256 and 255"),
        ("tpu", ONE, LONG, HALF, {}, "xla", "multiples of 128"),
        ("tpu", LONG, LONG, HALF, {"dropout": True}, "xla", "dropout"),
        ("tpu", LONG, LONG, HALF, {"shares": None}, "xla", "jax.set_mesh"),
        ("tpu", LONG, LONG, HALF, {"shares": (3, 1)}, "xla", "8 rows and 4 heads into 3 and 1 shares"),
        ("tpu", LONG, LONG, HALF, {"shares": (1, 8)}, "xla", "into 1 and 8 shares"),
        ("gpu", LONG, GROUPED, HALF, {}, "cudnn", "supports"),
        ("tpu", LONG, GROUPED, HALF, {"shares": (4, 2)}, "splash", "supports"),
        ("tpu", LONG, GROUPED, HALF, {"shares": (4, 4)}, "xla", "8 rows and 2 heads of keys into 4 and 4 shares"),
    ],
)
def test_choice(backend, q, k, dtype, options, name, reason):
    chosen, why = choose(backend, q, k, dtype, **options)
    assert chosen == name
    assert reason in why


def test_unknown_implementation():
    with pytest.raises(UserError, match="'flash' is none of auto, xla, cudnn, splash"):
        choose("cpu", LONG, LONG, FULL, wanted="flash")


def rows(length, dtype=FULL, width=16, heads=2):
    """q, k, v and ragged packed segments, two rows: three segments and padding, padding only."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, length, heads, width)), dtype) for _ in range(3))
    ids = np.zeros(length)
    for segment, start in enumerate((0, length // 2, length * 3 // 4), 1):
        ids[start : length * 7 // 8] = segment
    return q, k, v, jnp.asarray([ids, np.zeros(length)], jnp.int32)


def test_a_choice_is_said_once_and_an_impossible_wish_is_a_warning(caplog):
    q, k, v, segments = rows(8)
    mask, logger = Mask(segments, segments), logging.getLogger("absl")
    attention._say.cache_clear()
    with caplog.at_level(logging.INFO, logger=logger.name):
        logger.addHandler(caplog.handler)
        try:
            wanted = dot_product_attention(q, k, v, mask)
            for _ in range(2):
                np.testing.assert_array_equal(dot_product_attention(q, k, v, mask, implementation="cudnn"), wanted)
                np.testing.assert_array_equal(dot_product_attention(q, k, v, mask), wanted)
        finally:
            logger.removeHandler(caplog.handler)
    said = {(r.levelname, r.getMessage()) for r in caplog.records if "attention" in r.getMessage()}
    assert said == {
        ("INFO", "attention on cpu: xla, because there is no other kernel for cpu"),
        ("WARNING", "attention on cpu: xla instead of cudnn, because cudnn does not run on cpu"),
    }
    assert attention._say.cache_info().currsize == 2


def values_and_gradients(kernel, causal, q, k, v, segments):
    """The kernel's output, and the gradients of a sum of its squares."""

    def total(q, k, v):
        out = kernel(q, k, v, Mask(segments, segments, causal))
        return jnp.sum(jnp.square(out.astype(jnp.float32))), out

    (_, out), grads = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *grads


def plain(q, k, v, mask):
    return kernels.xla(q, k, v, mask)[0]


@pytest.mark.parametrize("causal", [False, True])
def test_splash_interpreted_equals_xla(causal):
    """The TPU kernel's own program, run by Pallas' interpreter: values, gradients, and zeros where nothing is seen."""
    q, k, v, segments = rows(128)
    splash = functools.partial(kernels.splash, interpret=True)
    found = jax.jit(functools.partial(values_and_gradients, splash, causal))(q, k, v, segments)
    wanted = jax.jit(functools.partial(values_and_gradients, plain, causal))(q, k, v, segments)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(a)[np.asarray(segments) == 0], 0)


@pytest.mark.parametrize("causal, window", [(True, 0), (True, 40), (False, 40)])
def test_splash_of_grouped_heads_and_windows_interpreted_equals_xla(causal, window):
    """Half as many heads of keys, and keys at a distance of `window` and more unseen: values and gradients."""
    q, k, v, segments = rows(128, heads=4)
    k, v = k[:, :, ::2], v[:, :, ::2]
    assert q.shape[2] == 2 * k.shape[2]

    def found(kernel):
        def windowed(q, k, v, mask):
            return kernel(q, k, v, mask.replace(window=window))

        return jax.jit(functools.partial(values_and_gradients, windowed, causal))(q, k, v, segments)

    for a, b in zip(found(functools.partial(kernels.splash, interpret=True)), found(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_splash_without_a_mask_interpreted_equals_xla():
    q, k, v, _ = rows(128)
    np.testing.assert_allclose(kernels.splash(q, k, v, interpret=True), plain(q, k, v, None), atol=1e-5)


def lowered(platform, causal, length=256, group=1, window=0):
    """The program of values and gradients as it is handed to `platform`'s compiler, dispatched for its backend."""
    q, k, v, segments = rows(length, HALF, 64, 4)
    k, v = k[:, :, ::group], v[:, :, ::group]

    def kernel(q, k, v, mask):
        backend = {"cuda": "gpu"}.get(platform, platform)
        return dot_product_attention(q, k, v, mask.replace(window=window), backend=backend)

    program = jax.jit(functools.partial(values_and_gradients, kernel, causal))
    return program.trace(q, k, v, segments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("causal", [False, True])
def test_lowers_to_splash_for_tpu(causal):
    text = lowered("tpu", causal)
    assert text.count("@tpu_custom_call") == 3
    assert set(re.findall(r"splash_mha_(\w+?)_segmented", text)) == {"fwd", "dq", "dkv"}


def test_exports_for_tpu():
    """The same by `jax.export`, whose module could be run elsewhere."""
    q, k, v, segments = rows(128, HALF)
    run = jax.jit(lambda q, k, v, s: dot_product_attention(q, k, v, Mask(s, s, True), backend="tpu"))
    exported = jax.export.export(run, platforms=["tpu"])(q, k, v, segments)
    assert "tpu_custom_call" in exported.mlir_module()


def test_lowers_to_splash_over_a_mesh():
    """Rows over data and fsdp, heads over tensor: one kernel a device, inside a manual region."""
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"))):
        assert kernels.shares() == (2, 2)
        text = lowered("tpu", True)
    assert text.count("@tpu_custom_call") == 3
    assert "manual_axes" in text and "tensor<1x2x256x128xbf16>" in text  # a share: 1 of 2 rows, 2 of 4 heads


@pytest.mark.parametrize("tensor, wanted", [(1, (1, 1)), (2, None)])
def test_inside_a_region_that_is_only_partly_manual_there_is_no_kernel(tensor, wanted):
    found = []

    def inside(x):
        found.append(kernels.shares())
        return x

    mesh = AbstractMesh((2, tensor), ("data", "tensor"))
    with jax.sharding.use_abstract_mesh(mesh):
        over = jax.shard_map(inside, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), axis_names={"data"})
        jax.eval_shape(over, jax.ShapeDtypeStruct((4,), "float32"))
    assert found == [wanted]


@pytest.mark.parametrize("causal, group, window", [(False, 1, 0), (True, 1, 0), (True, 2, 100)])
def test_lowers_to_cudnn_for_cuda(causal, group, window, monkeypatch):
    """JAX asks the installed cuDNN for its version while tracing; without a GPU a recent one is put in its place."""
    try:
        private = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
        monkeypatch.setattr(private, "check_cudnn_version", lambda: 91000)
    except (ImportError, AttributeError):
        pytest.skip(
            "this version of JAX asks for cuDNN's version elsewhere; without a GPU it cannot be lowered for one"
        )
    text = lowered("cuda", causal, group=group, window=window)
    assert len(re.findall(r"__cudnn\$fmhaScaleBiasSoftmax\b", text)) == 1
    assert len(re.findall(r"__cudnn\$fmhaScaleBiasSoftmaxBackward\b", text)) == 1
    assert ("CAUSAL" in text) == causal


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_shape_no_kernel_takes_lowers_to_plain_products(platform):
    text = lowered(platform, True, length=24 if platform == "tpu" else 25)
    assert "custom_call @tpu" not in text and "cudnn" not in text
