"""The class `Task`: everything that the rest of the code may ask a task, with the answer of a task that does not say.

A task is what a model learns: how a raw example becomes fields of a batch, the loss, the scores, and what the trained model
answers to a line of input. It never looks for things by itself. The run hands it predictions, sums, a decoder, or a
pretrained model.

Axes: B batch rows, T length, C members of a group.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.data.documents import Document
from transformers_jax.errors import UserError
from transformers_jax.files import json_value
from transformers_jax.tasks.parts.labels import Labels

Generate = Callable[[Sequence[list[int]]], Sequence[list[int]]]
READS = ("text", "images")
SCORED_BY = ("loss", "sums", "predictions")


class Task:
    """One task. A file of this folder has one subclass, also called `Task`, which replaces what is different about it.

    Its constructor takes the tokenizer, where the task reads text, or config.data, where it reads images, and the keys of
    config.task by name. The attributes below
    may be set for the class or for an instance.

    What it reads, and how its examples lie in a batch (see `data.collate`):
      reads: "text", or "images": then there is no tokenizer.
      streams: the fields of each stream, which have one length within an example, {"": ("tokens", "token_types")} say.
      row_fields: the fields of one value an example, "label" say, or of one array of a fixed shape.
      row_shapes: the shape of each row field that is an array, {"image": (32, 32, 3)} say; others are scalars.
      one_a_row: whether each example has a row to itself, and `row_weights` [B] tells which rows hold one. It is so in any
        case where there are row fields or groups.
      groups: C, the members of an example that is a group of texts, a question with its choices say; 0 for no groups. The
        batch's fields are [B, C, T] then.
      augment: (fields of an example, numpy generator) → its fields, drawn anew each time it is trained on; None for a task
        that trains on what `encode` gives.
      unaugmented: (fields of an example) → its fields as they are evaluated and predicted, the middle of an image say; None
        for a task that evaluates what `encode` gives.

    How it learns:
      learned: the key of an example that training needs and prediction does not, "label" say; "" if there is none.
      frozen: pattern over the names of parameters that never learn; "" for none.
      contrasts: whether the loss of an example depends on the rest of its batch, which must then stay in one piece.
      counted: what the weight of its loss counts, "pixels" say; "" for tokens of texts and examples of images.
      mask_rate: share of a row's tokens that the model is asked to predict; 0.0 where it is not a share that decides.

    How it is scored:
      scored_by: what its scores need beside the loss. "loss": nothing. "sums": `sums` of every batch, added up. Nothing of
        the split's size is kept then. "predictions": `predict` of every example, kept until the split has ended.
      main_metric: the name of the score that picks the best of several evaluations.
      bigger_is_better: whether the best is the largest `main_metric`, or the smallest.

    What the trained model is used for:
      recipe: a `layers.pooling.Recipe`, how the trained encoder makes a vector of a text; None if it was not trained for that.
      line_means: what a line of text to be answered is, "a text, or two with a TAB between them" say; "" for a task that
        answers no lines.
      line_keys: the keys that a line has which is a JSON object.
      template: a `data.text.chat.ChatTemplate`, how conversations were written that the model was trained on; None for none.
    """

    reads: str = "text"
    streams: Streams = {}
    row_fields: tuple[str, ...] = ()
    row_shapes: Mapping[str, tuple[int, ...]] = {}
    one_a_row: bool = False
    groups: int = 0
    augment: Callable[[dict, np.random.Generator], dict] | None = None
    unaugmented: Callable[[dict], dict] | None = None

    learned: str = ""
    frozen: str = ""
    contrasts: bool = False
    counted: str = ""
    mask_rate: float = 0.0

    scored_by: str = "loss"
    main_metric: str = "loss"
    bigger_is_better: bool = False

    recipe: Any = None
    line_means: str = ""
    line_keys: tuple[str, ...] = ()
    template: Any = None

    @property
    def name(self) -> str:
        """config.task.name: the name of the file that the class stands in."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels of the head's rows, in their order; () where rows have no names."""
        labels = getattr(self, "labels", None)
        return labels.names if isinstance(labels, Labels) else ()

    # -- Examples: asked when a split is opened, and for each example that a batch is made of ---------------------------------

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """What `encode` takes, of a split: the raw examples, or what becomes of them, the windows of a long text say.

        Where one raw example becomes several, each has its number in the source as "example".

        Raises:
          UserError: an example does not go with config.task.
        """
        return source

    def to_train(self, source: Sequence[dict]) -> Sequence[dict]:
        """What `encode` takes in training, where that is something else than `examples`: whole images, say, and not windows."""
        return self.examples(source)

    def encode(self, example: dict) -> dict[str, Any]:
        """The fields of one of `examples`, by name: those of `streams` are 1-D int32 arrays, of groups lists of C such arrays;
        those of `row_fields` are values, or arrays of their `row_shapes`.

        Raises:
          UserError: the example cannot be encoded; without its place, which the caller knows.
        """
        raise NotImplementedError

    def document(self, example: dict) -> Document:
        """One of `examples` as tokens to be joined with others and cut: where config.data.batching is "documents".

        Raises:
          UserError: the example cannot be encoded.
        """
        raise UserError(f"config.data.batching=documents: examples of config.task.name={self.name} are not cut; give packing")

    # -- The model: asked once, when a run is put together --------------------------------------------------------------------

    def model_fields(self) -> dict[str, Any]:
        """Fields of the model's `Config` that follow from the task: its head, and how many labels it has."""
        return {}

    def wrap(self, model: nn.Module, build: Callable[[str, dict], nn.Module]) -> nn.Module:
        """The module that is trained: the model, or more around it.

        Args:
          build: (path of a pretrained model, fields of its `Config` to replace) → its module, without parameters; see
            `runs.initialise.module_of`.
        """
        return model

    def initial(self, model: nn.Module, load: Callable[..., dict]) -> dict | None:
        """Parameters that training begins with, nested dicts, which need not be all of the model's; None if the task has none.

        Args:
          model: what `wrap` has given.
          load: (path, module, *, only=None, complete=False) → the parameters of a pretrained model; see
            `runs.initialise.initial`.
        """
        return None

    # -- Loss and predictions: traced, once a batch -------------------------------------------------------------------------

    def loss(self, output: Any, batch: dict, *, train: bool) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(loss summed over the batch, its summed weight, other sums by name): all scalars.

        The caller divides, see `training.metrics.means`: "nll" becomes perplexity, "correct" accuracy.

        Args:
          output: what the model returns for the batch, one of `outputs`.
          batch: fields by name; padding has segment 0, and empty rows have row_weights 0.
          train: whether this is training, with label smoothing say, or evaluation.
        """
        raise NotImplementedError

    def mix(self, batch: dict, key: jax.Array) -> dict:
        """The fields that the model reads and `loss` takes in training: those of the batch, or rows mixed with each other.

        Args:
          batch: as it is collated; a part of it where it is cut into microbatches.
          key: a random key of the step and the part.
        """
        return batch

    def predict(self, output: Any, batch: dict) -> dict[str, jax.Array]:
        """What the model says about each row: arrays [B, …] by name. The task has one example a row."""
        raise NotImplementedError

    def sums(self, output: Any, batch: dict) -> dict[str, jax.Array]:
        """Arrays of any fixed shape by name that add up over batches: a confusion matrix, counts by class or threshold.

        Empty rows and padding must not count. Only where `scored_by` is "sums".
        """
        return {}

    # -- Scores: asked at each evaluation -----------------------------------------------------------------------------------

    def score_sums(self, totals: dict[str, np.ndarray]) -> dict[str, Any]:
        """Scores by name, from `sums` added up over a split: whole numbers as int64, others as float64."""
        return {}

    def score(self, source: Sequence[dict], predictions: dict[str, np.ndarray]) -> dict[str, Any]:
        """Scores by name, of the raw examples that have a truth; without such ones, none.

        Args:
          predictions: what `predict` gives, by name, one entry for each of `examples(source)`, in their order.
        """
        return {}

    def answers(self, source: Sequence[dict], predictions: dict[str, np.ndarray]) -> list[dict]:
        """What the model makes of each raw example, as it is shown to people; arguments as of `score`."""
        raise NotImplementedError

    def samples(self, source: Sequence[dict], predictions: dict[str, np.ndarray]) -> list[dict]:
        """Each raw example with its answer: lines of samples.jsonl, and of `experiments.predict`. Arrays are only described."""
        answers = self.answers(source, predictions)
        return [json_value({**source[i], **answer}) for i, answer in enumerate(answers)]

    def continuations(self, source: Sequence[dict], generate: Generate) -> list[dict]:
        """How the trained model goes on from the beginnings of some raw examples: lines of samples.jsonl; none for a task that
        does not go on from a beginning.

        Args:
          generate: the tokens of prompts → the tokens that follow each.
        """
        return []

    def evaluate(self, scorer, split: str, model: dict) -> tuple[dict[str, Any], list[dict]]:
        """(loss and all scores by name, samples) of a split: at the end of a run, and for `experiments.evaluate`.

        Args:
          scorer: a `runs.evaluate.Scorer`.
          model: {"params": …, "model_state": …}.
        """
        scores, predictions = self._measured(scorer, split, model)
        if predictions:
            return scores, self.samples(scorer.source(split), predictions)
        return scores, self.continuations(scorer.source(split), lambda prompts: scorer.continued(prompts, model))

    def validate(self, scorer, model: dict, *, sentences: int | None = None) -> dict[str, Any]:
        """Loss and scores of the validation split, while a model is trained.

        Args:
          scorer, model: as of `evaluate`.
          sentences: how many examples, from the split's first on, are to be decoded now if the task decodes: 0 is all of
            them, None is none, since decoding takes long.
        """
        return self._measured(scorer, "validation", model)[0]

    def _measured(self, scorer, split: str, model: dict) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(loss and scores, the predictions if those were needed)."""
        if self.scored_by == "predictions":
            losses, predictions = scorer.predictions(split, **model)
            return losses | self.score(scorer.source(split), predictions), predictions
        if self.scored_by == "sums":
            losses, totals = scorer.totals(split, **model)
            return losses | self.score_sums(totals), {}
        return scorer.losses(split, **model), {}

    # -- Use: asked by the launchers ------------------------------------------------------------------------------------------

    def translate(self, lines: Sequence[str], decoder, params=None, **place: int) -> list[list[tuple[str, float]]]:
        """The n best outputs for each line with their scores, in the order of the lines.

        Args:
          decoder: a `decoding.decoder.Decoder` of the run's model.
          params: of the model; those of the decoder if not given.
          place: `first` and `seed` of `Decoder.decode`.
        """
        raise UserError(f"config.task.name={self.name} does not translate")

    def answering(self, model: nn.Module, *, top: int) -> "tuple[Task, nn.Module]":
        """What answers lines with a trained model: a task and the module that it is applied to, which reads its parameters
        from those of `model`.

        Args:
          model: what `wrap` has given.
          top: how many answers are given where several are possible.
        """
        return self, model

    def write_to(self, folder: str) -> None:
        """Answers are written into a folder, too, where they are pictures.

        Raises:
          UserError: the task has none, or the folder cannot be made.
        """
        raise UserError(f"--out={folder}: config.task.name={self.name} writes no files")

    def of_line(self, cells: Sequence[str]) -> dict:
        """The raw example of a line of text, by its parts between TABs.

        Raises:
          IndexError, TypeError, ValueError: it is not what `line_means` says.
        """
        raise ValueError(f"{self.name} reads no lines")
