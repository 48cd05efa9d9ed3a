"""A tiny state for the tests of checkpoints, and, as a script, those tests' work that needs a process of its own.

`python tiny_checkpoints.py NAME DIRECTORY …` prints one line of JSON.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import processes

from transformers_jax.errors import UserError
from transformers_jax.training import integrity
from transformers_jax.training.checkpoint import Checkpoints


class State(flax.struct.PyTreeNode):
    step: Any
    params: Any
    frozen: Any
    model_state: Any
    opt_state: Any


def make_state(step=0, rows=6):
    r = np.random.default_rng(step)

    def random(*shape, dtype=np.float32):
        return r.normal(size=shape).astype(dtype)

    dense = {"kernel": random(rows, 8), "bias": random(8, dtype=jnp.bfloat16)}
    params = {"dense": dense, "count": np.arange(3, dtype=np.int32) + step}
    frozen, model_state = {"base": np.arange(-8, 8).astype(jnp.int4)}, {"mask": np.arange(5) % 2 == 0}
    moments = (jax.tree.map(lambda x: x + x.dtype.type(1), params), {}, [random(2, 3, 4)], None)
    return jax.device_put(State(np.int32(step), params, frozen, model_state, moments))


def same(a, b):
    """Bit for bit, dtypes and structure too."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
    )


def begin(name, directory, *arguments, devices=0, mounted=False):
    """A process of this file; None where it asks for a small file system and may not mount one."""
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=3m none "$0" && exec "$@"', str(directory)]
    if mounted and (not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode):
        return None
    return processes.start(__file__, name, directory, *arguments, devices=devices, before=mount if mounted else ())


def killed(directory, moment):
    """Dies of SIGKILL while step 2 is being saved."""
    checkpoints = Checkpoints(directory, keep=9)
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    if moment == "writing":
        state = jax.device_put({"params": {str(i): np.ones((500, 1000), np.float32) for i in range(40)}})
    else:
        state = make_state(2)
        integrity.seal = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
    checkpoints.save(2, state)
    while moment != "writing" or not list(Path(directory).glob("2*/*")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def full(directory):
    report = {}
    checkpoints = Checkpoints(directory, keep=9)
    checkpoints.save(1, make_state(1))
    try:
        checkpoints.save(2, {"params": jax.device_put(np.ones(2**20, np.float32))})
        checkpoints.close()
    except UserError as error:
        report["error"] = str(error)
    return report | {"left": os.listdir(directory), "restored": checkpoints.restore_latest(make_state())[0]}


def meshes(directory):
    def placed(state, mesh, axes):
        def place(x):
            parts = axes if x.ndim == 2 else ()
            return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*parts)))

        return jax.tree.map(place, state)

    first = jax.make_mesh((8,), ("data",))
    second = jax.make_mesh((2, 4), ("data", "fsdp"))
    state = placed(make_state(5, rows=8), first, ("data",))
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        placed(make_state(0, rows=8), second, (("data", "fsdp"), None)),
    )
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(5, state)
        _, restored, _ = checkpoints.restore_latest(wanted)
        params = checkpoints.restore_params(abstract={"params": wanted.params})["params"]
        average = checkpoints.average(2, {"params": wanted.params})["params"]
    kept = all(x.sharding == y.sharding for x, y in zip(*map(jax.tree.leaves, (restored, wanted)), strict=True))
    shard = restored.params["dense"]["kernel"].addressable_shards[0].data.shape
    third = jax.make_mesh((2, 4), ("fsdp", "tensor"))
    many = {"params": {f"kernel{i}": np.arange(64, dtype=np.float32).reshape(8, 8) + i for i in range(60)}}
    many = placed(many, third, ("fsdp", "tensor"))
    with Checkpoints(f"{directory}/many") as checkpoints:
        for step in 1, 2, 3:
            checkpoints.save(step, many)
        both_ways = checkpoints.restore_latest(many)[1]
    return {
        "devices": jax.device_count(),
        "both_ways": same(both_ways, many),
        "shard": shard,
        "same": same(restored, state) and kept,
        "params": same(params, state.params),
        "average": same(average, state.params),
    }


def process(directory, index, port):
    """One of two processes that save one array together; process 1 then finds step 2 damaged."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    sharding = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec("data"))
    half = np.arange(8.0, dtype=np.float32)[4 * int(index) :][:4]
    state = {"params": {"a": jax.make_array_from_process_local_data(sharding, half)}}
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state, {"position": int(index)})
        step, restored, extra = checkpoints.restore_latest(state)
        total = float(jax.jit(jnp.sum)(restored["params"]["a"]))
        checkpoints.save(2, state, {"position": int(index)})
        checkpoints.wait()
        read = integrity.read_json
        if index == "1":
            integrity.read_json = lambda path: read(path if "/1/" in str(path) else path / "missing")
        fallback = checkpoints.restore_latest(state)[0]
        if index == "1":
            integrity.read_json = lambda path: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files", str(path)))
        try:
            refused = checkpoints.restore_latest(state)[0]
        except UserError as error:
            refused = str(error)
    return {"step": step, "extra": extra, "sum": total, "fallback": fallback, "refused": refused}


if __name__ == "__main__":
    scripts = {"killed": killed, "full": full, "meshes": meshes, "process": process}
    print(json.dumps(scripts[sys.argv[1]](*sys.argv[2:])))
