"""Mesh, rules, and placing batches. What needs eight devices or two processes is in test_step.py."""

import dataclasses
import types

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import AbstractMesh, PartitionSpec
from ml_collections import ConfigDict
from tiny_training import ADAM, STEPS, TinyModel, boxed, make_batch, one_device

from transformers_jax import parameters
from transformers_jax.data import pipeline
from transformers_jax.data.collate import layout_of
from transformers_jax.errors import UserError
from transformers_jax.mesh import AXES, check_rows, data_shard, global_batch, make_mesh, row_sharding
from transformers_jax.tasks import translation
from transformers_jax.training import sharding
from transformers_jax.training.optimizers import make_optimizer
from transformers_jax.training.state import TrainState, abstract_state, create_state


def abstract(data, fsdp, tensor):
    return AbstractMesh((data, fsdp, tensor), AXES)


MESH = abstract(2, 4, 2)


def specs(state):
    """The spec of every leaf by name, without its trailing empty entries."""
    leaves = parameters.flat(jax.tree.map(lambda x: x.sharding, state))
    return {name: tuple(s.spec) for name, s in leaves.items()}


def spec_of(shape, axes, mesh=MESH, rules=sharding.RULES):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    state = TrainState(step=0, params={"w": leaf}, frozen={}, model_state={}, opt_state=())
    return sharding.state_shardings(state, {"w": axes}, mesh, rules).params["w"].spec


# The mesh


def sized(config, count, monkeypatch):
    """The shape that is asked of jax for so many devices, which need not be there."""
    monkeypatch.setattr(jax, "make_mesh", lambda shape, axes, **_: dict(zip(axes, shape, strict=True)))
    return tuple(make_mesh(config, [None] * count).values())


@pytest.mark.parametrize(
    ("config", "count", "shape"),
    [
        ({}, 8, (8, 1, 1)),
        ({"data": -1, "fsdp": 2, "tensor": 2}, 8, (2, 2, 2)),
        ({"data": 1, "fsdp": -1}, 8, (1, 8, 1)),
        ({"data": 2, "fsdp": 1, "tensor": -1}, 6, (2, 1, 3)),
        ({"data": 1, "fsdp": 1, "tensor": 1}, 1, (1, 1, 1)),
    ],
)
def test_one_axis_takes_what_is_left(config, count, shape, monkeypatch):
    assert sized(ConfigDict(config), count, monkeypatch) == shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"data": 2, "fsdp": 2, "tensor": 1},
            r"data=2 fsdp=2 tensor=1 does not fit 8 device\(s\): the product must be 8",
        ),
        ({"fsdp": 3}, "fsdp=3 .* divisors of 8"),
        ({"data": -1, "fsdp": -1}, "only one axis may be -1"),
        ({"fsdp": 0}, "config.mesh.fsdp is 0"),
        ({"model": 2}, "config.mesh.model is not a mesh axis; there are data, fsdp, tensor"),
    ],
)
def test_a_mesh_that_does_not_fit_is_an_error(config, message, monkeypatch):
    with pytest.raises(UserError, match=message):
        sized(config, 8, monkeypatch)


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int
    id: int


