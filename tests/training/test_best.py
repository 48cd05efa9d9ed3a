"""The best model: it is on the disk whenever a line calls it the best, and patience ends a run at the same step always."""

import errno
import json
import logging
import shutil
import signal

import numpy as np
import pytest
import tiny_runs
from processes import finish, free_port, start
from tiny_runs import SCORES, TOTAL, Data, make_state, scored

from transformers_jax.errors import DiskError, UserError
from transformers_jax.training import best, integrity
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.loop import Evaluator
from transformers_jax.training.metrics import TIMING_KEYS


def lines(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in found]


def kept(workdir):
    """(what is said of the best model, its parameters)."""
    with Checkpoints(workdir / "best") as checkpoints:
        return best.saved(checkpoints), checkpoints.restore_params()["params"]["w"].tobytes()


def at(step):
    """The parameters of a step."""
    return np.asarray(tiny_runs.train(**tiny_runs.arguments(total_steps=step, evaluators=[]))["params"]["w"]).tobytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A workdir of a run that nothing befell, and its last parameters."""
    workdir = tmp_path_factory.mktemp("reference")
    return workdir, np.asarray(scored(workdir)["params"]["w"]).tobytes()


def assert_same(workdir, reference):
    assert lines(workdir) == lines(reference[0]) and kept(workdir) == kept(reference[0])
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step, state, _ = checkpoints.restore_latest(make_state())
    assert step == TOTAL and np.asarray(state["params"]["w"]).tobytes() == reference[1]


def test_the_best_stays_when_its_checkpoint_is_gone(reference):
    said, params = kept(reference[0])
    assert said == {"metric": "score", "value": 0.7, "step": 12} and params == at(12)
    assert best.steps_in(reference[0]) == {12}
    assert sorted(int(p.name) for p in (reference[0] / "checkpoints").iterdir()) == [16, 20, 24]


def test_the_first_of_equal_ones_and_what_is_not_finite_is_none(tmp_path):
    scored(tmp_path, total_steps=9)
    assert kept(tmp_path)[0]["step"] == 6
    shutil.rmtree(tmp_path / "best")
    nothing = Evaluator("validation", lambda *_: {"score": np.nan, "loss": 1.0})
    scored(tmp_path, total_steps=10, evaluators=[nothing])
    assert best.steps_in(tmp_path) == set()


def test_where_a_model_is_read_from(reference, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    workdir = reference[0]
    assert best.chosen(workdir) == best.place(workdir) == (workdir / "best", 12)
    assert best.place(workdir, "best") == best.place(workdir, 12) == (workdir / "best", 12)
    assert "that of step 12; --step=last takes the last" in caplog.text
    assert best.place(workdir, "last") == (workdir / "checkpoints", None)
    assert best.place(workdir, 20) == (workdir / "checkpoints", 20)
    assert best.place(tmp_path) == (tmp_path / "checkpoints", None)
    with pytest.raises(UserError, match="keeps no best model: .*config.training.keep_best.* give --step=last"):
        best.place(tmp_path, "best")


def test_stopped_after_any_step_it_ends_alike(tmp_path, reference):
    for limit in range(2, TOTAL + 1, 5):
        data = Data()
        with pytest.raises(SystemExit):
            scored(tmp_path, iterator=data, should_stop=lambda data=data, limit=limit: data.position >= limit)
    scored(tmp_path)
    assert_same(tmp_path, reference)


MOMENTS = [
    "best seal 3",
    "after 3 validation",
    "best seal 6",
    "before 12 validation",
    "torn 12 validation",
    "step 14",
    "seal 16",
]


def test_killed_at_many_moments_it_ends_alike(tmp_path, reference):
    codes, _ = finish(start(tiny_runs.__file__, "killed_with_best", tmp_path, *MOMENTS, ""))
    assert codes == [-signal.SIGKILL] * len(MOMENTS) + [0]
    assert_same(tmp_path, reference)


def test_a_full_disk_loses_nothing(tmp_path, reference, monkeypatch):
    seal = integrity.seal

    def full(folder):
        if folder.parent.name == "best" and folder.name.startswith("12"):
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(folder)

    with monkeypatch.context() as patch:
        patch.setattr(integrity, "seal", full)
        with pytest.raises(DiskError, match="best/12: No space left.* kept: 6"):
            scored(tmp_path)
    assert kept(tmp_path)[0]["step"] == 6
    assert [line["step"] for line in lines(tmp_path) if line["split"] == "validation"] == [3, 6, 9]
    scored(tmp_path)
    assert_same(tmp_path, reference)


def test_patience_ends_a_run_which_may_go_on(tmp_path, reference, caplog):
    caplog.set_level(logging.INFO)
    state = scored(tmp_path, patience=2)
    assert int(state["step"]) == 21 and "training ends at step 21: score 0.7 of step 12 stays the best" in caplog.text
    assert kept(tmp_path) == kept(reference[0])
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.all_steps()[-1] == 21

    def never(*_):
        raise AssertionError("called")

    assert int(scored(tmp_path, patience=2, step_fn=never)["step"]) == 21
    scored(tmp_path, patience=3)
    assert_same(tmp_path, reference)


def test_patience_counts_what_was_measured_before_a_resumption(tmp_path):
    for limit in 13, 16, 19:
        data = Data()
        with pytest.raises(SystemExit):
            scored(tmp_path, patience=2, iterator=data, should_stop=lambda data=data, limit=limit: data.position >= limit)
    assert int(scored(tmp_path, patience=2)["step"]) == 21


def test_a_best_that_came_too_late_is_of_the_smallest_where_that_is_wanted(tmp_path):
    with Checkpoints(tmp_path / "best", keep=1) as checkpoints:
        found = best.Best(checkpoints, "loss", bigger=False)
        for step, loss in enumerate((3.0, 2.0, 2.5), 1):
            found.take(step, {"loss": loss}, {"params": {"w": np.full(2, loss)}}, None)
        assert (found.value, found.step, found.spent) == (2.0, 2, False)
        assert checkpoints.restore_params()["params"]["w"].tolist() == [2.0, 2.0]


def test_two_processes_go_by_the_scores_of_the_first(tmp_path):
    port = free_port()
    for process in [start(tiny_runs.__file__, "together_until_spent", tmp_path, index, port) for index in range(2)]:
        report, _ = finish(process)
        assert report == {"end": 21}
    with Checkpoints(tmp_path / "best") as checkpoints:
        assert best.saved(checkpoints) == {"metric": "score", "value": SCORES[12], "step": 12}
