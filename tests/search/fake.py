"""A search whose candidates are not trained: their fitness is computed from the genome, in a moment.

As a program, `python tests/search/fake.py WORKDIR CORPUS WORKERS SECONDS [KEY=VALUE …]`, it searches as the launcher does.
"""

import os
import signal
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

from transformers_jax.genomes import genome
from transformers_jax.search import hurdles
from transformers_jax.search.job import Job, Result

LOG = "trained.log"  # one line a training that began
REVERSED = 77


class Fake:
    """Fitness counts activations, in a training of `REVERSED` steps against them; a genome with five decoder cells fails."""

    def __init__(self, config, workdir, settings):
        self.log, self.seconds = Path(workdir) / LOG, float(os.environ.get("FAKE_SECONDS", 0))

    def __call__(self, job: Job) -> Result:
        with self.log.open("a") as file:
            file.write(f"{job.seed} {job.genome!r}\n")
        time.sleep(self.seconds)
        found = genome.parse(job.genome)
        if found.decoder_cells == 5:
            return Result(failure="loss is nan at step 1", steps=1)
        value = 0.05 * sum(v in ("swish", "leaky_relu") for v in genome.fields(found).values())
        value = -3.0 - 0.001 * job.seed + (-value if job.steps == (REVERSED,) else value)
        stages = []

        def train(steps):
            stages.append(value + 0.02 * len(stages))
            return stages[-1]

        hurdles.climb(train, job.steps, job.hurdles)
        return Result(tuple(stages), None, sum(job.steps[: len(stages)]), 100, 0.5, 1.5)


def config(corpus, **keys):
    """The tiny config with other keys of its group search."""
    from transformers_jax import config as configuration

    found = configuration.load(f"{REPOSITORY}/configs/search.py:tiny")
    for split in "train", "validation":
        found.data[split] = f"{corpus}/{split}.en,{corpus}/{split}.de"
    defaults = {"population": 5, "sample": 3, "children": 7, "steps": (4, 6, 8), "mutation": 0.02, "parameters": ()}
    found.search.update(defaults | keys)
    return found


def search(workdir, corpus, workers=0, **keys):
    from transformers_jax.search import driver

    return driver.search(config(corpus, **keys), workdir, workers_wanted=workers, trainer=Fake)


if __name__ == "__main__":
    import fake  # as Ray's workers find it

    from experiments import launch

    launch.start_output()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    workdir, corpus, workers, seconds, *_ = sys.argv[1:]
    os.environ["FAKE_SECONDS"] = seconds
    fake.search(workdir, corpus, int(workers))
