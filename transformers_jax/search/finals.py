"""The comparison at the end: the best of each method and the seed genome, trained alike from the start.

In a search the best is also the luckiest, and the quickest learner of the first steps is not the best after many. So the
config.search.finalists best genomes of each method train for config.search.final_steps (0 is the sum of the stages), and
the best of those stands for its method. Then all that stand, and the seed, train as long again with
config.search.final_seeds seeds that no genome had.
"""

import shutil
from pathlib import Path

from transformers_jax.genomes import genome as genomes
from transformers_jax.search import summary, workers
from transformers_jax.search.evolution import Evolution
from transformers_jax.search.job import Job, Result
from transformers_jax.search.population import Population
from transformers_jax.training.metrics import Progress


class Finals:
    """The last trainings of a workdir; those that are in the population already are not repeated."""

    def __init__(self, config, population: Population, pool, searches: list[Evolution], workdir):
        self.config, self.population, self.pool, self.searches = config, population, pool, searches
        self.folder, self.steps = Path(workdir) / "candidates", summary.final_steps(config)

    def run(self) -> None:
        """Until all are trained."""
        options, seed = self.config.search, self.config.seed
        rows = {e.options.method: self.population.rows(e.options.method) for e in self.searches}
        if options.finalists > 1 and options.final_seeds:
            best = [row for found in rows.values() for row in summary.best(found, options.finalists)]
            self._train({summary.trial(row): row for row in best}, [seed], "finalist")
        entries = {method: summary.winner(self.config, found, self.population.finals()) for method, found in rows.items()}
        starts = [e for e in self.searches if e.start is not None]
        if starts:
            unit, parameters = starts[0].fits(starts[0].start)
            entries["seed"] = {"genome": starts[0].start.to_json(), "unit": unit, "parameters": parameters}
        self._train(entries, range(seed + 1, seed + 1 + options.final_seeds), "final training")

    def _train(self, entries: dict[str, dict], seeds, unit: str) -> None:
        """The genomes of the entries, by name, with each seed."""
        there = {(row["name"], row["seed"]) for row in self.population.finals() if row["steps"] == self.steps}
        wanted = [(name, seed) for seed in seeds for name in entries if (name, seed) not in there]
        waiting, deaths, ended = list(range(len(wanted))), [0] * len(wanted), 0
        with Progress(len(wanted), unit=unit) as progress:
            while waiting or self.pool.busy:
                while waiting and self.pool.free:
                    number = waiting.pop(0)
                    name, seed = wanted[number]
                    self.pool.submit(number, self._job(entries[name], name, seed))
                if (outcome := self.pool.next()) is None:
                    continue
                name, seed = wanted[outcome.number]
                deaths[outcome.number] += bool(outcome.death)
                if outcome.death and deaths[outcome.number] <= self.config.search.retries:
                    waiting.insert(0, outcome.number)
                    continue
                ended += 1
                progress.advance(ended)
                progress.metrics(ended, "train", self._take(outcome, entries[name], name, seed))

    def _job(self, entry: dict, name: str, seed: int) -> Job:
        text = genomes.from_json(entry["genome"]).text()
        return Job(text, entry["unit"], (self.steps,), (), seed, str(self._place(name, seed)))

    def _place(self, name: str, seed: int) -> Path:
        return self.folder / f"final-{name.replace(' ', '-')}-{seed}-{self.steps}"

    def _take(self, outcome: workers.Outcome, entry: dict, name: str, seed: int) -> dict:
        """Saves the result of a training in the population, and returns the line of the summary about it."""
        result = outcome.result or Result(failure=workers.death_note(outcome))
        fitness = result.stages[-1] if result.stages else None
        self.population.add_final(
            name=name, seed=seed, steps=self.steps, fitness=fitness, failure=result.failure,
            compile_seconds=result.compile_seconds, train_seconds=result.train_seconds,
            **{column: entry[column] for column in ("genome", "unit", "parameters")},
        )  # fmt: skip
        shutil.rmtree(self._place(name, seed), ignore_errors=True)
        return {"name": name, "seed": seed, **({"failed": result.failure} if result.failure else {"fitness": fitness})}
