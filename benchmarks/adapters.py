"""LoRA, QLoRA, adapters and their kin: memory, seconds a step, errors of quantised kernels, scores; beside PEFT and qwix.

    python -m benchmarks.adapters --out=FILE --part=memory --init_from=SmolLM2.gguf
    python -m benchmarks.adapters --out=FILE --part=qwix --init_from=SmolLM2.gguf --qwix=FOLDER
    python -m benchmarks.adapters --out=FILE --part=bytes --init_from=SmolLM2.gguf --peer=PYTHON
    python -m benchmarks.adapters --out=FILE --part=instruct --init_from=SmolLM2.gguf --data=DIR --workdir=W
    python -m benchmarks.adapters --out=FILE --part=sst2 --init_from=MINILM --data=DIR --peer=PYTHON [--workdir=W]

Each row is a line of JSON in --out, written as it is done: the same command goes on where it was stopped.

memory  a training step of one row of --length tokens, AdamW, float32: a process for each way of training, its peak resident
        memory after imports and compiling, less what was there before the weights were read; then seconds a step in turns.
qwix    the same of qwix, which is in FOLDER (pip install --no-deps --target FOLDER qwix), on a Linen model of nn.Dense with the
        same weights, beside ours.
bytes   a parameter, of NF4 with double quantisation and of int8, and relative errors of weights and products, beside those of
        bitsandbytes on the same tensors.
instruct  QLoRA on conversations of DIR/instruct/alpaca_en_demo.json, of which the last 100 are held out: their loss and five
        answers before, after, and with the adapter off.
sst2    all-MiniLM-L6-v2 by each method; PEFT's LoRA with the same recipe, batches and first numbers. DIR has sst2/train.tsv and
        sst2/dev.tsv.

PYTHON is that of an environment with this package, torch, transformers, peft and bitsandbytes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks import runs

FLAGS = flags.FLAGS
flags.DEFINE_enum("part", None, ["memory", "qwix", "bytes", "instruct", "sst2"], "what is measured", required=True)
flags.DEFINE_string("out", None, "a file for the rows", required=True)
flags.DEFINE_string("init_from", None, "what the models begin with", required=True)
flags.DEFINE_integer("length", 256, "memory, qwix: tokens of a row")
flags.DEFINE_list("ways", None, "memory, qwix: which ways of training, full:unrolled say; by default all")
flags.DEFINE_integer("rounds", 3, "memory, qwix: turns of each way")
flags.DEFINE_integer("steps", 4, "memory, qwix: steps of a turn")
flags.DEFINE_string("qwix", None, "qwix: the folder that has it")
flags.DEFINE_string("peer", None, "bytes, sst2: python of an environment with torch and the peers")
flags.DEFINE_integer("tensors", 0, "bytes: so many matrices of the model; 0: all")
flags.DEFINE_string("data", None, "instruct, sst2: folder of the tasks' folders")
flags.DEFINE_list("more", [], "instruct: further flags of experiments.finetune")
flags.DEFINE_list("methods", None, "sst2: which; by default all")
flags.DEFINE_integer("seeds", 3, "sst2: trainings of each method")
flags.DEFINE_float("epochs", 3.0, "sst2: of each training")
flags.DEFINE_string("workdir", "", "instruct, sst2: where the runs are kept, to be resumed; by default nowhere")

WAYS = [f"{method}:{form}" for method in ("full", "lora", "qlora") for form in ("unrolled", "scanned", "scanned+remat")]
BATCH = 32
METHODS = {  # of SST-2: its rate, and keys of config.finetuning
    "full": (5e-5, {}),
    "lora": (5e-4, {"rank": 8, "targets": "('.',)"}),
    "adapters": (5e-4, {"adapter_width": 64}),
    "bias": (1e-3, {}),
    "head": (1e-3, {}),
}


def main(_):
    rows = Rows(Path(FLAGS.out))
    {"memory": memory, "qwix": qwix, "bytes": sizes, "instruct": instruct, "sst2": sst2}[FLAGS.part](rows)


class Rows:
    """The rows of a file, each a dict with a part and a name."""

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.done = {(row["part"], row["name"]): row for row in map(json.loads, lines)}

    def add(self, name: str, **found) -> dict:
        row = {"part": FLAGS.part, "name": name} | found
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        self.done[FLAGS.part, name] = row
        return row

    def has(self, name: str) -> bool:
        return (FLAGS.part, name) in self.done


# -- memory and seconds a step -----------------------------------------------------------------------------------------


class Side:
    """A process that trains one way, see `adapters_side`."""

    def __init__(self, module: str, way: str, environment: dict | None = None):
        command = [sys.executable, "-m", f"benchmarks.{module}", *way.split(":"), FLAGS.init_from, str(FLAGS.length)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(command, cwd=runs.REPOSITORY, env=os.environ | (environment or {}), **pipes)
        self.found = self._answer()

    def seconds(self, steps: int) -> list[float]:
        """Of so many steps, one by one."""
        self.process.stdin.write(f"{steps}\n")
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a side has ended with code {self.process.wait()}")
        return json.loads(line)


def memory(rows: Rows) -> None:
    in_turns(rows, {way: ("adapters_side", way, None) for way in FLAGS.ways or WAYS})


def qwix(rows: Rows) -> None:
    if not FLAGS.qwix:
        sys.exit("--qwix is missing: pip install --no-deps --target FOLDER qwix, and give the folder")
    ways = FLAGS.ways or [way for way in WAYS if not way.startswith("full") and "remat" not in way]
    path = os.pathsep.join([FLAGS.qwix, *filter(None, [os.environ.get("PYTHONPATH")])])
    sides = {f"ours {way}": ("adapters_side", way, None) for way in ways}
    in_turns(rows, sides | {f"qwix {way}": ("adapters_qwix", way, {"PYTHONPATH": path}) for way in ways})


def in_turns(rows: Rows, sides: dict[str, tuple]) -> None:
    """A row for the memory of each side's process, and one for each of its turns."""
    missing = {name: [turn for turn in range(FLAGS.rounds) if not rows.has(f"{name}, turn {turn}")] for name in sides}
    there = {name: Side(*side) for name, side in sides.items() if missing[name]}
    for name, side in there.items():
        if not rows.has(name):
            rows.add(name, length=FLAGS.length, **side.found)
    for turn in range(FLAGS.rounds):
        for name, side in there.items():
            if turn in missing[name]:
                took = side.seconds(FLAGS.steps)  # the first warms the caches
                rows.add(f"{name}, turn {turn}", seconds=[round(x, 4) for x in took[1:] or took])
    for side in there.values():
        side.close()
    print(table({name: joined(rows, name) for name in sides}))


