"""What a search found, from its rows: the winner, what it took, and which method won."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from transformers_jax.files import write_whole
from transformers_jax.genomes import genome as genomes
from transformers_jax.search.population import Population

BEST = "best.json"


def best(rows: list[dict], count: int = 1) -> list[dict]:
    """The `count` rows of the highest fitness, the highest first, of equivalent genomes only the first."""
    firsts = {}
    for row in sorted((row for row in rows if row["fitness"] is not None), key=lambda row: (-row["fitness"], row["id"])):
        firsts.setdefault(row["key"], row)
    return list(firsts.values())[:count]


def trial(row: dict) -> str:
    """The name of a finalist's training in `Population.finals`."""
    return f"{row['method']} {row['id']}"


def winner(config, rows: list[dict], finals: list[dict]) -> dict:
    """A method's row that stands for it: the finalist that trained best, or without finalists the best of the search."""
    steps = final_steps(config)
    scores = {f["name"]: f["fitness"] for f in finals if f["steps"] == steps and f["fitness"] is not None}
    tried = [row for row in rows if trial(row) in scores]
    return max(tried, key=lambda row: (scores[trial(row)], -row["id"])) if tried else best(rows)[0]


def final_steps(config) -> int:
    """Of the trainings after the search."""
    return config.search.final_steps or sum(config.search.steps)


def write_best(config, population: Population, workdir: str | os.PathLike) -> None:
    """Writes the genome of the first method's winner, its unit and the model's width to best.json, whole or not at all."""
    row = winner(config, population.rows(config.search.method), population.finals())
    sizes = {"unit": row["unit"], "width": config.model.width}
    write_whole(Path(workdir) / BEST, json.dumps(json.loads(row["genome"]) | sizes) + "\n")


def of(config, population: Population, methods: list[str]) -> dict:
    """The summary of a search, JSON values.

    candidates, trained, saved (equivalent to one that was trained), failed, rejected (draws), steps (of training),
    compile_share: of the first method; best_fitness, best_perplexity, and of language models, whose perplexity is that of a
    byte, best_bits_per_byte: in its search; winner (text), unit, parameters: see
    `winner`; hurdles: their values; methods: the same counts of each; final: fitness of the last trainings by name, their
    mean first; won: who has the highest mean.
    """
    counted = {method: counts(population.rows(method)) for method in methods}
    if config.get("task", {}).get("name") == "causal_lm":
        for found in counted.values():
            found["best_bits_per_byte"] = -found["best_fitness"] / math.log(2)
    finals, steps = population.finals(), final_steps(config)
    chosen = winner(config, population.rows(methods[0]), finals)
    final = final_scores([row for row in finals if row["steps"] == steps and row["name"] in (*methods, "seed")])
    found = {
        "method": methods[0],
        **counted[methods[0]],
        "hurdles": [hurdle["value"] for hurdle in population.hurdles(methods[0])],
        "winner": " ; ".join(genomes.from_json(chosen["genome"]).text().split("\n")),
        "unit": chosen["unit"],
        "parameters": chosen["parameters"],
        "mutations_from_seed": len(lineage(population.rows(methods[0]), chosen)) - 1,
    }
    if len(methods) > 1:
        found["methods"] = counted
    if final:
        found["final_steps"], found["final"] = steps, final
    scores = {name: score["mean"] for name, score in final.items() if score["mean"] is not None}
    scores = scores or {method: counted[method]["best_fitness"] for method in methods}
    if len(scores) > 1:
        found["won"] = max(scores, key=scores.__getitem__)
    return found


def counts(rows: list[dict]) -> dict:
    """How many candidates there were, and what became of them; what it took; the best."""
    done = [row for row in rows if row["state"] == "done"]
    spent = [sum(row[f"{kind}_seconds"] or 0.0 for row in rows) for kind in ("compile", "train")]
    top = best(rows)[0]["fitness"]
    return {
        "candidates": len(rows),
        "trained": sum(row["same_as"] is None for row in done),
        "saved": sum(row["same_as"] is not None for row in done),
        "failed": sum(row["state"] == "failed" for row in rows),
        "rejected": sum(row["rejected"] for row in rows),
        "steps": sum(row["trained_steps"] for row in rows),
        "best_fitness": top,
        "best_perplexity": math.exp(-top),
        "worker_seconds": round(sum(spent), 1),
        "compile_share": round(spent[0] / sum(spent), 3) if sum(spent) else 0.0,
    }


def final_scores(finals: list[dict]) -> dict[str, dict]:
    """{name: mean, each seed's fitness, parameters and unit} of the last trainings; a failed one has no fitness."""
    scores = {}
    for name in dict.fromkeys(row["name"] for row in finals):
        mine = [row for row in finals if row["name"] == name]
        found = [row["fitness"] for row in mine if row["fitness"] is not None]
        mean = math.fsum(found) / len(found) if found else None
        scores[name] = {"mean": mean, "fitness": found, "parameters": mine[0]["parameters"], "unit": mine[0]["unit"]}
    return scores


def sentences(found: dict, workdir: str | os.PathLike) -> list[str]:
    """The summary in plain words, for a reader."""
    lines = [
        f"{found['method']}: {found['candidates']} candidates, {found['trained']} trained ({found['steps']:,} steps), "
        f"{found['saved']} known from an equivalent one, {found['failed']} failed",
        f"best perplexity {found['best_perplexity']:.3f}; compiling took {found['compile_share']:.0%} of the time",
        f"winner: {found['parameters']:,} parameters, width unit {found['unit']}",
        f"train it: --config.model.genome={Path(workdir) / BEST}",
    ]
    for name, score in found.get("final", {}).items():
        seeds = len(score["fitness"])
        mean = "failed" if score["mean"] is None else f"perplexity {math.exp(-score['mean']):.3f}"
        lines.append(f"trained anew for {found['final_steps']} steps, {seeds} seed(s): {name} {mean}")
    return lines + ([f"{found['won']} won"] if "won" in found else [])


def lineage(rows: Iterable[dict], row: dict) -> list[dict]:
    """The row after its ancestors among the rows, the oldest first."""
    by_id, line = {r["id"]: r for r in rows}, [row]
    while (parent := by_id.get(next(iter(line[-1]["parents"]), None))) is not None:
        line.append(parent)
    return line[::-1]


def as_json(found: dict) -> str:
    """One line."""
    return json.dumps(found, ensure_ascii=False)
