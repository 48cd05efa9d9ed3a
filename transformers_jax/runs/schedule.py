"""How long a run is, where its config gives epochs instead of steps."""

import math

from ml_collections import ConfigDict

from transformers_jax.data import sources
from transformers_jax.errors import UserError


def scheduled(config: ConfigDict) -> ConfigDict:
    """The config with training.steps, .eval_every and .checkpoint_every in numbers.

    training.steps of 0 stands for finetuning.epochs passes over the training examples (one that is cut into several windows
    counts once, as in BERT's own script); the other two of 0 for as many evaluations and checkpoints over the run as
    finetuning.evaluations says. Where neither stands so, nothing is read.

    Raises:
      UserError: there is no group finetuning, no number of epochs either, or the rows of a batch are not known; or the training
        data cannot be read.
    """
    if "finetuning" not in config:
        raise UserError("config.finetuning is missing: begin the config with a function of configs/base.py")
    evaluations = config.finetuning.evaluations
    if config.training.steps and not (evaluations and not (config.training.eval_every and config.training.checkpoint_every)):
        return config
    config = config.copy_and_resolve_references()
    if not config.training.steps:
        epochs = config.finetuning.epochs
        if epochs <= 0:
            raise UserError("config.training.steps is 0: give a number, or config.finetuning.epochs")
        full = config.data.batching == "buckets" and config.data.tokens_per_batch
        if full or config.data.batching in ("packing", "documents"):
            raise UserError(
                f"config.training.steps is 0, but config.data.batching={config.data.batching} does not say how many make an "
                "epoch: give a number, or batching=rows, or batching=buckets and tokens_per_batch=0"
            )
        examples = len(sources.open_source(config.data, "train"))
        config.training.steps = max(1, round(epochs * math.ceil(examples / config.data.batch_size)))
    if evaluations:
        every = math.ceil(config.training.steps / evaluations)
        config.training.eval_every = config.training.eval_every or every
        config.training.checkpoint_every = config.training.checkpoint_every or every
    return config
