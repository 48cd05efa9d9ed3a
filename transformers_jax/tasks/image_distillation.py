"""A model of images learns labels from data and from a teacher of any family (Touvron et al. 2021, "Training data-efficient
image transformers", section 4), without DeiT's token of its own for it. In training

    loss = (1 - share) · cross entropy of the labels + share · distillation
    soft   t² · KL(teacher ‖ student), both at a temperature t (equation 2)
    hard   cross entropy of the teacher's likeliest label (equation 3, where share is 1/2)

The teacher is a frozen part of the model: its parameters are those below `teacher/`. It sees the same augmented and mixed
images, normalised as its own family wants. In evaluation the student answers alone.

Axes: B batch rows, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks import image_classification
from transformers_jax.tasks.distillation import Pupil
from transformers_jax.tasks.task import Task as Base

KINDS = ("soft", "hard")


class DistilledLabels(NamedTuple):
    """What student and teacher make of a batch of images."""

    student: LabelOutput
    teacher: LabelOutput


class Task(Base):
    """Image classification beside a teacher.

    Args:
      data: as of `image_classification`, whose other keys go with these.
      teacher: a folder of `transformers`, a workdir, or a name on the hub; a classifier of the same labels, in any order.
      distillation: "hard" or "soft".
      share: of the teacher in the loss.
      temperature: t, of "soft".
    """

    reads = "images"
    learned = "label"
    frozen = r"^teacher/"
    scored_by, bigger_is_better = "predictions", True
    line_means, line_keys = image_classification.Task.line_means, image_classification.Task.line_keys

    def __init__(
        self, data, *, teacher: str, distillation: str = "hard", share: float = 0.5, temperature: float = 3.0, **options: Any
    ):
        self._task = image_classification.Task(data, **options)
        if not teacher:
            raise UserError("config.task.teacher is empty: give a folder of transformers, a workdir, or a name on the hub")
        if distillation not in KINDS:
            raise UserError(f"config.task.distillation={distillation!r} is not one of {', '.join(KINDS)}")
        if not 0 < share <= 1 or temperature <= 0:
            raise UserError(f"config.task.share={share}, temperature={temperature}: give a share up to 1, both above 0")
        if self._task.objective != "softmax":
            raise UserError("config.task.objective=sigmoid: a teacher of images teaches one label; give softmax")
        self.teacher, self.distillation, self.share, self.temperature = teacher, distillation, share, temperature
        self.row_fields, self.row_shapes = self._task.row_fields, self._task.row_shapes
        self.augment, self.unaugmented = self._task.augment, self._task.unaugmented
        self.main_metric = self._task.main_metric

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self._task.label_names

    def model_fields(self) -> dict:
        """What the student must have: what its own task asks for."""
        return self._task.model_fields()

    def wrap(self, model: nn.Module, build: Callable[[str, dict], nn.Module]) -> nn.Module:
        """Student and teacher in one.

        Raises:
          UserError: there is no such teacher, or it reads no images of these channels.
        """
        teacher = build(self.teacher, self.model_fields())
        ours, theirs = model.config.channels, getattr(teacher.config, "channels", 0)
        if ours != theirs:
            raise UserError(f"config.task.teacher={self.teacher}: its images have {theirs} channels, the student's {ours}")
        return ImagePupil(model, teacher)

    def initial(self, model: nn.Module, load: Callable[..., dict]) -> dict:
        """The teacher's parameters; the student begins with random ones.

        Raises:
          UserError: the teacher lacks something, say one of the labels.
        """
        return {"teacher": load(self.teacher, model.teacher, complete=True)}

    def answering(self, model: nn.Module, *, top: int) -> tuple[Base, nn.Module]:
        """The student answers, as its own task has it."""
        return self._task.answering(model.student, top=top)

    # -- Loss and predictions ---------------------------------------------------------------------------------------------

    def mix(self, batch: dict, key: jax.Array) -> dict:
        """As of `image_classification`."""
        return self._task.mix(batch, key)

    def loss(self, output: DistilledLabels, batch: dict, *, train: bool):
        """As of `image_classification`, in training with the teacher's part; `distillation` is summed beside it."""
        loss, weight, sums = self._task.loss(output.student, batch, train=train)
        if not train:
            return loss, weight, sums
        student, teacher = (x.logits.astype(jnp.float32) for x in output)  # [B, K]
        if self.distillation == "hard":
            apart = -jnp.take_along_axis(jax.nn.log_softmax(student), teacher.argmax(axis=-1)[:, None], axis=-1)[:, 0]
        else:
            ours, theirs = (jax.nn.log_softmax(x / self.temperature) for x in (student, teacher))
            apart = self.temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)  # [B]
        apart = jnp.sum(apart * batch["row_weights"])
        return (1 - self.share) * loss + self.share * apart, weight, sums | {"distillation": apart}

    def predict(self, output: DistilledLabels, batch: dict) -> dict[str, jax.Array]:
        """What the student says, as `image_classification` has it."""
        return self._task.predict(output.student, batch)

    # -- What is as in image classification ----------------------------------------------------------------------------------

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The same examples, all labels known."""
        return self._task.examples(source)

    def encode(self, example: dict) -> dict[str, Any]:
        """→ `image` and `label`."""
        return self._task.encode(example)

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """The student's scores."""
        return self._task.score(source, predictions)

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """The student's answers."""
        return self._task.answers(source, predictions)

    def samples(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """Images with the student's answers."""
        return self._task.samples(source, predictions)

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict[str, Any], list[dict]]:
        """As of all tasks; samples begin with the worst mistakes."""
        return self._task.evaluate(scorer, split, model)

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"image": path}."""
        return self._task.of_line(cells)


class ImagePupil(Pupil):
    """A model of images and its teacher."""

    def __call__(self, batch: dict, *, deterministic: bool = True) -> DistilledLabels:
        teacher = jax.lax.stop_gradient(self.teacher(batch, deterministic=True))
        return DistilledLabels(self.student(batch, deterministic=deterministic), teacher)
