"""Frozen kernels in few bits: the formulas, how much they round, how a kernel lies in a pytree, products and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.layers import quantized
from transformers_jax.layers.quantized import NF4, bytes_per_parameter, dequantize, low_rank, quantize

product = jax.jit(quantized.product)

EVERY = [("nf4", 64, True), ("nf4", 64, False), ("int8", 64, True), ("int8", 256, False), ("int8", 0, False)]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relative(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_one_constant():
    kernel = np.array([[0.5, -1.27, 0.0], [1.0, 0.634, -0.006]], np.float32)
    found = quantize(kernel, "int8", block=0)
    assert found.absmax == pytest.approx(1.27)
    # round(127 / 1.27 · X), of the transpose
    assert found.codes.tolist() == [[50, 100], [-127, 63], [0, -1]] and found.codes.dtype == jnp.int8
    np.testing.assert_allclose(dequantize(found), [[0.5, -1.27, 0.0], [1.0, 0.63, -0.01]], atol=1e-6)


def test_nf4_of_its_own_values():
    """Multiples of the 16 values come back as they were, two to a byte, the first in the upper bits."""
    line = np.concatenate([NF4, NF4[::-1]])
    kernel = np.stack([line, 3 * line], axis=1)  # [32, 2]
    found = quantize(kernel, "nf4", block=32, double=False)
    assert found.codes.shape == (2, 16) and found.codes.dtype == jnp.uint8
    assert found.codes[0].tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF] + [
        0xFE, 0xDC, 0xBA, 0x98, 0x76, 0x54, 0x32, 0x10,
    ]  # fmt: skip
    assert found.absmax.tolist() == [[1.0], [3.0]]
    np.testing.assert_array_equal(dequantize(found), kernel)


def test_nf4_are_quantiles():
    """Dettmers et al. 2023, equation 4: quantiles of the normal distribution, with an exact zero and both ends ±1."""
    from statistics import NormalDist

    offset, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    wanted = np.sort([*positive, 0, *negative]) / max(positive)
    np.testing.assert_allclose(NF4, wanted, atol=1e-6)


def test_rounding_of_normal_numbers():
    kernel = normal(512, 512)
    errors = {
        (kind, block, double): round(relative(dequantize(quantize(kernel, kind, block=block, double=double)), kernel), 4)
        for kind, block, double in EVERY
    }
    assert errors["nf4", 64, False] == pytest.approx(0.0920, abs=0.002)
    assert errors["nf4", 64, True] == pytest.approx(0.0920, abs=0.002)
    assert errors["int8", 256, False] == pytest.approx(0.0070, abs=0.0002)
    assert errors["int8", 0, False] == pytest.approx(0.0108, abs=0.0015)


@pytest.mark.parametrize("kind,block", [("nf4", 64), ("int8", 64), ("int8", 256)])
def test_bound_of_each_block(kind, block):
    """No number is further off than half of the widest gap between two codes, times the largest of its block."""
    kernel = normal(256, 24) * np.exp(normal(24, seed=1))
    found = dequantize(quantize(kernel, kind, block=block, double=False))
    gap = np.diff(NF4).max() if kind == "nf4" else 1 / 127
    blocks = kernel.T.reshape(-1, block)
    off = np.abs(found.T.reshape(-1, block) - blocks).max(1)
    assert (off <= gap / 2 * np.abs(blocks).max(1) * 1.0001).all()


def test_an_outlier_ruins_one_block_only():
    """One number 1,000 times as large as the rest: with one constant most others become 0, in blocks 63 of them do."""
    kernel = normal(256, 64)
    kernel[3, 5] = 1000
    others = np.ones(kernel.shape, bool)
    others[3, 5] = False

    def error(block, double=False):
        return relative(dequantize(quantize(kernel, "int8", block=block, double=double))[others], kernel[others])

    assert error(0) > 0.95
    assert error(64) < 0.1
    others[:64, 5] = False
    assert error(64) < 0.01
    assert error(0) > 0.95


def test_zeros():
    for kind, block, double in EVERY:
        assert not np.any(dequantize(quantize(np.zeros((256, 3), np.float32), kind, block=block, double=double)))


def test_double_quantisation():
    """absmax in eight bits: its mean is kept, and rounding is small beside that of the codes."""
    kernel = normal(256, 128)
    plain, double = quantize(kernel, double=False), quantize(kernel)
    assert double.absmax.dtype == jnp.uint8 and double.absmax.shape == plain.absmax.shape == (128, 4)
    assert double.nested_absmax.shape == (2,)
    assert float(double.nested_offset) == pytest.approx(float(plain.absmax.mean()), rel=1e-6)
    assert relative(double._scale(), plain.absmax) < 0.01
    np.testing.assert_array_equal(double.codes, plain.codes)


def test_dynamic_map():
    numbers = quantized.dynamic_map()
    assert len(numbers) == len(np.unique(numbers)) == 256 and (np.diff(numbers) > 0).all()
    assert numbers[-1] == 1 and numbers[127] == 0
    np.testing.assert_array_equal(numbers[:127], -numbers[254:127:-1])


@pytest.mark.parametrize(
    "kind,block,double,most", [("nf4", 64, True, 0.517), ("int8", 64, True, 1.017), ("int8", 256, False, 1.016)]
)
def test_bytes(kind, block, double, most):
    kernel = jax.ShapeDtypeStruct((4, 1024, 1024), jnp.float32)
    made = jax.eval_shape(lambda kernel: quantize(kernel, kind, block=block, double=double, stacked=True), kernel)
    assert bytes_per_parameter(made) <= most
    assert all(leaf.dtype != jnp.int4 for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize("shape", [(64, 10), (30, 9)])
@pytest.mark.parametrize("kind,block,double", EVERY)
def test_stacked_is_each_apart(kind, block, double, shape):
    """Also where blocks go across outputs, and where the number of numbers is odd."""
    kernel = normal(3, *shape)
    stacked = quantize(kernel, kind, block=block, double=double, stacked=True)
    assert stacked.stacked and stacked.shape == shape
    for layer in range(3):
        apart = quantize(kernel[layer], kind, block=block, double=double)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked), apart)
        np.testing.assert_allclose(dequantize(stacked)[layer], dequantize(apart), rtol=1e-6)
    assert relative(dequantize(stacked), kernel) < 0.2


def test_folded_kernels():
    """A kernel to heads [D, N, H] and one out of them [N, H, D] are their matrices, folded."""
    kernel = normal(64, 4, 16)
    for folded, inputs, matrix in [(kernel, 1, kernel.reshape(64, 64)), (kernel, 2, kernel.reshape(256, 16))]:
        found = quantize(folded, inputs=inputs)
        plain = quantize(matrix)
        np.testing.assert_array_equal(found.codes, plain.codes)
        np.testing.assert_array_equal(dequantize(found).reshape(matrix.shape), dequantize(plain))
        assert dequantize(found).shape == folded.shape
        x = normal(2, 3, matrix.shape[0])
        np.testing.assert_allclose(product(x, found), x @ dequantize(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind,block,double", EVERY)
def test_gradients(kind, block, double):
    """That of x is the dequantised product's; the kernel has none; what waits for the backward pass is the codes."""
    x, kernel, weights = normal(2, 5, 128), quantize(normal(128, 48), kind, block=block, double=double), normal(2, 5, 48)
    plain = dequantize(kernel)
    found, grad = jax.jit(jax.value_and_grad(lambda x: jnp.sum(product(x, kernel) * weights)))(x)
    wanted, wanted_grad = np.sum(x @ plain * weights), weights @ np.asarray(plain).T
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-5, atol=1e-5)

    _, backward = jax.vjp(quantized.product, x, kernel)
    of_x, of_kernel = backward(weights)
    assert of_x.shape == x.shape
    for leaf in jax.tree.leaves(of_kernel):
        assert leaf.dtype == jax.dtypes.float0 or not np.any(leaf)
    kept = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "nbytes")]
    assert 0 < sum(leaf.nbytes for leaf in kept) < 0.3 * plain.nbytes


