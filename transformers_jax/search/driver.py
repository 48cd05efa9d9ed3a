"""The search itself: proposes candidates, has them trained, and writes down what came of each, until all is measured.

The workdir of a search:

    config.json      the resolved config            search.sqlite    one row a candidate (see `population`)
    tokenizer.json   the vocabulary                 best.json        the winner, for --config.model.genome
    candidates/      checkpoints of trainings under way, where config.training.checkpoint_every keeps any
    lock             held while it is searched in

The same command goes on where a search stopped, at whatever moment: state is computed from the rows, and what was under way
is trained first. With one worker the rows are those of a search that was not stopped.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging

from transformers_jax import models
from transformers_jax.data import sources
from transformers_jax.errors import UserError
from transformers_jax.files import locked
from transformers_jax.genomes import genome as genomes
from transformers_jax.genomes.genome import Genome
from transformers_jax.models import with_genome
from transformers_jax.runs import experiment as experiments
from transformers_jax.runs.experiment import Experiment
from transformers_jax.search import hurdles as hurdling
from transformers_jax.search import summary, workers
from transformers_jax.search.band import fit_unit
from transformers_jax.search.evolution import Evolution, EvolutionOptions
from transformers_jax.search.finals import Finals
from transformers_jax.search.fitness import SETTINGS, Trainer
from transformers_jax.search.job import Job, Result
from transformers_jax.search.population import Population
from transformers_jax.training.metrics import Progress
from transformers_jax.training.optimizers import make_optimizer

CROWD = 20
"""A search that may spend as many steps as another also ends when it has proposed this many times as many candidates: it
might propose hardly anything but genomes that were trained already, which cost no steps."""


def search(config, workdir, *, workers_wanted: int = -1, ray_address: str = "", trainer: Callable = Trainer) -> dict:
    """Searches, then trains the best of each method and the seed alike; goes on where an earlier call stopped.

    Args:
      workers_wanted, ray_address: see `workers.start`.
      trainer: (config as a dict, workdir, settings) → what trains candidates, job → result; made in each worker.

    Returns:
      The summary: see `summary.of`.

    Raises:
      UserError: whatever is wrong with config, data or workdir, before anything is written; or that all candidates fail.
    """
    config, workdir = settled(config), Path(workdir).absolute()
    plans = options_of(config)
    experiments.claim(config, workdir)
    run = checked(config, workdir)
    band = Band(config, run.tokenizer.vocab_size)
    searches = [Evolution(plan, config.seed, band) for plan in plans]
    in_use = f"--workdir={workdir} is in use by another search; wait for it or end it"
    with locked(workdir, in_use), Population(workdir) as population:
        experiments.write(run)
        make = functools.partial(trainer, for_workers(config), str(workdir), {n: getattr(jax.config, n) for n in SETTINGS})
        started = workers.start(make, workers=workers_wanted, address=ray_address, cores=config.search.cores)
        with started as pool:
            budget = None
            for evolution in searches:
                Search(evolution, population, pool, config, workdir, budget).run()
                budget = budget or sum(row["trained_steps"] for row in population.rows(evolution.options.method))
                summary.write_best(config, population, workdir)
            searches = [evolution for evolution in searches if evolution.members]
            Finals(config, population, pool, searches, workdir).run()
        summary.write_best(config, population, workdir)
        return summary.of(config, population, [evolution.options.method for evolution in searches])


def options_of(config) -> list[EvolutionOptions]:
    """The searches that config.search asks for: its method, then its controls.

    Raises:
      UserError: a value out of range, a method that there is not, or one that is there twice.
    """
    keys = {field.name for field in dataclasses.fields(EvolutionOptions)} - {"method"}
    given = {name: config.search[name] for name in keys}
    given["steps"] = tuple(given["steps"])
    methods = [config.search.method, *config.search.controls]
    if len(set(methods)) < len(methods):
        raise UserError(f"config.search.controls names a method twice: {', '.join(methods)}")
    found = [EvolutionOptions(method=methods[0], **given)]
    for name in methods[1:]:
        try:
            found.append(EvolutionOptions(method=name, **given))
        except UserError as error:
            raise UserError(str(error).replace("config.search.method", "config.search.controls", 1)) from error
    return found


def checked(config, workdir) -> Experiment:
    """The experiment that candidates share, when all that they share is in order."""
    if not config.data.get("validation") and config.data.source == "files":
        raise UserError("config.data.validation is empty: a search needs a validation split to measure fitness on")
    run = Experiment(config, workdir, training=True)
    for split in "train", "validation":
        run.source(split)
    make_optimizer(config.optimizer, sum(config.search.steps))
    run.batch_shapes()
    models.build(config.model.to_dict() | {"genome": "transformer"}, run.tokenizer.vocab_size)
    return run


def settled(config):
    """The config with the seed genome's text in place of its file, which may change.

    Raises:
      UserError: there is no such genome.
    """
    if config.search.seed_genome in ("random", *genomes.NAMED):
        return config
    config = config.copy_and_resolve_references()
    try:
        config.search.seed_genome = genomes.load(config.search.seed_genome).text()
    except UserError as error:
        raise UserError(f"config.search.seed_genome: {error}") from error
    return config


def for_workers(config) -> dict:
    """The config as a dict, its files by absolute paths where they are on this machine: workers run in other folders."""

    def absolute(name: str) -> str:
        return str(Path(name).absolute()) if name and Path(name).exists() else name

    found = config.to_dict()
    data, tokenizer = found["data"], found["tokenizer"]
    tokenizer["path"], data["data_dir"] = absolute(tokenizer["path"]), absolute(data["data_dir"])
    if data["source"] in sources.FILES and (data["source"] == "files" or not data["tfds_name"]):  # else they name splits
        for split in "train", "validation":
            data[split] = ",".join(absolute(name.strip()) for name in data[split].split(","))
    return found


class Band:
    """genome → (width unit, parameters) that bring it into config.search.parameters, or None; each is counted once."""

    def __init__(self, config, vocab_size: int):
        self.low, self.high = (*config.search.parameters, 0, 0)[:2]
        if len(config.search.parameters) not in (0, 2) or self.low > self.high:
            raise UserError(f"config.search.parameters is {config.search.parameters}: give (least, most), or () for no band")
        apart = ("name", "width", "vocab_size", "genome", "genome_unit")
        fields = {k: v for k, v in config.model.to_dict().items() if k not in apart}
        count = COUNTS.get(config.model.name, with_genome.count_parameters)
        self._count = functools.partial(_count, count, width=config.model.width, vocab_size=vocab_size, **fields)
        self._first = config.model.width // 2
        self._known: dict[Genome, tuple[int, int] | None] = {}

    def __call__(self, genome: Genome) -> tuple[int, int] | None:
        if genome not in self._known:
            try:
                unit = fit_unit(genome, self.low, self.high, self._count, first=self._first) if self.high else self._first
                self._known[genome] = unit and (unit, self._count(genome, unit))
            except genomes.InvalidGenome:  # it grows too wide
                self._known[genome] = None
        return self._known[genome]


COUNTS = {"gpt": with_genome.count_continuing}
"""How many parameters the model of a genome has, by architecture; of the others it is the Transformer's number."""


