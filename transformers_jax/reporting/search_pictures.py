"""Pictures of an architecture search: fitness by candidate, parameters against perplexity, the family tree of the winner.

A fitness is the negative logarithm of a perplexity (see `search.population`): the higher, the better.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformers_jax import config as configuration
from transformers_jax.errors import UserError
from transformers_jax.genomes.canonical import key
from transformers_jax.genomes.genome import Genome, fields, from_json, replace
from transformers_jax.reporting.curves import scale_logarithmically
from transformers_jax.reporting.style import COLOURS, GREY, INK, figure
from transformers_jax.search import summary
from transformers_jax.search.population import FILE, Population
from transformers_jax.search.summary import lineage

Row = dict[str, Any]
"""A candidate, by the columns of `search.population`."""

HURDLE, FAILED, LINE = COLOURS["validation"], "#b00020", COLOURS["train"]
MARKERS = ("o", "s", "^", "D")
MOST_LOSS = 709.0
"""Whose perplexity is the largest that a float holds, nearly."""
MOST_CHANGES = 8
"""Fields of one mutation that the family tree names."""


class History(NamedTuple):
    """A search as far as it has come.

    name: the workdir's.  config: of the search.  methods: those that have a measured candidate, the one reported first.
    rows: the candidates of each that have ended, in that order.  hurdles: of each, dicts of stage, value and number.
    finals: trainings of the last comparison.  summary: see `search.summary.of`.
    """

    name: str
    config: Any
    methods: list[str]
    rows: dict[str, list[Row]]
    hurdles: dict[str, list[Row]]
    finals: list[Row]
    summary: dict

    @property
    def winner(self) -> Row:
        """The candidate that stands for the first method."""
        return summary.winner(self.config, self.rows[self.methods[0]], self.finals)

    @property
    def measured(self) -> list[Row]:
        """The candidates of all methods that have a fitness."""
        return [row for method in self.methods for row in self.rows[method] if row["fitness"] is not None]

    @property
    def steps(self) -> list[int]:
        """The numbers of training steps that fitnesses are worth."""
        return sorted({row["steps"] for row in self.measured})


def is_search(workdir) -> bool:
    """Whether a workdir is that of a search."""
    return (Path(workdir) / FILE).is_file()


def read_history(workdir) -> History:
    """The history of a search, which may still be going on.

    Raises:
      UserError: there is no search, its files are damaged, or no candidate has been measured yet.
    """
    if not is_search(workdir):
        raise UserError(f"{workdir} has no {FILE}: give --workdir of a search")
    config = configuration.read(workdir)
    with Population(workdir) as population:
        methods = [config.search.method, *config.search.controls]
        rows = {method: population.rows(method, "finished") for method in methods}
        methods = [method for method in methods if any(row["fitness"] is not None for row in rows[method])]
        if not methods or methods[0] != config.search.method:
            raise UserError(f"{workdir}: no candidate has been measured yet; wait, then report again")
        hurdles = {method: population.hurdles(method) for method in methods}
        found = summary.of(config, population, methods)
        return History(Path(workdir).resolve().name, config, methods, rows, hurdles, population.finals(), found)


def changes(parent: Genome, child: Genome, mutated: Iterable[str]) -> list[tuple[str, bool]]:
    """What a mutation changed, as ("decoder block 3 left layer: att8 → sep9", whether it changes what is computed).

    A field has no effect where it makes no difference to the parent alone, nor to the child if it had not changed.
    """
    before, after = fields(parent), fields(child)
    found = []
    for name in mutated:
        alone, without = replace(parent, {name: after[name]}), replace(child, {name: before[name]})
        matters = not (_same(parent, alone) and _same(without, child))
        found.append((f"{readable(name)}: {before[name]} → {after[name]}", matters))
    return found


def _same(one: Genome, other: Genome) -> bool:
    """Whether both compute the same; a genome with a block of two dead branches computes nothing."""
    computes = all(block.branches for genome in (one, other) for block in (*genome.encoder, *genome.decoder))
    return computes and key(one) == key(other)


def readable(name: str) -> str:
    """A field's name with its block counted from 1, as the hidden state is that the block makes."""
    cell, *rest = name.split(".")
    return " ".join([cell, "block", str(int(rest[0]) + 1), *rest[1:]]) if rest else name.replace("_", " ")


