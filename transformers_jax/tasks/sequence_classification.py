"""A label or a number for a text or a pair of texts: all of GLUE (Wang et al. 2019), as BERT is finetuned for it
(Devlin et al. 2019, section 4.1)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.layers.losses import label_sums, squared_error
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import metrics as measures
from transformers_jax.tasks.parts.labels import Labels
from transformers_jax.tasks.task import Task as Base


class Task(Base):
    """Examples {"first": str, "second": str (of pairs), "label": str or "score": float}; unlabelled ones are predicted only.

    Args:
      tokenizer: turns text into tokens.
      labels: of the data, in the order of the head's rows; none for regression to `score`.
      metrics: what is measured, the one that picks the best first: accuracy, f1 (of the label `labels[1]`), matthews;
        pearson, spearman for regression. Default: accuracy; pearson and spearman.
      max_length: tokens of a text or pair with what surrounds them.
      label_smoothing: probability mass spread evenly over the labels in training.
    """

    one_a_row = True
    streams: Streams = {"": ("tokens", "token_types")}
    scored_by, bigger_is_better = "predictions", True
    line_means, line_keys = "a text, or two with a TAB between them", ("first",)

    def __init__(
        self, tokenizer, *, labels: Sequence[str] = (), metrics: Sequence[str] = (), max_length: int = 128,
        label_smoothing: float = 0.0,
    ):  # fmt: skip
        self.tokenizer, self.max_length, self.label_smoothing = tokenizer, max_length, label_smoothing
        self.labels = Labels(labels) if labels else None
        names = tuple(metrics) or (("accuracy",) if labels else ("pearson", "spearman"))
        self.metrics, self.main_metric = measures.of_names(names, regression=not labels), names[0]
        self.learned = "label" if labels else "score"
        self.row_fields = (self.learned,)

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "sequence", "labels": len(self.labels) if self.labels else 1}

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The same examples, all labels known."""
        return self.labels.checked(source) if self.labels else source

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """→ 1-D int32 arrays `tokens`, `token_types`, and `label`, -1 where the example has none, or `score`, NaN then."""
        joined = self.tokenizer.encode_pair(example["first"], example.get("second"), max_length=self.max_length)
        value = self.labels.of(example) if self.labels else example.get("score", math.nan)
        return joined.fields() | {self.learned: value}

    def loss(self, output: LabelOutput, batch: dict, *, train: bool):
        """Cross entropy of the labels, or the squared error; summed over rows, with the summed weight and metrics."""
        if not self.labels:
            return *squared_error(output.logits[:, 0], batch["score"], batch["row_weights"]), {}
        sums = label_sums(output.logits, batch["label"], batch["row_weights"], self.label_smoothing if train else 0.0)
        return sums.loss, sums.weight, {"correct": sums.correct}

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`probabilities` [B, L], or `score` [B]."""
        logits = output.logits.astype(jnp.float32)
        return {"probabilities": jax.nn.softmax(logits)} if self.labels else {"score": logits[:, 0]}

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """The metrics, over the examples that have a label; without any, none."""
        if self.labels:
            truth, found = self.labels.judged(source, predictions["probabilities"])
        else:
            known = [i for i in range(len(source)) if "score" in source[i]]
            truth, found = [source[i]["score"] for i in known], predictions["score"][known]
        if not truth:
            return {}
        return {name: measure(truth, found) for name, measure in self.metrics.items()} | {"examples": len(truth)}

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"prediction": label or number, "probabilities": {label: probability}} of each example."""
        if not self.labels:
            return [{"prediction": round(float(x), 4)} for x in predictions["score"]]
        return [self.labels.answer(row) for row in predictions["probabilities"]]

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"first"} of one part, {"first", "second"} of two."""
        if len(cells) > 2:
            raise ValueError(f"{len(cells)} parts")
        return dict(zip(("first", "second"), cells, strict=False))