def joined(rows: Rows, name: str) -> dict:
    """A side's row with the median of its turns' seconds."""
    took = [rows.done[FLAGS.part, f"{name}, turn {turn}"]["seconds"] for turn in range(FLAGS.rounds)]
    return rows.done[FLAGS.part, name] | {"seconds": round(statistics.median(sum(took, [])), 4)}


def table(found: dict[str, dict]) -> str:
    """Each row beside the first kind's: the least memory and the least seconds of its forms."""
    first = next(iter(found)).rpartition(":")[0]
    base = [row for name, row in found.items() if name.rpartition(":")[0] == first]
    most, quickest = min(row["peak_mb"] for row in base), min(row["seconds"] for row in base)
    lines = [f"way | peak MB | of {first}'s least | seconds | of {first}'s quickest"]
    for name, row in found.items():
        shares = f"{row['peak_mb'] / most:.3f}", f"{row['seconds'] / quickest:.3f}"
        lines.append(f"{name} | {row['peak_mb']} | {shares[0]} | {row['seconds']} | {shares[1]}")
    return "\n".join(lines)


# -- bytes and errors --------------------------------------------------------------------------------------------------


def sizes(rows: Rows) -> None:
    """bitsandbytes runs in the peer's environment, which has ours: one process does both."""
    if not rows.has("all"):
        command = [FLAGS.peer or sys.executable, "-m", "benchmarks.adapters_bytes", FLAGS.init_from, str(FLAGS.tensors)]
        process = subprocess.Popen(command, cwd=runs.REPOSITORY, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            row = json.loads(line)
            if not rows.has(row["name"]):
                rows.add(**row)
        if process.wait():
            sys.exit(process.returncode)


# -- instructions ------------------------------------------------------------------------------------------------------


def instruct(rows: Rows) -> None:
    if rows.has("SmolLM2 qlora"):
        return
    workdir = Path(FLAGS.workdir).absolute()
    workdir.parent.mkdir(parents=True, exist_ok=True)
    examples = json.loads((Path(FLAGS.data) / "instruct/alpaca_en_demo.json").read_text(encoding="utf-8"))
    for split, part in (("train", examples[:-100]), ("validation", examples[-100:])):
        text = "".join(json.dumps(example) + "\n" for example in part)
        workdir.with_name(f"{workdir.name}-{split}.jsonl").write_text(text, encoding="utf-8")
    command = [
        sys.executable, "-m", "experiments.finetune", "--config=configs/llama.py:instruct", f"--workdir={workdir}",
        f"--init_from={FLAGS.init_from}", f"--config.data.train={workdir}-train.jsonl",
        f"--config.data.validation={workdir}-validation.jsonl", "--config.data.batch_size=4",
        "--config.data.lengths.tokens=512", "--config.finetuning.method=lora", "--config.finetuning.quantization=nf4",
        "--config.finetuning.targets=('.',)", "--config.model.scan_layers", "--config.model.remat",
        "--config.optimizer.learning_rate=2e-4", "--config.training.steps=100", "--config.training.eval_every=50",
        "--config.training.checkpoint_every=20", *FLAGS.more,
    ]  # fmt: skip
    began = time.monotonic()
    trained = runs.last_line(command) | {"seconds": round(time.monotonic() - began)}
    rows.add("SmolLM2 qlora", **trained, **runs.last_line([sys.executable, "-m", "benchmarks.adapters_instruct", str(workdir)]))


# -- SST-2 -------------------------------------------------------------------------------------------------------------


def sst2(rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(FLAGS.seeds):
            for method in FLAGS.methods or METHODS:
                workdir = Path(FLAGS.workdir or folder).absolute() / f"sst2-{method}-{seed}"
                if not rows.has(f"ours {method} {seed}"):
                    rows.add(f"ours {method} {seed}", **ours(method, workdir, seed))
                if method in ("full", "lora") and FLAGS.peer and not rows.has(f"peft {method} {seed}"):
                    peer = [FLAGS.peer, "-m", "benchmarks.adapters_peer", str(workdir)]
                    rows.add(f"peft {method} {seed}", **runs.last_line(peer))
    found = {name: row for (part, name), row in rows.done.items() if part == "sst2"}
    for side in dict.fromkeys(name.rpartition(" ")[0] for name in found):
        own = [row for name, row in found.items() if name.rpartition(" ")[0] == side]
        scores = [100 * row["best"] for row in own]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        print(f"{side} | {statistics.mean(scores):.2f}{spread} % | {own[0]['learning']:,} learn | "
              f"{statistics.median(row['seconds_a_step'] for row in own):.3f} s a step")  # fmt: skip


def ours(method: str, workdir: Path, seed: int) -> dict:
    """The best accuracy, the number of parameters that learn, and the median of the seconds of a step."""
    rate, options = METHODS[method]
    data, began = Path(FLAGS.data).absolute(), time.monotonic()
    command = [
        sys.executable, "-m", "experiments.finetune", "--config=configs/bert.py:sentences", f"--workdir={workdir}",
        f"--init_from={FLAGS.init_from}", f"--config.data.train={data / 'sst2/train.tsv'}",
        f"--config.data.validation={data / 'sst2/dev.tsv'}", f"--config.seed={seed}",
        f"--config.optimizer.learning_rate={rate}", f"--config.finetuning.epochs={FLAGS.epochs}",
        f"--config.data.batch_size={BATCH}", f"--config.finetuning.method={method}",
        *(f"--config.finetuning.{key}={value}" for key, value in options.items()),
    ]  # fmt: skip
    found = runs.last_line(command) | {"seconds": round(time.monotonic() - began)}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return found | {"learning": learning(workdir), "seconds_a_step": round(BATCH / runs.tokens_per_second(lines), 4)}


def learning(workdir: Path) -> int:
    """How many parameters a run's checkpoint has that learn."""
    import jax
    import optax

    from transformers_jax import config as configuration
    from transformers_jax.planning import counts
    from transformers_jax.runs.experiment import Experiment

    jax.config.update("jax_platforms", "cpu")
    return counts.count(Experiment(configuration.read(workdir), workdir).abstract_state(optax.identity()).params)


if __name__ == "__main__":
    app.run(main)
