"""all-MiniLM-L6-v2 finetuned on real tasks, beside `transformers` on PyTorch with the same recipe, steps and batches.

    python -m benchmarks.finetuning --data=DIR --init_from=MINILM --peer=PYTHON [--tasks=sst2,ner] [--seeds=1]

DATA holds the folders sst2 (train.tsv, dev.tsv), ner (wnut17_train.conll, wnut17_dev.conll), nli (sick_train.tsv,
sick_dev.tsv), sts (train.tsv, val.tsv) and squad (train.json, dev.json). PYTHON is that of an environment with this
package, torch and transformers. Each task is trained with its config, at --learning_rate. The last line is one JSON object.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks import runs

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "folder of the tasks' folders", required=True)
flags.DEFINE_string("init_from", None, "folder of all-MiniLM-L6-v2", required=True)
flags.DEFINE_string("peer", None, "python of an environment with torch and transformers", required=True)
flags.DEFINE_list("tasks", "sst2,ner,nli,sts,squad", "which")
flags.DEFINE_integer("seeds", 1, "trainings of each side")
flags.DEFINE_float("learning_rate", 5e-5, "of both sides")
flags.DEFINE_string("workdir", "", "where the runs are kept, to be resumed; by default nowhere")
WNUT = tuple(["O", *(f"{p}-{n}" for n in "person location corporation group creative-work product".split() for p in "BI")])
TASKS = {  # config of configs/bert.py, files, what else to set
    "sst2": ("sentences", "sst2/train.tsv", "sst2/dev.tsv", ()),
    "ner": ("ner", "ner/wnut17_train.conll", "ner/wnut17_dev.conll", (f"--config.task.labels={WNUT}",)),
    "nli": ("nli", "nli/sick_train.tsv", "nli/sick_dev.tsv", ()),
    "sts": ("sts", "sts/train.tsv", "sts/val.tsv", ()),
    "squad": ("squad", "squad/train.json", "squad/dev.json", ("--config.data.tfds_name=", "--config.data.test=")),
}


def main(_):
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in FLAGS.tasks:
            found[name] = {"ours": [], "transformers": []}
            for seed in range(FLAGS.seeds):
                workdir = Path(FLAGS.workdir or folder).absolute() / f"{name}-{seed}"
                found[name]["ours"].append(ours(name, workdir, seed))
                found[name]["transformers"].append(theirs(workdir))
                print(name, json.dumps({side: scores[-1] for side, scores in found[name].items()}), flush=True)
    print(json.dumps(found))


def ours(name: str, workdir: Path, seed: int) -> dict:
    """The metric's best value, at which step, its last one, and the seconds of training with its evaluations."""
    config, train, validation, more = TASKS[name]
    data = Path(FLAGS.data).absolute()
    began = time.monotonic()
    command = [
        sys.executable, "-m", "experiments.finetune", f"--config=configs/bert.py:{config}", f"--workdir={workdir}",
        f"--init_from={FLAGS.init_from}", f"--config.data.train={data / train}",
        f"--config.data.validation={data / validation}", f"--config.seed={seed}",
        f"--config.optimizer.learning_rate={FLAGS.learning_rate}", *more,
    ]  # fmt: skip
    return runs.last_line(command) | {"seconds": round(time.monotonic() - began)}


def theirs(workdir: Path) -> dict:
    """The same of PyTorch, on the batches of the run in `workdir`."""
    return runs.last_line([FLAGS.peer, "-m", "benchmarks.finetuning_peer", str(workdir)])


if __name__ == "__main__":
    app.run(main)
