"""The loop: a run is a function of its arguments, whatever befalls it on the way."""

import json
import logging
import os
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from processes import finish, free_port, start
from tiny_runs import TOTAL, Data, arguments, evaluators, make_state, make_step, run

from transformers_jax.errors import UserError
from transformers_jax.training import loop
from transformers_jax.training.checkpoint import Checkpoints
from transformers_jax.training.loop import Evaluator, graceful_stop, train
from transformers_jax.training.metrics import TIMING_KEYS


def lines(workdir, timings=False):
    found = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if timings or k not in TIMING_KEYS} for line in found]


def steps(workdir, split):
    return [line["step"] for line in lines(workdir) if line["split"] == split]


def saved(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(workdir, last parameters) of a run that nothing befell."""
    workdir = tmp_path_factory.mktemp("reference")
    return workdir, np.asarray(run(workdir)["params"]["w"])


def assert_same(workdir, state, reference):
    assert lines(workdir) == lines(reference[0]) and saved(workdir) == saved(reference[0])
    assert np.asarray(state["params"]["w"]).tobytes() == reference[1].tobytes()


# What a run does


def test_lines_checkpoints_and_evaluations_of_a_run(reference):
    workdir, params = reference
    assert steps(workdir, "train") == [5, 10, 15, 20, 24]
    assert steps(workdir, "validation") == [8, 16, 24] and steps(workdir, "bleu") == [12, 24]
    assert saved(workdir) == [16, 20, 24]
    assert [(line["step"], line["split"]) for line in lines(workdir)][-3:] == [
        (24, "train"), (24, "validation"), (24, "bleu")
    ]  # fmt: skip
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.saved_config() == {"a": 1}
        assert checkpoints.restore_params()["params"]["w"].tobytes() == params.tobytes()


def test_a_line_is_the_mean_over_the_tokens_of_its_window(reference):
    state, step, data, measured = make_state(), make_step(), Data(), []
    for _ in range(10):
        state, metrics = step(state, next(data))
        measured.append(jax.device_get(metrics))
    last = [line for line in lines(reference[0]) if line["split"] == "train"][1]
    total = {name: sum(float(m[name]) for m in measured[5:]) for name in measured[0]}
    assert list(last) == ["step", "split", "loss", "accuracy", "perplexity", "grad_norm", "learning_rate"]
    assert last["loss"] == pytest.approx(total["loss"] / total["weight"], rel=1e-6)
    assert last["perplexity"] == pytest.approx(np.exp(total["nll"] / total["weight"]), rel=1e-6)
    assert last["accuracy"] == pytest.approx(1 / 3, rel=1e-6)
    assert last["grad_norm"] == pytest.approx(total["grad_norm"] / 5, rel=1e-6)
    assert last["learning_rate"] == pytest.approx(1 / 10, rel=1e-6)  # of update 10, before which nine were made


def test_timings(reference):
    first, second = [line for line in lines(reference[0], timings=True) if line["split"] == "train"][:2]
    assert first["first_step_seconds"] > 0 and "first_step_seconds" not in second
    assert second["tokens_per_second"] > 0 and second["seconds"] > first["seconds"] > first["first_step_seconds"]
    assert second["flops"] == 1e7 and 0 < second["share_of_peak"] < 1
    (evaluation,) = [line for line in lines(reference[0], timings=True) if line["step"] == 8]
    assert evaluation["evaluation_seconds"] > 0


def test_a_finished_run_does_nothing(reference):
    before = {p: p.read_bytes() for p in reference[0].rglob("*") if p.is_file()}

    def never(*_):
        raise AssertionError("called")

    state = run(reference[0], step_fn=never, evaluators=[Evaluator(s, never, e) for s, _, e in evaluators()])
    assert_same(reference[0], state, reference)
    assert {p: p.read_bytes() for p in reference[0].rglob("*") if p.is_file()} == before


def test_as_a_search_uses_it():
    """No workdir: state and evaluations are what it is after."""
    called = []
    state = train(**arguments(evaluators=evaluators(called), log_every=0, checkpoint_every=0, eval_every=0))
    assert int(state["step"]) == TOTAL and called == [TOTAL]
    assert np.asarray(state["params"]["w"]).std() > 0


def test_evaluations_are_made_once_where_two_reasons_meet():
    called = []
    train(**arguments(evaluators=evaluators(called), total_steps=16))
    assert called == [8, 16]


def test_the_data_may_end_too_early(tmp_path):
    with pytest.raises(UserError, match="training data end after step 6"):
        run(tmp_path, iterator=Data(end=6))
    assert saved(tmp_path) == [4]


def test_progress_says_when_the_first_step_was_done(tmp_path, capsys):
    run(tmp_path, verbose=True)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("first step after ") and said[0].endswith(" s")
    assert said[1].startswith("step 5/24  loss ") and "tokens_per_second" in said[1] and "left 0:0" in said[1]
    assert said[2].startswith("step 8  validation: loss ")


def test_the_host_runs_ahead_and_fetches_only_where_something_is_due(monkeypatch):
    """It waits for the step two before, never for the newest; metrics travel once a window."""
    events = []
    step = make_step()

    def counted(state, batch):
        state, metrics = step(state, batch)
        numbers[id(metrics)] = len(numbers) + 1
        kept.append(metrics)
        events.append(("step", len(numbers)))
        return state, metrics

    def waited(metrics):
        events.append(("wait", numbers[id(metrics)]))
        return metrics

    def fetched(metrics):
        events.append(("fetch", [numbers[id(m)] for m in metrics]))
        return get(metrics)

    numbers, kept, get = {}, [], jax.device_get
    with monkeypatch.context() as patch:
        patch.setattr(loop.jax, "block_until_ready", waited)
        patch.setattr(loop.jax, "device_get", fetched)
        patch.setattr(loop, "_HELD", 6)
        every = {"log_every": 12, "eval_every": 0, "checkpoint_every": 0}
        train(**arguments(step_fn=counted, total_steps=12, evaluators=[], **every))
    for number in range(4, 13):
        waits = [n for kind, n in events if kind == "wait" and n == number - loop.AHEAD]
        assert waits, number
        assert events.index(("wait", number - loop.AHEAD)) == events.index(("step", number)) + 1
    fetches = [n for kind, n in events if kind == "fetch"]
    assert fetches[0] == [1, 2, 3, 4, 5] and sum(fetches, []) == list(range(1, 13))  # a long window in parts


# What is not finite


@pytest.mark.parametrize("name, value", [("loss", np.nan), ("loss", np.inf), ("grad_norm", np.nan)])
def test_what_is_not_finite_stops_the_run_before_it_is_kept(tmp_path, name, value):
    step = make_step()

    def bad(state, batch):
        number = int(state["step"]) + 1
        state, metrics = step(state, batch)
        return state, metrics | ({name: jnp.float32(value)} if number == 7 else {})

    called = []
    with pytest.raises(UserError, match=f"{name} is {value} at step 7: .* the checkpoints before it are kept"):
        run(tmp_path, step_fn=bad, evaluators=evaluators(called), log_every=20)  # seen at step 8
    assert called == [] and saved(tmp_path) == [4] and lines(tmp_path) == []
    state = run(tmp_path, total_steps=6)
    assert int(state["step"]) == 6


# Stopping and resuming


def test_resumed_from_any_step_it_ends_alike(tmp_path, reference):
    """Stopped after every third step: in a window of metrics, at a checkpoint, before an evaluation, at the end."""
    for limit in range(3, TOTAL + 1, 3):
        data = Data()
        with pytest.raises(SystemExit) as stop:
            run(tmp_path, iterator=data, should_stop=lambda data=data, limit=limit: data.position >= limit)
        assert stop.value.code == 143 and saved(tmp_path)[-1] == limit
    assert steps(tmp_path, "validation") == [8, 16]
    state = run(tmp_path)
    assert_same(tmp_path, state, reference)


def test_a_stop_during_an_evaluation_leaves_the_rest_to_the_next_run(tmp_path, reference):
    stopped = []

    def first(state, step):
        stopped.append(step)
        return dict(evaluators()[0].run(state, step))

    both = [Evaluator("validation", first, 24), Evaluator("bleu", evaluators()[1].run, 24)]
    with pytest.raises(SystemExit):
        run(tmp_path, evaluators=both, should_stop=lambda: bool(stopped))
    assert steps(tmp_path, "validation") == [24] and steps(tmp_path, "bleu") == []
    state = run(tmp_path, evaluators=both)
    assert steps(tmp_path, "validation") == [24] and steps(tmp_path, "bleu") == [24] and stopped == [24]
    assert np.asarray(state["params"]["w"]).tobytes() == reference[1].tobytes()


def test_the_seconds_of_earlier_processes_are_counted(tmp_path, reference):
    with pytest.raises(SystemExit):
        run(tmp_path, should_stop=iter([False] * 6 + [True] * 9).__next__)
    before = lines(tmp_path, timings=True)[-1]["seconds"]
    run(tmp_path)
    after = [line["seconds"] for line in lines(tmp_path, timings=True) if "seconds" in line]
    assert after == sorted(after) and after[-1] > before


def test_a_damaged_newest_checkpoint_costs_the_steps_after_the_one_before(tmp_path, reference, caplog):
    run(tmp_path, total_steps=20)
    (tmp_path / "checkpoints" / "20" / "state" / "manifest.ocdbt").write_bytes(b"")
    state = run(tmp_path)
    assert [r for r in caplog.records if r.levelno == logging.WARNING and "checkpoints/20 is damaged" in r.getMessage()]
    assert lines(tmp_path)[-6:] == lines(reference[0])[-6:] and saved(tmp_path) == [16, 20, 24]
    assert np.asarray(state["params"]["w"]).tobytes() == reference[1].tobytes()


def test_graceful_stop_is_a_flag_while_it_lasts():
    before = signal.getsignal(signal.SIGTERM)
    with graceful_stop() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop() and stop()
    assert signal.getsignal(signal.SIGTERM) is before


MOMENTS = [
    "step 3",  # before the first checkpoint
    "seal 4",  # in the middle of the first save
    "step 7",  # in an open window, after the first checkpoint
    "torn 8 validation",  # while a line is written
    "after 8 validation",
    "term 11",  # asked to end, which saves at a step where nothing is due
    "evaluate 12 bleu",
    "step 14",
    "seal 16",
    "torn 20 train",
    "step 23",
    "before 24 validation",  # all is trained and saved
    "after 24 validation",
    "",
    "",  # finished: does nothing
]


def test_killed_at_many_moments_it_ends_alike(tmp_path, reference):
    """kill -9 of real processes, one after another in the same workdir."""
    codes, _ = finish(start(tiny_runs.__file__, "killed", tmp_path, *MOMENTS))
    assert codes == [0 if not m else 143 if m.startswith("term") else -signal.SIGKILL for m in MOMENTS]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        _, state, _ = checkpoints.restore_latest(make_state())
    assert_same(tmp_path, state, reference)
    # No leftovers of a save; but an old one may have been half removed, which the next save would finish.
    assert saved(tmp_path)[-3:] == [16, 20, 24] and len(saved(tmp_path)) <= 4


def test_two_processes_agree_where_to_stop(tmp_path):
    """Only one of them is asked to: both stop at the next step where something is due, and one writes the lines."""
    port = free_port()
    for process in [start(tiny_runs.__file__, "together", tmp_path, index, port) for index in range(2)]:
        report, _ = finish(process)
        assert report == {"code": 143, "position": 6, "again": 143, "end": 9, "evaluated": [6, 9]}
    assert steps(tmp_path, "train") == [3, 6, 9] and steps(tmp_path, "validation") == [6, 9]
    assert saved(tmp_path) == [6, 9]
