"""Scores of a model on a split: loss and its kin over every token, and what the task itself measures."""

import time

import jax
import numpy as np

from transformers_jax.mesh import global_batch
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.metrics import means
from transformers_jax.training.step import compile_eval_step, make_eval_step, make_scoring_step


class Scorer:
    """Measures one model again and again; compiled once.

    Args:
      experiment: the run.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._step = compile_eval_step(make_eval_step(experiment.model, experiment.task), experiment.mesh)
        self._both = compile_eval_step(make_scoring_step(experiment.model, experiment.task), experiment.mesh)
        self._batches, self._decoders = {}, {}

    def losses(self, split: str, params, model_state) -> dict[str, float]:
        """loss and the task's sums as means over the weight of a split, each token or example counted once."""
        return _means(self._over_batches(self._step, split, params, model_state))

    def predictions(self, split: str, params, model_state) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(the same; what `task.predict` gives by name, one entry an example of the split, in their order)."""
        found = self._over_batches(self._both, split, params, model_state)
        answers = [answer for _, answer in found]
        rows = np.concatenate([answer.pop("row_weights") for answer in answers]) > 0
        return _means([sums for sums, _ in found]), {n: np.concatenate([a[n] for a in answers])[rows] for n in answers[0]}

    def _over_batches(self, step, split: str, params, model_state) -> list:
        if split not in self._batches:
            self._batches[split] = self.experiment.eval_batches(split)
        found, running = [], []
        for batch in self._batches[split]:
            batch = global_batch(batch, self.experiment.mesh)  # made while the device is at the one before
            found += jax.device_get(running)  # one at a time: more could wait for each other on CPU devices
            running = [step(params, model_state, batch)]
        return found + jax.device_get(running)

    def translations(self, split: str, params, *, sentences: int = 0, **decoding) -> list[dict[str, str]]:
        """{"source", "reference", "translation"} of each sentence.

        Args:
          sentences: of the split, from its start; 0 is all.
          decoding: keys of config.decoding to replace.
        """
        source = self.experiment.source(split)
        examples = [source[i] for i in range(min(sentences or len(source), len(source)))]
        key = tuple(sorted(decoding.items()))
        if key not in self._decoders:
            self._decoders[key] = self.experiment.decoder(**decoding)
        best = self.experiment.task.translate([e["source"] for e in examples], self._decoders[key], params)
        return [
            {"source": e["source"], "reference": e["target"], "translation": outputs[0][0]}
            for e, outputs in zip(examples, best, strict=True)
        ]


def evaluate(
    experiment: Experiment, split: str, *, average: int | None = None, step: int | None = None
) -> tuple[dict, list[dict]]:
    """All scores of a trained run on a split, and what it made of the examples.

    Args:
      average, step: see `Experiment.trained`.

    Returns:
      (split, the task's own scores, loss, perplexity, accuracy and seconds by name; the task's samples).
    """
    began = time.monotonic()
    model = experiment.trained(average=average, step=step)
    scorer = Scorer(experiment)
    scores, samples = experiment.task.evaluate(scorer, split, model)
    return {"split": split} | scores | {"seconds": round(time.monotonic() - began, 2)}, samples


def _means(found: list[dict]) -> dict[str, float]:
    """The batches' sums, as means."""
    return means({name: sum(float(sums[name]) for sums in found) for name in found[0]})