def floor_of(fitness: Sequence[float]) -> float:
    """The least fitness that pictures show to scale: far outliers would press the others together."""
    top, middle = max(fitness), float(np.median(fitness))
    return max(min(fitness), middle - 2.5 * max(top - middle, 0.05))


def shade(steps: int, all_steps: Sequence[int]) -> tuple:
    """The colour of candidates that trained so many steps: the more, the darker."""
    from matplotlib import colormaps

    return colormaps["Blues"](0.4 + 0.55 * (all_steps.index(steps) / max(len(all_steps) - 1, 1)))


def perplexity_axis(axis, low: float, high: float) -> None:
    """Ticks at round perplexities on an axis of fitness that reaches from low to high."""
    from matplotlib.ticker import MaxNLocator

    low, high = (max(end, -MOST_LOSS) for end in (low, high))
    if high - low < 1:
        ticks = MaxNLocator(nbins=7).tick_values(math.exp(-high), math.exp(-low))
    else:
        powers = range(math.floor(-high / math.log(10)), math.ceil(-low / math.log(10)) + 1)
        ticks = [d * 10.0**power for power in powers for d in ((1, 2, 3, 5, 7) if high - low < 4 else (1, 3))]
    ticks = [tick for tick in ticks if tick > 0 and low <= -math.log(tick) <= high]
    axis.set_ticks([-math.log(tick) for tick in ticks], [f"{tick:,.4g}" for tick in ticks])


def draw_fitness(history: History, path: Path) -> None:
    """Fitness of every candidate in the order in which they ended, a panel a method, with hurdles and failures."""
    floor = floor_of([row["fitness"] for row in history.measured])
    top = max(row["fitness"] for row in history.measured)
    room = 0.12 * max(top - floor, 0.1)
    count = len(history.methods)
    with figure(path, 9.0, 0.9 + 3.1 * count) as drawn:
        panels = drawn.subplots(count, 1, squeeze=False, sharey=True)[:, 0]
        for method, axes in zip(history.methods, panels, strict=True):
            axes.set_ylim(floor - room, top + room)
            draw_candidates(axes, history, method, floor)
            axes.set_title(method.replace("_", " "))
            axes.set_ylabel("fitness (−log perplexity)")
            beside = axes.twinx()
            beside.set(ylim=axes.get_ylim(), ylabel="perplexity")
            perplexity_axis(beside.yaxis, floor, top + room)
            beside.grid(False)
        panels[-1].set_xlabel("candidate, in the order in which they ended")
        handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 5), fontsize=9)


