"""The comparison at the end: the best of each method and the seed genome, trained alike from the start.

In a search the best is also the luckiest. Here all train for config.search.final_steps (0 is the sum of the stages), with
config.search.final_seeds seeds that no candidate had.
"""

import shutil
from pathlib import Path

from transformers_jax.search import genome as genomes
from transformers_jax.search import summary, workers
from transformers_jax.search.evolution import Evolution
from transformers_jax.search.fitness import Job, Result
from transformers_jax.search.population import Population
from transformers_jax.training.metrics import Progress


class Finals:
    """The last trainings of a workdir; those that are in the population already are not repeated."""

    def __init__(self, config, population: Population, pool, searches: list[Evolution], workdir):
        self.population, self.pool, self.folder = population, pool, Path(workdir) / "candidates"
        self.retries, self.steps = config.search.retries, config.search.final_steps or sum(config.search.steps)
        self.entries = {e.options.method: summary.best(population.rows(e.options.method)) for e in searches}
        starts = [e for e in searches if e.start is not None]
        if starts:
            unit, parameters = starts[0].fits(starts[0].start)
            self.entries["seed"] = {"genome": starts[0].start.to_json(), "unit": unit, "parameters": parameters}
        there = {(row["name"], row["seed"]) for row in population.finals() if row["steps"] == self.steps}
        seeds = range(config.seed + 1, config.seed + 1 + config.search.final_seeds)
        self.wanted = [(name, seed) for seed in seeds for name in self.entries if (name, seed) not in there]

    def run(self) -> None:
        """Until all are trained."""
        waiting, deaths, ended = list(range(len(self.wanted))), [0] * len(self.wanted), 0
        with Progress(len(self.wanted), unit="final training") as progress:
            while waiting or self.pool.busy:
                while waiting and self.pool.free:
                    number = waiting.pop(0)
                    self.pool.submit(number, self._job(*self.wanted[number]))
                outcome = self.pool.next()
                deaths[outcome.number] += bool(outcome.death)
                if outcome.death and deaths[outcome.number] <= self.retries:
                    waiting.insert(0, outcome.number)
                    continue
                ended += 1
                progress.advance(ended)
                progress.metrics(ended, "train", self._take(outcome))

    def _job(self, name: str, seed: int) -> Job:
        entry = self.entries[name]
        text = genomes.from_json(entry["genome"]).text()
        return Job(text, entry["unit"], (self.steps,), (), seed, str(self._place(name, seed)))

    def _place(self, name: str, seed: int) -> Path:
        return self.folder / f"final-{name}-{seed}-{self.steps}"

    def _take(self, outcome: workers.Outcome) -> dict:
        """Writes down what came of a training, and returns what there is to say."""
        name, seed = self.wanted[outcome.number]
        result = outcome.result or Result(failure=workers.death_note(outcome))
        fitness = result.stages[-1] if result.stages else None
        self.population.add_final(
            name=name, seed=seed, steps=self.steps, fitness=fitness, failure=result.failure,
            compile_seconds=result.compile_seconds, train_seconds=result.train_seconds,
            **{column: self.entries[name][column] for column in ("genome", "unit", "parameters")},
        )  # fmt: skip
        shutil.rmtree(self._place(name, seed), ignore_errors=True)
        return {"name": name, "seed": seed, **({"failed": result.failure} if result.failure else {"fitness": fitness})}
