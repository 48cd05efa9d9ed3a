"""Scores a trained run; the last line of the output is one JSON object.

python -m experiments.evaluate --workdir=DIR [--split=SPLIT] [--samples=N] [--average=N | --step=best|last|N]
    [--config.decoding.beam_size=8 …]
python -m experiments.evaluate --workdir=DIR --knn=K|--few_shot=N [--split=SPLIT] [--average=N | --step=best|last|N]
python -m experiments.evaluate --workdir=DIR|--init_from=FOLDER|WORKDIR|HUB_NAME|FILE.gguf --tasks=FILE,… [--tasks_dir=DIR]
    [--shots=K] [--seed=N] [--limit=N] [--adapter=FOLDER] [--quantization=int8]

SPLIT is test, or validation where the run has no test split. --config.data.test=FILE takes other examples.

--knn and --few_shot measure the features of a model of images: K nearest neighbours among the training images, and a linear map
found from N training images of each class.

--tasks measures a language model with files of questions, JSON lines, plain or gzip: choices, pairs of sentences and last words
by their likelihood, worked answers and answers out of passages by writing them (see `transformers_jax.inference.questions`).
Names below --tasks_dir need no ending. --shots puts K other questions of the file, with their answers, before each.
"""

import json
import time

from absl import flags

from experiments import launch
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="workdir")
flags.DEFINE_string("init_from", None, "--tasks: the model, in place of --workdir", flag_values=FLAGS)
SPLITS = ("train", "validation", "test")
flags.DEFINE_enum("split", None, SPLITS, "which examples; by default test, or validation without one", flag_values=FLAGS)
flags.DEFINE_integer("average", None, "over how many of the newest checkpoints", 1, flag_values=FLAGS)
flags.DEFINE_integer("samples", 0, "examples to print with what the model made of them", 0, flag_values=FLAGS)
launch.define_step(FLAGS)
flags.DEFINE_string(
    "quantization", None, "hold weights in int8, nf4, q8_0, q4_0, q4_1, or as floats: none; else as the file", flag_values=FLAGS
)
launch.define_adapters(FLAGS)
flags.DEFINE_integer("knn", 0, "images: so many nearest training images vote", 0, flag_values=FLAGS)
flags.DEFINE_integer("few_shot", 0, "images: of each class, for a linear map of the features", 0, flag_values=FLAGS)
flags.DEFINE_list("tasks", [], "files of questions", flag_values=FLAGS)
flags.DEFINE_string("tasks_dir", None, "folder of these files", flag_values=FLAGS)
flags.DEFINE_integer("shots", 0, "--tasks: examples before each question", 0, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "--tasks: of the choice of these examples", 0, flag_values=FLAGS)
flags.DEFINE_integer("limit", 0, "--tasks: only so many questions of each file, the first; 0: all", 0, flag_values=FLAGS)


def main(args, config) -> None:
    if args.tasks:
        return measure(args, config)
    if args.init_from:
        raise UserError("--init_from is for --tasks=FILE,…; a split is scored with --workdir of a run")
    from transformers_jax.files import json_value
    from transformers_jax.runs.evaluate import evaluate, split_of
    from transformers_jax.runs.experiment import Experiment

    run = Experiment(config, args.workdir)
    split = args.split or split_of(run)
    if args.knn or args.few_shot:
        from transformers_jax.runs.probes import probe

        which = {"knn": args.knn, "few_shot": args.few_shot, "average": args.average, "step": args.step}
        launch.show(json.dumps(probe(run, split, **which)))
        return
    scores, samples = evaluate(run, split, average=args.average, step=args.step)
    for sample in samples[:: max(1, len(samples) // max(1, args.samples))][: args.samples]:
        launch.show(*(f"{name:<12} {text}" for name, text in sample.items()), "")
    launch.show(json.dumps(json_value(scores), allow_nan=False))


def measure(args, config) -> None:
    """Scores of a model on each file of --tasks, a line each, and all of them as one JSON object."""
    from transformers_jax.inference import adapters, likelihood, questions, written

    began, found = time.monotonic(), {}
    asked = [questions.read(path) for path in questions.paths_of(args.tasks, args.tasks_dir)]
    there = adapters.named(launch.model(args, config), args.adapter, args.use)[""]
    scorer = likelihood.Likelihood(there)
    how = {"shots": args.shots, "seed": args.seed, "limit": args.limit}
    for one in asked:
        is_written = one.kind in questions.WRITTEN
        scores = written.measure(there, one, **how) if is_written else likelihood.measure(scorer, one, **how)
        found[one.name] = {name: round(value, 4) for name, value in scores.items()}
        launch.show(f"{one.name:<20} " + "  ".join(f"{name} {value}" for name, value in found[one.name].items()))
    launch.show(json.dumps(found | {"shots": args.shots, "seconds": round(time.monotonic() - began, 2)}))


if __name__ == "__main__":
    launch.run(main, FLAGS)