def _count(count: Callable, genome: Genome, unit: int, **fields) -> int:
    return count(genome, unit=unit, **fields)


class Search:
    """One method's search, driven to its end.

    Args:
      evolution: at its beginning; the rows bring it to where it was.
      budget: training steps after which no candidate is proposed; None is until all candidates are measured.
    """

    def __init__(self, evolution: Evolution, population: Population, pool, config, workdir, budget: int | None):
        self.evolution, self.population, self.pool, self.budget = evolution, population, pool, budget
        self.config, self.options, self.workdir = config, evolution.options, workdir
        self.method = self.options.method
        self.known: dict[str, dict] = {}  # by key, the row that trained longest
        self.under_way: dict[int, dict] = {}
        self.spent = 0
        rows = population.rows(self.method)
        self.rows = {row["number"]: row for row in rows}
        for row in population.rows(self.method, "finished"):
            self._absorb(row)
        self.waiting = [row for row in rows if row["finished"] is None]

    def run(self) -> None:
        """Until there is nothing left to propose or to wait for.

        Raises:
          UserError: no candidate could be trained. With a budget, which is to say of a control, that is a warning.
        """
        total = self.budget or self.options.total
        unit = f"{self.method} candidate" if self.budget is None else f"{self.method} step"
        with Progress(total, self._done(), unit=unit) as progress:
            while True:
                while self.pool.free and (row := self._next()) is not None:
                    if not self._known_already(row, progress):
                        self.under_way[row["id"]] = row
                        self.pool.submit(row["id"], self._job(row))
                if not self.pool.busy:
                    break
                if (outcome := self.pool.next()) is not None:
                    self._take(outcome, progress)
        if not self.evolution.members:
            failure = next((r["failure"] for r in self.rows.values() if r["failure"]), "nothing was measured")
            nothing = f"no candidate of {self.method} could be trained; the first failed with: {failure}"
            if self.budget is None:
                raise UserError(nothing)
            logging.warning("%s; it is left out of the comparison", nothing)

    def _next(self) -> dict | None:
        """The next candidate: one that an earlier process left, else a new one; None if none is due."""
        if self.waiting:
            return self.waiting.pop(0)
        number = len(self.rows)
        if not self.evolution.ready(number) or not self._due(number):
            return None
        proposal = self.evolution.propose(number, {row["key"] for row in self.under_way.values()})
        columns = {
            "method": self.method, "number": number, "genome": proposal.genome.to_json(), "key": proposal.key,
            "parents": [self.rows[n]["id"] for n in proposal.parents], "mutated": list(proposal.mutated),
            "rejected": proposal.rejected, "unit": proposal.unit, "parameters": proposal.parameters,
            "hurdles": list(self.evolution.hurdles),
        }  # fmt: skip
        self.rows[number] = columns | {"id": self.population.propose(**columns), "failure": None}
        return self.rows[number]

    def _due(self, number: int) -> bool:
        if self.evolution.ended >= self.options.population and not self.evolution.members:
            return False
        if self.budget is None:
            return number < self.options.total
        coming = len(self.under_way) * self.options.schedule[0]
        return self.spent + coming < self.budget and number < CROWD * self.options.total

    def _done(self) -> int:
        return self.evolution.ended if self.budget is None else min(self.spent, self.budget)

    def _job(self, row: dict) -> Job:
        return Job(
            genome=genomes.from_json(row["genome"]).text(),
            unit=row["unit"],
            steps=self.options.schedule,
            hurdles=tuple(row["hurdles"]),
            seed=self.config.seed,
            folder=str(folder_of(self.workdir, row["id"])),
        )

    def _known_already(self, row: dict, progress: Progress) -> bool:
        """Takes the fitness of an equivalent candidate, if what that was trained for is what this one would be."""
        same = self.known.get(row["key"])
        stages = hurdling.known(same["stages"], row["hurdles"]) if same else None
        if stages is not None:
            self._finish(row, {"stages": stages, "same_as": same["id"], "trained_steps": 0}, progress)
        return stages is not None

    def _take(self, outcome: workers.Outcome, progress: Progress) -> None:
        """What a worker gives back. After a death the same candidate is trained again, a few times."""
        row = self.under_way.pop(outcome.number)
        result: Result = outcome.result
        if outcome.death:
            deaths = self.population.died(row["id"])
            progress.note(f"candidate {row['id']}: the worker {outcome.worker} died ({outcome.death})")
            if deaths <= self.config.search.retries:
                self.waiting.insert(0, row)
                return
            result = Result(failure=workers.death_note(outcome))
        columns = {
            "stages": list(result.stages), "failure": result.failure, "trained_steps": result.steps,
            "compile_seconds": result.compile_seconds, "train_seconds": result.train_seconds, "worker": outcome.worker,
        }  # fmt: skip
        self._finish(row, columns, progress)
        shutil.rmtree(folder_of(self.workdir, row["id"]), ignore_errors=True)

    def _finish(self, row: dict, columns: dict, progress: Progress) -> None:
        """Writes down how a candidate ended."""
        stages = columns["stages"]
        if stages:
            columns |= {"fitness": stages[-1], "hurdles_passed": len(stages) - 1}
            columns["steps"] = sum(self.options.schedule[: len(stages)])
        self.population.finish(row["id"], **columns)
        row |= columns
        self._absorb(row)
        done = self._done()
        progress.advance(done)
        best = max((m.fitness for m in self.evolution.members), default=float("nan"))
        what = {"failed": columns["failure"]} if columns.get("failure") else {"fitness": stages[-1], "steps": row["steps"]}
        progress.metrics(done, "train", {"id": row["id"], **what, "best": best})

    def _absorb(self, row: dict) -> None:
        """A candidate has ended: now, or in an earlier process."""
        self.rows[row["number"]] = row
        self.spent += row["trained_steps"]
        genome = genomes.from_json(row["genome"])
        before = len(self.evolution.hurdles)
        self.evolution.absorb(row["number"], genome, row.get("fitness"), row.get("steps") or 0)
        for stage in range(before, len(self.evolution.hurdles)):
            value, number = self.evolution.hurdles[stage], self.evolution.hurdled[stage]
            self.population.set_hurdle(self.method, stage, value, number)
            logging.info("%s: hurdle %d is %.4f, after %d candidates", self.method, stage + 1, value, number)
        if row.get("stages") and len(row["stages"]) > len(self.known.get(row["key"], {"stages": ()})["stages"]):
            self.known[row["key"]] = row


def folder_of(workdir, name) -> Path:
    """Where checkpoints of a training under way are kept."""
    return Path(workdir) / "candidates" / str(name)
