"""Distillation: three losses, a frozen teacher inside, a student that starts with some of the teacher's layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import TEXT, Scorer, batch_of, tokenizer

from transformers_jax import models, parameters
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface
from transformers_jax.layers import losses
from transformers_jax.mesh import make_mesh
from transformers_jax.models.protocol import CONTINUES, Protocol
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.runs.initialise import initial, module_of
from transformers_jax.tasks.distillation import FROZEN, Distilled, Pupil, Task, cosine, soft_cross_entropy
from transformers_jax.training.state import create_state
from transformers_jax.training.step import make_train_step

LINES = [{"text": line} for line in TEXT]
BERT = dict(name="bert", width=16, num_heads=2, mlp_width=32, max_length=64, head="masked_lm")
BERT |= dict(dropout=0.0, attention_dropout=0.0)


def load(path: str, model, **options) -> dict:
    return initial(path, model, tokenizer(), **options)


def build(layers: int, **fields):
    return models.build(BERT | {"layers": layers} | fields, tokenizer().vocab_size)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder of `transformers` with a model of two layers, and its parameters."""
    folder, model = tmp_path_factory.mktemp("teacher"), build(2)
    params = nn.meta.unbox(model.init(jax.random.key(1), batch_of_lines()))["params"]
    fields = BERT | {"layers": 2, "vocab_size": tokenizer().vocab_size}
    huggingface.save(folder, fields, jax.device_get(params), tokenizer())
    return str(folder), params


def batch_of_lines(**task) -> dict:
    from transformers_jax.tasks.masked_lm import Task as MaskedLm

    return batch_of(MaskedLm(tokenizer(), masking="static", **task), LINES, length=48)


def random_output(seed: int, length: int = 5) -> LanguageModelOutput:
    rng = np.random.default_rng(seed)
    return LanguageModelOutput(*(jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, length, 4), (7, 4), (7,))))


class TestSoftTargets:
    def wanted(self, student, teacher, weights, t):
        ours, theirs = ((np.asarray(o.hidden) @ np.asarray(o.table).T + np.asarray(o.bias)) / t for o in (student, teacher))
        ours, theirs = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (ours, theirs))
        return ((np.exp(theirs) * (theirs - ours)).sum(-1) * weights).sum()

    @pytest.mark.parametrize("chunk", [10**9, 14, 28 * 2])
    def test_they_are_those_of_the_formula_however_they_are_cut(self, chunk, monkeypatch):
        monkeypatch.setattr(losses, "chunk_elements", lambda: chunk)
        student, teacher = random_output(0), random_output(1)
        weights = jnp.asarray([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]])
        for t in 1.0, 2.0:
            found = soft_cross_entropy(student, teacher, weights, t)
            assert float(found) == pytest.approx(self.wanted(student, teacher, np.asarray(weights), t), rel=1e-4)

    def test_the_same_distribution_costs_nothing_and_has_no_gradient(self):
        output, weights = random_output(0), jnp.ones([2, 5])
        loss, gradient = jax.value_and_grad(
            lambda hidden: soft_cross_entropy(output._replace(hidden=hidden), output, weights, 2.0)
        )(output.hidden)
        assert abs(float(loss)) < 1e-5 and float(jnp.abs(gradient).max()) < 1e-5

    def test_cosines(self):
        first, second = jnp.asarray([[1.0, 0], [3, 4], [0, 0]]), jnp.asarray([[0.0, 2], [6, 8], [1, 1]])
        assert np.allclose(cosine(first, second), [0, 1, 0], atol=1e-6)


def test_loss_is_the_weighted_sum_of_three_means():
    task = Task(tokenizer(), teacher="anywhere", masking="static")
    batch = batch_of(task, LINES, length=48)
    rng, count = np.random.default_rng(0), 12
    sizes = ((4, count, 8), (tokenizer().vocab_size, 8))
    outputs = [
        LanguageModelOutput(*(jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)) for _ in range(2)
    ]
    states = [jnp.asarray(rng.normal(size=[4, 48, 8]), jnp.float32) for _ in range(2)]
    loss, weight, sums = task.loss(Distilled(*outputs, *states), batch, train=True)
    order = np.argsort(-batch["weights"], axis=1, kind="stable")[:, :count]
    weights, targets = (np.take_along_axis(batch[name], order, 1) for name in ("weights", "targets"))
    hard = losses.cross_entropy(*outputs[0][:2], jnp.asarray(targets), jnp.asarray(weights))
    soft = soft_cross_entropy(*outputs, jnp.asarray(weights), 2.0)
    apart = float(((1 - cosine(*states)) * (batch["segments"] > 0)).sum())
    assert float(weight) == batch["weights"].sum() == float(hard.weight)
    assert float(loss) == pytest.approx(5 * 4 * float(soft) + 2 * float(hard.loss) + 0.15 * apart, rel=1e-5)
    assert float(sums["nll"]) == pytest.approx(float(hard.nll)) and float(sums["cosine_distance"]) == pytest.approx(apart)
    assert task.model_fields() == {"head": "masked_lm"} and task.evaluate(Scorer((), {}), "test", {}) == ({"loss": 0.5}, [])


