"""One of several endings: SWAG (Zellers et al. 2018), as BERT is finetuned for it (Devlin et al. 2019, section 4.4). Each
choice is a row of its own behind the context, and the softmax goes over the choices."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

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
        return [
            {
                "prediction": str(row.argmax()),
                "choice": source[i]["choices"][int(row.argmax())],
                "probabilities": [round(float(p), 4) for p in row],
            }
            for i, row in enumerate(predictions["probabilities"])
        ]

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"context", "choices"} of three parts or more."""
        context, *choices = cells
        if len(choices) < 2:
            raise ValueError(f"{len(choices)} choices")
        return {"context": context, "choices": choices}
