import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from transformers_jax.decoding import cache as caches


def functions(model, params):
    def start(rows, length):
        batch = toy.batch_of(jnp.ones((rows, 3), jnp.int32))
        return model.apply({"params": params}, batch, length, method="start", mutable=["cache"])[1]["cache"]

    def step(cache, tokens):
        logits, changed = model.apply({"params": params, "cache": cache}, tokens, method="step", mutable=["cache"])
        return logits, changed["cache"]

    return start, step


def test_layout_of_a_cache():
    start, step = functions(*toy.make())
    layout = caches.layout(start, step)
    names = list(start(2, 4))
    assert sorted(names) == ["code", "index", "running", "written"]
    by_name = dict(zip(sorted(names), zip(layout.rows, layout.positions, layout.moving, strict=True), strict=True))
    assert by_name == {
        "code": (0, None, False),  # the source's: never reordered, never copied
        "index": (None, None, True),
        "running": (0, None, True),
        "written": (1, 2, True),  # rows second
    }


def test_split_join_repeat_take():
    start, step = functions(*toy.make())
    layout = caches.layout(start, step)
    cache = step(start(2, 4), jnp.array([3, 4]))[1]
    moving, constant = layout.split(cache)
    assert len(moving) == 3 and len(constant) == 1
    jax.tree.map(np.testing.assert_array_equal, layout.join(moving, constant), cache)

    beams = layout.repeat(cache, 3)
    np.testing.assert_array_equal(beams["running"], np.repeat(cache["running"], 3, axis=0))
    np.testing.assert_array_equal(beams["written"], np.repeat(cache["written"], 3, axis=1))
    assert beams["index"] == 1

    beams["written"] = jnp.arange(beams["written"].size, dtype=jnp.float32).reshape(beams["written"].shape)
    moving, constant = layout.split(beams)
    taken = layout.join(layout.take(moving, jnp.array([[2, 0, 0], [1, 1, 2]]), jnp.int32(1)), constant)
    np.testing.assert_array_equal(taken["written"], beams["written"][:, jnp.array([2, 0, 0, 4, 4, 5])])
    np.testing.assert_array_equal(taken["code"], beams["code"])


@pytest.mark.parametrize("index", [0, 7, 8, 14])
def test_take_reorders_all_that_is_written(index):
    start, step = functions(*toy.make())
    layout = caches.layout(start, step)
    cache = layout.repeat(start(2, 16), 3)
    written = np.arange(cache["written"].size, dtype=np.float32).reshape(cache["written"].shape)
    written[:, :, index + 1 :] = 0
    moving, constant = layout.split(cache | {"written": jnp.asarray(written)})
    origins = jnp.array([[2, 0, 0], [1, 1, 2]])
    taken = layout.join(jax.jit(layout.take)(moving, origins, index), constant)
    np.testing.assert_array_equal(taken["written"], written[:, [2, 0, 0, 4, 4, 5]])


def test_untouched_sees_through_scans_and_calls_and_trusts_nothing_else():
    def scanned(carry, same, changed, fixed):
        def body(state, layer):
            total, kept = state
            a, b = layer
            return (total + a.sum() + fixed, kept), (a, b * 2, kept)

        (total, kept), (same_out, changed_out, stacked) = jax.lax.scan(body, (carry, fixed), (same, changed))
        return total, kept, same_out, changed_out, stacked

    def swapped(a, b):
        return jax.lax.fori_loop(0, 3, lambda i, s: (s[1], s[0]), (a, b))

    zero, rows = jnp.zeros(()), jnp.zeros((2, 3))
    jaxpr = jax.make_jaxpr(jax.jit(scanned))(zero, rows, rows, zero)
    assert caches.untouched(jaxpr.jaxpr) == [None, 3, 1, None, None]
    assert caches.untouched(jax.make_jaxpr(swapped)(zero, zero).jaxpr) == [None, None]
    assert caches.untouched(jax.make_jaxpr(jax.jit(lambda a, b: (b, a, a + b)))(zero, zero).jaxpr) == [1, 0, None]


@pytest.mark.parametrize("shape", ["square", "flattened"])
def test_a_cache_without_one_axis_of_rows_is_refused(shape):
    def start(rows, length):
        return {"layer": {"bad": jnp.zeros((rows, rows) if shape == "square" else (rows * 4, length))}}

    with pytest.raises(ValueError, match="layer/bad needs one axis of rows"):
        caches.layout(start, lambda cache, tokens: (tokens, cache))


def test_a_step_that_changes_shapes_is_refused():
    with pytest.raises(ValueError, match="changes the structure, a shape or a dtype"):
        caches.layout(lambda rows, length: {"a": jnp.zeros(rows)}, lambda cache, tokens: (tokens, {"a": cache["a"][:, None]}))
