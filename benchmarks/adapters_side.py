"""One side of `benchmarks.adapters`: a process that trains one way, and tells its memory, and its seconds a step when asked.

    python -m benchmarks.adapters_side METHOD FORM MODEL LENGTH

METHOD is full, lora or qlora; FORM scanned or unrolled, perhaps +remat; MODEL what --init_from takes. The step is compiled
before any weights are read. Prints a line of JSON, and then for each number on stdin the seconds of so many steps.
"""

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable

import numpy as np

RANK, ALPHA, BLOCK = 8, 16.0, 64
METHODS = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "rank": RANK, "alpha": ALPHA, "targets": (".",)},
    "qlora": {"method": "lora", "rank": RANK, "alpha": ALPHA, "targets": (".",), "quantization": "nf4", "block": BLOCK},
}


def main(method: str, form: str, path: str, length: str) -> None:
    import jax

    from configs import llama
    from transformers_jax.mesh import global_batch
    from transformers_jax.runs import adoption
    from transformers_jax.runs import train as training
    from transformers_jax.runs.experiment import Experiment, settled

    config = llama.get_config("instruct")
    config.model.update(scan_layers="scanned" in form, remat="remat" in form)
    config.data.update(batch_size=1, lengths={"tokens": int(length)})
    config.finetuning.update(METHODS[method])
    run = Experiment(settled(adoption.adopted(config, path)), None, training=True)
    jax.config.update("jax_default_prng_impl", run.config.prng)
    tx, _ = training.optimizer_of(run)
    abstract = run.abstract_state(tx)
    update = training.compiled_step(run, tx, jax.tree.map(lambda x: x.sharding, abstract))
    with training.in_context(run):
        began = time.perf_counter()
        program = update.lower(abstract, run.batch_shapes()).compile()
        compiling = time.perf_counter() - began
        batch = global_batch(drawn(run.batch_shapes(), run.tokenizer.vocab_size), run.mesh)
        serve({"compile_seconds": round(compiling, 1)}, lambda: training.first_state(run, tx), lambda s: program(s, batch))


def drawn(shapes: dict, vocab_size: int) -> dict[str, np.ndarray]:
    """A batch of these fields [B, T] without padding, of random tokens."""
    rng, found = np.random.default_rng(0), {}
    for name, like in shapes.items():
        found[name] = np.ones(like.shape, like.dtype)
        if name in ("tokens", "targets"):
            found[name] = rng.integers(5, vocab_size, like.shape).astype(like.dtype)
        elif name == "positions":
            found[name] = np.broadcast_to(np.arange(like.shape[1], dtype=like.dtype), like.shape).copy()
    return found


def serve(known: dict, read: Callable, step: Callable) -> None:
    """Reads the weights, steps three times, prints what it took and the losses; then answers numbers of steps with seconds.

    Args:
      known: to be printed, too.
      read: () → state.
      step: state → (state, metrics), compiled.
    """
    import jax

    before = settled_memory()
    reset_peak()
    began = time.perf_counter()
    state = jax.block_until_ready(read())
    seconds, reading = time.perf_counter() - began, memory("VmHWM") - before
    held = sum(x.nbytes for x in jax.live_arrays())
    reset_peak()
    losses = []
    for _ in range(3):
        state, metrics = jax.block_until_ready(step(state))
        losses.append(round(float(metrics["loss"] / metrics["weight"]), 5))
    training = memory("VmHWM") - before
    peaks = {"peak_mb": max(reading, training), "reading_mb": reading, "training_mb": training, "arrays_mb": held}
    found = {name: round(size / 1e6, 1) for name, size in peaks.items()}
    print(json.dumps(known | found | {"read_seconds": round(seconds, 1), "losses": losses}), flush=True)
    for line in sys.stdin:
        took = []
        for _ in range(int(line)):
            began = time.perf_counter()
            state, _ = jax.block_until_ready(step(state))
            took.append(time.perf_counter() - began)
        print(json.dumps(took), flush=True)


def settled_memory() -> int:
    """Bytes resident, after what was freed has gone back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return memory("VmRSS")


def memory(name: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS resident, VmHWM their peak."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))


def reset_peak() -> None:
    """The peak counts from now on."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


if __name__ == "__main__":
    main(*sys.argv[1:])
