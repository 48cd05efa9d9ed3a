"""Who trains the candidates: this process itself, or workers on Ray, here or on a cluster.

Both are handed jobs and give back what came of them, in the order in which they end:

    with start(config, workdir, workers=2) as pool:
        while pool.free: pool.submit(number, job)
        outcome = pool.next()  # or None: look again whether the pool is free

A worker on this machine has processor cores of its own, and XLA runs one thread a core, so that two workers do not wait
for each other; where Ray counts GPUs or TPUs, a worker has one of them. On a cluster the project is installed on every
node, and workdir and data have the same paths there.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import logging

from transformers_jax.errors import UserError

ACCELERATORS = ("GPU", "TPU")
POLL = 1.0  # seconds between two looks, so that signals are heard
START = 600.0  # seconds until a worker must be there: a place found for it, its libraries loaded, the data read
ATTEMPTS = 3  # at starting Ray: on a machine with much else to do it gives up early


class Outcome(NamedTuple):
    """What came of a job: `result`, or why the worker died over it."""

    number: int
    result: Any
    worker: str
    death: str = ""


def death_note(outcome: Outcome) -> str:
    """The failure of a candidate over which its workers died."""
    return f"dead worker: {outcome.death}"[:200]


def start(make: Callable[[], Callable], *, workers: int, address: str = "", cores: int = 1):
    """The pool of workers.

    Args:
      make: makes what trains: job → result. Each worker calls it once.
      workers: how many; 0 trains in this process; -1 is one for each accelerator, or for every `cores` processor cores.
      address: of a Ray cluster; "" starts Ray here.
      cores: processor cores of a worker.

    Raises:
      UserError: Ray is missing or cannot be reached, or has no room for that many workers.
    """
    if workers < -1 or cores < 1:
        raise UserError(f"--workers={workers}, config.search.cores={cores}: give -1, 0 or more workers of 1 or more cores")
    return Inline(make) if workers == 0 else RayWorkers(make, workers, address, cores)


class Inline:
    """Trains in this process, one job at a time: what breaks it breaks the search, which is what debugging wants."""

    name = "inline"

    def __init__(self, make: Callable[[], Callable]):
        self._make, self._train, self._job = make, None, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if hasattr(self._train, "close"):
            self._train.close()

    @property
    def size(self) -> int:
        return 1

    @property
    def busy(self) -> int:
        """Jobs under way."""
        return int(self._job is not None)

    @property
    def free(self) -> bool:
        """Whether a job can be submitted."""
        return self._job is None

    def submit(self, number: int, job) -> None:
        self._job = number, job

    def next(self) -> Outcome:
        """Waits for the next job that ends."""
        self._train = self._train or self._make()
        (number, job), self._job = self._job, None
        return Outcome(number, self._train(job), self.name)


class Worker:
    """A process of its own, made by Ray."""

    def __init__(self, make: Callable[[], Callable], cores: list[int]):
        """cores: numbers of those that it may run on; [] is any."""
        if cores:
            os.sched_setaffinity(0, cores)  # XLA's threads, which begin after this, are as many
        if len(cores) == 1:
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
        self._train = make()

    def name(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    def train(self, job):
        return self._train(job)


class RayWorkers:
    """Actors of Ray, each in its slot; one that dies is made anew."""

    def __init__(self, make: Callable[[], Callable], workers: int, address: str, cores: int):
        self._ray = _start_ray(workers, address, cores)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._kind = next((kind for kind in ACCELERATORS if any(node.get(kind) for node in nodes)), "CPU")
        wanted = {"CPU": cores} | ({self._kind: 1} if self._kind in ACCELERATORS else {})
        self._wanted = " and ".join(f"{amount} {name}" for name, amount in wanted.items())
        room = room_for(wanted, nodes)
        if workers > room or not room:
            there = " and ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in wanted)
            what = f"each with {self._wanted} of one node, and {there} in all; see config.search.cores"
            raise UserError(f"--workers={workers}: Ray has room for {room}, {what}")
        self.size = room if workers < 0 else workers
        self._make, self._cores, self._local = make, cores, not address
        self._actors: list[Any] = [None] * self.size
        self._names = [""] * self.size
        self._running: dict[Any, tuple[int, int]] = {}  # a future → (its slot, the job's number)
        self._coming: dict[Any, int] = {}  # a future, the name of a worker that is being made → its slot
        self._idle: list[int] = []
        for slot in range(self.size):
            self._hire(slot)
        self._await(self.size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ray.shutdown()

    @property
    def busy(self) -> int:
        """Jobs under way."""
        return len(self._running)

    @property
    def free(self) -> bool:
        """Whether a job can be submitted. Where none is under way it waits for a worker that is being made."""
        if not self._running and not self._idle:
            self._await(1)
        return bool(self._idle)

    def submit(self, number: int, job) -> None:
        slot = self._idle.pop(0)
        self._running[self._actors[slot].train.remote(job)] = slot, number

    def next(self) -> Outcome | None:
        """Waits for the next job that ends, or whose worker dies; None if a worker that is made anew is there first."""
        done: list = []
        while not done:
            done, _ = self._ray.wait([*self._coming, *self._running], num_returns=1, timeout=POLL)
        if done[0] in self._coming:
            self._greet(done[0])
            return None
        slot, number = self._running.pop(done[0])
        name = self._names[slot]
        try:
            result = self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise  # an error of this code, not a death
        except self._ray.exceptions.RayError as error:
            self._hire(slot)
            return Outcome(number, None, name, _first_line(error))
        self._idle.append(slot)
        return Outcome(number, result, name)

    def _actor(self, slot: int):
        options: dict[str, Any] = {"num_cpus": self._cores}
        if self._kind == "GPU":
            options["num_gpus"] = 1
        elif self._kind == "TPU":
            options["resources"] = {"TPU": 1}
        cores = []
        if self._kind == "CPU" and self._local and hasattr(os, "sched_getaffinity"):
            here = sorted(os.sched_getaffinity(0))
            cores = [here[(slot * self._cores + i) % len(here)] for i in range(self._cores)]
        return self._ray.remote(Worker).options(**options).remote(self._make, cores)

    def _hire(self, slot: int) -> None:
        """Has a worker made, which is idle once it has been greeted."""
        self._actors[slot] = self._actor(slot)
        self._coming[self._actors[slot].name.remote()] = slot

    def _greet(self, greeting) -> None:
        """A worker is there. One that cannot be made ends the search: no candidate is to blame."""
        slot = self._coming.pop(greeting)
        try:
            self._names[slot] = self._ray.get(greeting)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"worker {slot} cannot start: {_first_line(error)}; try --workers=0") from error
        logging.info("worker %d is process %s", slot, self._names[slot])
        self._idle.append(slot)

    def _await(self, count: int) -> None:
        """Waits until so many workers are idle.

        Raises:
          UserError: they are not after START seconds.
        """
        until = time.monotonic() + START
        while len(self._idle) < count:
            there, _ = self._ray.wait(list(self._coming), num_returns=1, timeout=POLL)
            for greeting in there:
                self._greet(greeting)
            if not there and time.monotonic() > until:
                raise UserError(
                    f"{len(self._coming)} of {self.size} workers are not there after {START / 60:g} minutes: each takes "
                    f"{self._wanted} of one node, which another job may hold; give fewer --workers, or the same command later"
                )


def room_for(wanted: dict[str, int], nodes: list[dict[str, float]]) -> int:
    """How many workers there is room for: each has all that it takes on one node."""
    return sum(min(int(node.get(name, 0) // amount) for name, amount in wanted.items()) for node in nodes)


def _start_ray(workers: int, address: str, cores: int):
    """Ray, started here or connected to."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError("--workers needs Ray, pip install 'transformers_jax[search]'; or train here, --workers=0") from error
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if address:
        where = {"address": address}
    else:
        cpus = max(there, workers * cores)
        where = {"address": "local", "num_cpus": cpus, "object_store_memory": 10**8, "include_dashboard": False}
    handler = signal.getsignal(signal.SIGTERM)
    for attempt in range(ATTEMPTS):
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except Exception as error:  # Ray's own are of many kinds; that it did not come up in time is a plain Exception
            ray.shutdown()
            if attempt == ATTEMPTS - 1 or address:
                what = f"--ray_address={address}" if address else "Ray"
                raise UserError(f"{what} cannot be reached or started: {_first_line(error)}; try --workers=0") from error
            logging.warning("Ray did not start and is started again: %s", _first_line(error))
        else:
            signal.signal(signal.SIGTERM, handler)  # Ray's own prints a stack of C++ and leaves nothing time to end
            return ray


def _first_line(error: Exception) -> str:
    """What happened, in one line of Ray's many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if "Error" in lines[-1] else lines[0])[:200] if lines else type(error).__name__
