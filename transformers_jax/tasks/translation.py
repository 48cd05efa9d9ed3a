"""Translation: pairs of lines in, cross entropy with label smoothing, scored by perplexity and BLEU."""

import importlib.util
import re
from collections.abc import Sequence

import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.layers.losses import cross_entropy
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.tasks.task import Task as Base

_TOKENISATIONS = (
    (("zh", "cmn", "yue", "zho"), "zh", ""),
    (("ja", "jpn"), "ja-mecab", "MeCab"),
    (("ko", "kor"), "ko-mecab", "mecab_ko"),
    (("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "dz"), "char", ""),
)
"""(codes of languages, sacreBLEU's tokenisation, the package that it needs)."""


class Task(Base):
    """Translation from `source` to `target`, one sentence each.

    Both sides end with eos; the decoder reads the target shifted right behind bos.

    Args:
      tokenizer: turns text into tokens and back.
      label_smoothing: probability mass spread evenly over the vocabulary in training; evaluation is unsmoothed.
      bleu_tokenize: sacreBLEU's tokenisation of outputs and references; "" for 13a. A run takes that of its target language
        where none is given, see `tokenisation_of`.
    """

    main_metric, bigger_is_better = "bleu", True
    streams: Streams = {"source": ("source",), "target": ("target_inputs", "targets")}

    def __init__(self, tokenizer, *, label_smoothing: float = 0.1, bleu_tokenize: str = ""):
        self.tokenizer, self.bleu_tokenize = tokenizer, bleu_tokenize
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
        return scorer.losses(split, **model) | score(found, self.bleu_tokenize), found

    def validate(self, scorer, model: dict, *, sentences: int | None = None) -> dict[str, float]:
        """Loss, perplexity and accuracy on the validation split, and greedy BLEU of so many of its sentences."""
        losses = scorer.losses("validation", **model)
        if sentences is None:
            return losses
        decoder = scorer.decoder(method="greedy")
        found = self._translations(scorer.source("validation"), decoder, model, sentences)
        return losses | {"bleu": score(found, self.bleu_tokenize)["bleu"]}

    def _translations(self, source: Sequence[dict], decoder, model: dict, sentences: int = 0) -> list[dict[str, str]]:
        """{"source", "reference", "translation"} of each sentence, or of so many from the first on."""
        examples = [source[i] for i in range(min(sentences or len(source), len(source)))]
        best = self.translate([e["source"] for e in examples], decoder, model["params"])
        return [
            {"source": e["source"], "reference": e["target"], "translation": outputs[0][0]}
            for e, outputs in zip(examples, best, strict=True)
        ]


def score(translations: Sequence[dict[str, str]], tokenize: str = "") -> dict:
    """bleu and bleu_signature; copy_bleu, of leaving the sources as they are; sentences."""
    sources, references, found = ([t[k] for t in translations] for k in ("source", "reference", "translation"))
    copied = bleu(sources, references, tokenize)["bleu"]
    return bleu(found, references, tokenize) | {"copy_bleu": copied, "sentences": len(translations)}


def tokenisation_of(language: str) -> str:
    """sacreBLEU's tokenisation of a language, "zh" or "zh-cn" say; "" where 13a is right, which needs spaces between words.

    Japanese and Korean are cut into words by MeCab where it is installed (sacrebleu[ja], sacrebleu[ko]), else into
    characters, as are languages without spaces for which there is nothing else.
    """
    code = re.split("[-_]", language.lower())[0]
    for codes, name, package in _TOKENISATIONS:
        if code in codes:
            return name if not package or importlib.util.find_spec(package) else "char"
    return ""


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "") -> dict:
    """Corpus BLEU in percent (Papineni et al. 2002) with one of sacreBLEU's tokenisations, and its signature (Post 2018)."""
    import sacrebleu

    metric = sacrebleu.BLEU(tokenize=tokenize or "13a")
    score = metric.corpus_score(list(hypotheses), [list(references)])
    return {"bleu": score.score, "bleu_signature": str(metric.get_signature())}
