"""Training a model, from nothing or from pretrained weights: the parts of an experiment, handed to the loop."""

import contextlib
import time

import jax
from absl import logging

from transformers_jax import parameters
from transformers_jax.data.text.train_tokenizer import placeholder
from transformers_jax.finetuning import trainable
from transformers_jax.mesh import check_rows, global_batch
from transformers_jax.planning import counts, flops, plan
from transformers_jax.planning.peak import matmul_peak
from transformers_jax.runs import checks, initialise
from transformers_jax.runs import experiment as experiments
from transformers_jax.runs.evaluate import Scorer
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.best import Best
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.loop import Evaluator, graceful_stop, train
from transformers_jax.training.metrics import MetricsWriter
from transformers_jax.training.optimizers import KERNELS, make_optimizer
from transformers_jax.training.processes import any_process
from transformers_jax.training.state import TrainState, create_state
from transformers_jax.training.step import compile_step, make_train_step


def pretrain(config, workdir, *, began: float | None = None) -> None:
    """Trains, evaluates and checkpoints in a workdir; goes on where an earlier call with the same config stopped.

    A run begins with random parameters, or with those that config.finetuning.init_from names.

    Args:
      began: `time.monotonic()` when the process began, to tell what its start took.

    Raises:
      UserError: whatever is wrong with config, data or workdir, before anything is written.
      SystemExit: 143 after SIGTERM, with everything saved.
    """
    laps = Laps(began)
    laps("imports")
    config = experiments.settled(config)
    experiments.claim(config, workdir)
    run = Experiment(config, workdir, training=True)
    checks.patience(config, run.has("validation"))
    mesh, options = run.mesh, config.training
    for split in "train", "validation", "test":
        if split == "train" or run.has(split):
            run.source(split)  # what is wrong with it is said now
    laps("data")
    shapes = run.batch_shapes()
    laps("tokenizer")
    check_rows(next(iter(shapes.values())).shape[0], mesh, options.accumulate)
    iterator = run.train_iterator()
    tx, schedule = optimizer_of(run)
    abstract = run.abstract_state(tx)
    update = compiled_step(run, tx, jax.tree.map(lambda x: x.sharding, abstract))
    operations = peak = None
    if not several_shapes(config.data):
        operations = flops.of_jaxpr(traced_step(run, tx, update, abstract))
        peak = matmul_peak(config.model.dtype) * mesh.size
    scorer = Scorer(run)
    if "decoding" in config:
        run.decoder()  # what is wrong with its keys is said now
    laps("model")

    with experiments.written(run), MetricsWriter(workdir) as writer, run.checkpoints() as checkpoints, best_of(run) as best:
        logging.info("%s parameters%s; start: %s", f"{counts.count(abstract.model_params):,}", learning(abstract), laps)
        state = abstract  # what the checkpoint has, or else is made
        if not checkpoints.all_steps():
            state = first_state(run, tx)
        elif run.beside:
            state = abstract.replace(frozen=initialise.frozen(run, abstract))
        with graceful_stop() as stop, in_context(run):
            state = train(
                state=state,
                step_fn=update,
                iterator=iterator,
                total_steps=options.steps,
                to_device=lambda batch: global_batch(batch, mesh, parallelism=options.parallelism),
                evaluators=[validation(run, scorer)] if run.has("validation") else [],
                checkpoints=checkpoints,
                writer=writer,
                best=best,
                log_every=options.log_every,
                eval_every=options.eval_every,
                checkpoint_every=options.checkpoint_every,
                learning_rate=schedule,
                counted=run.task.counted or ("tokens" if run.reads_text else "examples"),
                flops_per_step=operations,
                peak_flops=peak,
                config=config.to_dict(),
                should_stop=stop,
            )
        step, (name, split) = int(state.step), experiments.answered(run)
        if split and any_process(not writer.has(step, name)):
            writer.write(step, name, final_scores(run, split, scorer, checkpoints, state.frozen))
        elif name == "test":
            logging.info("this run was tested before; experiments.evaluate tests it with other keys of config.decoding")


@contextlib.contextmanager
def best_of(run: Experiment):
    """What keeps the best model of a run, and ends it by config.training.patience; None where that is not asked for."""
    if not run.keeps_best:
        yield None
        return
    metric, bigger = run.chosen_by
    with run.best() as kept:
        yield Best(kept, metric, bigger=bigger, model=model_of, patience=run.config.training.get("patience", 0))


def model_of(state: TrainState) -> dict:
    """What a checkpoint has of a state without what only training needs."""
    return {"params": state.average or state.params, "frozen": state.frozen, "model_state": state.model_state}


