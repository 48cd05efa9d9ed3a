"""A language model that learns to follow instructions: its loss on answers that it has not seen, before and after, and answers.

    python -m benchmarks.alpaca --data=alpaca_en_demo.json --init_from=SmolLM2-135M-Instruct.gguf --workdir=DIR [--steps=170]

Of the file's 999 examples 99, drawn by --seed, are held out; the others are learned by `experiments.finetune` with
configs/llama.py:instruct, in rows of 512 tokens, about one pass in 170 steps of 1,024 tokens. The last line is one JSON object.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from benchmarks import runs
from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "a JSON array of {instruction, input, output}", required=True)
flags.DEFINE_string("init_from", None, "folder of transformers, or GGUF file", required=True)
flags.DEFINE_string("workdir", None, "where the run and its two files are kept; the same call goes on", required=True)
flags.DEFINE_integer("held_out", 99, "examples")
flags.DEFINE_integer("shown", 5, "answers")
flags.DEFINE_integer("steps", 170, "of 2 rows of 512 tokens")
flags.DEFINE_integer("seed", 0, "of the choice of what is held out")


def main(_):
    launch.use_large_pages()
    folder = Path(FLAGS.workdir).absolute()
    held_out = split(folder)
    finetune(folder)
    losses, answers = measured(folder / "run", held_out[: FLAGS.shown])
    for one, before, after in zip(held_out, answers["before"], answers["after"], strict=False):
        print(f"\n## {one['instruction']}\n{one['input']}\n-- before: {before}\n-- after: {after}\n-- wanted: {one['output']}")
    print(json.dumps({name: round(loss, 4) for name, loss in losses.items()}))


def split(folder: Path) -> list[dict]:
    """Writes train.jsonl and validation.jsonl, and returns what is held out."""
    examples = json.loads(Path(FLAGS.data).read_text(encoding="utf-8"))
    random.Random(FLAGS.seed).shuffle(examples)
    parts = {"validation": examples[: FLAGS.held_out], "train": examples[FLAGS.held_out :]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return parts["validation"]


def finetune(folder: Path) -> None:
    """One run of the launcher."""
    every = max(1, FLAGS.steps // 5)
    command = [
        sys.executable, "-m", "experiments.finetune", "--config=configs/llama.py:instruct", f"--workdir={folder / 'run'}",
        f"--init_from={Path(FLAGS.init_from).absolute()}", f"--config.data.train={folder / 'train.jsonl'}",
        f"--config.data.validation={folder / 'validation.jsonl'}", "--config.data.batch_size=2",
        "--config.data.lengths.tokens=512", f"--config.training.steps={FLAGS.steps}",
        f"--config.training.eval_every={every}", f"--config.training.checkpoint_every={FLAGS.steps}",
    ]  # fmt: skip
    if code := subprocess.run(command, cwd=runs.REPOSITORY).returncode:
        sys.exit(code)


def measured(workdir: Path, asked: list[dict]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """(losses on what is held out, answers) before and after."""
    from transformers_jax import config as configuration
    from transformers_jax.data.text.conversations import messages_of
    from transformers_jax.inference.generate import Generator, Options
    from transformers_jax.inference.predictor import Loaded
    from transformers_jax.runs import train as training
    from transformers_jax.runs.evaluate import Scorer
    from transformers_jax.runs.experiment import Experiment

    run = Experiment(configuration.read(workdir), workdir)
    state = training.first_state(run, training.optimizer_of(run)[0])
    before = {"params": state.model_params, "model_state": state.model_state}
    scorer, losses, answers = Scorer(run), {}, {}
    prompts = [{"messages": messages_of(one)[:-1]} for one in asked]
    for name, model in ("before", before), ("after", run.trained()):
        losses[name] = scorer.losses("validation", **model)["loss"]
        there = Loaded(run.model, model, run.tokenizer, run.mesh, run.task, workdir, (run.tokenizer.eos_id,))
        found = Generator(there, Options(max_tokens=80))(prompts)
        answers[name] = [one["outputs"][0]["text"] for one in found]
    return losses, answers


if __name__ == "__main__":
    app.run(main)
