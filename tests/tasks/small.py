"""A vocabulary that task tests share, and batches as the pipeline makes them."""

import functools
from types import SimpleNamespace

import numpy as np
from ml_collections import ConfigDict

from transformers_jax.data.pipeline import eval_batches
from transformers_jax.data.text.train_tokenizer import learn

TEXT = """It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness,
it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness.
There were a king with a large jaw and a queen with a plain face, on the throne of England; there were a king with a
large jaw and a queen with a fair face, on the throne of France. 12 apples, 7 pears (and 90 plums) cost 3.50 in Paris!
""".splitlines()


@functools.cache
def tokenizer(kind: str = "wordpiece"):
    sizes = {"wordpiece": 120, "byte_bpe": 320, "unigram": 120}  # so small that most words are cut
    return learn(kind, TEXT, sizes[kind], lowercase=kind == "wordpiece")


def batch_of(task, examples, length: int = 32, rows: int = 0, batching: str = "rows") -> dict[str, np.ndarray]:
    """The one batch that holds these examples."""
    keys = ConfigDict(dict(batching=batching, batch_size=rows or len(examples), lengths={"tokens": length}))
    (batch,) = eval_batches(examples, task, keys)
    return batch


class Scorer(SimpleNamespace):
    """Stands in for `runs.evaluate.Scorer`: predictions or sums that are given, and a loss."""

    def __init__(self, examples, found: dict):
        losses = {"loss": 0.5}
        super().__init__(
            source=lambda split: examples, losses=lambda split, **model: losses,
            predictions=lambda split, params, model_state: (losses, found),
            totals=lambda split, params, model_state: (losses, found),
        )  # fmt: skip
