"""The step: its arithmetic, and that every way of spreading it over devices gives the same numbers."""

import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tiny_training
from tiny_training import (
    ROWS,
    SGD,
    STEPS,
    VOCAB,
    WAYS,
    TinyModel,
    TinyTask,
    difference,
    make_batch,
    one_device,
    train,
)

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.mesh import AXES
from transformers_jax.tasks.task import Task
from transformers_jax.training import step as steps
from transformers_jax.training.optimizers import make_optimizer
from transformers_jax.training.state import create_state
from transformers_jax.training.step import compile_step, make_eval_step, make_train_step

PLAIN, NOISE, NORMED = TinyModel(), TinyModel(rate=0.5), TinyModel(batch_norm=True)


@pytest.fixture(scope="module")
def plain():
    return train(one_device())


TX, _ = make_optimizer(SGD, STEPS)


@functools.cache
def start(model=PLAIN, trainable="."):
    """The state before training by SGD."""
    return create_state(model, TX, make_batch(), one_device(), seed=1, trainable=trainable)[0]


@functools.cache
def program(model, accumulate=1, seed=2):
    return jax.jit(make_train_step(model, TinyTask(), TX, seed=seed, accumulate=accumulate))


def one_step(batch=None, *, model=PLAIN, accumulate=1, trainable="."):
    """(state before, state after, metrics) of one update that takes nobody's memory."""
    before = start(NORMED if model is NORMED else PLAIN, trainable)
    return before, *program(model, accumulate)(before, batch or make_batch())


def test_the_gradient_is_that_of_the_mean_over_tokens():
    batch, task = make_batch(), TinyTask()
    before, after, metrics = one_step()

    def mean(params):
        loss, weight, _ = task.loss(PLAIN.apply({"params": params}, batch), batch, train=True)
        return loss / weight

    loss, gradient = jax.jit(jax.value_and_grad(mean))(before.params)
    assert metrics["weight"] == (batch["segments"] > 0).sum() and metrics["weight"] < batch["segments"].size
    assert float(metrics["loss"] / metrics["weight"]) == pytest.approx(float(loss), rel=1e-6)
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(gradient)))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert difference(after.params, jax.tree.map(lambda p, g: p - SGD["learning_rate"] * g, before.params, gradient)) < 1e-6
    assert after.step == 1 and after.step.dtype == np.int32
    assert metrics.keys() == {"loss", "weight", "correct", "training", "grad_norm"} and metrics["training"] == 1
    assert all(value.shape == () for value in metrics.values())


def test_accumulation_equals_the_large_batch():
    _, whole, one = one_step()
    _, parts, sums = one_step(accumulate=4)
    assert difference(whole.params, parts.params) < 1e-6
    assert sums["training"] == 4  # the task was asked once a microbatch
    for name in ("loss", "weight", "correct", "grad_norm"):
        assert float(sums[name]) == pytest.approx(float(one[name]), rel=1e-5)


def test_rows_cannot_be_cut_unevenly():
    with pytest.raises(UserError, match="config.training.accumulate is 3, which does not divide a batch of 16 rows"):
        one_step(accumulate=3)


def test_a_batch_without_tokens_changes_nothing():
    before, after, metrics = one_step(make_batch() | {"segments": np.zeros_like(make_batch()["segments"])})
    assert metrics["loss"] == metrics["weight"] == metrics["grad_norm"] == 0
    assert difference(before.params, after.params) == 0


def test_the_frozen_do_not_move_and_the_others_learn_with_them():
    _, whole, _ = one_step()
    before, after, _ = one_step(trainable="up|scale")
    assert difference(after.frozen, before.frozen) == 0
    learned = parameters.flat(after.params)
    assert sorted(learned) == ["layers/up/bias", "layers/up/kernel", "scale"]
    for name, leaf in learned.items():
        np.testing.assert_allclose(leaf, parameters.flat(whole.params)[name], rtol=1e-6, atol=1e-7)
    assert difference(after.params, before.params) > 1e-3


def test_dropout_is_a_function_of_seed_and_step():
    def loss(seed, at):
        return float(program(NOISE, seed=seed)(start().replace(step=jnp.int32(at)), make_batch())[1]["loss"])

    assert loss(5, 0) == loss(5, 0)
    assert len({loss(5, 0), loss(5, 1), loss(6, 0), loss(6, 1)}) == 4


