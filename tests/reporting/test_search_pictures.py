"""The report of a made-up search, as evolution would have made it: its pictures, its page, and a search that just began."""

import functools
import json
import math
import re

import numpy as np
import pytest

from transformers_jax.errors import UserError
from transformers_jax.genomes.genome import TRANSFORMER, InvalidGenome, fields, from_json, replace
from transformers_jax.models.with_genome import count_parameters
from transformers_jax.reporting import search_page
from transformers_jax.reporting import search_pictures as pictures
from transformers_jax.reporting.report import make_report
from transformers_jax.search import hurdles as hurdling
from transformers_jax.search import summary
from transformers_jax.search.evolution import Evolution, EvolutionOptions
from transformers_jax.search.population import Population

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")  # comes with matplotlib

METHODS = ("evolution", "random")
SETTINGS = {"seed_genome": "transformer", "population": 6, "sample": 4, "children": 12, "steps": (20, 20, 40), "fixed_steps": 0}
FAILURES = ("loss is nan at step 17", "loss is inf at step 4", "out of memory: RESOURCE_EXHAUSTED: <8> bytes")


@functools.cache
def parameters(genome):
    try:
        return count_parameters(genome, 32, 16, 100, num_heads=2)
    except InvalidGenome:
        return None


def fits(genome):
    return parameters(genome) and (16, parameters(genome))


def made_up(stages_of, folder, methods=METHODS, mutation=0.01):
    """A workdir whose candidates have the stages or the failure that `stages_of(number, parent's, hurdles)` says."""
    folder.mkdir()
    wanted = SETTINGS | {"method": methods[0], "controls": methods[1:], "final_steps": 0, "final_seeds": 2}
    config = {"model": {"name": "transformer", "width": 32}, "data": {"languages": ["en", "de"]}}
    (folder / "config.json").write_text(json.dumps(config | {"search": wanted}))
    with Population(folder) as population:
        for method in methods:
            evolution = Evolution(EvolutionOptions(method=method, mutation=mutation, **SETTINGS), 0, fits)
            known, ids, first = {}, {}, {}
            for number in range(evolution.options.total):
                proposal, hurdles = evolution.propose(number), list(evolution.hurdles)
                columns = {"genome": proposal.genome.to_json(), "parents": [ids[n] for n in proposal.parents],
                           "mutated": list(proposal.mutated), "hurdles": hurdles}  # fmt: skip
                same = {name: getattr(proposal, name) for name in ("key", "unit", "parameters", "rejected")}
                id = ids[number] = population.propose(method=method, number=number, **columns, **same)
                stages, again = known.get(proposal.key, (None, None))
                if stages is None:
                    stages = stages_of(number, first.get(proposal.parents[0]) if proposal.parents else None, hurdles)
                if isinstance(stages, str):
                    population.finish(id, failure=stages, stages=[], compile_seconds=3.0, train_seconds=1.0, worker="one")
                    evolution.absorb(number, proposal.genome, None, 0)
                    continue
                first[number] = stages[0]
                known.setdefault(proposal.key, (stages, id))
                steps = sum(SETTINGS["steps"][: len(stages)])
                spent = {"compile_seconds": 3.0, "train_seconds": 9.0, "trained_steps": steps} if again is None else {}
                population.finish(id, stages=stages, fitness=stages[-1], hurdles_passed=len(stages) - 1, steps=steps,
                                  same_as=again, **spent)  # fmt: skip
                evolution.absorb(number, proposal.genome, stages[-1], steps)
            for stage, (value, number) in enumerate(zip(evolution.hurdles, evolution.hurdled, strict=True)):
                population.set_hurdle(method, stage, value, number)
    return folder


