"""What a training run will take, said before it is launched: `pretrain --dry_run` prints it."""

import math
import time
from typing import Any, NamedTuple

import jax

from transformers_jax.planning import counts, flops, memory


class Plan(NamedTuple):
    """Numbers of one run, from its compiled step.

    parameters: elements by module.
    operations: of one step over all devices.
    positions: target positions of one step, padding included; without tokens its examples.
    memory: bytes on one device.
    limit: bytes that a device has for JAX; None where it does not tell.
    mesh: size by axis.
    attention: the kernel that the step contains.
    compile_seconds: tracing and compiling, or reading the compiled program from the disk.
    steps: of the whole run.
    peak: operations per second of a large matrix product on one device, measured.
    widest: whether there are narrower batches than the one that all this is of.
    unit: what `positions` are.
    """

    parameters: dict[str, int]
    operations: int
    positions: int
    memory: memory.Memory
    limit: int | None
    mesh: dict[str, int]
    attention: str
    compile_seconds: float
    steps: int
    peak: float
    widest: bool = False
    unit: str = "target position"

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def device_hours(self) -> float:
        """Hours times devices at the measured peak: no run is faster, but where there are narrower batches."""
        return self.steps * self.operations / self.peak / 3600


def make(
    step, jaxpr, state: Any, batch: dict, mesh, *, steps: int, peak: float, widest: bool = False, split: dict | None = None
) -> Plan:
    """Compiles a step without running it, and counts.

    Args:
      step: the compiled training step, which has `lower`.
      jaxpr: the step as traced, over the batch of all devices.
      state: a TrainState of `jax.ShapeDtypeStruct`s with their shardings.
      batch: the fields as `jax.ShapeDtypeStruct`s with their shardings.
      mesh: the mesh of devices.
      steps: of the whole run.
      peak: operations per second of a device, as `peak.matmul_peak` measures them, in what the model computes in.
      widest: whether the run has narrower batches too.
      split: the fields as the step takes them, where that is otherwise: under pmap with devices in front.
    """
    start = time.perf_counter()
    compiled = step.lower(state, split or batch).compile()
    seconds = time.perf_counter() - start
    counted = next(name for name in ("targets", "tokens", "row_weights") if name in batch)
    return Plan(
        parameters=counts.by_module(state.model_params),
        operations=flops.of_jaxpr(jaxpr),
        positions=batch[counted].size,
        memory=memory.of_step(compiled, state, batch),
        limit=memory.available(jax.local_devices()[0]),
        mesh=dict(mesh.shape),
        attention=attention_kernel(flops.primitives(jaxpr)),
        compile_seconds=seconds,
        steps=steps,
        peak=peak,
        widest=widest,
        unit="example" if counted == "row_weights" else "target position",
    )


def attention_kernel(primitives: set[str]) -> str:
    """The kernel of attention, "cudnn", "splash" or "xla", of a program with these primitives (`flops.primitives`)."""
    if any(name.startswith("dot_product_attention") for name in primitives):
        return "cudnn"
    return "splash" if "pallas_call" in primitives else "xla"


def lines(plan: Plan) -> list[str]:
    """The plan in words, one fact a line."""
    device = jax.devices()[0]
    total = sum(plan.parameters.values())
    axes = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    m = plan.memory
    temporaries = "unknown" if m.temporaries is None else readable(m.temporaries)
    limit = "" if plan.limit is None else f" of {readable(plan.limit)}"
    least = "all steps as wide as the widest" if plan.widest else "no run is faster"
    return [
        f"parameters      {total:,}",
        *(f"  {module:<26}{count:>14,}" for module, count in plan.parameters.items()),
        f"FLOPs a step    {plan.operations:.4g}, {plan.operations / plan.positions:.4g} {article(plan.unit)}",
        f"memory a device {readable(m.total)}{limit}: state {readable(m.state)}, temporaries {temporaries},"
        f" batch {readable(m.batch)}",
        f"mesh            {axes} ({plan.devices} × {device.device_kind})",
        f"attention       {plan.attention}",
        f"compile time    {plan.compile_seconds:.1f} s",
        f"peak            {plan.peak / 1e9:,.0f} GFLOP/s in a large matrix product on one device",
        f"device hours    {plan.device_hours:.3g} at that peak for {plan.steps:,} steps: {least}",
    ]


def article(unit: str) -> str:
    """"a target position", "an example"."""
    return f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}"


def show(plan: Plan) -> None:
    """Prints the plan, in the first process."""
    if jax.process_index() == 0:
        print(*lines(plan), sep="\n")


def readable(size: int) -> str:
    """Bytes as people read them."""
    unit, name = next((u for u in ((2**30, "GiB"), (2**20, "MiB")) if size >= u[0]), (2**10, "KiB"))
    return f"{size / unit:.3g} {name}"
