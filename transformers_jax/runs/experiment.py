"""A run's parts, put together from its config and workdir: what every launcher needs before its one call.

The workdir of a run:

    config.json      the resolved config            metrics.jsonl    one JSON object a line
    tokenizer.json   the vocabulary                 tensorboard/     the same for TensorBoard
    checkpoints/     one folder a step              samples.jsonl    examples, answered, see `answered`
    best/            the best model, if it is kept  report/          pictures and a page
    lock             held while it is trained in    base.json        the fingerprint of the model that it is beside
"""

import contextlib
import functools
import json
import math
import os
import pickle
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import optax
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from transformers_jax import config as configuration
from transformers_jax import models, parameters, tasks
from transformers_jax.data import pipeline, sources
from transformers_jax.data.collate import layout_of
from transformers_jax.data.text.tokenizer import Tokenizer, learn_bpe
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.decoding.decoder import LENGTHS, Decoder
from transformers_jax.errors import UserError
from transformers_jax.files import json_value, locked, write_whole
from transformers_jax.finetuning import method, trainable
from transformers_jax.interchange import gguf_model
from transformers_jax.mesh import ROWS, data_shard, make_mesh, row_sharding
from transformers_jax.models import with_genome
from transformers_jax.runs import checks, initialise, labels, schedule
from transformers_jax.tasks import translation
from transformers_jax.training import best
from transformers_jax.training.checkpoint import Base, Checkpoints
from transformers_jax.training.processes import any_process
from transformers_jax.training.state import TrainState, abstract_state

TOKENIZER = "tokenizer.json"
SAMPLES = "samples.jsonl"
BASE = "base.json"


