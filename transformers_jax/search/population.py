"""The history of a search in SQLite, one row a candidate: all that is needed to go on, and to draw it.

`candidates` holds, in the order in which they were proposed:

| column | meaning |
|---|---|
| id | number over all methods, from 0 |
| method, number | which of the searches in this workdir, and the candidate's number within it, from 0 |
| genome, key | the genome as JSON, and its canonical key: equal for genomes that compute the same |
| parents | ids, a JSON list: [] for the seed and for random genomes |
| mutated | names of the fields that differ from the parent, a JSON list |
| rejected | draws that were thrown away before this one: invalid, outside the band, or just being trained |
| unit, parameters | the width unit, and how many parameters the model has with it |
| hurdles | the hurdles in force when it was proposed, a JSON list: those that it had to pass |
| state | "proposed", then "done" or "failed" |
| finished | its place in the order in which candidates of the method ended, from 0 |
| stages | fitness after each stage, a JSON list |
| fitness | negative log perplexity on the validation split, the last of the stages |
| hurdles_passed | how many |
| steps | that the fitness is worth; trained_steps: that were made for it, 0 where the fitness was known |
| same_as | id of the equivalent candidate whose fitness it has, or null |
| compile_seconds, train_seconds | spent on it: building and compiling its programs; training and measuring |
| failure | why it has no fitness |
| worker | who trained it |
| deaths | workers that died over it |

`hurdles` holds the value of each method's hurdles by stage, and after how many candidates (`number`) it was set. `finals`
holds the comparison at the end (see `finals`): finalists by `summary.trial`, then one genome of each method by the method's
name, and "seed", trained alike.

Every change is one transaction that is on the disk when the call returns: a process killed at any moment leaves what was
finished, and what was under way as "proposed". The database is read by `rows`, or by any SQLite program, at any time.
"""

import json
import sqlite3
from pathlib import Path
from typing import Any

from transformers_jax.errors import DiskError, UserError

FILE = "search.sqlite"

SCHEMA = """
CREATE TABLE IF NOT EXISTS candidates (
    id INTEGER PRIMARY KEY, method TEXT NOT NULL, number INTEGER NOT NULL,
    genome TEXT NOT NULL, key TEXT NOT NULL, parents TEXT NOT NULL, mutated TEXT NOT NULL, rejected INTEGER NOT NULL,
    unit INTEGER NOT NULL, parameters INTEGER NOT NULL, hurdles TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'proposed', finished INTEGER, stages TEXT, fitness REAL, hurdles_passed INTEGER,
    steps INTEGER, trained_steps INTEGER NOT NULL DEFAULT 0, same_as INTEGER,
    compile_seconds REAL, train_seconds REAL, failure TEXT, worker TEXT, deaths INTEGER NOT NULL DEFAULT 0,
    UNIQUE (method, number), UNIQUE (method, finished));
CREATE TABLE IF NOT EXISTS hurdles (
    method TEXT NOT NULL, stage INTEGER NOT NULL, value REAL NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (method, stage));
CREATE TABLE IF NOT EXISTS finals (
    name TEXT NOT NULL, seed INTEGER NOT NULL, steps INTEGER NOT NULL, genome TEXT NOT NULL, unit INTEGER NOT NULL,
    parameters INTEGER NOT NULL, fitness REAL, failure TEXT, compile_seconds REAL, train_seconds REAL,
    PRIMARY KEY (name, seed, steps));
"""
LISTS = ("parents", "mutated", "hurdles", "stages")
"""Columns of JSON lists."""


class Population:
    """The database of one workdir; a context manager. Rows are dicts by column, with JSON lists as lists.

    Raises:
      UserError: the file is no such database, or cannot be opened.
      DiskError: on leaving, where it could not be written; what was written before stays.
    """

    def __init__(self, workdir: str | Path):
        self.path = Path(workdir) / FILE
        try:
            self._connection = sqlite3.connect(self.path, timeout=60)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise UserError(f"{self.path} cannot be used: {error}; give the search a workdir of its own") from error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._connection.close()
        if isinstance(error, sqlite3.OperationalError):
            raise DiskError(f"{self.path}: {error}; mend it and give the same command again") from error

    def rows(self, method: str | None = None, order: str = "id") -> list[dict[str, Any]]:
        """The candidates, of one method or of all; order "finished" leaves out those that have not ended."""
        where = ["1"] + ["method = :method"] * (method is not None) + ["finished IS NOT NULL"] * (order == "finished")
        query = f"SELECT * FROM candidates WHERE {' AND '.join(where)} ORDER BY {order}"
        return [_row(found) for found in self._connection.execute(query, {"method": method})]

    def propose(self, **columns) -> int:
        """Adds a candidate and returns its id. columns: method to hurdles, as in the table above, lists as lists."""
        with self._connection:
            (columns["id"],) = self._connection.execute("SELECT COALESCE(MAX(id) + 1, 0) FROM candidates").fetchone()
            self._insert("candidates", columns)
        return columns["id"]

    def finish(self, id: int, **columns) -> None:
        """A candidate has ended, as the next of its method. columns: fitness and stages, or failure; the rest as known."""
        columns["state"] = "failed" if columns.get("failure") else "done"
        place = "(SELECT COUNT(finished) FROM candidates WHERE method = (SELECT method FROM candidates WHERE id = :id))"
        sets = ", ".join(f"{name} = :{name}" for name in columns)
        with self._connection:
            self._connection.execute(
                f"UPDATE candidates SET {sets}, finished = {place} WHERE id = :id AND finished IS NULL",
                _plain(columns) | {"id": id},
            )

    def died(self, id: int) -> int:
        """A worker died over this candidate; returns how many have."""
        with self._connection:
            self._connection.execute("UPDATE candidates SET deaths = deaths + 1 WHERE id = ?", (id,))
        return self._connection.execute("SELECT deaths FROM candidates WHERE id = ?", (id,)).fetchone()[0]

    def hurdles(self, method: str) -> list[dict[str, Any]]:
        """A method's hurdles in the order of their stages."""
        found = self._connection.execute("SELECT * FROM hurdles WHERE method = ? ORDER BY stage", (method,))
        return [dict(row) for row in found]

    def set_hurdle(self, method: str, stage: int, value: float, number: int) -> None:
        """Notes a hurdle; it follows from the candidates, and noting it again changes nothing."""
        with self._connection:
            columns = {"method": method, "stage": stage, "value": value, "number": number}
            self._insert("hurdles", columns, "OR REPLACE ")

    def finals(self) -> list[dict[str, Any]]:
        """The trainings of the last comparison that have ended."""
        return [dict(row) for row in self._connection.execute("SELECT * FROM finals ORDER BY rowid")]

    def add_final(self, **columns) -> None:
        """Adds one of them. columns: as in the table."""
        with self._connection:
            self._insert("finals", columns, "OR REPLACE ")

    def _insert(self, table: str, columns: dict, how: str = "") -> None:
        names, places = ", ".join(columns), ", ".join(f":{name}" for name in columns)
        self._connection.execute(f"INSERT {how}INTO {table} ({names}) VALUES ({places})", _plain(columns))


def _plain(columns: dict) -> dict:
    return {name: json.dumps(value) if name in LISTS else value for name, value in columns.items()}


def _row(found: sqlite3.Row) -> dict[str, Any]:
    return {name: json.loads(found[name]) if name in LISTS and found[name] else found[name] for name in found.keys()}
