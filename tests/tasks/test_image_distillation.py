"""Distillation of images: both losses by hand, a frozen teacher of another family without a tokenizer, its labels' order."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from transformers_jax import models, parameters, tasks
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface
from transformers_jax.mesh import make_mesh
from transformers_jax.outputs import LabelOutput
from transformers_jax.runs.initialise import initial, module_of
from transformers_jax.tasks.image_distillation import DistilledLabels
from transformers_jax.training.state import create_state
from transformers_jax.training.step import make_predict_step, make_train_step

LABELS = ("cat", "dog", "owl")
DATA = ConfigDict({"size": 8, "channels": 3})
STUDENT = {"name": "vit", "width": 8, "num_heads": 2, "mlp_width": 8, "layers": 1, "patch_size": 4, "image_size": 8}
TEACHER = {"name": "convnext", "widths": (4,), "depths": (1,), "patch_size": 4, "image_size": 8, "vocab_size": 0, "labels": 3}


def task(**keys):
    fields = {"name": "image_distillation", "teacher": "given", "labels": LABELS}
    return tasks.build(fields | keys, None, DATA)


def batch() -> dict:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    return {"image": images, "label": np.array([0, 1, 2, 0], np.int32), "row_weights": np.array([1, 1, 1, 0], np.int32)}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder of `transformers` whose labels stand in another order, and the parameters in it."""
    folder, model = tmp_path_factory.mktemp("teacher"), models.build(TEACHER, 0)
    params = jax.device_get(nn.meta.unbox(model.init(jax.random.key(1), batch()))["params"])
    huggingface.save(folder, TEACHER, params, labels=LABELS[::-1])
    return str(folder), params


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_losses_by_hand(kind):
    student, teacher = (np.random.default_rng(i).normal(size=(4, 3)).astype(np.float32) for i in range(2))
    output = DistilledLabels(LabelOutput(jnp.asarray(student)), LabelOutput(jnp.asarray(teacher)))
    loss, weight, sums = task(distillation=kind, share=0.3, temperature=2.0).loss(output, batch(), train=True)
    own = jax.nn.log_softmax(student)
    truth = -sum(own[i, label] for i, label in enumerate((0, 1, 2)))
    if kind == "hard":
        apart = -sum(own[i, teacher[i].argmax()] for i in range(3))
    else:
        ours, theirs = jax.nn.log_softmax(student / 2), jax.nn.log_softmax(teacher / 2)
        apart = 4 * (np.exp(theirs) * (theirs - ours))[:3].sum()
    np.testing.assert_allclose(loss, 0.7 * truth + 0.3 * apart, rtol=1e-5)
    np.testing.assert_allclose(sums["distillation"], apart, rtol=1e-5)
    assert weight == 3
    np.testing.assert_allclose(task(distillation=kind).loss(output, batch(), train=False)[0], truth, rtol=1e-5)


def test_a_teacher_of_another_family_stays_as_it_is_and_the_student_learns(teacher):
    path, theirs = teacher
    distilled = task(teacher=path)
    pupil = distilled.wrap(models.build(STUDENT | distilled.model_fields(), 0), module_of)
    given = distilled.initial(pupil, lambda path, module, **options: initial(path, module, labels=LABELS, **options))
    np.testing.assert_array_equal(given["teacher"]["classifier"]["kernel"], theirs["classifier"]["kernel"][:, ::-1])
    tx, mesh = optax.sgd(0.1), make_mesh({})
    given = jax.tree.map(jnp.asarray, given)
    learns = rf"^(?!{distilled.frozen.lstrip('^')})"
    state, _ = create_state(pupil, tx, batch(), mesh, seed=0, trainable=learns, given={"params": given})
    before = jax.device_get(state.params)
    after, _ = jax.jit(make_train_step(pupil, distilled, tx, seed=0))(state, batch())
    assert not any(name.startswith("teacher") for name in parameters.flat(before))
    assert set(parameters.flat(after.frozen)) == {f"teacher/{name}" for name in parameters.flat(theirs)}
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(after.params))
    assert moved["classifier"]["kernel"] and moved["patches"]["kernel"]

    asked, student = distilled.answering(pupil, top=1)
    alone = make_predict_step(student, asked)(after.params, {}, batch())
    both = make_predict_step(pupil, distilled)(after.model_params, {}, batch())
    np.testing.assert_allclose(alone["probabilities"], both["probabilities"], rtol=1e-5)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"teacher": ""}, "config.task.teacher is empty"),
        ({"distillation": "warm"}, "config.task.distillation='warm' is not one of soft, hard"),
        ({"share": 0.0}, "config.task.share=0.0"),
        ({"objective": "sigmoid"}, "config.task.objective=sigmoid: a teacher"),
    ],
)
def test_mistakes(keys, message):
    with pytest.raises(UserError, match=message):
        task(**keys)


def test_a_teacher_of_grey_images_is_refused():
    grey = models.build(TEACHER | {"channels": 1, "mean": (0.5,), "std": (0.5,)}, 0)
    with pytest.raises(UserError, match="its images have 1 channels, the student's 3"):
        task().wrap(models.build(STUDENT, 0), lambda path, fields: grey)
