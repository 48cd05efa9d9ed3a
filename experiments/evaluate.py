"""Scores a trained run; the last line of the output is one JSON object.

python -m experiments.evaluate --workdir=DIR [--split=test] [--samples=N] [--average=N | --step=N]
    [--config.decoding.beam_size=8 …]
"""

import json

from absl import flags

from experiments import launch

FLAGS = launch.flags_of(config="workdir")
flags.DEFINE_enum("split", "test", ("train", "validation", "test"), "which examples", flag_values=FLAGS)
flags.DEFINE_integer("average", None, "over how many of the newest checkpoints", 1, flag_values=FLAGS)
flags.DEFINE_integer("samples", 0, "examples to print with what the model made of them", 0, flag_values=FLAGS)
flags.DEFINE_integer("step", None, "one checkpoint, by its step", flag_values=FLAGS)


def main(args, config) -> None:
    from transformers_jax.files import json_value
    from transformers_jax.runs.evaluate import evaluate
    from transformers_jax.runs.experiment import Experiment

    scores, samples = evaluate(Experiment(config, args.workdir), args.split, average=args.average, step=args.step)
    for sample in samples[:: max(1, len(samples) // max(1, args.samples))][: args.samples]:
        launch.show(*(f"{name:<12} {text}" for name, text in sample.items()), "")
    launch.show(json.dumps(json_value(scores), allow_nan=False))


if __name__ == "__main__":
    launch.run(main, FLAGS)