def draw_candidates(axes, history: History, method: str, floor: float) -> None:
    """One method's panel."""
    rows, steps = history.rows[method], history.steps
    first = min(history.config.search.population, len(rows))
    axes.axvspan(-0.5, first - 0.5, color="#f3f3f5", lw=0, zorder=0)
    axes.annotate("first population", (0, 1), (2, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
                  va="top", fontsize=8, color=GREY)  # fmt: skip
    for wanted in steps:
        mine = [row for row in rows if row["fitness"] is not None and row["steps"] == wanted]
        for known in (False, True):
            chosen = [row for row in mine if (row["same_as"] is not None) == known]
            points = [row["finished"] for row in chosen], [max(row["fitness"], floor) for row in chosen]
            colour = shade(wanted, steps)
            label = "known from an equivalent" if known else f"{wanted:,} steps"
            look = {"markerfacecolor": "white" if known else colour, "markeredgecolor": colour, "markersize": 4.5}
            axes.plot(*points, "o", zorder=3, label=label if chosen else None, **look)
    below = [row["finished"] for row in rows if row["fitness"] is not None and row["fitness"] < floor]
    failed = [row["finished"] for row in rows if row["state"] == "failed"]
    marks = ((below, 0.085, "v", GREY, "worse than shown"), (failed, 0.03, "x", FAILED, "failed"))
    for at, height, marker, colour, label in marks:
        look = {"color": colour, "markersize": 4.5, "transform": axes.get_xaxis_transform(), "zorder": 3}
        axes.plot(at, [height] * len(at), marker, label=label if at else None, **look)
    best = np.maximum.accumulate([-math.inf if row["fitness"] is None else row["fitness"] for row in rows])
    axes.step(range(len(rows)), np.fmax(best, floor), where="post", color=INK, lw=0.9, label="best so far")
    draw_hurdles(axes, history.hurdles[method], len(rows))
    axes.set_xlim(-0.5, max(len(rows), 2) * (1.09 if history.hurdles[method] else 1.0))


def draw_hurdles(axes, hurdles: list[Row], end: int) -> None:
    """Dashed lines from where a hurdle was set to the end, and their names behind it, apart from each other."""
    low, high = axes.get_ylim()
    above = -math.inf
    for hurdle in sorted(hurdles, key=lambda hurdle: hurdle["value"]):
        if math.isfinite(hurdle["value"]):
            axes.plot([hurdle["number"] - 0.5, end], [hurdle["value"]] * 2, "--", color=HURDLE, lw=1.3, zorder=4)
            above = max(hurdle["value"], above + 0.065 * (high - low))
            text = f" hurdle {hurdle['stage'] + 1}"
            axes.text(end, above, text, fontsize=8.5, color=HURDLE, va="center")


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both coordinates, the lower the better, by rising first coordinate."""
    front = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def draw_front(history: History, path: Path) -> None:
    """Perplexity against parameters, with the Pareto front: nobody has less of both."""
    from matplotlib.ticker import EngFormatter

    shown = [row for row in history.measured if row["fitness"] >= floor_of([r["fitness"] for r in history.measured])]
    front = pareto_front((row["parameters"], math.exp(-row["fitness"])) for row in shown)
    with figure(path, 7.2, 4.6) as drawn:
        axes = drawn.subplots()
        for method, marker in zip(history.methods, MARKERS, strict=False):
            for steps in history.steps:
                mine = [row for row in shown if row["method"] == method and row["steps"] == steps]
                points = [row["parameters"] for row in mine], [math.exp(-row["fitness"]) for row in mine]
                axes.scatter(*points, s=22, marker=marker, color=[shade(steps, history.steps)], linewidths=0, zorder=3)
        axes.step(*zip(*front, strict=True), where="post", color=HURDLE, lw=1.3, zorder=2)
        axes.plot(*zip(*front, strict=True), "o", color=HURDLE, markersize=8, fillstyle="none", zorder=4)
        scale_logarithmically(axes)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="parameters", ylabel="perplexity on validation (log scale)", title="Parameters and perplexity")
        left_out = len(history.measured) - len(shown)
        note = f"{left_out} of worse perplexity not shown" if left_out else ""
        axes.set_title(note, loc="right", fontsize=8, fontweight="normal", color=GREY)
        label_front(axes, history, shown)
        drawn.legend(handles=legend_handles(history), loc="outside lower center", ncols=4, fontsize=9)


def label_front(axes, history: History, shown: list[Row]) -> None:
    """Names the winner and its first ancestor."""
    from matplotlib.patheffects import withStroke

    line = lineage(history.rows[history.methods[0]], history.winner)
    ends = zip(line[:: max(len(line) - 1, 1)], ("first ancestor", "winner")[-len(line) :], strict=True)
    for row, text in (end for end in ends if end[0] in shown):
        look = {"ha": "center", "fontsize": 9.5, "fontweight": "bold", "zorder": 6, "textcoords": "offset points"}
        stroke = {"arrowstyle": "-", "lw": 0.9, "color": INK, "shrinkB": 4}
        name = axes.annotate(text, (row["parameters"], math.exp(-row["fitness"])), (0, 20), arrowprops=stroke, **look)
        name.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def legend_handles(history: History) -> list:
    """Steps by shade, methods by marker, the front."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="", marker="o", color=shade(s, history.steps), label=f"{s:,} steps") for s in history.steps]
    if len(history.methods) > 1:
        handles += [
            Line2D([], [], ls="", marker=marker, color=GREY, label=method.replace("_", " "))
            for method, marker in zip(history.methods, MARKERS, strict=False)
        ]
    return [*handles, Line2D([], [], marker="o", fillstyle="none", color=HURDLE, label="Pareto front")]


def draw_family(history: History, path: Path) -> None:
    """The winner's line from the first ancestor down, with what changed at each mutation, among all other candidates."""
    rows = [row for row in history.rows[history.methods[0]] if row["fitness"] is not None]
    by_id = {row["id"]: row for row in history.rows[history.methods[0]]}
    line = lineage(rows, history.winner)
    texts = [mutation_lines(by_id, row) for row in line]
    generations = {row["id"]: len(lineage(rows, row)) - 1 for row in rows}
    heights = [0.32 + 0.155 * len(lines) for lines in texts] + [0.3] * (max(generations.values()) + 1 - len(line))
    tops = np.concatenate([[0.0], np.cumsum(heights)])
    with figure(path, 10.0, tops[-1] + 1.1) as drawn:
        axes, words = drawn.subplots(1, 2, width_ratios=[0.9, 1], sharey=True)
        draw_tree(axes, rows, line, {id: tops[generation] + 0.15 for id, generation in generations.items()})
        words.set_axis_off()
        words.set(xlim=(0, 1), ylim=(tops[-1], 0))
        for row, lines, top in zip(line, texts, tops, strict=False):
            about = f"perplexity {math.exp(-row['fitness']):.2f} at {row['steps']:,} steps · {row['parameters'] / 1e6:.2f}M"
            words.text(0, top + 0.15, f"candidate {row['number']}", fontsize=9, fontweight="bold", va="center")
            words.text(0.27, top + 0.15, about, fontsize=8.5, color=GREY, va="center")
            for number, (text, matters) in enumerate(lines):
                at = top + 0.32 + 0.155 * number
                words.text(0.02, at, text, fontsize=8.5, color=INK if matters else "#a8a8ad", va="center")


def mutation_lines(by_id: dict[int, Row], row: Row) -> list[tuple[str, bool]]:
    """What the family tree says about one mutation, and whether a line changes what is computed."""
    parent = by_id.get(next(iter(row["parents"]), None))
    if parent is None:
        return []
    found = changes(from_json(parent["genome"]), from_json(row["genome"]), row["mutated"])
    found = [(text if matters else f"{text} (no effect)", matters) for text, matters in sorted(found, key=lambda c: not c[1])]
    left = len(found) - MOST_CHANGES
    return found if left < 2 else [*found[:MOST_CHANGES], (f"and {left} more fields", True)]


def draw_tree(axes, rows: list[Row], line: list[Row], heights: dict[int, float]) -> None:
    """Candidates by fitness and generation, joined to their parents; the line stands out."""
    floor = floor_of([row["fitness"] for row in rows])
    place = {row["id"]: (max(row["fitness"], floor), heights[row["id"]]) for row in rows}
    for row in rows:
        for parent in filter(place.__contains__, row["parents"]):
            axes.plot(*zip(place[parent], place[row["id"]], strict=True), color="#dcdce0", lw=0.6, zorder=1)
    axes.plot(*zip(*place.values(), strict=True), "o", color="#b9b9bf", markersize=3, zorder=2)
    axes.plot(*zip(*(place[row["id"]] for row in line), strict=True), "-o", color=LINE, lw=2, markersize=6, zorder=3)
    top = max(row["fitness"] for row in rows)
    room = 0.05 * max(top - floor, 0.1)
    axes.set_xlim(floor - room, top + room)
    perplexity_axis(axes.xaxis, *axes.get_xlim())
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set(title="From the first ancestor to the winner", xlabel="perplexity on validation (better to the right)")


def draw_finals(history: History, path: Path) -> None:
    """The last comparison: perplexity of each seed of the best of each method and of the seed genome, trained alike."""
    scores = {name: found["fitness"] for name, found in history.summary["final"].items() if found["fitness"]}
    scores = dict(sorted(scores.items(), key=lambda item: np.mean(item[1])))
    with figure(path, 7.2, 1.3 + 0.42 * len(scores)) as drawn:
        axes = drawn.subplots()
        for height, (name, fitness) in enumerate(scores.items()):
            colour = LINE if name == history.summary.get("won") else GREY
            axes.plot(fitness, [height] * len(fitness), "o", color=colour, markersize=6, alpha=0.55, markeredgewidth=0)
            axes.plot([np.mean(fitness)] * 2, [height - 0.25, height + 0.25], color=colour, lw=2.2)
        axes.set_yticks(range(len(scores)), [name.replace("_", " ") for name in scores])
        axes.set_ylim(-0.6, len(scores) - 0.4)
        axes.margins(x=0.12)
        perplexity_axis(axes.xaxis, *axes.get_xlim())
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("perplexity on validation, each seed and the mean (better to the right)")
        axes.set_title(f"Trained anew for {history.summary['final_steps']:,} steps")
