"""The history in SQLite: what is written is there after a crash, in order, once."""

import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from transformers_jax.errors import DiskError, UserError
from transformers_jax.search.population import FILE, Population

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def columns(number=0, method="evolution", **changes):
    return {
        "method": method, "number": number, "genome": "{}", "key": f"key{number}", "parents": [0] * (number > 0),
        "mutated": ["encoder_cells"], "rejected": 2, "unit": 8, "parameters": 100, "hurdles": [-3.0, math.inf],
    } | changes  # fmt: skip


def test_a_candidate_from_beginning_to_end(tmp_path):
    with Population(tmp_path) as population:
        assert population.propose(**columns()) == 0
        (row,) = population.rows()
        assert row["state"] == "proposed" and row["finished"] is None and row["hurdles"] == [-3.0, math.inf]
        assert row["parents"] == [] and row["mutated"] == ["encoder_cells"] and row["trained_steps"] == 0
        population.finish(0, fitness=-2.5, stages=[-2.7, -2.5], hurdles_passed=1, steps=30, trained_steps=30, failure=None)
    with Population(tmp_path) as population:
        (row,) = population.rows("evolution")
        assert row["state"] == "done" and row["finished"] == 0 and row["fitness"] == -2.5 and row["stages"] == [-2.7, -2.5]


def test_order_of_ending_by_method(tmp_path):
    with Population(tmp_path) as population:
        for number, method in (0, "evolution"), (1, "evolution"), (2, "evolution"), (0, "random"):
            population.propose(**columns(number, method))
        for id in 2, 0, 3:
            population.finish(id, fitness=-1.0, stages=[-1.0])
        assert [row["id"] for row in population.rows("evolution", "finished")] == [2, 0]
        assert [row["id"] for row in population.rows("random", "finished")] == [3]
        assert [row["finished"] for row in population.rows()] == [1, None, 0, 0]


def test_ending_twice_changes_nothing(tmp_path):
    with Population(tmp_path) as population:
        population.propose(**columns())
        population.finish(0, fitness=-1.0, stages=[-1.0])
        population.finish(0, fitness=-9.0, stages=[-9.0])
        assert population.rows()[0]["fitness"] == -1.0


def test_a_failure_has_a_reason_and_no_fitness(tmp_path):
    with Population(tmp_path) as population:
        population.propose(**columns())
        population.finish(0, failure="loss is nan at step 3", stages=[])
        (row,) = population.rows()
        assert row["state"] == "failed" and row["failure"] == "loss is nan at step 3" and row["fitness"] is None
        assert row["stages"] == []


def test_same_candidate_cannot_be_proposed_twice(tmp_path):
    with Population(tmp_path) as population:
        population.propose(**columns())
        with pytest.raises(sqlite3.IntegrityError):
            population.propose(**columns())
        assert len(population.rows()) == 1


def test_deaths_are_counted(tmp_path):
    with Population(tmp_path) as population:
        population.propose(**columns())
        assert [population.died(0), population.died(0)] == [1, 2]


def test_hurdles_and_finals(tmp_path):
    with Population(tmp_path) as population:
        for _ in range(2):
            population.set_hurdle("evolution", 0, -2.0, 30)
        population.set_hurdle("evolution", 1, math.inf, 60)
        assert [(h["stage"], h["value"], h["number"]) for h in population.hurdles("evolution")] == [
            (0, -2.0, 30), (1, math.inf, 60)
        ]  # fmt: skip
        assert population.hurdles("random") == []
        population.add_final(name="seed", seed=1, steps=9, genome="{}", unit=8, parameters=100, fitness=-2.0)
        (final,) = population.finals()
        assert final["name"] == "seed" and final["failure"] is None


WRITER = """
import os, signal, sys
from transformers_jax.search.population import Population
sys.path.insert(0, "tests/search")
from test_population import columns
population = Population(sys.argv[1])
population.propose(**columns(0))
population.finish(0, fitness=-1.0, stages=[-1.0])
population.propose(**columns(1))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_survives_kill(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    with Population(tmp_path) as population:
        assert [row["state"] for row in population.rows()] == ["done", "proposed"]
        assert population.propose(**columns(2)) == 2


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    with pytest.raises(DiskError, match="full; mend it and give the same command again"), Population(tmp_path) as there:
        there._connection.execute("PRAGMA max_page_count = 40")
        for i in range(999):
            there.propose(**columns(i) | {"genome": "x" * 4096})
    with Population(tmp_path) as there:
        assert [row["id"] for row in there.rows()] == list(range(len(there.rows()))) != []


def test_another_file_of_that_name(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database at all, but long enough to have a header of a hundred bytes" * 9)
    with pytest.raises(UserError, match=f"{FILE} cannot be used"):
        Population(tmp_path)