class Experiment:
    """The parts of one run, each made when it is first asked for.

    Args:
      config: the run's config.
      workdir: its folder; None for a plan without one.
      training: whether the mesh must be the config's; a trained model is used on any devices.
      step: which checkpoint `trained` takes where it is not told.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str | os.PathLike | None,
        *,
        training: bool = False,
        step: int | str | None = None,
    ):
        self.config, self.step = config, step
        self.workdir = None if workdir is None else Path(workdir)
        self.training = training

    @cached_property
    def mesh(self):
        try:
            return make_mesh(self.config.mesh)
        except UserError as error:
            if self.training:
                raise
            logging.info("these are other devices than the run's: rows are split over them (%s)", error)
            return make_mesh({})

    def has_tokenizer(self) -> bool:
        """Whether the tokenizer is there, or none is needed: it need not be learned."""
        if not self.reads_text:
            return True
        return bool(self.config.tokenizer.path) or bool(self.workdir and (self.workdir / TOKENIZER).exists())

    @property
    def reads_text(self) -> bool:
        """Whether the run has a tokenizer: its task reads text."""
        return tasks.named(self.config.task.name).reads == "text"

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The workdir's; or config.tokenizer.path; or learned from the training corpus, all languages jointly. None where the
        task reads images.

        What is learned may differ from process to process: all take that of the first.
        """
        if not self.reads_text:
            return None
        if self.workdir and (self.workdir / TOKENIZER).exists():
            return Tokenizer.load(self.workdir / TOKENIZER)
        options = self.config.tokenizer
        if options.path:
            return gguf_model.tokenizer(options.path) if gguf_model.is_file(options.path) else Tokenizer.load(options.path)
        if self.config.data.source == "tokens":
            raise UserError("config.tokenizer.path is empty: give the tokenizer that made the files of config.data.train")
        lines = _lines(self.source("train"))
        if options.kind == "bpe":
            learned = learn_bpe(lines, options.vocab_size)
        else:
            learned = learn(options.kind, lines, options.vocab_size, lowercase=options.lowercase)
        return _of_first(learned)

    @cached_property
    def task(self):
        return tasks.build(self.config.task, self.tokenizer, self.config.data)

    @cached_property
    def model(self):
        follows = self.task.model_fields()  # a head, and how many labels it has
        vocab_size = self.tokenizer.vocab_size if self.tokenizer else 0
        model = models.build(dict(self.config.model) | follows, vocab_size)
        model = self.task.wrap(model, initialise.module_of)  # with more around it: a classifier of pairs, a teacher
        if self.training:
            checks.lengths(self.config, self.task, model)
            checks.shares(self.task, model)
            checks.whole(self.config.training, self.task)
        return model

    @property
    def trainable(self) -> tuple[str, ...]:
        """Patterns over the names of the parameters that learn."""
        return trainable.patterns(self.config, self.task.frozen)

    @cached_property
    def finetuning(self) -> method.Finetuning | None:
        """What finetuning makes of the model's parameters; None where it leaves them as they are.

        Raises:
          UserError: config.finetuning asks for what there is not.
        """
        options = trainable.options(self.config)
        if options.quantization and not self.beside:
            raise UserError(f"config.finetuning.quantization={options.quantization} is of pretrained weights: give --init_from")
        if options.method not in ("lora", "adapters") and not options.quantization:
            return None
        return method.Finetuning(options, method.places_of(self.model), self.trainable)

    @property
    def beside(self) -> bool:
        """Whether what is frozen is read elsewhere: this run's checkpoints hold what learns alone."""
        options = self.config.get("finetuning", {})
        given = bool(options.get("init_from")) and not options.get("fresh")
        return given and not trainable.options(self.config).everything and not self.task.frozen

    @cached_property
    def base(self) -> Base | None:
        """The pretrained model that this run's checkpoints name and do not hold; it is read through once, and again if it is
        another workdir or its files have changed.

        Raises:
          UserError: it is not there, or cannot be read.
        """
        path = self.config.finetuning.init_from if self.beside else ""
        return Base(path, initialise.fingerprint_of(path, self.workdir and self.workdir / BASE)) if path else None

    def abstract_state(self, tx) -> TrainState:
        """The state as shapes with their shardings: nothing is computed and no weights are read."""
        place = {"trainable": self.trainable, "adapt": self.finetuning, "averaged": self.averaged}
        return abstract_state(self.model, tx, self.batch_shapes(), self.mesh, **place)

    @property
    def averaged(self) -> bool:
        """Whether a moving average of the parameters is kept, evaluated and used."""
        return self.config.training.get("ema", 0.0) > 0

    @functools.cache  # noqa: B019  (an experiment lives as long as its process)
    def source(self, split: str):
        """The raw examples of a split."""
        return sources.open_source(self.config.data, split)

    def examples(self, split: str):
        """What is encoded: the raw examples, or what the task makes of them (`task.examples`: windows of a passage, say)."""
        return self.task.examples(self.source(split))

    def has(self, split: str) -> bool:
        """Whether the config names such a split; files are given one by one, other sources have all."""
        return sources.has(self.config.data, split)

    @property
    def parts(self) -> int:
        """Parts that the rows of a batch are divided into: devices that split them, times microbatches."""
        return math.prod(self.mesh.shape[axis] for axis in ROWS) * self.config.training.accumulate

    def train_iterator(self):
        """Endless batches of this process, with `get_state` and `set_state`. Raises UserError as `checks.known` does."""
        index, count = data_shard(self.mesh)
        checks.known(self.task, self.source("train"))
        examples = self.task.to_train(self.source("train"))
        place = {"process_index": index, "process_count": count, "parts": self.parts}
        return pipeline.train_iterator(examples, self.task, self.config.data, seed=self.config.seed, **place)

    def eval_batches(self, split: str):
        """Batches of this process that cover a split exactly once."""
        index, count = data_shard(self.mesh)
        place = {"process_index": index, "process_count": count, "parts": self.parts}
        return pipeline.eval_batches(self.examples(split), self.task, self.config.data, **place)

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.workdir / best.NEWEST, keep=self.config.training.keep_checkpoints, base=self.base)

    def best(self) -> Checkpoints:
        """The best model alone."""
        return Checkpoints(self.workdir / best.FOLDER, keep=1, base=self.base)

    @property
    def keeps_best(self) -> bool:
        """Whether the best model is kept: there is a validation split, and the config says so or ends the run by it."""
        options = self.config.training
        return bool(options.get("keep_best") or options.get("patience")) and self.has("validation")

    @property
    def chosen_by(self) -> tuple[str, bool]:
        """(the score of the validation split that tells which model is the best, whether the largest is)."""
        if self.task.main_metric == "bleu" and not self.config.training.get("bleu_every"):  # nothing is decoded but at the end
            return "loss", False
        return self.task.main_metric, self.task.bigger_is_better

    def decoder(self, params=None, **changes) -> Decoder:
        """The decoder that config.decoding describes; `changes` replace its keys."""
        if "decoding" not in self.config:
            raise UserError(f"config.task.name={self.config.task.name} does not translate: there is no config.decoding")
        options = dict(self.config.decoding) | changes
        lengths, trained = LENGTHS, max(pipeline.shapes_of(self.config.data, layout_of(self.task), 1)[1])
        if trained > LENGTHS[-1]:
            lengths = (*LENGTHS, *range(LENGTHS[-1] + 128, trained, 128), trained)
        if longest := self.model.protocol().longest:  # no further than the model reads and writes
            lengths = (*(n for n in lengths if n < longest), longest)
            options["max_length"] = min(options.get("max_length") or longest, longest)
        t = self.tokenizer
        special = {"bos_id": t.bos_id, "eos_id": t.eos_id, "pad_id": t.pad_id}
        try:
            return Decoder(self.model, params, mesh=self.mesh, lengths=lengths, **special, **options)
        except TypeError as error:
            raise UserError(f"config.decoding: {error}") from error

    def trained(
        self,
        *,
        average: int | None = None,
        step: int | str | None = None,
        checkpoints: Checkpoints | None = None,
        frozen: dict | None = None,
    ) -> dict:
        """What a trained model is applied with: {"params": all of them, "model_state": …}, sharded over the mesh.

        Args:
          average: over so many of the newest checkpoints.
          step: one checkpoint, by its step's number, "last" or "best". Where neither is given: the best model if it is kept,
            else an average over config.training.average_checkpoints.
          checkpoints: where they are, if opened already.
          frozen: what does not learn, where that is read elsewhere and is there already.

        Raises:
          UserError: the workdir holds a search, or no such checkpoint; or both are given.
        """
        checks.run(self.config)
        step = self.step if step is None and average is None else step
        if average is not None and step is not None:
            raise UserError(f"--average={average} takes the newest checkpoints and --step={step} another: give one of the two")
        if average is None and step is None and not best.steps_in(self.workdir):
            average = self.config.training.average_checkpoints
        folder, number = (self.workdir / best.NEWEST, None) if average else best.chosen(self.workdir, step)
        state = self.abstract_state(optax.identity())
        if self.beside:
            state = state.replace(frozen=initialise.frozen(self, state) if frozen is None else frozen)
        wanted = {"params": state.params, "frozen": state.frozen, "model_state": state.model_state}
        opened = checkpoints is not None and folder.name == best.NEWEST
        with contextlib.nullcontext(checkpoints) if opened else Checkpoints(folder, base=self.base) as there:
            found = there.average(average, wanted) if average else there.restore_params(number, wanted)
        return {"params": parameters.merge(found["params"], found["frozen"]), "model_state": found["model_state"]}

    def samples(self) -> list[dict]:
        """The task's samples of the split of `answered`, each an example with its answer; none before a run has ended."""
        path = self.workdir / SAMPLES
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] if path.exists() else []

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The fields of a global training batch; with buckets those of the widest."""
        _, count = data_shard(self.mesh)
        shapes = pipeline.batch_shapes(self.config.data, self.task, count, self.parts)
        rows = row_sharding(self.mesh)
        return {name: jax.ShapeDtypeStruct(*shape, sharding=rows) for name, shape in shapes.items()}

    def step_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The fields as the compiled step takes them: under pmap with the devices in front."""
        shapes, devices = self.batch_shapes(), self.mesh.size
        if self.config.training.parallelism != "pmap":
            return shapes
        return {n: jax.ShapeDtypeStruct((devices, x.shape[0] // devices, *x.shape[1:]), x.dtype) for n, x in shapes.items()}


def settled(config: ConfigDict) -> ConfigDict:
    """The config with all it refers to that decides on the run: a genome's text and unit in place of its file or name,
    steps in place of epochs, the labels of the training data where a task that has some names none.

    Raises:
      UserError: there is no such genome, or it is invalid; the training data that make an epoch, or have the classes, cannot be
        read; or it is no config of one run.
    """
    configuration.check(config)
    checks.run(config)
    config = schedule.scheduled(config)
    if "labels" in config.task and not config.task.labels and (found := labels.of_training(config)):
        config = config.copy_and_resolve_references()
        config.task.labels = found
    if config.task.get("bleu_tokenize") == "" and len(config.data.languages) == 2:
        config = config.copy_and_resolve_references()
        config.task.bleu_tokenize = translation.tokenisation_of(config.data.languages[1])
    if not config.model.get("genome"):
        return config
    config = config.copy_and_resolve_references()
    genome, config.model.genome_unit = with_genome.read(config.model)
    config.model.genome = genome.text()
    return config


def claim(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Checks that a workdir is this config's to train in, new or to be resumed, without writing.

    Raises:
      UserError: it holds a run of another config (names the first differing key), or cannot be a folder.
    """
    path = Path(workdir)
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"--workdir={workdir} is a file; give a folder")
    if (path / configuration.FILE).exists():
        found = configuration.differences(configuration.read(path), config)
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise UserError(f"--workdir={workdir} holds another run: config.{found[0]}{more}; give it a workdir of its own")
    elif (path / "checkpoints").exists():
        raise UserError(f"--workdir={workdir} has checkpoints but no {configuration.FILE}; give an empty folder")


@contextlib.contextmanager
def written(experiment: Experiment) -> Iterator[None]:
    """The workdir, with what `write` writes, for these processes alone: the first holds a lock, which goes with it.

    Raises:
      UserError: another process trains in it, or it cannot be made or written.
    """
    workdir, refused = experiment.workdir, None
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            try:
                held.enter_context(locked(workdir, "another process trains in it; wait for it or end it"))
            except UserError as error:
                refused = error
        if any_process(refused is not None):
            raise UserError(f"--workdir={workdir}: {refused or 'process 0 cannot have it'}") from refused
        write(experiment)
        yield


def write(experiment: Experiment) -> None:
    """Writes config.json and, of a run that reads text, tokenizer.json, in the first process; the others wait.

    Raises:
      UserError: the workdir cannot be made or written.
    """
    tokenizer, failure = experiment.tokenizer, None
    if jax.process_index() == 0:
        try:
            experiment.workdir.mkdir(parents=True, exist_ok=True)
            configuration.save(experiment.config, experiment.workdir)
            if tokenizer and not (experiment.workdir / TOKENIZER).exists():
                tokenizer.save(experiment.workdir / TOKENIZER)
        except OSError as error:
            failure = error
    if any_process(failure is not None):
        reason = f"{failure.strerror}: {failure.filename}" if failure else "process 0 says why"
        raise UserError(f"--workdir={experiment.workdir} cannot be written: {reason}") from failure


def answered(experiment: Experiment) -> tuple[str, str]:
    """(what metrics.jsonl calls it, the split) whose examples are answered when a run has ended: the test split. Models of
    images take the validation split where there is none, as "final"; others none, ("", ""): some take long to answer."""
    if experiment.has("test"):
        return "test", "test"
    return ("final", "validation") if experiment.has("validation") and not experiment.reads_text else ("", "")


def write_samples(experiment: Experiment, samples: list[dict]) -> None:
    """Writes samples.jsonl, whole or not at all; of large arrays only what they are."""
    lines = (json.dumps(json_value(sample), ensure_ascii=False) + "\n" for sample in samples)
    write_whole(experiment.workdir / SAMPLES, "".join(lines))


def _of_first(value):
    """The first process's value in all of them; all call it together."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    return pickle.loads(multihost_utils.broadcast_one_to_all(np.resize(content, size)).tobytes())


def _lines(source) -> Iterator[str]:
    """All texts of all examples, one example after the other."""
    for i in range(len(source)):
        for name, value in source[i].items():
            if name == "messages":
                yield from (message["content"] for message in value)
            elif name not in ("id", "label", "tags"):
                yield from [value] if isinstance(value, str) else [" ".join(value)] if name == "words" else ()
