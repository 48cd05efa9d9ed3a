"""A moving average of the weights: its numbers, what is evaluated and restored, and a run that is resumed."""

import jax
import numpy as np
import pytest
from tiny_training import TinyModel, TinyTask, make_batch

from transformers_jax import parameters
from transformers_jax.mesh import make_mesh
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.optimizers import make_optimizer
from transformers_jax.training.state import create_state
from transformers_jax.training.step import compile_step, make_train_step

EMA = 0.5
SGD = {"name": "sgd", "schedule": "constant", "learning_rate": 0.1}


def started(**options):
    mesh, batch = make_mesh({}), make_batch()
    tx, _ = make_optimizer(SGD, 10)
    state, shardings = create_state(TinyModel(), tx, batch, mesh, seed=0, averaged=True, **options)
    return state, compile_step(make_train_step(TinyModel(), TinyTask(), tx, seed=0, ema=EMA), mesh, shardings)


def flat(tree) -> dict:
    return {name: np.array(x) for name, x in parameters.flat(tree).items()}


@pytest.fixture(scope="module")
def trained():
    """(states after 0, 1, 2, 3 updates as (params, average)), and the last one."""
    state, step = started()
    seen = [(flat(state.params), flat(state.average))]
    for _ in range(3):
        state, _ = step(state, make_batch())
        seen.append((flat(state.params), flat(state.average)))
    return seen, state


def test_the_average_follows_the_parameters(trained):
    seen, state = trained
    for name, first in seen[0][0].items():
        wanted = first
        np.testing.assert_array_equal(seen[0][1][name], first)
        for n in range(3):
            decay = min(EMA, (1 + n) / (10 + n))
            wanted = decay * wanted + (1 - decay) * seen[n + 1][0][name]
            np.testing.assert_allclose(seen[n + 1][1][name], wanted, rtol=1e-5, atol=1e-6)
    assert any((seen[3][0][name] != x).any() for name, x in seen[3][1].items())
    assert flat(state.evaluated_params).keys() == flat(state.model_params).keys()
    jax.tree.map(np.testing.assert_array_equal, flat(state.evaluated_params), seen[3][1])


def test_what_does_not_learn_has_none():
    state, _ = started(trainable="scale")
    assert list(flat(state.average)) == ["scale"]
    assert flat(state.evaluated_params).keys() == flat(state.model_params).keys()


def test_a_model_is_applied_with_it_and_training_goes_on_with_both(trained, tmp_path):
    seen, state = trained
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
        applied = checkpoints.restore_params()
        assert set(applied) == {"params", "frozen", "model_state"}
        jax.tree.map(np.testing.assert_array_equal, flat(applied["params"]), seen[3][1])
        placed = checkpoints.restore_params(abstract={"params": state.params})
        jax.tree.map(np.testing.assert_array_equal, flat(placed["params"]), seen[3][1])
        _, resumed, _ = checkpoints.restore_latest(state)
        jax.tree.map(np.testing.assert_array_equal, flat(resumed.params), seen[3][0])
        jax.tree.map(np.testing.assert_array_equal, flat(resumed.average), seen[3][1])
