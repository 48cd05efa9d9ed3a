"""What does not go together in a run: said before it begins, in one line that names the keys."""

from ml_collections import ConfigDict

from transformers_jax.data import pipeline
from transformers_jax.data.collate import layout_of
from transformers_jax.data.placed import Placed
from transformers_jax.errors import UserError


def run(config: ConfigDict) -> None:
    """Checks that a config is that of one run.

    Raises:
      UserError: it is one of a search or a sweep; says which launcher takes it.
    """
    if "search" in config:
        raise UserError(
            "this is the config of a search, which experiments.search runs; what it finds is trained by "
            "experiments.pretrain with --config.model.name=transformer --config.model.genome=DIR/best.json"
        )
    if config.get("sweep"):
        raise UserError(f"this is the config of several runs, which experiments.finetune makes: {', '.join(config.sweep)}")


def lengths(config: ConfigDict, task, model) -> None:
    """Checks that no training example is longer than the model's longest input: beyond learned positions it would be NaN.

    Raises:
      UserError: names the key that lets longer ones through.
    """
    most = model.protocol().longest
    if not most:
        return
    shapes, _ = pipeline.shapes_of(config.data, layout_of(task), 1)
    rows = "boundaries" if config.data.batching == "buckets" and config.data.tokens_per_batch else "lengths"
    longest = {
        "task.max_length": config.task.get("max_length", 0),
        "data.max_length": config.data.max_length,
        f"data.{rows}": max(shapes[-1].lengths),
    }
    key = min((key for key in longest if longest[key]), key=longest.get)
    if longest[key] > most:
        raise UserError(
            f"config.{key} lets examples of {longest[key]} tokens through, and the model reads at most {most} "
            f"(config.model.max_length): give at most {most}, or take a model that reads more"
        )


def shares(task, model) -> None:
    """Checks that a masked language model predicts as many positions as its task masks.

    Raises:
      UserError: names both keys.
    """
    most = model.protocol().max_mask_rate
    if task.mask_rate > most:
        raise UserError(
            f"config.task.mask_rate={task.mask_rate} masks more than config.model.max_mask_rate={most}, "
            "the share of a row that the model predicts at most: raise the latter above the former"
        )


def whole(options: ConfigDict, task) -> None:
    """Checks that a task whose loss takes the whole batch is given it in one piece.

    Raises:
      UserError: names the key that cuts it.
    """
    if task.contrasts:
        for key, whole in ("accumulate", 1), ("parallelism", "jit"):
            if options[key] != whole:
                raise UserError(
                    f"config.training.{key}={options[key]} cuts the batch that config.task.objective={task.objective} takes "
                    f"its other sentences from: give {key}={whole}"
                )


def patience(config: ConfigDict, validates: bool) -> None:
    """Checks that a run which may end by its evaluations has some.

    Args:
      validates: whether it has a validation split.

    Raises:
      UserError: names the key that is missing.
    """
    options = config.training
    if options.get("patience") and not (validates and options.eval_every):
        missing = "config.training.eval_every" if validates else "config.data.validation"
        raise UserError(f"config.training.patience={options.patience} ends a run by its evaluations: give {missing}")


def known(task, source) -> None:
    """Checks that every training example says what the task learns, in a source that can say where an example stands.

    Raises:
      UserError: names the example.
    """
    if (key := task.learned) and isinstance(source, Placed):
        for i in range(len(source)):
            if key not in source[i]:
                raise UserError(f"{source.where(i)} has no {key}, which the task learns; see config.data.columns")
