"""Scores of a model on a split: loss and its kin over every token, and what the task itself measures."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from transformers_jax.decoding.decoder import Decoder
from transformers_jax.decoding.prompts import PromptDecoder
from transformers_jax.mesh import global_batch
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.metrics import means
from transformers_jax.training.step import compile_eval_step, make_eval_step, make_scoring_step, make_totals_step

CONTINUED = 48
"""Tokens of a sample that goes on from a prompt, at most."""


class Scorer:
    """Measures one model again and again, in the ways that a task may ask for; each is compiled once, when it is first used.

    Args:
      experiment: the run.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._step = self._compiled(make_eval_step)
        self._totals = self._compiled(make_totals_step)
        self._both = self._compiled(make_scoring_step)
        self._batches, self._decoders = {}, {}

    def source(self, split: str) -> Sequence[dict]:
        """The raw examples of a split."""
        return self.experiment.source(split)

    def losses(self, split: str, params, model_state) -> dict[str, float]:
        """loss and the task's sums as means over the weight of a split, each token or example counted once."""
        sums: dict[str, float] = {}
        for found in self._over_batches(self._step, split, params, model_state):
            _count(sums, found)
        return means(sums)

    def totals(self, split: str, params, model_state) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(what `losses` gives, the arrays of `task.sums` by name, added up over the split). One batch is kept at a time."""
        sums, totals = {}, {}
        for found, arrays in self._over_batches(self._totals, split, params, model_state):
            _count(sums, found)
            for name, array in arrays.items():
                wide = np.float64 if np.issubdtype(array.dtype, np.inexact) else np.int64
                totals[name] = totals.get(name, 0) + np.asarray(array, wide)
        return means(sums), totals

    def predictions(self, split: str, params, model_state) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(what `losses` gives, the arrays of `task.predict` by name, one entry an example of the split, in their order)."""
        sums, kept = {}, {}
        for found, answers in self._over_batches(self._both, split, params, model_state):
            _count(sums, found)
            rows = answers.pop("row_weights") > 0  # [B]
            for name, array in answers.items():
                kept.setdefault(name, []).append(array[rows])
        return means(sums), {name: np.concatenate(parts) for name, parts in kept.items()}

    def decoder(self, **changes) -> Decoder:
        """The run's decoder, without parameters; `changes` replace keys of config.decoding."""
        key = tuple(sorted(changes.items()))
        if key not in self._decoders:
            self._decoders[key] = self.experiment.decoder(**changes)
        return self._decoders[key]

    def continued(self, prompts: list[list[int]], model: dict) -> list[list[int]]:
        """The tokens that a model of prompts writes after each, the likeliest one at a time."""
        run = self.experiment
        ends = {run.tokenizer.eos_id, *(run.task.template.ends() if run.task.template else ())}
        options = {"ends": sorted(ends), "pad_id": run.tokenizer.pad_id, "longest": run.model.protocol().longest}
        decoder = PromptDecoder(run.model, model["params"], **options, mesh=run.mesh)
        return [best.ids for best, *_ in decoder.decode(prompts, limits=CONTINUED)]

    def _compiled(self, make: Callable):
        return compile_eval_step(make(self.experiment.model, self.experiment.task), self.experiment.mesh)

    def _over_batches(self, step, split: str, params, model_state) -> Iterator[Any]:
        """What the step gives for each batch of a split, in numpy."""
        if split not in self._batches:
            self._batches[split] = self.experiment.eval_batches(split)
        running = []
        for batch in self._batches[split]:
            batch = global_batch(batch, self.experiment.mesh)  # made while the device is at the one before
            done = jax.device_get(running)  # one at a time: more could wait for each other on CPU devices
            running = [step(params, model_state, batch)]
            yield from done
        yield from jax.device_get(running)


def evaluate(
    experiment: Experiment, split: str, *, average: int | None = None, step: int | str | None = None
) -> tuple[dict, list[dict]]:
    """All scores of a trained run on a split, and what it made of the examples.

    Args:
      average, step: see `Experiment.trained`.

    Returns:
      (split, the task's own scores, loss, perplexity, accuracy and seconds by name; the task's samples). What cannot be
      measured is left out: where no example has what the task learns, "note" says so.
    """
    began = time.monotonic()
    model = experiment.trained(average=average, step=step)
    scorer = Scorer(experiment)
    scores, samples = experiment.task.evaluate(scorer, split, model)
    scores = {"split": split} | {name: value for name, value in scores.items() if not _undefined(value)}
    if without := unlabelled(experiment.task.learned, scorer.source(split)):
        scores |= {"examples": without, "note": f"no example of the {split} split has a {experiment.task.learned}"}
        logging.warning("%s: nothing is scored", scores["note"])
    return scores | {"seconds": round(time.monotonic() - began, 2)}, samples


def split_of(experiment: Experiment) -> str:
    """What is scored where nothing is said: the test split, or validation where there is none."""
    if experiment.has("test") or not experiment.has("validation"):
        return "test"
    logging.info("there is no test split (config.data.test): this is the validation split")
    return "validation"


def unlabelled(learned: str, source: Sequence[dict]) -> int:
    """How many examples there are, if none of them has what the task learns; 0 if one has, or nothing need be there."""
    return len(source) if learned and not any(learned in source[i] for i in range(len(source))) else 0


def _undefined(value) -> bool:
    """Whether a score is a mean over nothing."""
    return isinstance(value, float) and math.isnan(value)


def _count(sums: dict[str, float], found: dict[str, np.ndarray]) -> None:
    """Adds a batch's scalars to the sums so far."""
    for name, value in found.items():
        sums[name] = sums.get(name, 0.0) + float(value)
