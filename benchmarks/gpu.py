"""Training on one accelerator: tokens a second and share of the peak, in bfloat16, on data that is drawn; needs no network.

    python -m benchmarks.gpu [--out=FILE] [--models=bert_base,…] [--minutes=8] [--peer=PYTHON] [--small]

One line of a table and one line of JSON (in --out, if given) as each model is done. The peak is that of a product of
8,192 × 8,192 random numbers, measured in the same call. "kernel" is what computes attention; where that is cuDNN, the step
is measured once more with XLA's attention. With --peer, a Python that has torch and transformers, the same architecture
trains there with torch.compile beside it. --small takes tiny models and a small product, to see that everything runs on a CPU.
Models that would begin after --minutes are left out, and the last line says which.
"""

import json
import subprocess
import time
from pathlib import Path

from absl import app, flags

from benchmarks.gpu_sizes import MODELS, SMALL, Size

FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "a file for the lines of JSON")
flags.DEFINE_list("models", list(MODELS), "which of the models, in this order")
flags.DEFINE_float("minutes", 8.0, "no model is begun later")
flags.DEFINE_string("peer", None, "python of an environment with torch and transformers")
flags.DEFINE_bool("small", False, "tiny models: does it run?")
flags.DEFINE_integer("steps", 12, "steps that are timed, after two that are not", 3)

COLUMNS = ("model", "tokens_per_second", "share_of_peak", "kernel", "xla_tokens_per_second", "compile_seconds", "peak_gib")


def main(_) -> None:
    import jax

    began, device = time.monotonic(), jax.devices()[0]
    peak = product_peak(1024 if FLAGS.small else 8192)
    write({"device": device.device_kind, "platform": device.platform, "jax": jax.__version__, "peak_tflops": peak / 1e12})
    print(" | ".join((*COLUMNS, "peer_tokens_per_second")), flush=True)
    left = list(FLAGS.models)
    while left and time.monotonic() - began < 60 * FLAGS.minutes:
        name = left.pop(0)
        found = {"model": name} | measured(sizes()[name], peak, device)
        if FLAGS.peer:
            found |= peer(name)
        write(found)
        shown = (found.get(key, "") for key in (*COLUMNS, "peer_tokens_per_second"))
        print(" | ".join(f"{x:.3g}" if isinstance(x, float) and x < 100 else f"{x}" for x in shown), flush=True)
    write({"left_out": left, "seconds": round(time.monotonic() - began, 1)})


def sizes() -> dict[str, Size]:
    """The models to be measured, by name."""
    return SMALL if FLAGS.small else MODELS


def write(found: dict) -> None:
    """Adds a line to the file of --out, and prints it where there is none."""
    line = json.dumps(found)
    if FLAGS.out:
        with open(FLAGS.out, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    else:
        print(line, flush=True)


def product_peak(size: int, dtype: str = "bfloat16") -> float:
    """Operations a second of the product of two matrices [size, size] of random numbers: the best of ten."""
    import jax

    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    product, best = jax.jit(lambda a, b: a @ b), float("inf")
    jax.block_until_ready(product(a, b))
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def measured(size: Size, peak: float, device) -> dict:
    """What a model's training step takes, with the kernel that is chosen, and with XLA's where that is another."""
    found = trained(size, "auto", device)
    seconds, operations = found.pop("seconds"), found.pop("operations")
    found["share_of_peak"] = operations / seconds / peak
    if found["kernel"] == "cudnn":
        found["xla_tokens_per_second"] = trained(size, "xla", device)["tokens_per_second"]
    return found


def trained(size: Size, attention: str, device) -> dict:
    """Compiles a training step with AdamW and times it."""
    import jax

    from transformers_jax import models
    from transformers_jax.mesh import global_batch, make_mesh
    from transformers_jax.planning import flops
    from transformers_jax.planning.plan import attention_kernel
    from transformers_jax.training.optimizers import make_optimizer
    from transformers_jax.training.state import create_state
    from transformers_jax.training.step import compile_step, make_train_step

    jax.config.update("jax_default_prng_impl", "rbg")
    mesh = make_mesh({}, [device])
    model = models.build(dict(size.fields) | {"dtype": size.dtype, "attention": attention}, size.vocab_size)
    tx, _ = make_optimizer({"name": "adamw", "schedule": "constant", "learning_rate": 1e-5, "weight_decay": 0.01}, 1000)
    batch = size.batch()
    state, shardings = create_state(model, tx, batch, mesh, seed=0)
    step = compile_step(make_train_step(model, size.task(), tx, seed=0), mesh, shardings)
    with jax.set_mesh(mesh):
        jaxpr = step.trace(state, batch).jaxpr
        start = time.perf_counter()
        program = step.lower(state, batch).compile()
        compiling, batch = time.perf_counter() - start, global_batch(batch, mesh)
        for number in range(2 + FLAGS.steps):
            if number == 2:
                jax.block_until_ready(state)
                start = time.perf_counter()
            state, _ = program(state, batch)
        jax.block_until_ready(state)
    seconds = (time.perf_counter() - start) / FLAGS.steps
    statistics = device.memory_stats() or {}
    return {
        "tokens_per_second": round(size.tokens / seconds), "seconds": seconds, "operations": flops.of_jaxpr(jaxpr),
        "kernel": attention_kernel(flops.primitives(jaxpr)), "compile_seconds": round(compiling, 1),
        "peak_gib": round(statistics.get("peak_bytes_in_use", 0) / 2**30, 2) or None,
    }  # fmt: skip


def peer(name: str) -> dict:
    """Tokens a second of the same architecture in `transformers` on PyTorch, or why there are none."""
    script = Path(__file__).with_name("gpu_peer.py")
    command = [FLAGS.peer, script, name, str(FLAGS.steps), str(int(FLAGS.small))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"peer_tokens_per_second": "failed", "peer_error": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    app.run(main)
