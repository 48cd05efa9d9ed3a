"""A small model learns from a large one: DistilBERT (Sanh et al. 2019), or a causal language model in the same way.

Three losses, means each:

    soft      of the teacher's distribution over tokens, both at a temperature t, times t² (Hinton et al. 2015)
    hard      of the true tokens: masked language model, or the next token
    cosine    1 - cos of the last hidden states of student and teacher

The teacher is a frozen part of the model: its parameters are those below `teacher/`, which the checkpoints hold too, and all
others are the student's.

Axes: B batch rows, T length, M predicted positions, D width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers.gather import aligned, gather
from transformers_jax.layers.losses import cross_entropy, in_chunks
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.tasks import causal_lm, masked_lm
from transformers_jax.tasks.task import Task as Base

OF = {"masked_lm": masked_lm.Task, "causal_lm": causal_lm.Task}
"""Tasks over tokens that a teacher may have learned."""

FROZEN = r"^teacher/"
"""Parameters that do not learn."""


class Distilled(NamedTuple):
    """What student and teacher make of a batch: their outputs over tokens, and their last hidden states [B, T, D]."""

    student: LanguageModelOutput
    teacher: LanguageModelOutput
    states: jax.Array
    teacher_states: jax.Array


class Task(Base):
    """Distillation on the examples of another task.

    Args:
      tokenizer: turns text into tokens; the teacher's own.
      teacher: a folder of `transformers`, a workdir, or a name on the hub.
      of: the task that both have learned, one of OF; what examples, fields and targets are is its business.
      layers: numbers of the teacher's layers that the student starts with, every second one: (0, 2, 4, 7, 9, 11); () starts
        the student from nothing.
      temperature: t.
      soft, hard, cosine: weights of the three losses; cosine needs a student as wide as its teacher.
      options: keyword arguments of the task `of`.
    """

    frozen = FROZEN

    def __init__(
        self, tokenizer, *, teacher: str, of: str = "masked_lm", layers: Sequence[int] = (), temperature: float = 2.0,
        soft: float = 5.0, hard: float = 2.0, cosine: float = 1.0, **options: Any,
    ):  # fmt: skip
        if not teacher:
            raise UserError("config.task.teacher is empty: give a folder of transformers, a workdir, or a name on the hub")
        if temperature <= 0:
            raise UserError(f"config.task.temperature={temperature}: give a number above 0")
        if of not in OF:
            raise UserError(f"config.task.of={of!r} is not one of {', '.join(OF)}")
        self._task = OF[of](tokenizer, **options)
        self.tokenizer, self.teacher, self.layers = tokenizer, teacher, tuple(layers)
        self.temperature, self.soft, self.hard, self.cosine = temperature, soft, hard, cosine
        self.streams, self.row_fields, self.row_shapes = self._task.streams, self._task.row_fields, self._task.row_shapes
        self.one_a_row, self.groups, self.augment = self._task.one_a_row, self._task.groups, self._task.augment
        self.mask_rate = self._task.mask_rate

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """Those of the task that both have learned."""
        return self._task.examples(source)

    def encode(self, example: dict) -> dict:
        """As the task that both have learned does."""
        return self._task.encode(example)

    def document(self, example: dict):
        """As the task that both have learned does."""
        return self._task.document(example)

    def model_fields(self) -> dict:
        """What the student must have: what its own task asks for."""
        return self._task.model_fields()

    def wrap(self, model: nn.Module, build: Callable[[str, dict], nn.Module]) -> nn.Module:
        """Student and teacher in one.

        Raises:
          UserError: there is no such teacher, or it does not go with the student.
        """
        about = model.protocol()
        same = {"max_mask_rate": about.max_mask_rate} if "encodes" in about.does else {}
        teacher = build(self.teacher, self.model_fields() | same)
        for name in ("vocab_size", *(("width",) if self.cosine else ())):
            ours, theirs = getattr(model.config, name), getattr(teacher.config, name)
            if ours != theirs:
                raise UserError(f"config.task.teacher={self.teacher}: its {name} is {theirs}, the student's {ours}")
        ours, theirs = (getattr(m.config, "position_offset", 0) for m in (model, teacher))
        if self.layers and ours != theirs:
            raise UserError(
                f"config.task.teacher={self.teacher}: its positions begin at row {theirs}, the student's at {ours}: take a "
                "student as configs/roberta.py has it, or config.task.layers=()"
            )
        return Pupil(model, teacher)

    def initial(self, model: nn.Module, load: Callable[..., dict]) -> dict:
        """The parameters that training starts with, to be merged into the model's: all of the teacher's, and the student's
        as far as `layers` says.

        Raises:
          UserError: the teacher lacks something, say the head over tokens.
        """
        own = load(self.teacher, model.student, only=self.layers) if self.layers else {}
        return {**own, "teacher": load(self.teacher, model.teacher, complete=True)}

    def answering(self, model: nn.Module, *, top: int) -> tuple[Base, nn.Module]:
        """The student answers, as its own task has it."""
        return self._task.answering(model.student, top=top)

    def loss(self, output: Distilled, batch: dict, *, train: bool):
        """The weighted losses summed over predicted positions, their weight, `nll` and `correct` of the student.

        The cosine's mean over all positions counts as often as there are predicted ones, so that one divisor serves all.
        """
        weights = batch["weights"] if "weights" in batch else (batch["segments"] > 0).astype(jnp.int32)
        targets, weights = aligned(output.student.hidden.shape[1], weights, batch["targets"])
        hard = cross_entropy(output.student.hidden, output.student.table, targets, weights, bias=output.student.bias)
        soft = soft_cross_entropy(output.student, output.teacher, weights, self.temperature)
        loss = self.soft * self.temperature**2 * soft + self.hard * hard.loss
        sums = {"nll": hard.nll, "correct": hard.correct, "soft": soft}
        if self.cosine:
            real = (batch["segments"] > 0).astype(jnp.float32)  # [B, T]
            apart = jnp.sum((1 - cosine(output.states, output.teacher_states)) * real)
            loss += self.cosine * (self.mask_rate or 1.0) * apart
            sums |= {"cosine_distance": apart, "cosine_weight": jnp.sum(real)}
        return loss, hard.weight, sums


class Pupil(nn.Module):
    """A model and its teacher. The model's parameters are at the top, the teacher's below `teacher`."""

    student: nn.Module
    teacher: nn.Module

    @property
    def config(self):
        return self.student.config

    @nn.nowrap
    def protocol(self):
        """What the student tells about itself; the teacher reads the same inputs."""
        return self.student.protocol().within(self.teacher.protocol().longest)

    def setup(self):
        nn.share_scope(self, self.student)

    def __call__(self, batch: dict, *, deterministic: bool = True) -> Distilled:
        student, states = _over_tokens(self.student, batch, deterministic)
        teacher, teacher_states = jax.lax.stop_gradient(_over_tokens(self.teacher, batch, True))
        return Distilled(student, teacher, states, teacher_states)

    def encode(self, batch: dict, deterministic: bool = True) -> jax.Array:
        """The student's hidden states."""
        return self.student.encode(batch, deterministic)


