"""The fitness of a genome: the project's own loop trains it on the run's own task and data, and measures it on validation.

Fitness is the negative logarithm of the perplexity: of unsmoothed cross entropy over the tokens that are not padding, or, of a
language model of texts, over their bytes: the bits of a byte are -fitness / ln 2.

A process makes one `Trainer`, which shares tokenizer, encoded batches and validation batches among all candidates. What a
candidate learns is a function of config, seed, genome and unit, whichever process trains it, and whatever came before.
"""

import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import jax
from ml_collections import ConfigDict

from transformers_jax.errors import DiskError, UserError
from transformers_jax.files import write_whole
from transformers_jax.mesh import global_batch
from transformers_jax.planning import counts
from transformers_jax.runs import train as pretraining
from transformers_jax.runs.evaluate import Scorer
from transformers_jax.runs.experiment import Experiment
from transformers_jax.search import hurdles as hurdling
from transformers_jax.search.job import Job, Result
from transformers_jax.training.checkpoint import AllDamaged, Checkpoints
from transformers_jax.training.loop import train
from transformers_jax.training.optimizers import make_optimizer
from transformers_jax.training.state import abstract_state, create_state
from transformers_jax.training.step import known_options

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_default_prng_impl",
)
"""Settings of JAX that a worker takes over from the process that started it."""

SOONER = {"xla_cpu_use_fusion_emitters": False}
"""Options of XLA with which programs of candidates are compiled in two thirds of the time on CPUs, their steps 5 % slower."""

CLEAR = 20
"""Candidates after which JAX forgets what it has traced: next to nothing of it is of use to another."""


class Trainer:
    """Trains one candidate after the other.

    Args:
      config: the search's config, as a dict.
      workdir: its folder, with the tokenizer.
      settings: SETTINGS by name.
    """

    def __init__(self, config: dict, workdir: str | os.PathLike, settings: dict | None = None):
        for name, value in (settings or {}).items():
            jax.config.update(name, value)
        self.shared = Experiment(ConfigDict(config), workdir, training=True)
        self.validation = list(self.shared.eval_batches("validation"))
        self._batches: tuple[int, Replay] | None = None
        self._trained = 0

    def __call__(self, job: Job) -> Result:
        """Trains a candidate, anew where its checkpoint is damaged; whatever goes wrong with it is its failure.

        Raises:
          DiskError: the machine's fault, which would be that of the next candidates too.
        """
        try:
            return self._train(job)
        except AllDamaged:
            shutil.rmtree(Path(job.folder) / "checkpoints")
            return self._train(job)

    def _train(self, job: Job) -> Result:
        training = Training(self, job)
        try:
            training.prepare()
            stages = hurdling.climb(training.stage, job.steps, job.hurdles)
            return training.result(stages=tuple(stages))
        except (DiskError, AllDamaged):
            raise
        except OSError as error:
            where, why = error.filename or "a training", error.strerror or error
            raise DiskError(f"{where}: {why}; mend it and give the same command again") from error
        except Exception as error:  # one candidate's mistake is not the search's
            return training.result(failure=reason(error))
        finally:
            training.close()
            self._trained += 1
            if self._trained % CLEAR == 0:
                jax.clear_caches()

    def close(self) -> None:
        """Ends the thread that makes batches."""
        if self._batches is not None:
            self._batches[1].close()
            self._batches = None

    def batches(self, seed: int) -> "Replay":
        """The training batches of a seed, made once and kept for the next candidate."""
        if self._batches is None or self._batches[0] != seed:
            self.close()
            self._batches = seed, Replay(Candidate(self, None, seed).train_iterator())
        return self._batches[1]