def stages_of(number, parent, hurdles):
    """Children are somewhat better than their parents, mostly; every seventh fails."""
    if number % 7 == 5:
        return FAILURES[number // 7 % 3]
    rng = np.random.default_rng(number)
    quality = (parent or -4.0) + rng.normal(0.05, 0.1) - 3 * (rng.random() < 0.1)
    found = iter(quality + np.array([0.0, 0.5, 1.0]))
    return hurdling.climb(lambda steps: float(next(found)), SETTINGS["steps"], hurdles)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = made_up(stages_of, tmp_path_factory.mktemp("searches") / "a <search>")
    with Population(folder) as population:
        for name, fitness in ("evolution", -2.0), ("random", -3.0), ("seed", -2.5):
            for seed in (1, 2):
                population.add_final(name=name, seed=seed, steps=80, genome=TRANSFORMER.to_json(), unit=16, parameters=9,
                                     fitness=fitness - 0.1 * seed, failure=None)  # fmt: skip
    return folder, make_report(folder)


def test_pictures_are_real_and_in_the_page(searched):
    folder, page = searched
    names = {"cell", "fitness", "finals", "front", "family", "ancestor"}
    assert {path.name for path in page.parent.iterdir()} == {f"{name}.png" for name in names} | {"index.html"}
    for path in page.parent.glob("*.png"):
        picture = Image.open(path)
        assert picture.format == "PNG" and 600 < picture.width < 4000 and 200 < picture.height < 4000
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 6 == text.count("<img")
    assert not re.search(r"<(script|link|iframe|a|base|object)\b|href=|url\(|@import", text)


def test_page_says_what_came_of_it(searched):
    folder, page = searched
    text, history = page.read_text(encoding="utf-8"), pictures.read_history(folder)
    found = history.summary
    assert "a &lt;search&gt;" in text and "<search>" not in text
    assert found["candidates"] == 42 and "<b>42</b><span>candidates of evolution</span>" in text
    assert found["saved"] > 0 and f"<b>{found['saved']}</b><span>trainings saved by equivalence</span>" in text
    assert 0.1 < found["compile_share"] < 0.6 and f"<b>{found['compile_share']:.0%}</b>" in text
    assert found["failed"] >= 3 and f"<b>{found['failed']}</b><span>failed</span>" in text
    assert f"<b>{math.exp(-history.winner['fitness']):.4g}</b>" in text
    assert "<b>evolution</b><span>won</span>" in text and "<li>evolution won</li>" in text
    assert from_json(history.winner["genome"]).text() in text
    rows = [row for method in METHODS for row in history.rows[method]]
    for kind, reason in ("loss is nan at step …", FAILURES[0]), ("loss is inf at step …", FAILURES[1]), ("out of memory", ""):
        count = sum(row["failure"] is not None and row["failure"][:11] == kind[:11] for row in rows)
        assert count > 0 and f'<td>{kind}</td><td class="number">{count}</td>' in text and reason in text
    assert "RESOURCE_EXHAUSTED: &lt;8&gt; bytes" in text and "final_seeds" in text


def test_the_best_perplexity_stands_beside_its_own_steps(searched):
    history = pictures.read_history(searched[0])
    (best,) = summary.best(history.rows["evolution"])
    other = next(row for row in history.rows["evolution"] if row["fitness"] and row["steps"] != best["steps"])
    finalist = {"name": summary.trial(other), "steps": sum(SETTINGS["steps"]), "fitness": 0.0}
    history = history._replace(finals=[finalist])
    assert history.winner == other
    perplexity = f"{math.exp(-best['fitness']):.4g}"
    assert f"<b>{perplexity}</b><span>best perplexity, {best['steps']:,} steps" in search_page.heading(history)


@pytest.mark.parametrize("low, high", [(-709.9, -690.0), (-709.9, -708.5), (-690.4, -690.1), (-800.0, -2.0), (-3.0, -2.0)])
def test_perplexity_axis_reaches_as_far_as_floats(low, high):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(low, high)
    pictures.perplexity_axis(axes.yaxis, low, high)
    ticks = axes.get_yticks()
    assert len(ticks) and all(low <= tick <= high for tick in ticks)


def test_hurdles_failures_and_the_line_are_drawn(searched, monkeypatch):
    """What matplotlib is told to draw, looked at where it is drawn."""
    folder, _ = searched
    history, texts, marks = pictures.read_history(folder), [], []
    from matplotlib.axes import Axes

    plot, text = Axes.plot, Axes.text
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: marks.append((a, k)) or plot(self, *a, **k))
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **k: texts.append(s) or text(self, x, y, s, **k))
    pictures.draw_fitness(history, folder / "again.png")
    failed = [a[0] for a, k in marks if k.get("label") == "failed"]
    assert failed == [[row["finished"] for row in history.rows[m] if row["failure"]] for m in METHODS] and all(failed)
    dashed = [a[1][0] for a, k in marks if a[2:] == ("--",)]
    values = [hurdle["value"] for m in METHODS for hurdle in history.hurdles[m]]
    assert len(values) == 4 and sorted(dashed) == sorted(values)
    assert texts == [" hurdle 1", " hurdle 2"] * 2
    texts.clear()
    pictures.draw_family(history, folder / "again.png")
    line = pictures.lineage(history.rows["evolution"], history.winner)
    assert [t for t in texts if t.startswith("candidate ")] == [f"candidate {row['number']}" for row in line]
    assert len(line) > 2 and line[0]["number"] == 0 and line[-1] == history.winner
    for before, row in zip(line, line[1:], strict=False):
        old, new = (fields(from_json(r["genome"])) for r in (before, row))
        changed = {name for name in old if old[name] != new[name]}
        assert changed == set(row["mutated"])
        wanted = [f"{pictures.readable(name)}: {old[name]} → {new[name]}" for name in row["mutated"]][: pictures.MOST_CHANGES]
        assert all(any(t.startswith(w) for t in texts) for w in wanted[:1])