def test_devices_of_a_process_stand_side_by_side(monkeypatch):
    """As in a v5e-16, whose hosts have squares of a grid that jax.make_mesh walks through row by row."""
    devices = [Device(2 * (y // 2) + x // 2, 4 * y + x) for y in range(4) for x in range(4)]
    assert [d.process_index for d in devices[:4]] == [0, 0, 1, 1]
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr("transformers_jax.mesh.Mesh", lambda devices, axes, axis_types: devices)
    placed = make_mesh({"fsdp": 2}, devices)
    assert placed.shape == (8, 2, 1) and [d.process_index for d in placed.flat] == [i // 4 for i in range(16)]
    assert [d.id for d in placed.flat[:4]] == [0, 1, 4, 5]


@pytest.mark.parametrize("error", [ValueError, NotImplementedError])
def test_where_jax_has_no_order_for_the_devices_theirs_is_taken(error, monkeypatch):
    def refuse(*_, **__):
        raise error("`jax.make_mesh` does not support multi-slice topologies")

    monkeypatch.setattr(jax, "make_mesh", refuse)
    mesh = make_mesh({}, jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1} and mesh.axis_types == one_device().axis_types


# The rules


def test_logical_axes_go_where_the_rules_say():
    assert spec_of((16, 8), ("vocab", "embed")) == PartitionSpec("tensor", "fsdp")
    assert spec_of((3, 8, 4, 5), ("layers", "embed", "heads", "kv")) == PartitionSpec(None, "fsdp", "tensor", None)
    assert spec_of((8, 4), (None, "mlp")) == PartitionSpec(None, "tensor")
    assert spec_of((8, 4), ("batch", "conv")) == PartitionSpec(("data", "fsdp"), None)


def test_a_mesh_axis_is_used_once_and_size_one_not_at_all():
    assert spec_of((8, 8), ("embed", "embed")) == PartitionSpec("fsdp", None)
    assert spec_of((8, 8), ("embed", "mlp"), abstract(8, 1, 1)) == PartitionSpec(None, None)


def test_rules_are_an_argument():
    rules = sharding.RULES | {"embed": (), "mlp": ("fsdp", "tensor")}
    assert spec_of((8, 16), ("embed", "mlp"), rules=rules) == PartitionSpec(None, ("fsdp", "tensor"))


def test_an_axis_that_does_not_divide_is_copied_and_logged_once(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    leaf = jax.ShapeDtypeStruct((6, 8), np.float32)
    state = TrainState(step=0, params={"a": leaf, "b": leaf}, frozen={}, model_state={}, opt_state=())
    found = sharding.state_shardings(state, {"a": ("embed", "mlp"), "b": ("embed", None)}, MESH)
    assert found.params["a"].spec == PartitionSpec(None, "tensor") and found.params["b"].spec == PartitionSpec(None, None)
    assert lines == ["sharding: embed=6 does not divide over fsdp=4 (a): that axis is copied instead"]


def test_axes_the_rules_lack_and_wrong_ranks_are_errors_of_the_model():
    with pytest.raises(ValueError, match="w has the logical axis 'emebd'; the rules know batch, vocab"):
        spec_of((8,), ("emebd",))
    with pytest.raises(ValueError, match="one axis a dimension"):
        spec_of((8, 8), ("embed",))


def state_of(optimizer, **options):
    tx, _ = make_optimizer(optimizer, STEPS)
    return abstract_state(TinyModel(batch_norm=True), tx, make_batch(), MESH, **options)


def test_adam_follows_the_parameters():
    state = state_of(ADAM)
    params = specs(state.params)
    assert params["embedding"] == ("tensor", "fsdp") and params["layers/up/kernel"] == (None, "fsdp", "tensor")
    assert params["layers/up/bias"] == (None, "tensor") and params["scale"] == ("fsdp",)
    moments = state.opt_state[0][0]
    assert specs(moments.mu) == params == specs(moments.nu)
    copied = {
        **specs(state.model_state),
        "count": tuple(moments.count.sharding.spec),
        "step": tuple(state.step.sharding.spec),
    }
    assert len(copied) == 4 and set(copied.values()) == {()}


def test_adafactor_rows_and_columns_keep_the_axes_that_are_left():
    state = state_of(ADAM | {"name": "adafactor", "min_factored": 8})
    kept = state.opt_state[0][0]
    # up/kernel [layers 2, embed 8, mlp 32]: rows are summed over mlp, the largest, columns over embed.
    assert kept.v_row["layers"]["up"]["kernel"].shape == (2, 8)
    assert kept.v_col["layers"]["up"]["kernel"].shape == (2, 32)
    rows, columns = specs(kept.v_row), specs(kept.v_col)
    assert rows["layers/up/kernel"] == (None, "fsdp") and columns["layers/up/kernel"] == (None, "tensor")
    assert rows["layers/down/kernel"] == (None, "fsdp") and columns["layers/down/kernel"] == (None, "tensor")
    assert rows["embedding"] == ("fsdp",) and columns["embedding"] == ("tensor",)
    assert rows["layers/up/bias"] == () and specs(kept.v)["layers/up/bias"] == (None, "tensor")


def test_optimizer_states_inside_other_states_follow_too():
    tx = optax.multi_transform(
        {"a": optax.adam(1.0), "b": optax.sgd(1.0, momentum=0.9)}, lambda p: {k: "ab"[k == "scale"] for k in p}
    )
    state = abstract_state(TinyModel(), tx, make_batch(), MESH)
    found = {name: spec for name, spec in specs(state.opt_state).items() if spec}
    assert {spec for name, spec in found.items() if name.endswith("embedding")} == {("tensor", "fsdp")}
    assert [spec for name, spec in found.items() if name.endswith("scale")] == [("fsdp",)]


def test_overrides_replace_the_axes_of_what_they_match():
    state = state_of(ADAM, overrides=[("up/kernel", (None, None, "embed")), ("kernel", (None, None, None))])
    params = specs(state.params)
    assert params["layers/up/kernel"] == (None, None, "fsdp") and params["layers/down/kernel"] == (None, None, None)
    assert specs(state.opt_state[0][0].mu)["layers/up/kernel"] == (None, None, "fsdp")
    with pytest.raises(UserError, match="sharding override: 'upp' matches no parameter"):
        state_of(ADAM, overrides=[("upp", (None,))])


# The state


def test_what_is_frozen_has_no_optimizer_state_and_the_model_sees_all():
    tx, _ = make_optimizer(ADAM, STEPS)
    args = (TinyModel(), tx, make_batch(), one_device())
    whole, _ = create_state(*args, seed=3)
    state, shardings = create_state(*args, seed=3, trainable=("scale", "up/kernel"))
    assert whole.frozen == {} and whole.step == 0 and whole.step.dtype == np.int32
    assert sorted(parameters.flat(state.params)) == ["layers/up/kernel", "scale"]
    assert sorted(parameters.flat(state.frozen)) == ["embedding", "layers/down/kernel", "layers/up/bias"]
    assert jax.tree.structure(state.opt_state[0][0].mu) == jax.tree.structure(state.params)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, state.model_params, whole.params)
    assert state.variables.keys() == {"params"}
    with pytest.raises(UserError, match="trainable: 'lora' matches no parameter"):
        create_state(*args, seed=3, trainable="lora")


def test_abstract_and_real_states_agree():
    tx, _ = make_optimizer(ADAM, STEPS)
    args = (TinyModel(batch_norm=True), tx, make_batch(), one_device())
    state, _ = create_state(*args, seed=3)
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract_state(*args))
    assert state.model_state.keys() == {"batch_stats"}


def test_the_seed_alone_decides_the_parameters():
    tx, _ = make_optimizer(ADAM, STEPS)
    a, b, c = (create_state(TinyModel(), tx, make_batch(), one_device(), seed=s)[0].params["embedding"] for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


# Batches


@pytest.mark.parametrize(
    ("rows", "accumulate", "message"),
    [
        (12, 1, "12 rows does not divide over the mesh's data=2 × fsdp=4; take 8 or 16"),
        (5, 1, "take 8$"),
        (24, 2, "data=2 × fsdp=4 × config.training.accumulate=2; take 16 or 32"),
    ],
)
def test_a_batch_that_does_not_divide_is_told_which_size_to_take(rows, accumulate, message):
    with pytest.raises(UserError, match="config.data.batch_size: .*" + message):
        check_rows(rows, MESH, accumulate)
    check_rows(16, MESH, accumulate)


def test_a_global_batch_is_the_batch():
    batch, mesh = make_batch(), one_device()
    placed = global_batch(batch, mesh)
    assert placed["inputs"].sharding == row_sharding(mesh)
    jax.tree.map(np.testing.assert_array_equal, dict(placed), batch)
    placed = global_batch(batch, mesh, parallelism="pmap")
    jax.tree.map(np.testing.assert_array_equal, dict(placed), {name: field[None] for name, field in batch.items()})
    assert data_shard(mesh) == (0, 1)


@pytest.mark.parametrize(
    ("shape", "shares"),
    [((4, 1, 1), [(0, 2), (1, 2)]), ((1, 1, 4), [(0, 1), (0, 1)]), ((1, 2, 2), [(0, 2), (1, 2)])],
)
def test_processes_share_out_the_rows(shape, shares, monkeypatch):
    """Two processes of two devices each; the mesh is a stand-in that knows which rows a process's devices hold."""
    assert [share_of(process, shape, (0, 0, 1, 1), monkeypatch) for process in (0, 1)] == shares


def share_of(process, shape, processes, monkeypatch):
    """What a process reads, where the devices of a mesh belong to such processes."""
    held = {Device(p, n): (slice(n // shape[2], n // shape[2] + 1),) for n, p in enumerate(processes)}
    rows = types.SimpleNamespace(devices_indices_map=lambda size: held)
    monkeypatch.setattr("transformers_jax.mesh.row_sharding", lambda mesh: rows)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    mesh = types.SimpleNamespace(shape=dict(zip(AXES, shape, strict=True)))
    return data_shard.__wrapped__(mesh)


@pytest.mark.parametrize(
    ("shape", "processes", "bad"),
    [
        ((4, 1, 1), (0, 1, 0, 1), "process 0 of 2 would hold 2 of 4 parts, from number 0"),  # not side by side
        ((4, 1, 1), (0, 1, 1, 0), "process 0 of 2"),
        ((1, 3, 2), (0, 0, 0, 1, 1, 1), "fsdp=3 .*process 1 of 2 would hold 2 of 3 parts, from number 1"),
        ((3, 1, 1), (0, 0, 1), "process [01] of 2 would hold"),  # not as many
    ],
)
def test_processes_that_would_not_share_out_the_rows_are_an_error(shape, processes, bad, monkeypatch):
    for process in set(processes):
        with pytest.raises(UserError, match=f"config.mesh data=.*{bad}.*a multiple or a divisor of the number of processes"):
            share_of(process, shape, processes, monkeypatch)


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 3, 16, 48])
def test_rows_of_every_bucket_divide_over_devices_and_microbatches(parts):
    keys = ConfigDict(dict(batching="buckets", tokens_per_batch=25_000, boundaries=(16, 24, 32, 48, 64, 96, 128)))
    layout = layout_of(translation.Task)
    rows = [shape.rows for shape in pipeline.shapes_of(keys, layout, 2, parts)[0]]
    assert all(count % parts == 0 and count % 8 == 0 for count in rows)
    if 8 % parts == 0:  # nothing changes
        assert rows == [25_000 // width // 8 * 8 for width in keys.boundaries]
    with pytest.raises(UserError, match="tokens_per_batch=1000: 8 rows of 128 need 1024"):
        keys.tokens_per_batch = 1000
        pipeline.shapes_of(keys, layout, 1)


# Activations


def test_pinning_rows_changes_no_number_and_ends_with_its_context():
    model, mesh = nn.Dense(3, kernel_init=boxed("embed", "mlp")), one_device()
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    variables = nn.unbox(model.init(jax.random.key(0), x))
    with sharding.rows_stay_split(mesh):
        inside = model.apply(variables, x)
    np.testing.assert_array_equal(inside, model.apply(variables, x))
