"""The PyTorch side of `benchmarks.finetuning`: a run's recipe and batches, with the model and the updates of PyTorch.

    python -m benchmarks.finetuning_peer WORKDIR

Begins with the numbers that the run in WORKDIR began with, the head's too, and evaluates where it did, by the run's own
task: only what is dropped out differs. The last line is one JSON object, as that of `experiments.finetune`.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import torch
import transformers

from transformers_jax import config as configuration
from transformers_jax.interchange import huggingface
from transformers_jax.runs import initialise
from transformers_jax.runs.evaluate import Scorer
from transformers_jax.runs.experiment import Experiment
from transformers_jax.runs.train import first_state
from transformers_jax.training.optimizers import make_optimizer

CLASSES = {
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "tagging": transformers.AutoModelForTokenClassification,
    "span_qa": transformers.AutoModelForQuestionAnswering,
}


def main(workdir: str, begin: Callable | None = None, plain: Callable = lambda model: model) -> None:
    """Trains as the run in `workdir` did.

    Args:
      begin: run → the model; by default `model_of`.
      plain: the model → it as `transformers` saves it.
    """
    config = configuration.read(workdir)
    run, options = Experiment(config, workdir), config.training
    torch.manual_seed(config.seed)
    model = (begin or model_of)(run)
    optimizer, rate = optimizer_of(model, config)
    scorer, iterator, scores = Scorer(run), run.train_iterator(), []
    losses, took, began = [], [], time.monotonic()
    for step in range(1, options.steps + 1):
        batch = {name: torch.from_numpy(array).long() if array.dtype.kind == "i" else torch.from_numpy(array)
                 for name, array in next(iterator).items()}  # fmt: skip
        model.train()
        stepped = time.monotonic()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, batch, config.task.name)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step - 1))
        optimizer.step()
        took.append(time.monotonic() - stepped)
        losses.append(float(loss.detach()))
        if step % options.log_every == 0:
            print(f"step {step}/{options.steps}  loss {sum(losses) / len(losses):.4g}", file=sys.stderr, flush=True)
            losses.clear()
        if step % options.eval_every == 0 or step == options.steps:
            scores.append((validated(plain(model), run, scorer)[run.task.main_metric], -step))
    best, step = max(scores)
    found = {"metric": run.task.main_metric, "best": best, "step": -step, "last": scores[-1][0]}
    found |= {"seconds": round(time.monotonic() - began), "seconds_a_step": round(statistics.mean(took[len(took) // 3 :]), 4)}
    print(json.dumps(found | {"learning": sum(p.numel() for p in model.parameters() if p.requires_grad)}))


def model_of(run: Experiment):
    """The run's model as it was before the first step."""
    jax.config.update("jax_default_prng_impl", run.config.prng)
    params = first_state(run, optax.identity()).model_params
    fields = dict(run.config.model) | run.task.model_fields()
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(Path(folder), fields, jax.device_get(params))
        return CLASSES[run.config.task.name].from_pretrained(folder)


def optimizer_of(model, config):
    """AdamW that decays kernels and embeddings only, and the run's schedule: updates so far → rate."""
    options = config.optimizer
    decayed = {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": options.weight_decay}
    others = {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, others], lr=0.0, betas=(options.b1, options.b2), eps=options.eps)
    return optimizer, make_optimizer(options, config.training.steps)[1]


def loss_of(model, batch: dict, task: str):
    """Of one batch, the mean over its examples or words."""
    seen = (batch["segments"] > 0).long()
    inputs = {"input_ids": batch["tokens"], "attention_mask": seen, "token_type_ids": batch["token_types"]}
    if task == "span_qa":  # not the model's own loss, in which padding may begin and end an answer
        output = model(**inputs)
        logits = [scores.masked_fill(seen == 0, -1e9) for scores in (output.start_logits, output.end_logits)]
        losses = map(torch.nn.functional.cross_entropy, logits, (batch["starts"], batch["ends"]))
        return sum(losses) / 2
    if task == "tagging":
        return model(**inputs, labels=batch["targets"].where(batch["weights"] > 0, -100)).loss
    return model(**inputs, labels=batch["label"] if "label" in batch else batch["score"].float()).loss


def validated(model, run: Experiment, scorer: Scorer) -> dict:
    """The task's scores on the validation split, of the model as `transformers` saves it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder))
        params = jax.tree.map(np.asarray, initialise.initial(folder, run.model))  # read, while the folder is there
    return run.task.validate(scorer, {"params": params, "model_state": {}})


if __name__ == "__main__":
    main(sys.argv[1])