def _over_tokens(model: nn.Module, batch: dict, deterministic: bool) -> tuple[LanguageModelOutput, jax.Array]:
    """A model's output over tokens, and its last hidden states [B, T, D]: an encoder has a transform between the two."""
    if "encodes" in model.protocol().does:
        states = model.encode(batch, deterministic)
        return model.tokens(gather(states, model.reads(batch)), batch), states
    output = model(batch, deterministic=deterministic)
    return output, output.hidden


def cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """The cosine of vectors [..., D], in float32; 0 to one of zeros."""
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    squares = jnp.sum(first**2, axis=-1) * jnp.sum(second**2, axis=-1)
    return jnp.sum(first * second, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def soft_cross_entropy(
    student: LanguageModelOutput, teacher: LanguageModelOutput, weights: jax.Array, temperature: float
) -> jax.Array:
    """Σ weight · KL(teacher ‖ student) of the distributions over tokens at a temperature, in float32.

    Walks over the positions in chunks, whose logits are made anew for the gradient: never are all of them there.

    Args:
      student, teacher: hidden [B, T, D] each, over the same V tokens.
      weights: [B, T].
    """
    def log_probabilities(hidden, output):
        logits = jnp.einsum("pd,vd->pv", hidden, output.table, preferred_element_type=jnp.float32)
        logits = logits if output.bias is None else logits + output.bias.astype(jnp.float32)
        return jax.nn.log_softmax(logits / temperature)

    @jax.checkpoint
    def step(total, parts):
        ours, theirs, weight = parts
        ours, theirs = log_probabilities(ours, student), log_probabilities(theirs, teacher)
        return total + jnp.sum(jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1) * weight), None

    parts = in_chunks(2 * student.table.shape[0], student.hidden, teacher.hidden, weights.astype(jnp.float32))
    return jax.lax.scan(step, jnp.zeros(()), tuple(parts))[0]
