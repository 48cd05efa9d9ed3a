"""Trains a model from nothing, evaluates and checkpoints it; the same command again goes on where it stopped.

python -m experiments.pretrain --config=configs/transformer.py:quickstart --workdir=DIR
    [--dry_run] [--config.training.steps=500 …] [--coordinator=HOST:PORT --num_processes=N --process_id=I]
"""

from absl import flags

from experiments import launch
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="file")
flags.DEFINE_bool("dry_run", False, "print what the run would take; launch and write nothing", flag_values=FLAGS)


def main(args, config) -> None:
    from transformers_jax.planning import plan
    from transformers_jax.runs import train as pretraining

    if args.dry_run:
        plan.show(pretraining.make_plan(config, args.workdir))
        return
    if not args.workdir:
        raise UserError("--workdir is missing: give the folder to train in")
    pretraining.pretrain(config, args.workdir, began=launch.BEGAN)


if __name__ == "__main__":
    launch.run(main, FLAGS)
