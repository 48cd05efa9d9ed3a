"""Turns a model of Hugging Face's into a workdir, a workdir's model into a folder of Hugging Face's, or any into a GGUF file.

    python -m experiments.convert --from=FOLDER|HUB_NAME|FILE.gguf --to=WORKDIR
    python -m experiments.convert --from=WORKDIR --to=FOLDER [--merge] [--quantization=nf4] [--step=best|last|N]
    python -m experiments.convert --from=PEFT_FOLDER --to=WORKDIR [--base=FOLDER|HUB_NAME|WORKDIR]
    python -m experiments.convert --from=FOLDER|HUB_NAME|WORKDIR|FILE.gguf --to=FILE.gguf [--merge]
        [--dtype=f32|f16|q8_0|q4_0|q4_1]

What was trained by parts of low rank (method=lora) is written as an adapter of PEFT, or with --merge as the whole model: a
folder of Hugging Face's, or a workdir where they have no such architecture. To a GGUF file goes the adapter alone too, as
llama.cpp's --lora reads it, or with --merge the whole Llama with tokenizer and chat template; --dtype is of its matrices, and
tensors that are so already are passed on bit by bit. --quantization=nf4 writes the linear maps of layers as bitsandbytes has
them in four bits, and says how far they are from what they were; such folders are read as any other.

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
flags.DEFINE_enum("dtype", None, ("f32", "f16", "q8_0", "q4_0", "q4_1"), "GGUF: type of the matrices", flag_values=FLAGS)
flags.DEFINE_enum("quantization", None, ("nf4",), "a folder's matrices in four bits, as bitsandbytes'", flag_values=FLAGS)
flags.DEFINE_string("base", "", "the model beside an adapter of PEFT, if not the one it names", flag_values=FLAGS)
launch.define_step(FLAGS)


def main(args, config) -> None:
    from transformers_jax.interchange import gguf_model
    from transformers_jax.runs import gguf
    from transformers_jax.runs.convert import convert

    for name, meaning in ("from", "what is read"), ("to", "the folder to write"):
        if not args[name].value:
            raise UserError(f"--{name} is missing: give {meaning}")
    def config_of(name: str):
        return configuration.load(str(CONFIGS / name))

    if gguf_model.is_file(args.to):
        print(gguf.convert(args["from"].value, args.to, dtype=args.dtype or "", merge=args.merge, step=args.step))
        return
    if args.dtype:
        raise UserError(f"--dtype={args.dtype} is of GGUF files: give --to=FILE.gguf")
    how = {"merge": args.merge, "base": args.base, "four_bit": args.quantization == "nf4", "step": args.step}
    print(convert(args["from"].value, args["to"].value, config_of, **how))


if __name__ == "__main__":
    launch.run(main, FLAGS)
