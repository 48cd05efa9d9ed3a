"""Schedules and update rules against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from transformers_jax.errors import UserError
from transformers_jax.training.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule

PEAK, WARMUP, TOTAL = 0.3, 4, 12
CONSTANT = {"schedule": "constant", "learning_rate": 0.1}
N = np.arange(1, TOTAL + 1)  # updates as papers count them


def schedule(name, **options):
    base = {"d_model": 512} if name == "noam" else {"learning_rate": PEAK}
    return make_schedule({"schedule": name, "warmup_steps": WARMUP} | base | options, TOTAL)


def rates(curve):
    return np.array([float(curve(n - 1)) for n in N])


def params():
    r = np.random.default_rng(0)
    names = {"dense": {"kernel": (3, 5), "bias": (5,)}, "norm": {"scale": (5,)}, "embedding": (7, 5)}
    return jax.tree.map(lambda shape: r.normal(size=shape).astype(np.float32), names, is_leaf=lambda x: isinstance(x, tuple))


def gradients(seed):
    return jax.tree.map(lambda p: np.random.default_rng(seed).normal(size=p.shape).astype(np.float32), params())


def run(config, steps=4, total=TOTAL):
    """Parameters after some updates, as Optax makes them."""
    tx, _ = make_optimizer(config, total)
    p, state = params(), tx.init(params())
    for i in range(steps):
        updates, state = tx.update(gradients(i), state, p)
        p = optax.apply_updates(p, updates)
    return p


def reference(rule, steps=4):
    """Parameters after some updates; rule: (name, p, g, memory, update) → p, in float64."""
    p = {name: leaf.astype(np.float64) for name, leaf in flat(params()).items()}
    memory = {name: {} for name in p}
    for i in range(steps):
        for name, g in flat(gradients(i)).items():
            p[name] = rule(name, p[name], g.astype(np.float64), memory[name], i + 1)
    return p


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_equal(tree, leaves, **tolerance):
    tree = flat(tree)
    assert tree.keys() == leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_allclose(tree[name], leaf, err_msg=name, **({"rtol": 2e-5, "atol": 1e-5} | tolerance))


# Schedules


def test_noam_is_equation_3():
    wanted = 2.0 * 512**-0.5 * np.minimum(N**-0.5, N * WARMUP**-1.5)
    np.testing.assert_allclose(rates(schedule("noam", factor=2.0)), wanted, rtol=1e-6)


def test_noam_of_the_paper_peaks_at_update_4000():
    curve = make_schedule({"schedule": "noam", "d_model": 512, "warmup_steps": 4000}, 100_000)
    assert float(curve(3999)) == pytest.approx(512**-0.5 * 4000**-0.5, rel=1e-6)
    assert float(curve(3998)) < float(curve(3999)) > float(curve(4000))


def test_inverse_sqrt_has_the_given_peak():
    wanted = PEAK * np.where(N < WARMUP, N / WARMUP, np.sqrt(WARMUP / N))
    np.testing.assert_allclose(rates(schedule("inverse_sqrt")), wanted, rtol=1e-6)


def test_cosine_and_linear_end_one_update_after_the_last():
    share = (N - WARMUP) / (TOTAL + 1 - WARMUP)
    rise = PEAK * N / WARMUP
    cosine = PEAK * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * share)))
    np.testing.assert_allclose(rates(schedule("cosine", end_factor=0.1)), np.where(N < WARMUP, rise, cosine), rtol=1e-5)
    linear = PEAK * (1 - share)
    np.testing.assert_allclose(rates(schedule("linear")), np.where(N < WARMUP, rise, linear), rtol=1e-5)


def test_constant_rises_and_stays():
    np.testing.assert_allclose(rates(schedule("constant")), PEAK * np.minimum(N / WARMUP, 1), rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_every_rate_is_above_zero_and_the_same_when_traced(name, warmup):
    curve = schedule(name, warmup_steps=warmup)
    eager = rates(curve)
    assert (eager > 0).all() and np.isfinite(eager).all()
    assert eager.argmax() == max(warmup - 1, 0)
    np.testing.assert_allclose(jax.jit(jax.vmap(curve))(jnp.arange(TOTAL)), eager, rtol=1e-5)


# Update rules


def adam(b1, b2, eps, rate, decay=0.0, decays=()):
    def rule(name, p, g, memory, n):
        m = memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
        v = memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
        step = (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)
        return p - rate(n) * (step + (decay if name in decays else 0) * p)

    return rule


def test_adam_has_the_constants_of_the_paper():
    noam = {"name": "adam", "schedule": "noam", "d_model": 4, "warmup_steps": 3}
    wanted = reference(adam(0.9, 0.98, 1e-9, lambda n: 0.5 * min(n**-0.5, n * 3**-1.5)))
    assert_equal(run(noam), wanted)


def test_adam_takes_given_constants():
    assert_equal(run(CONSTANT | {"b1": 0.8, "b2": 0.5, "eps": 0.1}), reference(adam(0.8, 0.5, 0.1, lambda n: 0.1)))


def test_adamw_decays_kernels_only():
    config = CONSTANT | {"name": "adamw", "weight_decay": 0.2}
    assert_equal(run(config), reference(adam(0.9, 0.999, 1e-8, lambda n: 0.1, 0.2, {"dense/kernel"})))


def test_decay_goes_by_the_pattern():
    config = CONSTANT | {"name": "adamw", "weight_decay": 0.2, "decay_pattern": "^norm/|embedding"}
    wanted = reference(adam(0.9, 0.999, 1e-8, lambda n: 0.1, 0.2, {"norm/scale", "embedding"}))
    assert_equal(run(config), wanted)


def test_a_decay_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(
        UserError, match="config.optimizer.decay_pattern: 'kernels' matches no parameter; there are .*dense/kernel"
    ):
        run(CONSTANT | {"name": "adamw", "weight_decay": 0.2, "decay_pattern": "kernels"})


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("factored", [True, False])
def test_adafactor_is_algorithm_4(factored, decay):
    def rms(x):
        return np.sqrt((x**2).mean())

    def rule(name, p, g, memory, n):
        beta = 1 - n**-0.8
        square = g**2 + 1e-30
        if factored and p.ndim == 2:
            row = memory["row"] = beta * memory.get("row", 0) + (1 - beta) * square.mean(1, keepdims=True)
            column = memory["column"] = beta * memory.get("column", 0) + (1 - beta) * square.mean(0, keepdims=True)
            v = row * column / row.mean()
        else:
            v = memory["v"] = beta * memory.get("v", 0) + (1 - beta) * square
        u = g / np.sqrt(v)
        u /= max(1, rms(u))
        return p - 0.1 * (max(1e-3, rms(p)) * u + (decay if name == "dense/kernel" else 0) * p)

    config = CONSTANT | {"name": "adafactor", "min_factored": 2 if factored else 128, "weight_decay": decay}
    assert_equal(run(config), reference(rule))


def test_adafactor_keeps_rows_and_columns_and_no_momentum():
    tx, _ = make_optimizer(CONSTANT | {"name": "adafactor", "min_factored": 8}, TOTAL)
    sizes = [x.size for x in jax.tree.leaves(tx.init({"kernel": jnp.zeros((16, 32))}))]
    assert max(sizes) == 32 and sum(sizes) < 64


def test_sgd_is_the_gradient_with_momentum_and_l2():
    def rule(name, p, g, memory, n):
        g = g + (0.5 * p if name == "dense/kernel" else 0)
        memory["m"] = 0.9 * memory.get("m", 0) + g
        return p - 0.1 * memory["m"]

    assert_equal(run(CONSTANT | {"name": "sgd", "momentum": 0.9, "weight_decay": 0.5}), reference(rule))
    assert_equal(run(CONSTANT | {"name": "sgd"}), reference(lambda name, p, g, memory, n: p - 0.1 * g))


@pytest.mark.parametrize("clip", [0.0, 1.5, 1e3])
def test_gradients_are_clipped_by_their_global_norm(clip):
    g = flat(gradients(0))
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in g.values()))
    scale = clip / norm if 0 < clip < norm else 1.0
    assert (scale < 1) == (clip == 1.5)
    wanted = {name: leaf - 0.1 * scale * g[name] for name, leaf in flat(params()).items()}
    assert_equal(run(CONSTANT | {"name": "sgd", "clip_norm": clip}, steps=1), wanted)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_follows_its_schedule(name):
    config = ConfigDict({"name": name, "schedule": "linear", "learning_rate": 0.1, "eps": 1.0})
    twice = ConfigDict({**config, "learning_rate": 0.2})
    moved = [jax.tree.map(lambda new, old: new - old, run(c, steps=1), params()) for c in (config, twice)]
    assert_equal(moved[1], {n: 2 * x for n, x in flat(moved[0]).items()}, rtol=1e-3)
    assert all(np.abs(x).max() > 0 for x in flat(moved[0]).values())


def test_the_returned_schedule_is_the_one_that_is_used():
    config = {"name": "sgd", "schedule": "cosine", "learning_rate": 0.5, "warmup_steps": 2}
    tx, curve = make_optimizer(config, 6)
    p = {"kernel": jnp.zeros(())}
    state, one = tx.init(p), {"kernel": jnp.ones(())}
    for count in range(6):
        updates, state = tx.update(one, state, p)
        assert float(updates["kernel"]) == pytest.approx(-float(curve(count)), rel=1e-6)


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adan"}, "config.optimizer.name is 'adan'; known: adam, adamw, adafactor, sgd"),
        (
            {"schedule": "step"},
            "config.optimizer.schedule is 'step'; known: noam, inverse_sqrt, cosine, linear, constant",
        ),
        ({"warmup": 3}, "config.optimizer.warmup is not a key; there are .*warmup_steps"),
        ({"learning_rate": 0.0}, "config.optimizer.learning_rate is 0.0; schedule constant needs a peak above 0"),
        ({"warmup_steps": -1}, "config.optimizer.warmup_steps is -1"),
        ({"schedule": "noam"}, "config.optimizer.d_model"),
        ({"schedule": "cosine", "warmup_steps": TOTAL}, "warmup_steps is 12, not below config.training.steps 12"),
        ({"name": "adam", "weight_decay": 0.1}, "weight_decay: adam does not decay weights.*adamw"),
        (
            {"name": "adamw", "weight_decay": 0.1, "decay_pattern": "(kernel"},
            "decay_pattern: .* is not a regular expression",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(change, message):
    with pytest.raises(UserError, match=message):
        run(CONSTANT | change, steps=1)