def test_fields_without_effect_are_told_apart():
    child = {"encoder.1.right.width": 5, "decoder.6.right.layer": "att4", "decoder.6.right.input": 3, "encoder_cells": 2}
    found = dict(pictures.changes(TRANSFORMER, replace(TRANSFORMER, child), child))
    assert found == {
        "encoder block 2 right width: 2 → 5": False,  # of a dead branch
        "decoder block 7 right layer: dead → att4": True,
        "decoder block 7 right input: 0 → 3": True,  # dead before, but not with the layer that came with it
        "encoder cells: 3 → 2": True,
    }
    swapped = {"encoder.1.left.layer": "dead", "encoder.1.right.layer": "conv1"}
    assert all(matters for _, matters in pictures.changes(TRANSFORMER, replace(TRANSFORMER, swapped), swapped))


def test_pareto_front_and_the_scale_for_outliers():
    assert pictures.pareto_front([(3, 1), (1, 5), (2, 5), (2, 2), (4, 1), (5, 0.5)]) == [(1, 5), (2, 2), (3, 1), (5, 0.5)]
    assert pictures.floor_of([-2.0, -2.2, -2.4, -60.0]) == pytest.approx(-2.3 - 2.5 * 0.3)
    assert pictures.floor_of([-2.0]) == -2.0


def test_a_search_that_has_just_begun(tmp_path):
    folder = made_up(lambda number, *_: [-4.0] if number == 1 else FAILURES[0], tmp_path / "begun", METHODS[:1], mutation=0.02)
    page = make_report(folder)  # whose seed failed: the only candidate that was measured is its child
    assert (page.parent / "fitness.png").exists() and (page.parent / "family.png").exists()
    assert "<h2>Comparison</h2>" not in page.read_text(encoding="utf-8")
    with Population(folder) as population:
        population._connection.execute("UPDATE candidates SET finished = NULL, fitness = NULL, state = 'proposed'")
        population._connection.commit()
    with pytest.raises(UserError, match="no candidate has been measured yet"):
        make_report(folder)
    with pytest.raises(UserError, match="give --workdir of a search"):
        pictures.read_history(tmp_path)


@pytest.mark.parametrize("model", [{"name": "evolved_transformer"}, {"name": "transformer", "genome": "transformer"}])
def test_report_of_a_run_shows_its_cells(tmp_path, model, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 5.0}\n')
    (tmp_path / "config.json").write_text(json.dumps({"model": {"width": 64, **model}}))
    page = make_report(tmp_path, positions=False)
    assert (page.parent / "cell.png").exists() and "<h2>Cells</h2>" in page.read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": "transformer", "width": 64, "genome": "gone.json"}}))
    assert "<h2>Cells</h2>" not in make_report(tmp_path, positions=False).read_text(encoding="utf-8")
    assert "without the model's cells" in caplog.text and "gone.json" in caplog.text
