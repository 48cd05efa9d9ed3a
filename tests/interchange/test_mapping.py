"""The engine of the tables: verbs, fused leaves, running statistics, leaves that are read when they are asked for."""

import jax
import ml_dtypes
import numpy as np
import optax
import pytest

from transformers_jax import models
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface, mapping, stacking
from transformers_jax.interchange.weights import Leaf
from transformers_jax.mesh import make_mesh
from transformers_jax.models.name_map import Head, NameMap, Row, batch_norm, linear
from transformers_jax.training.state import abstract_state

OURS = {  # shape here → shape in the file
    "": [((2, 3), (2, 3)), ((), ())],
    "transpose": [((2, 3), (3, 2))],
    "to_heads": [((5, 2, 3), (6, 5))],
    "from_heads": [((2, 3, 5), (5, 6))],
    "flat_heads": [((5, 2, 3), (5, 6))],
    "heads_flat": [((2, 3, 5), (6, 5))],
    "heads": [((2, 3), (6,))],
    "conv": [((4, 4, 3, 8), (8, 3, 4, 4)), ((7, 5, 1, 8), (8, 1, 7, 5)), ((9, 3, 8), (8, 3, 9))],
    "lead": [((7, 4), (1, 7, 4)), ((4,), (1, 1, 4))],
}


def toy(*body: Row) -> NameMap:
    return NameMap("toy", "", body=body, heads={"none": Head("Toy")})


def read(names: NameMap, shapes: dict, file: dict) -> dict[str, np.ndarray]:
    """Ours of a file's arrays."""
    found = {}
    for planned in mapping.plan(names, "none", shapes):
        array = file[planned.theirs]

        def part(axis, start, stop, array=array):
            return np.take(array, range(start, stop), axis) if array.ndim else array

        found |= mapping.leaves(planned, planned.theirs, array.shape, part)
    return {name: np.asarray(leaf) for name, leaf in found.items()}


def write(names: NameMap, ours: dict) -> dict[str, np.ndarray]:
    plan = mapping.plan(names, "none", {name: x.shape for name, x in ours.items()})
    return {p.theirs: mapping.written(p, [ours[name] for name in p.ours]) for p in plan}


@pytest.mark.parametrize("verb", mapping.VERBS)
def test_every_verb_undoes_itself(verb):
    for here, there in OURS[verb]:
        array = np.arange(np.prod(here)).reshape(here)
        written = mapping.VERBS[verb].write(array)
        assert written.shape == there == tuple(mapping.VERBS[verb].theirs(here))
        np.testing.assert_array_equal(mapping.VERBS[verb].read(written, here), array)


def test_verbs_of_all_tables_exist():
    for _, names in huggingface.maps().values():
        rows = [row for head in names.heads for row in names.rows(head) if isinstance(row, Row)]
        assert {row.verb for row in rows} <= set(mapping.VERBS)


def test_heads_of_a_matrix_that_is_not_transposed():
    """GPT-2's Conv1D has inputs first: y = x W."""
    kernel = np.arange(30.0).reshape(5, 6)
    x = np.arange(5.0)
    ours = mapping.VERBS["flat_heads"].read(kernel, (5, 2, 3))
    np.testing.assert_array_equal(np.einsum("d,dnh->nh", x, ours).ravel(), x @ kernel)
    ours = mapping.VERBS["heads_flat"].read(kernel.T, (2, 3, 5))
    np.testing.assert_array_equal(np.einsum("nh,nhd->d", np.arange(6.0).reshape(2, 3), ours), np.arange(6.0) @ kernel.T)


def test_a_convolution_is_the_same_on_either_side():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 3, 6, 6)), rng.standard_normal((8, 3, 2, 2))
    there = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID")
    ours = mapping.VERBS["conv"].read(kernel, (2, 2, 3, 8))
    dims = ("NHWC", "HWIO", "NHWC")
    here = jax.lax.conv_general_dilated(x.transpose(0, 2, 3, 1), ours, (2, 2), "VALID", dimension_numbers=dims)
    np.testing.assert_allclose(here.transpose(0, 3, 1, 2), there, atol=1e-5)


