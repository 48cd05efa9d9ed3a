"""The search as a whole: its history, its summary, its controls, its mistakes; killed again and again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fake
import pytest

from transformers_jax import config as configuration
from transformers_jax.errors import DiskError, UserError
from transformers_jax.files import locked
from transformers_jax.genomes import genome
from transformers_jax.search import driver, summary
from transformers_jax.search.job import Result
from transformers_jax.search.population import FILE, Population

SPENT = ("compile_seconds", "train_seconds", "worker", "deaths")


def history(workdir):
    """All that a search wrote down but what it spent."""
    with Population(workdir) as population:
        rows = [{k: v for k, v in row.items() if k not in SPENT} for row in population.rows()]
        finals = [{k: v for k, v in row.items() if k not in SPENT} for row in population.finals()]
        return rows, population.hurdles("evolution"), finals


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    """A search that nothing disturbed: its workdir and its summary."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, fake.search(workdir, corpus)


def test_history(whole):
    rows, bars, finals = history(whole[0])
    assert [row["number"] for row in rows] == list(range(5 + 3 * 7)) == [row["finished"] for row in rows]
    assert [len(row["hurdles"]) for row in rows] == [0] * 12 + [1] * 7 + [2] * 7
    assert [bar["value"] for bar in bars] == rows[-1]["hurdles"] and [bar["number"] for bar in bars] == [12, 19]
    for row in rows:
        if row["state"] == "failed":
            assert row["failure"] == "loss is nan at step 1" and row["fitness"] is None
            continue
        assert row["fitness"] == row["stages"][-1] and row["steps"] == sum((4, 6, 8)[: len(row["stages"])])
        passed = [f > h for f, h in zip(row["stages"], row["hurdles"], strict=False)]
        assert passed == [True] * row["hurdles_passed"] + [False] * (len(row["hurdles"]) > row["hurdles_passed"])
        assert all(parent < row["id"] for parent in row["parents"]) and (row["mutated"] or row["id"] == 0)
    assert {(final["name"], final["seed"], final["steps"]) for final in finals} == {("evolution", 1, 18), ("seed", 1, 18)}


def test_equivalent_genomes_are_trained_once(whole):
    rows, _, _ = history(whole[0])
    saved = [row for row in rows if row["same_as"] is not None]
    assert saved
    for row in saved:
        same = rows[row["same_as"]]
        assert same["key"] == row["key"] and row["trained_steps"] == 0 and same["genome"] != row["genome"]
        assert row["stages"] == same["stages"][: len(row["stages"])]
    trained = [row for row in rows if row["same_as"] is None]
    lines = [line for line in (whole[0] / fake.LOG).read_text().splitlines() if line.startswith("0 ")]
    assert len(lines) == len(trained)


def test_summary(whole):
    workdir, found = whole
    rows, bars, _ = history(workdir)
    assert json.loads(summary.as_json(found)) == found
    assert found["candidates"] == len(rows) == found["trained"] + found["saved"] + found["failed"]
    assert found["steps"] == sum(row["trained_steps"] for row in rows) and found["compile_share"] == 0.25
    best = max((row for row in rows if row["fitness"]), key=lambda row: row["fitness"])
    assert found["best_fitness"] == best["fitness"] and found["unit"] == best["unit"]
    assert found["hurdles"] == [bar["value"] for bar in bars]
    assert genome.load(str(workdir / "best.json")).to_json() == best["genome"]
    assert genome.parse(found["winner"].replace(" ; decoder", "\ndecoder")).to_json() == best["genome"]
    assert set(found["final"]) == {"evolution", "seed"} and found["won"] == "evolution"
    assert any("--config.model.genome=" in line for line in summary.sentences(found, workdir))


def test_finished_search_does_nothing(whole, corpus):
    workdir, found = whole
    before, log = history(workdir), (workdir / fake.LOG).read_text()
    assert fake.search(workdir, corpus) == found
    assert history(workdir) == before and (workdir / fake.LOG).read_text() == log


def test_more_final_seeds_train_only_those(whole, corpus, tmp_path):
    found = fake.search(tmp_path, corpus, final_seeds=2, final_steps=30)
    assert [len(score["fitness"]) for score in found["final"].values()] == [2, 2] and found["final_steps"] == 30
    assert history(tmp_path)[0] == history(whole[0])[0]


def test_the_finalist_that_trains_best_stands_for_its_method(whole, corpus, tmp_path):
    keys = {"finalists": 3, "final_steps": fake.REVERSED, "controls": ("random",)}
    found = fake.search(tmp_path, corpus, **keys)
    rows, _, finals = history(tmp_path)
    mine = [row for row in rows if row["method"] == "evolution"]
    best = summary.best(mine, 3)
    assert mine == history(whole[0])[0] and len({row["fitness"] for row in best}) > 1
    names = [row["name"] for row in finals]
    assert names[:3] == [f"evolution {row['id']}" for row in best] and sum(name.startswith("random ") for name in names) == 3
    assert names[6:] == ["evolution", "random", "seed"] and [row["seed"] for row in finals] == [0] * 6 + [1] * 3
    chosen = min(best, key=lambda row: (row["fitness"], row["id"]))
    assert finals[6]["genome"] == chosen["genome"] == genome.load(str(tmp_path / "best.json")).to_json()
    assert found["parameters"] == chosen["parameters"] and set(found["final"]) == {"evolution", "random", "seed"}
    assert found["won"] == "seed"
    log = (tmp_path / fake.LOG).read_text()
    assert fake.search(tmp_path, corpus, **keys) == found and (tmp_path / fake.LOG).read_text() == log


