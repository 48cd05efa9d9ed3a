"""Translation: pairs of lines in, cross entropy with label smoothing, scored by perplexity and BLEU."""

from collections.abc import Sequence

import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.layers.losses import cross_entropy
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.tasks.task import Task as Base


class Task(Base):
    """Translation from `source` to `target`, one sentence each.

    Both sides end with eos; the decoder reads the target shifted right behind bos.

    Args:
      tokenizer: turns text into tokens and back.
      label_smoothing: probability mass spread evenly over the vocabulary in training; evaluation is unsmoothed.
    """

    main_metric, bigger_is_better = "bleu", True
    streams: Streams = {"source": ("source",), "target": ("target_inputs", "targets")}

    def __init__(self, tokenizer, *, label_smoothing: float = 0.1):
        self.tokenizer = tokenizer
        self.label_smoothing = label_smoothing

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """{"source": str, "target": str} → 1-D int32 arrays `source`, `target_inputs`, `targets`."""
        t = self.tokenizer
        target = t.encode(example["target"])
        fields = {
            "source": self._source(example["source"]),
            "target_inputs": [t.bos_id, *target],
            "targets": [*target, t.eos_id],
        }
        return {name: np.asarray(ids, np.int32) for name, ids in fields.items()}

    def _source(self, text: str) -> list[int]:
        """The tokens of one source line with eos behind them."""
        return [*self.tokenizer.encode(text), self.tokenizer.eos_id]

    def loss(self, output: LanguageModelOutput, batch: dict, *, train: bool):
        """Summed loss, summed weight, and sums of the metrics: all scalars. The mean is the caller's to take."""
        targets = batch["targets"]  # [B, T]
        weights = batch["target_segments"] > 0  # [B, T]
        sums = cross_entropy(output.hidden, output.table, targets, weights, self.label_smoothing if train else 0.0)
        return sums.loss, sums.weight, {"nll": sums.nll, "correct": sums.correct}

    def translate(self, lines: Sequence[str], decoder, params=None, **place: int) -> list[list[tuple[str, float]]]:
        """The n best translations of each line with their scores, in the order of the lines; a blank line gives a blank one.

        Args:
          place: `first` and `seed` of `Decoder.decode`.
        """
        sources = [self._source(line) if line.strip() else [] for line in lines]
        return [
            [(self.tokenizer.decode(ids), score) for ids, score in best] if source else [("", 0.0)]
            for source, best in zip(sources, decoder.decode(sources, params, **place), strict=True)
        ]

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict, list[dict[str, str]]]:
        """(loss, perplexity, accuracy and the scores of `score`; {"source", "reference", "translation"} of each sentence)."""
        found = self._translations(scorer.source(split), scorer.decoder(), model)
        return scorer.losses(split, **model) | score(found), found

    def validate(self, scorer, model: dict, *, sentences: int | None = None) -> dict[str, float]:
        """Loss, perplexity and accuracy on the validation split, and greedy BLEU of so many of its sentences."""
        losses = scorer.losses("validation", **model)
        if sentences is None:
            return losses
        decoder = scorer.decoder(method="greedy")
        found = self._translations(scorer.source("validation"), decoder, model, sentences)
        return losses | {"bleu": score(found)["bleu"]}

    def _translations(self, source: Sequence[dict], decoder, model: dict, sentences: int = 0) -> list[dict[str, str]]:
        """{"source", "reference", "translation"} of each sentence, or of so many from the first on."""
        examples = [source[i] for i in range(min(sentences or len(source), len(source)))]
        best = self.translate([e["source"] for e in examples], decoder, model["params"])
        return [
            {"source": e["source"], "reference": e["target"], "translation": outputs[0][0]}
            for e, outputs in zip(examples, best, strict=True)
        ]


def score(translations: Sequence[dict[str, str]]) -> dict:
    """bleu and bleu_signature; copy_bleu, of leaving the sources as they are; sentences."""
    sources, references, found = ([t[k] for t in translations] for k in ("source", "reference", "translation"))
    return bleu(found, references) | {"copy_bleu": bleu(sources, references)["bleu"], "sentences": len(translations)}


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> dict:
    """Corpus BLEU in percent (Papineni et al. 2002) with sacreBLEU's 13a tokenisation, and its signature (Post 2018)."""
    import sacrebleu

    metric = sacrebleu.BLEU()
    score = metric.corpus_score(list(hypotheses), [list(references)])
    return {"bleu": score.score, "bleu_signature": str(metric.get_signature())}
