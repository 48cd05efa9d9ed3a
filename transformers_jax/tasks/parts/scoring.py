"""How tasks are scored: by their losses alone, or by all answers first and the benchmark's metric of them."""

from collections.abc import Sequence


class LossOnly:
    """For a `Task` that measures nothing beyond loss, perplexity and accuracies, which every task has."""

    main_metric = "accuracy"

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict, list[dict]]:
        """(loss and its kin by name; no samples) of a split.

        Args:
          scorer: an `evaluation.Scorer`.
          model: {"params": …, "model_state": …}.
        """
        return scorer.losses(split, **model), []

    def validate(self, scorer, model: dict, step: int) -> dict:
        """Loss and its kin on the validation split."""
        return scorer.losses("validation", **model)


class Scored:
    """For a `Task` with `predict` (output, batch) → arrays [B, …], and `score` and `answers` as below.

    learned: the key of an example that training takes and prediction does without; "" where there is none.
    """

    main_metric, learned = "accuracy", ""

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict, list[dict]]:
        """(loss and its kin, and the benchmark's scores, by name; samples) of a split; arguments as above."""
        source = scorer.experiment.source(split)
        losses, predictions = scorer.predictions(split, **model)
        return losses | self.score(source, predictions), self.samples(source, predictions)

    def validate(self, scorer, model: dict, step: int) -> dict:
        """The scores of the validation split, without the samples."""
        losses, predictions = scorer.predictions("validation", **model)
        return losses | self.score(scorer.experiment.source("validation"), predictions)

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """Scores by name from the raw examples and what `predict` gave, one entry an encoded example, in order."""
        raise NotImplementedError

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """What the model makes of each raw example."""
        raise NotImplementedError

    def samples(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """Each raw example with what the model made of it, to be read by people."""
        return [{**source[i], **answer} for i, answer in enumerate(self.answers(source, predictions))]