def test_controls_have_as_many_steps(tmp_path, corpus):
    controls = ("random", "evolution_no_hurdles", "evolution_random_seed")
    found = fake.search(tmp_path, corpus, controls=controls)
    assert list(found["methods"]) == ["evolution", *controls] and set(found["final"]) == {*found["methods"], "seed"}
    budget = found["steps"]
    for method in controls:
        assert budget <= found["methods"][method]["steps"] < budget + 18
    with Population(tmp_path) as population:
        assert {row["trained_steps"] for row in population.rows("evolution_no_hurdles") if row["fitness"]} <= {0, 18}
        assert all(row["parents"] == [] for row in population.rows("random"))
        assert population.hurdles("evolution_no_hurdles") == [] and population.hurdles("random")
    assert found["won"] == max(found["final"], key=lambda name: found["final"][name]["mean"])
    assert fake.search(tmp_path, corpus, controls=controls) == found


def test_a_control_is_added_later(whole, tmp_path, corpus):
    fake.search(tmp_path, corpus)
    before = (tmp_path / fake.LOG).read_text()
    found = fake.search(tmp_path, corpus, controls=("random",))
    rows, _, finals = history(tmp_path)
    assert [row for row in rows if row["method"] == "evolution"] == history(whole[0])[0]
    assert found["methods"]["random"]["steps"] >= found["steps"] and set(found["final"]) == {"evolution", "random", "seed"}
    added = (tmp_path / fake.LOG).read_text().removeprefix(before).splitlines()
    trained = [row for row in rows if row["method"] == "random" and row["same_as"] is None]
    assert len(added) == len(trained) + 1 and len(finals) == 3


@pytest.mark.parametrize("method", ["random", "evolution_no_hurdles"])
def test_controls_alone(tmp_path, corpus, method):
    found = fake.search(tmp_path, corpus, method=method, final_seeds=0)
    assert found["method"] == method and found["candidates"] == 26 and "final" not in found and "won" not in found


class Broken:
    """What trains nobody."""

    def __init__(self, *_):
        pass

    def __call__(self, job):
        return Result(failure="out of memory: a great deal")


@pytest.mark.parametrize("method", ["evolution", "random"])
def test_all_candidates_fail(tmp_path, corpus, method):
    with pytest.raises(UserError, match=f"no candidate of {method} could be trained; .* out of memory: a great deal"):
        driver.search(fake.config(corpus, method=method), tmp_path, workers_wanted=0, trainer=Broken)
    assert len(finished(tmp_path)) == 5  # the first population


def test_a_control_that_finds_nothing_is_left_out(tmp_path, corpus, caplog):
    found = fake.search(tmp_path, corpus)
    config = fake.config(corpus, controls=("random",))
    for _ in range(2):
        assert driver.search(config, tmp_path, workers_wanted=0, trainer=Broken) == found
        assert "no candidate of random could be trained" in caplog.text and "left out" in caplog.text
        rows, _, finals = history(tmp_path)
        assert [row["state"] for row in rows if row["method"] == "random"] == ["failed"] * 5 and len(finals) == 2


