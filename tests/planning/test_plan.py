"""The plan of a run, from the real step of a tiny Transformer."""

import jax
import optax
import pytest

from transformers_jax import models, tasks
from transformers_jax.batch import FIELDS
from transformers_jax.mesh import make_mesh, row_sharding
from transformers_jax.planning import counts, flops, plan
from transformers_jax.training import state, step

ROWS, LENGTH, VOCAB = 4, 8, 64


class Tokenizer:
    pad_id, bos_id, eos_id, vocab_size = 0, 1, 2, VOCAB


@pytest.fixture(scope="module")
def made():
    fields = dict(name="transformer", width=16, num_heads=2, mlp_width=32, encoder_layers=1, decoder_layers=1)
    model, task = models.build(fields, VOCAB), tasks.build({"name": "translation"}, Tokenizer())
    mesh, tx = make_mesh({}), optax.adam(1e-3)
    batch = {
        name: jax.ShapeDtypeStruct((ROWS, LENGTH), field.dtype, sharding=row_sharding(mesh))
        for name, field in FIELDS.items()
    }
    shapes = state.abstract_state(model, tx, batch, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    train = step.compile_step(step.make_train_step(model, task, tx, seed=0), mesh, shardings, batch)
    jaxpr = train.trace(shapes, batch).jaxpr
    found = plan.make(train, jaxpr, shapes, batch, mesh, steps=100, peak=1e9)
    return found, model, shapes, batch


def test_counts(made):
    found, model, shapes, batch = made
    assert sum(found.parameters.values()) == counts.count(shapes.params)
    assert found.positions == ROWS * LENGTH
    assert found.devices == 1 and found.mesh == {"data": 1, "fsdp": 1, "tensor": 1}
    assert found.attention == "xla"
    assert found.memory.state == 3 * counts.bytes_of(shapes.params) + 2 * 4  # Adam: two moments; two counters


def test_step_costs_three_forward_passes(made):
    """A gradient takes two products for each of the forward pass; logits are made by the loss, once."""
    found, model, shapes, batch = made
    forward = flops.count(lambda p, b: model.apply({"params": p}, b).hidden, shapes.params, batch)
    logits = 2 * ROWS * LENGTH * 16 * VOCAB
    assert found.operations == 3 * (forward + logits)


def test_words(made):
    text = "\n".join(plan.lines(made[0]))
    for word in "parameters", "FLOPs a step", "memory a device", "mesh", "attention", "compile time":
        assert f"\n{word}" in f"\n{text}"
    assert "embedding" in text and "data 1 × fsdp 1 × tensor 1" in text
    assert [plan.readable(n) for n in (3 * 2**30, 2**20 * 5 // 2, 512)] == ["3 GiB", "2.5 MiB", "0.5 KiB"]


def test_the_first_process_says_it(made, capsys, monkeypatch):
    plan.show(made[0])
    assert capsys.readouterr().out.splitlines() == plan.lines(made[0])
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    plan.show(made[0])
    assert capsys.readouterr().out == ""


def test_attention_kernel_is_read_from_the_program():
    assert plan.attention_kernel({"dot_general", "dot_product_attention_fwd_wrapper"}) == "cudnn"
    assert plan.attention_kernel({"dot_general", "pallas_call"}) == "splash"
