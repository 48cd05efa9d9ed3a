"""One of several endings: SWAG (Zellers et al. 2018), as BERT is finetuned for it (Devlin et al. 2019, section 4.4). Each
choice is a row of its own behind the context, and the softmax goes over the choices."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.data.text.pairs import grouped
from transformers_jax.errors import UserError
from transformers_jax.layers.losses import label_sums
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import metrics
from transformers_jax.tasks.parts.labels import Labels
from transformers_jax.tasks.task import Task as Base


class Task(Base):
    """Examples {"context": str, "choices": [str], "label": number of the right one as text}; without it, predicted only.

    Args:
      tokenizer: turns text into tokens.
      choices: of each example.
      max_length: tokens of context, choice and what surrounds them; the longer of the two is cut.
    """

    learned = "label"
    row_fields = (learned,)
    streams: Streams = {"": ("tokens", "token_types")}
    scored_by, main_metric, bigger_is_better = "predictions", "accuracy", True
    line_means, line_keys = "beginning TAB choice TAB choice …", ("context", "choices")

    def __init__(self, tokenizer, *, choices: int = 4, max_length: int = 128):
        if choices < 2:
            raise UserError(f"config.task.choices={choices}: give how many choices each example has")
        self.tokenizer, self.groups, self.max_length = tokenizer, choices, max_length
        self._labels = Labels([str(i) for i in range(choices)])

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "multiple_choice"}

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The same examples, all labels known."""
        return self._labels.checked(source)

    def encode(self, example: dict) -> dict:
        """→ `tokens`, `token_types`, a list of an array for each choice, and `label`, -1 where there is none."""
        if len(example["choices"]) != self.groups:
            raise UserError(f"an example has {len(example['choices'])} choices where config.task.choices is {self.groups}")
        rows = [self.tokenizer.encode_pair(example["context"], text, max_length=self.max_length) for text in example["choices"]]
        return grouped(rows) | {"label": self._labels.of(example)}

    def loss(self, output: LabelOutput, batch: dict, *, train: bool):
        """Cross entropy of the right choice summed over examples, their number, and how many are right."""
        sums = label_sums(output.logits, batch["label"], batch["row_weights"])
        return sums.loss, sums.weight, {"correct": sums.correct}

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`probabilities` [B, C]."""
        return {"probabilities": jax.nn.softmax(output.logits.astype(jnp.float32))}

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """accuracy over the examples that have a label."""
        truth, found = self._labels.judged(source, predictions["probabilities"])
        return {"accuracy": metrics.accuracy(truth, found), "examples": len(truth)} if truth else {}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"prediction": number as text, "choice": its text, "probabilities": of each choice} of each example."""
        return [_answer(example, row) for example, row in zip(source, predictions["probabilities"], strict=True)]

    def answering(self, model: nn.Module, *, top: int) -> tuple[Base, nn.Module]:
        """Lines have any number of choices."""
        return AnyNumber(self), model

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"context", "choices"} of three parts or more."""
        context, *choices = cells
        if len(choices) < 2:
            raise ValueError(f"{len(choices)} choices")
        return {"context": context, "choices": choices}


class AnyNumber(Task):
    """The same of examples with any number of choices, each a row by itself, for a model that is trained."""

    row_fields, one_a_row = (), True

    def __init__(self, task: Task):
        self.__dict__.update(task.__dict__)
        self.groups = 0

    def examples(self, source: Sequence[dict]) -> list[dict]:
        """{"example", "context", "choice", "choices": how many} of each choice; where there is none, of an empty one."""
        found = []
        for i in range(len(source)):
            choices = source[i]["choices"]
            place = {"example": i, "context": source[i]["context"], "choices": len(choices)}
            found += [place | {"choice": choice} for choice in choices or [""]]
        return found

    def encode(self, example: dict) -> dict:
        """→ 1-D int32 `tokens`, `token_types`.

        Raises:
          UserError: it is not one of several.
        """
        if example["choices"] < 2:
            raise UserError(f"an example has {example['choices']} choices: give two or more")
        return self.tokenizer.encode_pair(example["context"], example["choice"], max_length=self.max_length).fields()

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`score` [B]."""
        return {"score": output.logits.astype(jnp.float32)}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """As of the task: the softmax goes over an example's choices."""
        ends = np.cumsum([len(example["choices"]) for example in source])[:-1]
        scores = np.split(predictions["score"], ends)
        return [_answer(example, np.asarray(jax.nn.softmax(row))) for example, row in zip(source, scores, strict=True)]


def _answer(example: dict, probabilities: np.ndarray) -> dict:
    best = int(probabilities.argmax())
    chances = [round(float(p), 4) for p in probabilities]
    return {"prediction": str(best), "choice": example["choices"][best], "probabilities": chances}