def reason(error: Exception) -> str:
    """Why a candidate failed, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return f"out of memory: {text[:160]}"
    if isinstance(error, UserError):
        return text.partition(": training stops")[0][:200]
    return f"{type(error).__name__}: {text[:160]}"


class Candidate(Experiment):
    """The experiment of one genome, with what all candidates share: tokenizer, task, mesh, sources, validation batches."""

    def __init__(self, trainer: Trainer, genome: tuple[str, int] | None, seed: int):
        shared = trainer.shared
        config = ConfigDict(shared.config.to_dict() | {"seed": seed})
        if genome is not None:
            config.model.genome, config.model.genome_unit = genome
        super().__init__(config, shared.workdir, training=True)
        self.trainer, self.tokenizer, self.task, self.mesh = trainer, shared.tokenizer, shared.task, shared.mesh

    def source(self, split: str):
        return self.trainer.shared.source(split)

    def eval_batches(self, split: str):
        return self.trainer.validation if split == "validation" else super().eval_batches(split)


class Replay:
    """Batches of an iterator, kept as they are drawn: each `start()` goes through them from the first on."""

    def __init__(self, iterator: Iterator):
        self._iterator, self._kept = iterator, []

    def start(self) -> Iterator:
        for i in itertools.count():
            if i == len(self._kept):
                self._kept.append(next(self._iterator))
            yield self._kept[i]

    def close(self) -> None:
        self._iterator.close()


class Measure(Scorer):
    """A scorer whose program is compiled ahead of its first use."""

    def compile(self, state) -> None:
        """state: a training state, arrays or ShapeDtypeStructs."""
        batch = next(iter(self.experiment.eval_batches("validation")))
        batch = global_batch(batch, self.experiment.mesh)
        self._step = compiled(self._step.lower(state.model_params, state.model_state, batch))


class Training:
    """The training of one candidate, stage by stage."""

    def __init__(self, trainer: Trainer, job: Job):
        self.trainer, self.job = trainer, job
        self.run = Candidate(trainer, (job.genome, job.unit), job.seed)
        self.options = self.run.config.training
        self.steps = self.total = self.parameters = 0
        self.compile_seconds, self.began = 0.0, time.monotonic()
        self.stages: list[float] = []  # of an earlier process: they need not be trained again
        self.lock = self.checkpoints = self.iterator = None

    def prepare(self) -> None:
        """Builds and compiles all that training takes."""
        run = self.run
        tx, _ = make_optimizer(run.config.optimizer, sum(self.job.steps))
        shapes = run.batch_shapes()
        abstract = abstract_state(run.model, tx, shapes, run.mesh)
        self.parameters = counts.count(abstract.params)
        update = pretraining.compiled_step(run, tx, jax.tree.map(lambda x: x.sharding, abstract))
        self.scorer = Measure(run)
        with pretraining.in_context(run):
            if run.config.data.batching != "buckets":  # all batches have one shape
                update = compiled(update.lower(abstract, run.step_shapes()))
            self.scorer.compile(abstract)
        self.update = update
        self._open_checkpoints()
        self.state = abstract  # what the checkpoint has, or else is made
        if not (self.checkpoints and self.checkpoints.all_steps()):
            self.state, _ = create_state(
                run.model, tx, shapes, run.mesh, seed=self.job.seed, compiler_options=compiler_options(0)
            )
            jax.block_until_ready(self.state)
        self.compile_seconds = time.monotonic() - self.began

    def stage(self, steps: int) -> float:
        """Trains so many more steps, and returns the fitness."""
        number = self.number = getattr(self, "number", -1) + 1
        self.total += steps
        if number < len(self.stages):
            return self.stages[number]
        with pretraining.in_context(self.run):
            self.state = train(
                state=self.state,
                step_fn=self._step,
                iterator=self.iterator,
                total_steps=self.total if self.checkpoints else steps,
                to_device=self._to_device,
                checkpoints=self.checkpoints,
                log_every=self.options.log_every,
                checkpoint_every=self.options.checkpoint_every,
                verbose=False,
            )
            scores = self.scorer.losses("validation", self.state.model_params, self.state.model_state)
        perplexity = 2 ** scores["bits_per_byte"] if "bits_per_byte" in scores else scores["perplexity"]
        if not math.isfinite(perplexity):
            raise UserError(f"perplexity is {perplexity} after {self.total} steps")
        self.stages.append(-math.log(perplexity))
        if self.checkpoints:
            write_whole(Path(self.job.folder) / "stages.json", json.dumps(self.stages))
        return self.stages[-1]

    def result(self, stages: tuple[float, ...] = (), failure: str | None = None) -> Result:
        """The result of the job, as the population keeps it."""
        return Result(
            stages=stages,
            failure=failure,
            steps=self.steps if failure else self.total,
            parameters=self.parameters,
            compile_seconds=self.compile_seconds or time.monotonic() - self.began,
            train_seconds=time.monotonic() - self.began - self.compile_seconds if self.compile_seconds else 0.0,
        )

    def close(self) -> None:
        """Lets go of memory, threads and files."""
        if self.checkpoints:
            self.checkpoints.close()
            self.iterator.close()
        if self.lock:
            self.lock.release()
        self.state = self.update = self.scorer = None

    def _open_checkpoints(self) -> None:
        """Checkpoints, where the config keeps any, so that a killed evaluation goes on; no two processes on the same.

        A power failure may take the last stages' fitness and leave the checkpoint, which is past them: all is trained anew.
        """
        if not self.options.checkpoint_every:
            self.iterator = self.trainer.batches(self.job.seed).start()
            return
        folder = Path(self.job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = filelock.FileLock(folder / "lock")
        self.lock.acquire()
        self.stages = measured(folder / "stages.json")
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        if max(self.checkpoints.all_steps(), default=0) > sum(self.job.steps[: len(self.stages) + 1]):
            self.checkpoints.close()
            shutil.rmtree(folder / "checkpoints")
            self.stages, self.checkpoints = [], Checkpoints(folder / "checkpoints", keep=1)
        self.iterator = self.run.train_iterator()

    def _step(self, state, batch):
        self.steps += 1
        return self.update(state, batch)

    def _to_device(self, batch):
        return global_batch(batch, self.run.mesh, parallelism=self.options.parallelism)


def measured(path: Path) -> list[float]:
    """The fitness by stage in stages.json; [] where there is no such file, or it is torn."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return []


def compiled(lowered):
    """The program of a lowered function; on CPUs compiled quickly, for it is run a few hundred times."""
    return lowered.compile(compiler_options(1) if jax.default_backend() == "cpu" else None)


def compiler_options(level: int) -> dict[str, bool | int]:
    """LLVM's level of optimization, and what is SOONER on CPUs."""
    return {"xla_backend_optimization_level": level} | (known_options(**SOONER) if jax.default_backend() == "cpu" else {})
