"""Scores of a model on a split: loss, perplexity and accuracy over every token, BLEU over every sentence."""

import time
from collections.abc import Sequence

import jax
import numpy as np

from transformers_jax.data import pipeline
from transformers_jax.errors import UserError
from transformers_jax.experiment import SAMPLES, Experiment
from transformers_jax.tasks import translation
from transformers_jax.training.metrics import means
from transformers_jax.training.sharding import global_batch
from transformers_jax.training.step import compile_eval_step, make_eval_step


class Scorer:
    """Measures one model again and again; compiled once.

    Args:
      experiment: the run.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._step = compile_eval_step(make_eval_step(experiment.model, experiment.task), experiment.mesh)
        self._batches, self._decoders = {}, {}

    def losses(self, split: str, params, model_state) -> dict[str, float]:
        """loss, perplexity and accuracy: means over the target tokens of a split, each counted once."""
        if split not in self._batches:
            self._batches[split] = self.experiment.eval_batches(split)
        found, running = [], []
        for batch in self._batches[split]:
            batch = global_batch(batch, self.experiment.mesh)  # made while the device is at the one before
            found += jax.device_get(running)  # one at a time: more could wait for each other on CPU devices
            running = [self._step(params, model_state, batch)]
        found += jax.device_get(running)
        return means({name: sum(float(sums[name]) for sums in found) for name in found[0]})

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


def bleu(translations: Sequence[dict[str, str]]) -> dict:
    """bleu and bleu_signature; copy_bleu, of leaving the sources as they are; sentences."""
    sources, references, found = ([t[k] for t in translations] for k in ("source", "reference", "translation"))
    copied = translation.bleu(sources, references)["bleu"]
    return translation.bleu(found, references) | {"copy_bleu": copied, "sentences": len(translations)}


def evaluate(
    experiment: Experiment, split: str, *, average: int = 1, step: int | None = None
) -> tuple[dict, list[dict[str, str]]]:
    """All scores of a trained run on a split, and its translations.

    Args:
      average: over so many of the newest checkpoints.
      step: one checkpoint instead of the newest.

    Returns:
      (bleu, bleu_signature, copy_bleu (of leaving the sources as they are), sentences, loss, perplexity, accuracy and
      seconds by name; {"source", "reference", "translation"} of each sentence).
    """
    began = time.monotonic()
    model = experiment.trained(average=average, step=step)
    scorer = Scorer(experiment)
    translations = scorer.translations(split, model["params"])
    scores = bleu(translations) | scorer.losses(split, **model)
    return {"split": split} | scores | {"seconds": round(time.monotonic() - began, 2)}, translations


def attention_example(experiment: Experiment):
    """The attention with which a trained run translates one short sentence, for a picture.

    Raises:
      UserError: there is no trained model, no sentence, or no attention in the model.
    """
    from transformers_jax.reporting.attention import attention_of

    chosen = next((s for s in experiment.samples() if 5 <= len(s["source"].split()) <= 12), None)
    if chosen is None:
        raise UserError(f"no short sentence in {experiment.workdir / SAMPLES}, which a run writes when it ends")
    t, streams = experiment.tokenizer, experiment.task.streams
    fields = experiment.task.encode({"source": chosen["source"], "target": chosen["translation"]})
    example = tuple(np.array([fields[name] for name in names], np.int32) for names in streams.values())
    shape = pipeline.Shape(1, tuple(part.shape[1] for part in example))
    batch = pipeline.assemble([[example]], streams=streams, shape=shape)
    model = experiment.trained(average=experiment.config.training.average_checkpoints)
    pieces = [[t.piece(i) for i in fields[name]] for name in ("source", "targets")]
    return attention_of(experiment.model, model["params"], batch, *pieces, model_state=model["model_state"])