def test_every_microbatch_draws_its_own_dropout():
    half = make_batch(rows=ROWS // 2)
    empty = half | {"segments": np.zeros_like(half["segments"])}

    def loss(even, odd):
        batch = {name: np.stack([even[name], odd[name]], axis=1).reshape(ROWS, -1) for name in half}
        return float(one_step(batch, model=NOISE, accumulate=2)[2]["loss"])

    first, second = loss(half, empty), loss(empty, half)  # the same rows in the first and in the second microbatch
    assert abs(first - second) > 1e-3 and loss(half, half) == pytest.approx(first + second, rel=1e-6)


def test_running_statistics_pass_through_and_evaluation_reads_them():
    before, after, _ = one_step(model=NORMED)
    _, twice, _ = one_step(model=NORMED, accumulate=2)
    mean = [s.model_state["batch_stats"]["running"]["mean"] for s in (before, after, twice)]
    assert not mean[0].any() and np.abs(mean[1]).max() > 1e-3
    assert np.abs(mean[2]).max() > np.abs(mean[1]).max()  # moved twice towards the data
    evaluate = jax.jit(make_eval_step(NORMED, TinyTask()))
    sums = [evaluate(before.model_params, s.model_state, make_batch()) for s in (before, after)]
    assert sums[0]["loss"] != sums[1]["loss"] and sums[0]["training"] == 0


def test_evaluation_sums_without_dropout_over_all_parameters():
    batch, task = make_batch(), TinyTask()
    state = start(PLAIN, "up|scale")
    sums = jax.jit(make_eval_step(NOISE, task))(state.model_params, state.model_state, batch)
    output = jax.jit(PLAIN.apply)({"params": state.model_params}, batch)
    loss, weight, counts = task.loss(output, batch, train=False)
    assert sums.keys() == {"loss", "weight", "correct", "training"}
    assert float(sums["loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert sums["weight"] == weight and sums["correct"] == counts["correct"]


def test_half_precision_gradients_are_summed_in_float32():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, batch, *, deterministic):
            return batch["x"] * self.param("w", nn.initializers.zeros, (), jnp.bfloat16)

    class Sum(Task):
        def loss(self, output, batch, *, train):
            return output.astype(jnp.float32).sum(), jnp.float32(1), {}

    batch = {"x": np.array([256.0] + [1.0] * 7, np.float32)}  # 256 + 1 is 256 in bfloat16
    tx, _ = make_optimizer(SGD, STEPS)
    state, _ = create_state(Half(), tx, batch, one_device(), seed=0)
    after, metrics = jax.jit(make_train_step(Half(), Sum(), tx, seed=0, accumulate=8))(state, batch)
    assert metrics["grad_norm"] == 263 / 8 and metrics["grad_norm"].dtype == jnp.float32
    assert after.params["w"].dtype == jnp.bfloat16 == state.params["w"].dtype


def test_the_state_is_given_up_and_one_program_serves_all_steps(plain):
    assert plain.given_up and plain.compiled == [1, 0, 0]


class Deep(nn.Module):
    """Three square kernels: each but the first is read again for the gradient of what is below it."""

    @nn.compact
    def __call__(self, batch, *, deterministic=True):
        x = jax.nn.one_hot(batch["inputs"], VOCAB)
        for _ in range(3):
            x = nn.relu(nn.Dense(VOCAB)(x))
        return x


def test_an_update_writes_over_parameters_without_a_copy_of_them(monkeypatch):
    state, shardings = create_state(Deep(), TX, make_batch(), one_device(), seed=1)
    step = make_train_step(Deep(), TinyTask(), TX, seed=2)

    def copies():
        program = compile_step(step, one_device(), shardings).lower(state, make_batch()).compile()
        return len(re.findall(rf"= f32\[{VOCAB},{VOCAB}\]\S* copy\(", program.as_text()))

    assert copies() == 0
    monkeypatch.setattr(steps, "IN_PLACE", {})
    assert copies() == 2
    monkeypatch.setattr(steps, "IN_PLACE", {"xla_cpu_no_such_option": True})
    assert copies() == 2


def test_pmap_on_one_device_is_jit(plain):
    run = train(one_device(), parallelism="pmap")
    assert difference(run.last, plain.last) < 1e-6 and run.given_up and run.compiled == [1, 0, 0]


def test_wrong_ways_of_spreading_are_told(monkeypatch):
    tx, _ = make_optimizer(SGD, STEPS)
    with pytest.raises(UserError, match="config.training.parallelism is 'pjit'; known: jit, pmap"):
        make_train_step(TinyModel(), TinyTask(), tx, seed=0, parallelism="pjit")
    step = make_train_step(TinyModel(), TinyTask(), tx, seed=0, parallelism="pmap")
    split = jax.sharding.AbstractMesh((2, 2, 1), AXES)
    with pytest.raises(UserError, match="pmap copies parameters: set config.mesh.fsdp and .tensor to 1"):
        compile_step(step, split, None, parallelism="pmap")
    with pytest.raises(UserError, match="config.data.batch_size: a batch of 18 rows .* take 16 or 20"):
        compile_step(step, split, None, make_batch(rows=18))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="pmap runs in one process"):
        compile_step(step, one_device(), None, parallelism="pmap")


# Eight devices


@pytest.fixture(scope="module")
def eight():
    report, _ = processes.finish(processes.start(tiny_training.__file__, "meshes", devices=8))
    assert report["devices"] == 8
    return report


@pytest.mark.parametrize("way", WAYS)
def test_eight_devices_learn_what_one_does(eight, way):
    found = eight["ways"][way]
    assert found["first"] == 0, "the initial parameters depend on the mesh"
    assert found["moved"] > 0.01 and found["last"] < 1e-6
    assert found["evaluated"] < 1e-4
    mine, one = found["metrics"]
    assert len(mine) == STEPS
    for a, b in zip(mine, one, strict=True):
        assert a.keys() == b.keys()
        for name in b.keys() - {"training"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5), name


@pytest.mark.parametrize("way", WAYS)
def test_eight_devices_compile_once(eight, way):
    assert eight["ways"][way]["compiled"] == [1, 0, 0]


def test_a_device_holds_its_part_only(eight):
    """Mesh 2 × 2 × 2: "embed" (8) over fsdp, "vocab" (16) and "mlp" (32) over tensor."""
    adam, adafactor = eight["placement"]["adamw"], eight["placement"]["adafactor"]
    for tree in ("params", "opt_state/0/0/mu", "opt_state/0/0/nu"):
        assert adam[f"{tree}/embedding"] == [8, 4]
        assert adam[f"{tree}/layers/up/kernel"] == [2, 4, 16]
        assert adam[f"{tree}/layers/down/kernel"] == [2, 16, 4]
    assert adafactor["opt_state/0/0/v_row/layers/up/kernel"] == [2, 4]
    assert adafactor["opt_state/0/0/v_col/layers/up/kernel"] == [2, 16]


def test_microbatches_move_no_rows(eight):
    crossed = [operation for _, operation in eight["moves"]["data"]]
    assert crossed and set(crossed) == {"all-reduce"}


def test_fsdp_gathers_parameters_not_activations(eight):
    shapes = [shape for shape, _ in eight["moves"]["fsdp"]]
    assert "8,32" in shapes, "no layer's kernel is gathered"
    assert not [s for s in shapes if s.startswith("16,6,") and s != "16,6,1"], "activations of all rows meet"


# Two processes


def test_two_processes_learn_what_one_does(plain):
    port = processes.free_port()
    running = [processes.start(tiny_training.__file__, "process", index, 2, port, devices=2) for index in range(2)]
    reports = [processes.finish(process)[0] for process in running]
    assert [r["devices"] for r in reports] == [4, 4]
    assert [r["share"] for r in reports] == [[0, 2], [1, 2]]
    assert [r["tensor"] for r in reports] == [[0, 1], [0, 1]]
    assert json.dumps(reports[0]["metrics"]) == json.dumps(reports[1]["metrics"])
    for found, one in zip([*reports[0]["metrics"], reports[0]["evaluated"]], [*plain.metrics, plain.evaluated], strict=True):
        for name in one.keys() - {"training"}:
            assert found[name] == pytest.approx(one[name], rel=1e-5), name
