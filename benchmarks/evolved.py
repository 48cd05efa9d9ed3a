"""The Evolved Transformer beside the Transformer of about as many parameters, on Multi30k.

    python -m benchmarks.evolved --data=DIR_OF_MULTI30K --part=speed
    python -m benchmarks.evolved --data=DIR_OF_MULTI30K --part=perplexity [--workdir=DIR]

Three encoder and four decoder blocks stand for six and six layers, as in the paper; all else is the same: data, their
order, vocabulary, loss, optimizer, dropout. `speed` is the training step of width 256: the two take turns, batch by batch.
`perplexity` trains the paper's smallest models through the launcher, width 128 and a vocabulary of 33,288 (7M parameters),
each with three seeds, and compares the validation perplexities (the paper, on WMT14: 8.62 and 7.62). The last line is one
JSON object.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags

from benchmarks import runs
from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "folder with train and val, .en.gz and .de.gz", required=True)
flags.DEFINE_enum("part", None, ["speed", "perplexity"], "what to measure", required=True)
flags.DEFINE_integer("rounds", 20, "speed: turns of each model, one step each; the first quarter is not counted")
flags.DEFINE_integer("steps", 500, "perplexity: steps of each training")
flags.DEFINE_integer("rows", 32, "perplexity: of 64 + 64 positions, in a batch")
flags.DEFINE_string("workdir", "", "perplexity: folder of the trainings, to be resumed; by default a new one")
flags.DEFINE_integer("seeds", 3, "perplexity: trainings of each model")
MODELS = {
    "transformer": (
        "--config.model.encoder_layers=6", "--config.model.decoder_layers=6", "--config.model.positions=concatenated",
    ),
    "evolved_transformer": ("--config.model.encoder_layers=3", "--config.model.decoder_layers=4"),
}  # fmt: skip


def main(_):
    launch.use_large_pages()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(FLAGS.workdir or folder).absolute()
        result = {"speed": speed, "perplexity": perplexity}[FLAGS.part](Path(FLAGS.data), folder)
    print(json.dumps(result))


def speed(data: Path, folder: Path) -> dict:
    """Seconds a step at width 256, of the two in turns over the same batches."""
    models = {name: compiled(name, data, folder) for name in MODELS}
    seconds = {name: [] for name in models}
    for turn in range(FLAGS.rounds):
        for name, (state, step, iterator, _) in models.items():
            batch = next(iterator)
            began = time.monotonic()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds[name].append(time.monotonic() - began)
            models[name] = state, step, iterator, models[name][3]
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {x[-1]:.3f} s" for name, x in seconds.items()), flush=True)
    medians = {name: statistics.median(x[len(x) // 4 :]) for name, x in seconds.items()}
    return {
        "parameters": {name: model[3] for name, model in models.items()},
        "step_seconds": {name: round(x, 3) for name, x in medians.items()},
        "ratio": round(medians["evolved_transformer"] / medians["transformer"], 3),
    }


def compiled(name: str, data: Path, folder: Path):
    """(state, compiled step, iterator of batches on the device, number of parameters) of one model."""
    from transformers_jax import config as configuration
    from transformers_jax.mesh import global_batch
    from transformers_jax.planning import counts
    from transformers_jax.runs import train as pretraining
    from transformers_jax.runs.experiment import Experiment

    config = configuration.load(f"{runs.REPOSITORY}/configs/{name}.py:multi30k")
    learned = folder / "tokenizer.json"
    arguments = [*runs.files(data.resolve()), *MODELS[name], *(taken(learned) if learned.exists() else [])]
    configuration.overrides(config, arguments)(["benchmark", *arguments])
    jax.config.update("jax_default_prng_impl", config.prng)
    run = Experiment(config, None)
    run.tokenizer.save(learned)
    state, step = runs.compiled(run)
    batches = (global_batch(batch, run.mesh) for batch in run.train_iterator())

    def in_context(state, batch):
        with pretraining.in_context(run):
            return step(state, batch)

    return state, in_context, batches, counts.count(state.params)


def taken(tokenizer: Path) -> list[str]:
    """The flag that takes the vocabulary that another training learned."""
    return [f"--config.tokenizer.path={tokenizer}"]


def perplexity(data: Path, folder: Path) -> dict:
    """Validation perplexities at width 128 after the last step, of each seed."""
    steps, every = FLAGS.steps, max(FLAGS.steps // 5, 1)
    common = [
        "--config.model.width=128", "--config.tokenizer.vocab_size=33288", f"--config.data.batch_size={FLAGS.rows}",
        f"--config.training.steps={steps}", f"--config.training.eval_every={every}",
        f"--config.training.checkpoint_every={every}", "--config.training.log_every=50",
        f"--config.optimizer.warmup_steps={2 * steps // 5}",
    ]  # fmt: skip
    hidden = {"transformer": ["--config.model.mlp_width=512"], "evolved_transformer": []}
    curves, first = {name: [] for name in MODELS}, folder / f"{next(iter(MODELS))}0"  # which learns the vocabulary
    for seed in range(FLAGS.seeds):
        for name, flags_of_model in MODELS.items():
            workdir = folder / f"{name}{seed}"
            more = [*common, *flags_of_model, *hidden[name], f"--config.seed={seed}"]
            more += taken(first / "tokenizer.json") if workdir != first else []
            lines = runs.pretrain(name, data, workdir, *more)
            curves[name].append([(x["step"], round(x["perplexity"], 3)) for x in lines if x["split"] == "validation"])
            print(f"seed {seed}: {name} {curves[name][-1]}", flush=True)
    last = {name: [curve[-1][1] for curve in found] for name, found in curves.items()}
    return {
        "steps": steps,
        "perplexity": last,
        "mean": {name: round(statistics.mean(x), 3) for name, x in last.items()},
        "spread": {name: round(max(x) - min(x), 3) for name, x in last.items()},
        "evolved_is_lower": max(last["evolved_transformer"]) < min(last["transformer"]),
    }


if __name__ == "__main__":
    app.run(main)