def test_a_student_as_large_as_its_teacher_starts_with_its_numbers(teacher):
    task = Task(tokenizer(), teacher=teacher[0], layers=(0, 1), masking="static")
    model = task.wrap(build(2), module_of)
    start = jax.tree.map(np.asarray, task.initial(model, load))
    assert jax.tree.all(jax.tree.map(np.allclose, start["teacher"], jax.device_get(teacher[1])))
    batch = batch_of(task, LINES, length=48)
    output = model.apply({"params": start}, batch, deterministic=True)
    assert np.allclose(output.states, output.teacher_states) and np.allclose(output.student.hidden, output.teacher.hidden)
    _, weight, sums = task.loss(output, batch, train=False)
    assert abs(float(sums["soft"]) / float(weight)) < 1e-5 and abs(float(sums["cosine_distance"])) < 1e-2


def test_a_student_of_some_layers_learns_and_the_teacher_does_not(teacher):
    task = Task(tokenizer(), teacher=teacher[0], layers=(1,), masking="static")
    model, mesh = task.wrap(build(1), module_of), make_mesh({})
    assert isinstance(model, Pupil) and model.config.layers == 1
    batch = batch_of(task, LINES, length=48)
    start = jax.tree.map(np.asarray, task.initial(model, load))
    theirs = parameters.flat(start["teacher"])
    for name, value in parameters.flat(start).items():
        if not name.startswith("teacher/"):
            source = name.replace("layer_0/", "layer_1/")
            assert np.array_equal(value, theirs[source]), name

    trainable = r"^(?!teacher/)"
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state, _ = create_state(model, tx, batch, mesh, seed=0, trainable=trainable)
    learns, frozen = parameters.split(start, trainable)
    assert set(parameters.flat(frozen)) == {n for n in parameters.flat(start) if parameters.matching([n], FROZEN)}
    assert jax.tree.structure(state.params) == jax.tree.structure(learns)
    state = state.replace(params=jax.tree.map(jnp.asarray, learns), frozen=jax.tree.map(jnp.asarray, frozen))
    step, values = jax.jit(make_train_step(model, task, tx, seed=0)), []
    for _ in range(8):
        state, metrics = step(state, batch)
        values.append(float(metrics["loss"]))
    assert values[-1] < 0.9 * values[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(state.frozen), frozen))


def test_models_that_predict_the_next_token_are_distilled_alike():
    class Causal(nn.Module):
        config: None
        width: int = 8

        @nn.nowrap
        def protocol(self):
            return Protocol(reads=("text",), does=(CONTINUES,), fields=("tokens", "positions", "segments"))

        @nn.compact
        def __call__(self, batch, *, deterministic=True):
            table = self.param("table", nn.initializers.normal(), (20, self.width))
            return LanguageModelOutput(table[batch["targets"]], table)

    pupil = Pupil(Causal(None), Causal(None))
    batch = {"targets": jnp.ones([2, 6], jnp.int32), "segments": jnp.ones([2, 6], jnp.int32)}
    params = pupil.init(jax.random.key(0), batch)
    assert set(parameters.flat(params["params"])) == {"table", "teacher/table"}
    task = Task(tokenizer(), teacher="anywhere", masking="static")
    output = pupil.apply(params, batch)
    loss, weight, _ = task.loss(output, batch, train=True)
    assert float(weight) == 12 and np.isfinite(float(loss)) and np.array_equal(output.states, output.student.hidden)


def test_the_teacher_predicts_as_many_positions_as_the_student(teacher):
    task, student = Task(tokenizer(), teacher=teacher[0]), build(2, max_mask_rate=0.4)
    found = task.wrap(student, module_of).init_with_output(jax.random.key(0), batch_of_lines(), deterministic=False)[0]
    assert found.student.hidden.shape == found.teacher.hidden.shape


def test_mistakes_are_named(teacher, tmp_path):
    model = build(1, head="none")
    params = nn.meta.unbox(model.init(jax.random.key(1), batch_of_lines()))["params"]
    fields = BERT | {"layers": 1, "head": "none", "vocab_size": tokenizer().vocab_size}
    huggingface.save(tmp_path, fields, jax.device_get(params), tokenizer())
    task = Task(tokenizer(), teacher=str(tmp_path))
    with pytest.raises(UserError, match="lacks parameters of config.model: lm/"):
        task.initial(task.wrap(build(1), module_of), load)

    with pytest.raises(UserError, match="config.task.teacher is empty"):
        Task(tokenizer(), teacher="")
    with pytest.raises(UserError, match="config.task.temperature=0"):
        Task(tokenizer(), teacher="x", temperature=0)
    for name in "nothing", "bert_pretraining", "metrics":
        with pytest.raises(UserError, match=f"config.task.of='{name}' is not one of masked_lm"):
            Task(tokenizer(), teacher="x", of=name)
    with pytest.raises(UserError, match="its positions begin at row 0, the student's at 2"):
        Task(tokenizer(), teacher=teacher[0], layers=(0,)).wrap(build(1, position_offset=2), module_of)
    with pytest.raises(UserError, match="its width is 16, the student's 8"):
        Task(tokenizer(), teacher=teacher[0]).wrap(build(2, width=8), module_of)
    with pytest.raises(UserError, match="no such folder"):
        Task(tokenizer(), teacher="/nowhere/at/all").wrap(build(2), module_of)