def test_a_full_disk_ends_the_search_and_no_candidate(tmp_path, corpus, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space left on device"):
        train, jobs = fake.Fake.__call__, []

        def fills(self, job):
            jobs.append(job)
            if len(jobs) == 4:
                raise DiskError("cannot write checkpoint 3: No space left on device")
            return train(self, job)

        patch.setattr(fake.Fake, "__call__", fills)
        fake.search(tmp_path, corpus)
    assert history(tmp_path)[0][-1]["state"] == "proposed"
    fake.search(tmp_path, corpus)
    assert history(tmp_path) == history(whole[0])


def test_workers_are_given_absolute_paths(tmp_path, corpus, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").symlink_to(corpus)
    config, given = fake.config("corpus", population=2, children=1, steps=(4,), final_seeds=0), []
    driver.search(config, "w", workers_wanted=0, trainer=lambda *a: given.append(a) or fake.Fake(*a))
    ((for_workers, workdir, _),) = given
    assert workdir == str(tmp_path / "w") and for_workers["tokenizer"]["path"] == for_workers["data"]["data_dir"] == ""
    assert for_workers["data"]["train"] == f"{tmp_path}/corpus/train.en,{tmp_path}/corpus/train.de"
    assert configuration.read("w").data.train == "corpus/train.en,corpus/train.de"


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, says",
    [
        ({"method": "evolutoin"}, "config.search.method is 'evolutoin'.*did you mean evolution"),
        ({"controls": ("randon",)}, "config.search.controls is 'randon'.*did you mean random"),
        ({"controls": ("evolution",)}, "config.search.controls names a method twice"),
        ({"seed_genome": "nowhere.json"}, "config.search.seed_genome: genome 'nowhere.json': no such file"),
        ({"parameters": (10, 20)}, "config.search.parameters: no width brings"),
        ({"parameters": (20, 10)}, r"config.search.parameters is \(20, 10\)"),
        ({"steps": ()}, "config.search.steps"),
    ],
)
def test_mistakes(tmp_path, corpus, keys, says):
    with pytest.raises(UserError, match=says):
        fake.search(tmp_path / "w", corpus, **keys)
    assert not (tmp_path / "w").exists()


def test_validation_is_needed(tmp_path, corpus):
    config = fake.config(corpus)
    config.data.validation = ""
    with pytest.raises(UserError, match="config.data.validation is empty"):
        driver.search(config, tmp_path / "w", workers_wanted=0, trainer=fake.Fake)


def test_workdir_of_another_search(whole, corpus):
    before = history(whole[0])
    with pytest.raises(UserError, match="holds another run: config.search.population is 5 there and 6 here"):
        fake.search(whole[0], corpus, population=6)
    assert history(whole[0]) == before


def test_two_searches_in_one_workdir(whole, corpus):
    before = (whole[0] / configuration.FILE).read_bytes()
    with locked(whole[0], "taken"), pytest.raises(UserError, match="is in use by another search"):
        fake.search(whole[0], corpus, final_seeds=3)
    assert (whole[0] / configuration.FILE).read_bytes() == before


def test_band_is_kept(tmp_path, corpus):
    fake.search(tmp_path, corpus, parameters=(20_000, 40_000), final_seeds=0)
    rows, _, _ = history(tmp_path)
    assert all(20_000 <= row["parameters"] <= 40_000 for row in rows)
    assert len({row["unit"] for row in rows}) > 1


# -- killed ------------------------------------------------------------------------------------------------------------


def start(workdir, corpus, workers, seconds):
    command = [sys.executable, fake.__file__, workdir, corpus, workers, seconds]
    environment = os.environ | {"PYTHONPATH": str(Path(fake.__file__).parent)}
    return subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(process, workdir, count):
    """Waits until so many trainings have begun."""
    log, until = workdir / fake.LOG, time.monotonic() + 600  # for a machine that has much else to do
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < until, process.stderr.read()
        time.sleep(0.05)


def finished(workdir):
    if not (workdir / FILE).exists():
        return {}
    with Population(workdir) as population:
        return {row["id"]: row for row in population.rows() if row["finished"] is not None}


def test_killed_search_has_the_history_of_one_that_was_not(tmp_path, corpus, whole):
    before, kills = {}, (2, 13)
    for count in kills:
        with start(tmp_path, corpus, 0, 0.3) as process:
            wait_for(process, tmp_path, count)
            process.kill()
        now = finished(tmp_path)
        assert now | before == now and len(now) >= count - 2  # nothing that had ended is lost or changed
        before = now
    fake.search(tmp_path, corpus)
    assert history(tmp_path) == history(whole[0]) and finished(tmp_path) | before == finished(tmp_path)
    begun, once = ((path / fake.LOG).read_text().splitlines() for path in (tmp_path, whole[0]))
    repeated = Counter(begun) - Counter(once)
    assert repeated.total() <= len(kills) and not Counter(once) - Counter(begun)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_and_their_driver_are_killed_and_ended(tmp_path, corpus):
    pytest.importorskip("ray")
    with start(tmp_path, corpus, 2, 2) as process:
        pids = []
        for line in process.stderr:
            if found := re.search(r"worker \d is process \S+:(\d+)", line):
                pids.append(int(found[1]))
            if len(pids) == 2:
                break
        wait_for(process, tmp_path, 3)
        os.kill(pids[0], signal.SIGKILL)
        for line in process.stderr:  # another takes its place
            if found := re.search(r"worker \d is process \S+:(\d+)", line):
                pids.append(int(found[1]))
                break
        wait_for(process, tmp_path, 8)
        process.kill()
    before, until = finished(tmp_path), time.monotonic() + 120
    while any(map(alive, pids)):
        assert time.monotonic() < until, "a worker outlives its search"
        time.sleep(0.1)
    with Population(tmp_path) as population:
        assert sum(row["deaths"] for row in population.rows()) == 1
    with start(tmp_path, corpus, 2, 0.4) as process:
        next(line for line in process.stderr if "worker 1 is process" in line)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "SIGTERM received" not in err
    with start(tmp_path, corpus, 2, 0) as process:
        _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    rows = finished(tmp_path)
    assert rows | before == rows and len(before) >= 5 and sorted(rows) == list(range(26))
    assert sorted(row["finished"] for row in rows.values()) == list(range(26))
    assert not any("worker" in (row["failure"] or "") for row in rows.values())  # it was trained again
    assert len({row["worker"] for row in rows.values()} - {None}) >= 3
