"""The pool of workers with Ray's few calls made by hand: room on each node; workers that come late, die, or never come."""

from types import SimpleNamespace

import pytest

from transformers_jax.errors import DiskError, UserError
from transformers_jax.search import workers


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


class Ray:
    """Nodes by their resources; a future is ready once `ends` says what it ends with. Actor i is greeted by "host:i"."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, *resources, come=99):
        """come: how many actors find a place."""
        self.resources, self.come, self.options, self.ends = resources, come, [], {}

    def nodes(self):
        gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [gone, *({"Alive": True, "Resources": found} for found in self.resources)]

    def remote(self, _):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *_: self.actor(options)))

    def actor(self, options):
        number = len(self.options)
        self.options.append(options)
        if number < self.come:
            self.ends[f"name {number}"] = f"host:{number}"
        return SimpleNamespace(
            name=SimpleNamespace(remote=lambda: f"name {number}"), train=SimpleNamespace(remote=lambda job: job)
        )

    def wait(self, futures, num_returns, timeout):
        ready = [future for future in futures if future in self.ends][:num_returns]
        assert ready or not timeout, "it would wait for ever"
        return ready, [future for future in futures if future not in ready]

    def get(self, future):
        if isinstance(self.ends[future], Exception):
            raise self.ends[future]
        return self.ends[future]


def start(monkeypatch, ray, number, cores=1):
    monkeypatch.setattr(workers, "_start_ray", lambda *_: ray)
    return workers.start(None, workers=number, address="here", cores=cores)


@pytest.mark.parametrize(
    "nodes, cores, room",
    [
        ([{"CPU": 4.0}], 1, 4),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2, 2),
        ([{"CPU": 16.0, "GPU": 8.0}], 4, 4),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0}], 1, 2),
        ([{"CPU": 4.0, "TPU": 4.0}, {"CPU": 0.0, "TPU": 4.0}], 1, 4),
    ],
)
def test_room_is_counted_by_node(monkeypatch, nodes, cores, room):
    ray = Ray(*nodes)
    assert start(monkeypatch, ray, -1, cores).size == room == len(ray.options)
    with pytest.raises(UserError, match=f"^--workers=9: Ray has room for {room}, each with {cores} CPU"):
        start(monkeypatch, Ray(*nodes), 9, cores)


def test_workers_that_do_not_come_end_the_search(monkeypatch):
    monkeypatch.setattr(workers, "START", 0.0)
    monkeypatch.setattr(workers, "POLL", 0.0)
    with pytest.raises(UserError, match="^1 of 3 workers are not there after 0 minutes: each takes 2 CPU and 1 GPU of one"):
        start(monkeypatch, Ray({"CPU": 6.0, "GPU": 3.0}, come=2), 3, 2)


def test_the_others_go_on_where_a_worker_died(monkeypatch):
    ray = Ray({"CPU": 2.0}, come=2)
    pool = start(monkeypatch, ray, 2)
    pool.submit(0, "a")
    pool.submit(1, "b")
    ray.ends["a"] = RayError("its node died")
    assert pool.next() == (0, None, "host:0", "its node died")
    assert pool.busy == 1 and not pool.free
    ray.ends["b"] = "done"
    assert pool.next() == (1, "done", "host:1", "") and pool.free
    pool.submit(2, "c")
    ray.ends["name 2"] = "host:2"  # another took its place
    assert not pool.free and pool.next() is None and pool.free and pool.busy == 1
    pool.submit(3, "d")
    ray.ends |= {"d": "done too"}
    assert pool.next() == (3, "done too", "host:2", "")


def test_a_pool_of_the_dead_waits_for_a_worker(monkeypatch):
    ray = Ray({"CPU": 1.0}, come=1)
    pool = start(monkeypatch, ray, 1)
    for number, dead in enumerate("ab"):
        pool.submit(number, dead)
        ray.ends |= {dead: RayError("killed"), "name 1": "host:1"}
        assert pool.next().death == "killed" and not pool.busy
        if number == 0:
            assert pool.free
    monkeypatch.setattr(workers, "START", 0.0)
    monkeypatch.setattr(workers, "POLL", 0.0)
    with pytest.raises(UserError, match="1 of 1 workers are not there"):
        pool.free  # noqa: B018


def test_errors_of_a_worker(monkeypatch):
    ray = Ray({"CPU": 2.0})
    pool = start(monkeypatch, ray, 2)
    for number, cause in enumerate([DiskError("the disk is full"), ValueError("a bug")]):
        pool.submit(number, cause)
        ray.ends[cause] = RayTaskError(cause)
    with pytest.raises(DiskError, match="^the disk is full$"):
        pool.next()
    with pytest.raises(RayTaskError):
        pool.next()
    ray = Ray({"CPU": 1.0}, come=0)
    ray.ends["name 0"] = RayError("ValueError: no such tokenizer")
    with pytest.raises(UserError, match="worker 0 cannot start: ValueError: no such tokenizer; try --workers=0"):
        start(monkeypatch, ray, 1)
