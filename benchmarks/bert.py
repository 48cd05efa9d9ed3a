"""BERT base beside `transformers` on PyTorch: a training step with AdamW and inference, in float32, in turns.

    python -m benchmarks.bert --peer=PYTHON_WITH_TORCH_AND_TRANSFORMERS

Rows of 128 tokens without padding: 8 a training step, 1 and 32 an inference, here as `predict` makes it, in batches of its
own size; a sequence head, dropout 0.1 in training. The peak is that of a large matrix product, measured between the turns.
Medians leave out the first third of the steps, with compilation. The last line is one JSON object.
"""

import json
import statistics
import subprocess
from pathlib import Path

from absl import app, flags

from benchmarks.bert_timing import LENGTH, ROWS, seconds
from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_string("peer", None, "python of an environment with torch and transformers", required=True)
flags.DEFINE_integer("rounds", 3, "turns of each side")
flags.DEFINE_integer("steps", 9, "steps of a turn")


def two_labels():
    """A task of two labels, as far as steps need one."""
    import jax.numpy as jnp

    from transformers_jax.layers.losses import label_sums
    from transformers_jax.tasks.task import Task

    class Labels(Task):
        one_a_row = True
        streams = {"": ("tokens", "token_types")}

        def encode(self, example: dict) -> dict:
            return example

        def predict(self, output, batch: dict) -> dict:
            return {"logits": output.logits}

        def loss(self, output, batch: dict, *, train: bool):
            sums = label_sums(output.logits, batch["label"], jnp.ones_like(batch["label"]))
            return sums.loss, sums.weight, {}

    return Labels()


def main(_):
    launch.use_large_pages()
    import jax

    from transformers_jax.planning.peak import matmul_peak

    ours = Ours()
    peer = Path(__file__).with_name("bert_peer.py")
    turns, peaks = {"ours": [], "transformers": []}, []
    for turn in range(FLAGS.rounds):
        done = subprocess.run([FLAGS.peer, peer, str(FLAGS.steps)], capture_output=True, text=True, check=True)
        turns["transformers"].append(json.loads(done.stdout.splitlines()[-1]))
        peaks.append(matmul_peak(seconds=1.0))
        turns["ours"].append(ours.measure(FLAGS.steps))
        print(f"turn {turn + 1}: " + json.dumps({name: found[-1] for name, found in turns.items()}), flush=True)
    medians = {side: {n: statistics.median(t[n] for t in found) for n in found[0]} for side, found in turns.items()}
    result = {
        "seconds": {side: {n: [round(t[n], 4) for t in found] for n in found[0]} for side, found in turns.items()},
        "train_tokens_per_second": {side: round(ROWS * LENGTH / m["train"]) for side, m in medians.items()},
        "ratio": {n: round(medians["transformers"][n] / v, 2) for n, v in medians["ours"].items()},
        "peak_gflops": [round(p / 1e9) for p in peaks],
        "train_share_of_peak": round(ours.flops / medians["ours"]["train"] / statistics.median(peaks), 3),
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(result))


class Ours:
    """BERT base with its training step, compiled."""

    def __init__(self):
        import jax
        import numpy as np

        from transformers_jax import models
        from transformers_jax.mesh import make_mesh
        from transformers_jax.planning import flops
        from transformers_jax.training.optimizers import make_optimizer
        from transformers_jax.training.state import create_state
        from transformers_jax.training.step import compile_step, make_train_step

        jax.config.update("jax_default_prng_impl", "rbg")
        self.mesh = make_mesh({})
        self.model = models.build({"name": "bert", "head": "sequence", "labels": 2}, 30_522)
        options = {"name": "adamw", "schedule": "constant", "learning_rate": 1e-5, "weight_decay": 0.01}
        tx, _ = make_optimizer(options, 1000)
        self.batch = self.rows(ROWS) | {"label": np.zeros(ROWS, np.int32)}
        self.state, shardings = create_state(self.model, tx, self.batch, self.mesh, seed=0)
        step = make_train_step(self.model, two_labels(), tx, seed=0)
        self.flops = flops.of_jaxpr(jax.make_jaxpr(step)(self.state, self.batch))
        self.step = compile_step(step, self.mesh, shardings)

    def rows(self, count: int) -> dict:
        import numpy as np

        whole = np.ones((count, LENGTH), np.int32)
        tokens = np.random.default_rng(0).integers(1000, 30_000, (count, LENGTH)).astype(np.int32)
        positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), whole.shape)
        return {"tokens": tokens, "positions": positions.copy(), "segments": whole, "token_types": whole * 0}

    def measure(self, steps: int) -> dict[str, float]:
        """Seconds a training step, and an inference of 1 and of 32 rows."""
        import jax

        from transformers_jax.inference.predictor import Predictor
        from transformers_jax.mesh import global_batch

        batch = global_batch(self.batch, self.mesh)

        def train():
            self.state, _ = jax.block_until_ready(self.step(self.state, batch))

        found = {"train": seconds(train, steps)}
        infer = Predictor(self.model, two_labels(), {"params": self.state.params, "model_state": {}}, self.mesh, longest=LENGTH)
        for rows in 1, 32:
            fields = self.rows(rows)
            examples = [{name: fields[name][i] for name in ("tokens", "token_types")} for i in range(rows)]
            found[f"inference_{rows}"] = seconds(lambda e=examples: infer(e), steps if rows == 1 else max(3, steps // 2))
        return found


if __name__ == "__main__":
    app.run(main)
