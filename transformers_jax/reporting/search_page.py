"""The page about an architecture search: who won, what it took, what failed, and pictures (`reporting.search_pictures`)."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from transformers_jax.genomes.genome import from_json
from transformers_jax.reporting.page import config_tables, document, masthead, number, picture
from transformers_jax.reporting.search_pictures import History, Row
from transformers_jax.search import summary
from transformers_jax.search.summary import lineage

MOST_CANDIDATES = 20
LATER = ("The first ancestor's cells",)
"""Pictures that stand below the tables."""


def search_page(history: History, pictures: Mapping[str, Path], workdir: Path) -> str:
    """The page as text.

    Args:
      history: the search.
      pictures: PNG files by title, each shown under its own heading.
      workdir: as it is written in commands.
    """
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in summary.sentences(history.summary, workdir))
    parts = [heading(history), "<h2>Result</h2>", f"<ul>{sentences}</ul>"]
    parts += ["<h2>The winner</h2>", f"<pre>{escape(from_json(history.winner['genome']).text())}</pre>"]
    parts += [part for title in pictures if title not in LATER for part in shown(title, pictures)]
    parts += ["<h2>What it took</h2>", methods_table(history)]
    if "final" in history.summary:
        parts += ["<h2>Trained anew</h2>", finals_table(history.summary)]
    parts += ["<h2>Failures</h2>", failures_table(history), "<h2>Best candidates</h2>", candidates_table(history)]
    parts += [part for title in pictures if title in LATER for part in shown(title, pictures)]
    parts += ["<h2>Configuration</h2>", config_tables(history.config.to_dict())]
    return document(history.name, parts)


def shown(title: str, pictures: Mapping[str, Path]) -> tuple[str, str]:
    return f"<h2>{escape(title)}</h2>", picture(title, pictures[title], wide=True)


def heading(history: History) -> str:
    """The search's name, what was searched and how, and the result."""
    found, config = history.summary, history.config
    languages = config.get("data", {}).get("languages") or ()
    what = ["architecture search", found["method"].replace("_", " "), config.get("task", {}).get("name", "")]
    lead = " · ".join([part for part in what if part] + (["–".join(languages)] if languages else []))
    best = summary.best(history.rows[history.methods[0]])[0]
    facts = [
        (number(found["candidates"]), f"candidates of {found['method'].replace('_', ' ')}"),
        (number(found["best_perplexity"]), f"best perplexity, {best['steps']:,} steps"),
        (number(found["saved"]), "trainings saved by equivalence"),
        (number(found["failed"]), "failed"),
        (f"{found['compile_share']:.0%}", "of the time spent compiling"),
    ]
    if "won" in found:
        facts.append((found["won"].replace("_", " "), "won"))
    return masthead(history.name, lead, facts)


def table(heads: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Numbers as numbers, anything else as text."""

    def cell(value) -> str:
        if isinstance(value, int | float):
            return f'<td class="number">{number(value)}</td>'
        return f"<td>{escape(str(value))}</td>"

    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{escape(h)}</th>" for h in heads)}</tr>{body}</table></div>'


def methods_table(history: History) -> str:
    """One row a method: how many candidates, what became of them, what it took."""
    columns = {
        "candidates": "candidates", "trained": "trained", "saved": "saved by equivalence", "failed": "failed",
        "rejected": "draws rejected", "steps": "training steps", "worker_seconds": "worker seconds",
        "compile_share": "compiling", "best_perplexity": "best perplexity",
    }  # fmt: skip
    rows = []
    for method in history.methods:
        counts = dict(history.summary.get("methods", {}).get(method) or history.summary)
        counts["compile_share"] = f"{counts['compile_share']:.1%}"
        rows.append([method.replace("_", " "), *(counts[name] for name in columns)])
    return table(["method", *columns.values()], rows)


def finals_table(found: Mapping) -> str:
    """One row a genome that was trained anew: the mean, and every seed."""
    rows = []
    for name, score in found["final"].items():
        mean = "failed" if score["mean"] is None else math.exp(-score["mean"])
        seeds = ", ".join(f"{math.exp(-fitness):.3f}" for fitness in score["fitness"])
        rows.append([name.replace("_", " "), mean, seeds, score["parameters"], score["unit"]])
    return table(["genome", "perplexity of the mean fitness", "each seed", "parameters", "width unit"], rows)


def failures_table(history: History) -> str:
    """Why candidates failed, the most frequent first; numbers do not tell reasons apart."""
    failed = [row for method in history.methods for row in history.rows[method] if row["failure"]]
    if not failed:
        return '<p class="lead">No candidate failed.</p>'
    kinds = Counter(kind_of(row["failure"]) for row in failed)
    examples = {kind_of(row["failure"]): row for row in reversed(failed)}
    rows = [
        [kind, count, f"{examples[kind]['method'].replace('_', ' ')} {examples[kind]['number']}: {examples[kind]['failure']}"]
        for kind, count in kinds.most_common()
    ]
    return table(["reason", "candidates", "the first of them"], rows)


def kind_of(failure: str) -> str:
    """A failure's reason without what differs from case to case: what comes after a colon, and numbers."""
    return re.sub(r"-?\d[\d.,]*", "…", failure.partition(":")[0]).strip()


def candidates_table(history: History) -> str:
    """The best candidates of the first method, those known from an equivalent left out."""
    rows = history.rows[history.methods[0]]
    trained = [row for row in rows if row["fitness"] is not None and row["same_as"] is None]
    best = sorted(trained, key=lambda row: -row["fitness"])[:MOST_CANDIDATES]
    return table(
        ["candidate", "perplexity", "steps", "hurdles passed", "parameters", "mutations from the first ancestor", "genome"],
        [_candidate(rows, row) for row in best],
    )


def _candidate(rows: Sequence[Row], row: Row) -> list:
    values = [row["steps"], row["hurdles_passed"], row["parameters"], len(lineage(rows, row)) - 1]
    return [row["number"], math.exp(-row["fitness"]), *values, from_json(row["genome"]).text()]
