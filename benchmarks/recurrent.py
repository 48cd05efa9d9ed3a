"""The lecture's claim, measured: without recurrence training is parallel, and faster.

    python -m benchmarks.recurrent --data=DIR_OF_MULTI30K

Transformer and LSTM with Luong's attention (with and without input feeding), both of width 256 with the same
vocabulary, batches and loss, train in turns. Counted are real target tokens a second, the arithmetic of a step, and how
much of the machine's peak in matrix products it reaches. The last line is one JSON object.
"""

import json
import statistics
import tempfile
from pathlib import Path

from absl import app, flags

from benchmarks import runs

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "folder with train and val, .en.gz and .de.gz", required=True)
flags.DEFINE_integer("rounds", 2, "turns of each model")
flags.DEFINE_integer("steps", 15, "steps a turn; the first third is not counted")
MODELS = {
    "transformer": ("transformer",),
    "luong": ("luong", "--config.model.input_feeding=False"),
    "luong, input feeding": ("luong", "--config.model.input_feeding=True"),
}


def main(_):
    rates, shares, operations = ({name: [] for name in MODELS} for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(FLAGS.rounds):
            for name, (config, *more) in MODELS.items():
                workdir = Path(folder) / f"{name.replace(', ', '-').replace(' ', '-')}{turn}"
                steps = f"--config.training.steps={FLAGS.steps}"
                lines = runs.pretrain(config, Path(FLAGS.data), workdir, "--config.data.batch_size=64", steps, *more)
                rates[name].append(runs.tokens_per_second(lines))
                shares[name].append(runs.median(lines, "share_of_peak"))
                operations[name].append(lines[0]["flops"])
                print(f"turn {turn + 1}: {name} {rates[name][-1]:.0f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "tokens_per_second": {name: [round(v) for v in values] for name, values in rates.items()},
        "share_of_peak": {name: [round(v, 2) for v in values] for name, values in shares.items()},
        "gflop_a_step": {name: round(values[0] / 1e9) for name, values in operations.items()},
        "transformer_over": {n: round(medians["transformer"] / v, 2) for n, v in medians.items() if n != "transformer"},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
