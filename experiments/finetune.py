"""Trains on from pretrained weights; the same command again goes on where it stopped.

python -m experiments.finetune --config=configs/bert.py:sst2 --workdir=DIR --init_from=FOLDER|FILE.gguf|WORKDIR|HUB_NAME
    [--config.data.train=FILE --config.data.validation=FILE …] [--config.finetuning.trainable="('head',)"] [--dry_run]

Architecture and vocabulary are those of --init_from: a folder of Hugging Face's, a GGUF file, a workdir, or a name on the hub.
The last line is one JSON object: the best score on the validation split, and the step it was reached at. The model of that step
is kept in DIR/best, and is what the other launchers take unless --step=last or a number says otherwise.

A config of several parts, as configs/bert.py:glue, runs each in a folder of its own in DIR, and prints and writes the table.
"""

import json
from pathlib import Path

from absl import flags, logging

from experiments import launch
from transformers_jax import config as configuration
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="file")
flags.DEFINE_string("init_from", None, "folder of Hugging Face's, GGUF file, workdir, or name on the hub", flag_values=FLAGS)
flags.DEFINE_bool("dry_run", False, "print what the run would take; launch and write nothing", flag_values=FLAGS)


def main(args, config) -> None:
    from transformers_jax.planning import plan
    from transformers_jax.runs import adoption
    from transformers_jax.runs import sweep as sweeps
    from transformers_jax.runs import train as pretraining
    from transformers_jax.runs.experiment import Experiment

    if not args.init_from:
        raise UserError("--init_from is missing: give the pretrained weights; experiments.pretrain begins from nothing")
    given, parts, file = launch.given(args, config), config.get("sweep"), args.config.partition(":")[0]
    given.pop("sweep", None)

    def config_of(part: str):
        return adoption.adopted(part_of(file, part, given), args.init_from, given)

    def finetune(config, workdir) -> None:
        pretraining.pretrain(config, workdir, began=launch.BEGAN)

    if args.dry_run:
        for part in parts or ():
            launch.show(f"-- {part}")
            plan.show(pretraining.make_plan(config_of(part), args.workdir and Path(args.workdir) / part))
        if not parts:
            plan.show(pretraining.make_plan(adoption.adopted(config, args.init_from, given), args.workdir))
        return
    if not args.workdir:
        raise UserError("--workdir is missing: give the folder to train in")
    if parts:
        name = f"{Path(args.init_from).name} (ours)"
        found = sweeps.sweep(parts, args.workdir, config_of=config_of, finetune=finetune, name=name)
        launch.show((Path(args.workdir) / sweeps.TABLE).read_text(encoding="utf-8"))
        launch.show(json.dumps({"row": found["row"], "average": found["average"]}))
    else:
        config = adoption.adopted(config, args.init_from, given)
        finetune(config, args.workdir)
        run = Experiment(configuration.read(args.workdir), args.workdir)
        metric, bigger = run.chosen_by
        if not run.has("validation"):
            logging.info("there is no validation split (config.data.validation): no model is the best, the last one is used")
        launch.show(json.dumps(sweeps.best(args.workdir, metric, bigger=bigger)))


def part_of(file: str, part: str, given: dict):
    """The config of a part of a sweep, with the keys that the command line sets."""
    config = configuration.load(f"{file}:{part}")
    for key, value in given.items():
        try:
            config.update_from_flattened_dict({key: value})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"--config.{key}={value} does not go with the part {part}: {error}") from error
    launch.settle_files(config, given, trains=True)
    return config


if __name__ == "__main__":
    launch.run(main, FLAGS)