def test_products_keep_the_dtype_of_x():
    kernel = quantize(normal(64, 32))
    y, backward = jax.vjp(lambda x: product(x, kernel), jnp.asarray(normal(3, 64), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and backward(y)[0].dtype == jnp.bfloat16
    assert relative(np.float32(y), normal(3, 64) @ dequantize(kernel)) < 0.01


@pytest.mark.parametrize("frozen", ["plain", "nf4"])
def test_low_rank(frozen):
    x, w, a, b = normal(4, 64), normal(64, 32, seed=1), normal(64, 3, seed=2), normal(3, 32, seed=3)
    kernel = quantize(w) if frozen == "nf4" else w
    plain = dequantize(kernel) if frozen == "nf4" else w

    def loss(x, a, b):
        return jnp.sum(jnp.sin(low_rank(x, kernel, a, b, 0.5)))

    def wanted(x, a, b):
        return jnp.sum(jnp.sin(x @ (plain + 0.5 * a @ b)))

    for found, right in zip(*(jax.jit(jax.grad(f, (0, 1, 2)))(x, a, b) for f in (loss, wanted)), strict=True):
        assert relative(found, right) < 1e-4
    if frozen == "plain":
        assert not np.any(jax.grad(lambda w: jnp.sum(low_rank(x, w, a, b, 0.5)))(w))


def test_low_rank_dropout():
    """What is dropped is dropped of the part of low rank alone."""
    x, kernel, a, b = normal(4, 64), quantize(normal(64, 32)), normal(64, 3), normal(3, 32)
    found = low_rank(x, kernel, a, b, 2.0, dropout=lambda x: x * 0)
    np.testing.assert_allclose(found, product(x, kernel), rtol=1e-6)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        kernel = self.get_variable("params", "kernel")
        return jnp.tanh(product(x, kernel)), None


@pytest.mark.parametrize("kind,block,double", EVERY[::2])
def test_scanned_layers(kind, block, double):
    """`nn.scan` slices a stack, under rematerialisation, jit and gradients."""
    kernel, x = normal(6, 64, 64) / 8, normal(2, 64)
    stack = quantize(kernel, kind, block=block, double=double, stacked=True)
    module = nn.scan(nn.remat(Layer, prevent_cse=False), variable_axes={"params": 0}, split_rngs={"params": False}, length=6)()
    plain = dequantize(stack)  # [6, 64, 64]

    def apply(x):
        return module.apply({"params": {"kernel": stack}}, x, None)[0]

    def wanted(x):
        for layer in range(6):
            x = jnp.tanh(x @ plain[layer])
        return x

    (y, grad), (wanted_y, wanted_grad) = (
        jax.jit(jax.value_and_grad(lambda x, f=f: jnp.sum(f(x) ** 2)))(x) for f in (apply, wanted)
    )
    assert float(y) == pytest.approx(float(wanted_y), rel=1e-4)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-3, atol=1e-5)
    compiled = jax.jit(jax.grad(lambda x: jnp.sum(apply(x) ** 2))).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * plain[0].nbytes  # not every layer's, nor tables of its size


def test_names_and_axes_of_leaves():
    tree = {"query": {"kernel": quantize(normal(2, 64, 4, 16), stacked=True)}}
    kernel = tree["query"]["kernel"]
    assert parameters.flat(tree) == {"query/kernel": kernel}  # one parameter, of several arrays
    leaves = {parameters.name_of(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
    axes = kernel.logical_axes(("layers", "embed", "heads", "kv"))
    assert {f"query/kernel/{name}" for name in axes} == set(leaves)
    assert axes["codes"] == axes["absmax"] == ("layers", "heads", "embed") and axes["nested_offset"] == ("layers",)
    for name, found in axes.items():
        assert len(found) == leaves[f"query/kernel/{name}"].ndim
    odd = quantize(normal(30, 9), double=False)
    assert odd.logical_axes(("embed", "mlp")) == {"codes": (None, None), "absmax": (None, None)}


def test_checkpoint(tmp_path):
    """Orbax saves and restores a kernel as any other arrays."""
    tree = {"kernel": quantize(normal(2, 64, 8), stacked=True), "bias": jnp.ones(3)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", tree)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "saved", jax.eval_shape(lambda: tree))
    assert restored["kernel"].shape == (64, 8)
    jax.tree.map(np.testing.assert_array_equal, restored, tree)


def test_mistakes():
    for kind, block in [("fp4", 64), ("nf4", 0), ("nf4", 7), ("int8", -2)]:
        with pytest.raises(UserError, match="quantization"):
            quantize(normal(8, 8), kind, block=block)
    with pytest.raises(ValueError, match="slice its layers"):
        product(normal(2, 64), quantize(normal(2, 64, 8), stacked=True))