@pytest.mark.parametrize("verb, axis", [("to_heads", 0), ("flat_heads", 1)])
def test_fused_leaves_have_parts_of_any_size_along_any_axis(verb, axis):
    parts = tuple(f"layer_{{i}}/{name}" for name in "qkv")
    names = toy(*linear("h.{i}.qkv", parts, verb, axis), *linear("out", "out"))
    heads = {"q": 4, "k": 2, "v": 2}  # grouped
    ours = {f"layer_1/{n}/kernel": (5, h, 3) for n, h in heads.items()}
    ours |= {f"layer_1/{n}/bias": (h, 3) for n, h in heads.items()}
    ours |= {"out/kernel": (4, 5), "out/bias": (5,)}
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(shape) for name, shape in ours.items()}
    file = write(names, ours)
    assert file["h.1.qkv.weight"].shape == ((24, 5) if axis == 0 else (5, 24)) and file["h.1.qkv.bias"].shape == (24,)
    matrix = file["h.1.qkv.weight"] if axis == 1 else file["h.1.qkv.weight"].T
    np.testing.assert_array_equal(matrix[:, 12:18].reshape(5, 2, 3), ours["layer_1/k/kernel"])
    again = read(names, {name: x.shape for name, x in ours.items()}, file)
    assert sorted(again) == sorted(ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    with pytest.raises(UserError, match=r"h.1.qkv.bias has shape \(23,\); by config.json it should have \(24,\)"):
        read(names, {n: x.shape for n, x in ours.items()}, file | {"h.1.qkv.bias": np.zeros(23)})


def test_running_statistics_are_of_another_collection():
    names = toy(*batch_norm("layers.{i}.bn", "layer_{i}/norm"))
    tree = {"scale": np.ones(3), "bias": np.zeros(3)}, {"mean": np.full(3, 2.0), "var": np.full(3, 4.0)}
    variables = {"params": {"layer_0": {"norm": tree[0]}}, "batch_stats": {"layer_0": {"norm": tree[1]}}}
    ours = mapping.named(variables)
    assert sorted(ours)[0] == "batch_stats:layer_0/norm/mean"
    file = write(names, ours)
    assert sorted(file) == [f"layers.0.bn.{n}" for n in ("bias", "running_mean", "running_var", "weight")]
    again = mapping.variables(read(names, {name: x.shape for name, x in ours.items()}, file))
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert names.knows("layers.0.bn.num_batches_tracked")
    stacked = stacking.separate({"batch_stats:layer/norm/mean": np.ones((2, 3))})
    assert sorted(stacked) == ["batch_stats:layer_0/norm/mean", "batch_stats:layer_1/norm/mean"]


def test_leaves_are_read_one_by_one_and_get_their_dtype_on_the_device():
    model = models.build(dict(name="bert", width=8, num_heads=2, mlp_width=8, layers=2, max_length=9, scan_layers=True), 31)
    state = abstract_state(model, optax.identity(), model.protocol().example(), make_mesh({}))
    asked, apart = [], stacking.names(mapping.shapes(model))

    def leaf(name, shape):
        def draw():
            asked.append(name)
            return np.full(shape, len(name), ml_dtypes.bfloat16)

        return Leaf(shape, draw)

    leaves = stacking.arranged({name: leaf(name, shape) for name, shape in apart.items()}, mapping.named(state.variables))
    assert asked == []
    found = mapping.placed(leaves, state.variables)
    assert sorted(asked) == sorted(apart)
    first = asked.index("encoder/layer_0/block/self_norm/scale")
    assert asked[first + 1] == "encoder/layer_1/block/self_norm/scale"  # a stack at a time
    kernel = found["params"]["encoder"]["layer"]["block"]["feed_forward"]["expand"]["kernel"]
    assert isinstance(kernel, jax.Array) and kernel.dtype == np.float32 and kernel.shape == (2, 8, 8)
    jax.tree.map(lambda x, like: np.testing.assert_equal(x.sharding, like.sharding), found, state.variables)
