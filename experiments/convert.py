"""Turns a model of Hugging Face's into a workdir, or a workdir's model into a folder of Hugging Face's.

    python -m experiments.convert --from=FOLDER|HUB_NAME --to=WORKDIR
    python -m experiments.convert --from=WORKDIR --to=FOLDER [--merge] [--step=best|last|N]
    python -m experiments.convert --from=PEFT_FOLDER --to=WORKDIR [--base=FOLDER|HUB_NAME|WORKDIR]

What was trained by parts of low rank (method=lora) is written as an adapter of PEFT, or with --merge as the whole model: a
folder of Hugging Face's, or a workdir where they have no such architecture.

A workdir that comes from outside has one checkpoint, of step 0, and serves predict, embed, evaluate, finetune and report.
"""

from pathlib import Path

from absl import flags

from experiments import launch
from transformers_jax import config as configuration
from transformers_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

FLAGS = launch.flags_of(config="none")
flags.DEFINE_string("from", None, "what is read: folder of Hugging Face's, name on the hub, or workdir", flag_values=FLAGS)
flags.DEFINE_string("to", None, "what is written: a new folder", flag_values=FLAGS)
flags.DEFINE_bool("merge", False, "write a plain model, parts of low rank in their kernels", flag_values=FLAGS)
flags.DEFINE_string("base", "", "the model beside an adapter of PEFT, if not the one it names", flag_values=FLAGS)
launch.define_step(FLAGS)


def main(args, config) -> None:
    from transformers_jax.runs.convert import convert

    for name, meaning in ("from", "what is read"), ("to", "the folder to write"):
        if not args[name].value:
            raise UserError(f"--{name} is missing: give {meaning}")
    def config_of(name: str):
        return configuration.load(str(CONFIGS / name))

    print(convert(args["from"].value, args["to"].value, config_of, merge=args.merge, base=args.base, step=args.step))


if __name__ == "__main__":
    launch.run(main, FLAGS)
