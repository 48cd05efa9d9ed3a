"""What two processes of a run do together, as a script: `python together.py INDEX PORT WORKDIR TEXT` prints a line of JSON."""

import contextlib
import io
import json
import sys
from pathlib import Path

import jax
from launching import REPOSITORY

from transformers_jax import config as configuration
from transformers_jax.data.text.train_tokenizer import placeholder
from transformers_jax.errors import UserError
from transformers_jax.files import locked
from transformers_jax.planning import plan
from transformers_jax.runs import experiment
from transformers_jax.runs import train as pretraining
from transformers_jax.runs.experiment import Experiment


def together(index, port, workdir, text):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    config = configuration.load(f"{REPOSITORY}/configs/bert.py:tiny")
    config.data.train, config.tokenizer.vocab_size = text, 100
    report, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        plan.show(pretraining.make_plan(config))
    report["plan"] = len(said.getvalue().splitlines())

    experiment.learn = lambda kind, lines, size, lowercase: placeholder(size + int(index))  # each learns another
    run = Experiment(config, workdir, training=True)
    report["vocabulary"] = run.tokenizer.vocab_size
    first = locked(Path(workdir), "") if index == "0" else contextlib.nullcontext()
    try:
        with first, experiment.written(run):
            pass
    except UserError as error:
        report["refused"] = str(error)
    with experiment.written(run):
        report["written"] = sorted(path.name for path in Path(workdir).iterdir())
    return report


if __name__ == "__main__":
    print(json.dumps(together(*sys.argv[1:])))