def first_state(run: Experiment, tx) -> TrainState:
    """The state of step 0: what the task or config.finetuning.init_from has, and random numbers where they have none."""
    abstract = run.abstract_state(tx)
    given = initialise.placed(initialise.pretrained(run, abstract), abstract.variables)
    place = {"trainable": run.trainable, "adapt": run.finetuning, "given": given, "averaged": run.averaged}
    return create_state(run.model, tx, run.batch_shapes(), run.mesh, seed=run.config.seed, **place)[0]


def optimizer_of(run: Experiment):
    """The update rule and its schedule. What decays is a pattern over all parameters, of which perhaps none learns."""
    options = dict(run.config.optimizer) | {"decay_pattern": trainable.decays(run.config, KERNELS)}
    shapes = counts.shapes(run.model, run.batch_shapes())["params"]
    return make_optimizer(options, run.config.training.steps, among=parameters.flat(shapes))


def learning(state: TrainState) -> str:
    """Of what share learns, for the log; nothing where all do."""
    return f", of which {counts.count(state.params):,} learn" if state.frozen else ""


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
    """What is measured on the validation split in training: loss, perplexity or accuracy, and the scores of the task.

    Every config.training.bleu_every steps and at the end it may decode config.training.bleu_sentences examples.
    """
    options = run.config.training
    every = options.get("bleu_every", 0)

    def measure(state, step: int) -> dict:
        model = {"params": state.evaluated_params, "model_state": state.model_state}
        due = every and (step % every == 0 or step >= options.steps)
        return run.task.validate(scorer, model, sentences=options.get("bleu_sentences", 0) if due else None)

    return Evaluator("validation", measure)


def final_scores(run: Experiment, split: str, scorer: Scorer, checkpoints: Checkpoints, frozen: dict) -> dict:
    """All scores on a split of the model that `Experiment.trained` gives; its samples are written to the workdir."""
    began = time.monotonic()
    model = run.trained(checkpoints=checkpoints, frozen=frozen)
    scores, samples = run.task.evaluate(scorer, split, model)
    if jax.process_index() == 0:
        experiments.write_samples(run, samples)
        shown = (f"{name} {x:.4g}" if isinstance(x, float) else f"{name} {x}" for name, x in scores.items())
        logging.info("%s: %s", split, "  ".join(shown))
    return scores | {"evaluation_seconds": time.monotonic() - began}


def in_context(run: Experiment):
    """The mesh in context, where kernels that split their own work look for it."""
    return jax.set_mesh(run.mesh) if run.config.training.parallelism == "jit" else contextlib.nullcontext()


def several_shapes(data) -> bool:
    """Whether batches have as many rows at every width, so that a step takes more or less than another."""
    return data.batching == "buckets" and not data.tokens_per_batch


def update_of(run: Experiment, tx, parallelism: str):
    """The run's update as a function."""
    options = run.config.training
    return make_train_step(
        run.model, run.task, tx, seed=run.config.seed, accumulate=options.accumulate, parallelism=parallelism,
        ema=options.get("ema", 0.0),
    )  # fmt: skip


def compiled_step(run: Experiment, tx, shardings):
    """The run's update as a program for its mesh."""
    parallelism = run.config.training.parallelism
    update = update_of(run, tx, parallelism)
    return compile_step(update, run.mesh, shardings, run.batch_shapes(), parallelism=parallelism)


def traced_step(run: Experiment, tx, compiled, state):
    """The jaxpr of the update over a whole batch: that of the program itself, or under pmap of its like under jit."""
    update = compiled if run.config.training.parallelism == "jit" else jax.jit(update_of(run, tx, "jit"))
    with in_context(run):
        return update.trace(state, run.batch_shapes()).jaxpr


def make_plan(config, workdir=None) -> plan.Plan:
    """What training would take: compiles the step, runs nothing, reads no data and writes nothing."""
    config = experiments.settled(config)
    if workdir is not None:
        experiments.claim(config, workdir)
    run = Experiment(config, workdir, training=True)
    checks.patience(config, run.has("validation"))
    if not run.has_tokenizer():  # one that is to be learned has the size it is asked to have
        run.tokenizer = placeholder(config.tokenizer.vocab_size)
    tx, _ = optimizer_of(run)
    state = run.abstract_state(tx)
    update = compiled_step(run, tx, jax.tree.map(lambda x: x.sharding, state))
    jaxpr, peak = traced_step(run, tx, update, state), matmul_peak(config.model.dtype)
    with in_context(run):
        more = {"steps": config.training.steps, "peak": peak, "widest": several_shapes(config.data)}
        return plan.make(update, jaxpr, state, run.batch_shapes(), run.mesh, split=run.step_shapes(), **more)
