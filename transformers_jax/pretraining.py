"""Training a model from nothing: the parts of an experiment, handed to the loop."""

import contextlib
import time
from types import SimpleNamespace

import jax
from absl import logging

from transformers_jax import experiment as experiments
from transformers_jax.evaluation import Scorer, bleu
from transformers_jax.experiment import Experiment
from transformers_jax.planning import flops, parameters, plan
from transformers_jax.planning.peak import matmul_peak
from transformers_jax.training import sharding
from transformers_jax.training.checkpoint import Checkpoints, any_process
from transformers_jax.training.loop import Evaluator, graceful_stop, train
from transformers_jax.training.metrics import MetricsWriter
from transformers_jax.training.optimizers import make_optimizer
from transformers_jax.training.state import abstract_state, create_state
from transformers_jax.training.step import compile_step, make_train_step


def pretrain(config, workdir, *, began: float | None = None) -> None:
    """Trains, evaluates and checkpoints in a workdir; goes on where an earlier call with the same config stopped.

    Args:
      began: `time.monotonic()` when the process began, to tell what its start took.

    Raises:
      UserError: whatever is wrong with config, data or workdir, before anything is written.
      SystemExit: 143 after SIGTERM, with everything saved.
    """
    laps = Laps(began)
    laps("imports")
    experiments.claim(config, workdir)
    run = Experiment(config, workdir, training=True)
    mesh, options = run.mesh, config.training
    for split in "train", "validation", "test":
        if split == "train" or run.has(split):
            run.source(split)  # what is wrong with it is said now
    laps("data")
    shapes = run.batch_shapes()
    laps("tokenizer")
    sharding.check_rows(len(shapes["targets"]), mesh, options.accumulate)
    iterator = run.train_iterator()
    tx, schedule = make_optimizer(config.optimizer, options.steps)
    abstract = abstract_state(run.model, tx, shapes, mesh)
    update = compiled_step(run, tx, jax.tree.map(lambda x: x.sharding, abstract))
    experiments.write(run)
    operations = flops.of_jaxpr(traced_step(run, tx, update, abstract))
    peak = matmul_peak(config.model.dtype) * mesh.size
    laps("model")
    logging.info("%s parameters; start: %s", f"{parameters.count(abstract.params):,}", laps)

    scorer = Scorer(run)
    with MetricsWriter(workdir) as writer, run.checkpoints() as checkpoints:
        state = abstract  # what the checkpoint has, or else is made
        if not checkpoints.all_steps():
            state, _ = create_state(run.model, tx, shapes, mesh, seed=config.seed)
        with graceful_stop() as stop, in_context(run):
            state = train(
                state=state,
                step_fn=update,
                iterator=iterator,
                total_steps=options.steps,
                to_device=lambda batch: sharding.global_batch(batch, mesh, parallelism=options.parallelism),
                evaluators=[validation(run, scorer)] if run.has("validation") else [],
                checkpoints=checkpoints,
                writer=writer,
                log_every=options.log_every,
                eval_every=options.eval_every,
                checkpoint_every=options.checkpoint_every,
                learning_rate=schedule,
                flops_per_step=operations,
                peak_flops=peak,
                config=config.to_dict(),
                should_stop=stop,
            )
        step = int(state.step)
        if run.has("test") and any_process(not writer.has(step, "test")):
            writer.write(step, "test", final_test(run, scorer, checkpoints))


class Laps:
    """What the seconds of a start went into: `laps("data")` ends a lap, `str(laps)` tells all."""

    def __init__(self, began: float | None = None):
        self._last = time.monotonic() if began is None else began
        self._seconds: dict[str, float] = {}

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        self._seconds[name], self._last = now - self._last, now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
        return f"{sum(self._seconds.values()):.1f} s ({parts})"


def validation(run: Experiment, scorer: Scorer) -> Evaluator:
    """Perplexity of the validation split; every `bleu_every` steps and at the end also greedy BLEU of its beginning."""
    options = run.config.training

    def measure(state, step: int) -> dict:
        scores = scorer.losses("validation", state.model_params, state.model_state)
        if options.bleu_every and (step % options.bleu_every == 0 or step >= options.steps):
            found = scorer.translations("validation", state.model_params, sentences=options.bleu_sentences, method="greedy")
            scores["bleu"] = bleu(found)["bleu"]
        return scores

    return Evaluator("validation", measure)


def final_test(run: Experiment, scorer: Scorer, checkpoints: Checkpoints) -> dict:
    """All scores of the newest checkpoints' average on the test split; its translations are written to the workdir."""
    began = time.monotonic()
    model = run.trained(average=run.config.training.average_checkpoints, checkpoints=checkpoints)
    translations = scorer.translations("test", model["params"])
    scores = scorer.losses("test", **model) | bleu(translations)
    if jax.process_index() == 0:
        experiments.write_samples(run, translations)
        shown = (f"{name} {x:.4g}" if isinstance(x, float) else f"{name} {x}" for name, x in scores.items())
        logging.info("test: %s", "  ".join(shown))
    return scores | {"evaluation_seconds": time.monotonic() - began}


def in_context(run: Experiment):
    """The mesh in context, where kernels that split their own work look for it."""
    return jax.set_mesh(run.mesh) if run.config.training.parallelism == "jit" else contextlib.nullcontext()


def update_of(run: Experiment, tx, parallelism: str):
    """The run's update as a function."""
    options = run.config.training
    return make_train_step(
        run.model, run.task, tx, seed=run.config.seed, accumulate=options.accumulate, parallelism=parallelism
    )


def compiled_step(run: Experiment, tx, shardings):
    """The run's update as a program for its mesh."""
    parallelism = run.config.training.parallelism
    update = update_of(run, tx, parallelism)
    return compile_step(update, run.mesh, shardings, run.batch_shapes(), parallelism=parallelism)


def traced_step(run: Experiment, tx, compiled, state):
    """The jaxpr of the update over a whole batch: that of the program itself, or under pmap of its like under jit."""
    update = compiled if run.config.training.parallelism == "jit" else update_of(run, tx, "jit")
    with in_context(run):
        return jax.make_jaxpr(update)(state, run.batch_shapes())


def make_plan(config, workdir=None) -> plan.Plan:
    """What training would take: compiles the step, runs nothing, reads no data and writes nothing."""
    if workdir is not None:
        experiments.claim(config, workdir)
    run = Experiment(config, workdir, training=True)
    if not run.has_tokenizer():  # one that is to be learned has the size it is asked to have
        run.tokenizer = SimpleNamespace(vocab_size=config.tokenizer.vocab_size)
    tx, _ = make_optimizer(config.optimizer, config.training.steps)
    state = abstract_state(run.model, tx, run.batch_shapes(), run.mesh)
    update = compiled_step(run, tx, jax.tree.map(lambda x: x.sharding, state))
    jaxpr = traced_step(run, tx, update, state)
    with in_context(run):
        return plan.make(
            update, jaxpr, state, run.step_shapes(), run.mesh, steps=config.training.steps, dtype=config.model.dtype
        )
