"""Translates standard input: a line in, a line out, in order, also for an empty line.

    python -m experiments.translate --workdir=DIR [--method=beam|greedy|sample] [--beam_size=N] [--alpha=X] [--nbest=N]
        [--seed=N --config.decoding.temperature=X …] [--average=N | --step=best|last|N] [--adapter=NAME=WORKDIR … --use=NAME]
        < lines.en > lines.de

--adapter names runs that were trained beside the same base as the one in DIR, which is read once; --use says which translates.
With --nbest=N above 1 each line of the output is: number of the input line from 0 ||| translation ||| log-probability.
"""

import sys

from absl import flags

from experiments import launch, lines

FLAGS = launch.flags_of(config="workdir")
flags.DEFINE_enum("method", None, ("beam", "greedy", "sample"), "how to search", flag_values=FLAGS)
flags.DEFINE_integer("beam_size", None, "beams", 1, flag_values=FLAGS)
flags.DEFINE_float("alpha", None, "length penalty", 0.0, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of what --method=sample draws", flag_values=FLAGS)
flags.DEFINE_integer("nbest", 1, "how many translations of each line", 1, flag_values=FLAGS)
flags.DEFINE_integer("average", None, "over how many of the newest checkpoints", 1, flag_values=FLAGS)
launch.define_adapters(FLAGS)
launch.define_step(FLAGS)


def main(args, config) -> None:
    from transformers_jax.inference import adapters, predictor
    from transformers_jax.runs.experiment import Experiment

    run = Experiment(config, args.workdir)
    changes = {name: args[name].value for name in ("method", "beam_size", "alpha") if args[name].value is not None}
    there = predictor.trained(run, average=args.average, step=args.step)
    there = adapters.named(there, args.adapter, args.use)[""]
    decoder = run.decoder(there.variables["params"], n_best=args.nbest, **changes)
    number = 0
    for block in lines.blocks_of_input():
        for outputs in run.task.translate(block, decoder, first=number, seed=args.seed):
            for text, score in outputs:
                shown = text.replace("\n", " ").replace("\r", " ")
                print(f"{number} ||| {shown} ||| {score:.4f}" if args.nbest > 1 else shown)
            number += 1
        sys.stdout.flush()


if __name__ == "__main__":
    launch.run(main, FLAGS)
