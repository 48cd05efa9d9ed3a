"""The course of a run over its steps: loss, perplexity, BLEU, learning rate, speed."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformers_jax.reporting.style import GREY, MARKERS, colour, figure
from transformers_jax.runs.record import Record
from transformers_jax.training.metrics import SPEEDS


class Plot(NamedTuple):
    """One picture of a metric.

    metric: its name in metrics.jsonl.  title, unit: what stands above and beside it.
    log: logarithmic axis.  best: which extreme is the best ("max", "min" or ""), marked on splits but "train".
    noisy: a long curve is drawn pale with its running mean above it.
    """

    metric: str
    title: str
    unit: str
    log: bool = False
    best: str = ""
    noisy: bool = True


PLOTS = (
    Plot("loss", "Loss", "cross entropy (nats)", best="min"),
    Plot("perplexity", "Perplexity", "perplexity per token (log scale)", log=True, best="min"),
    Plot("accuracy", "Accuracy", "share predicted", best="max"),
    Plot("top5_accuracy", "Top five", "share among the five likeliest", best="max"),
    Plot("real_accuracy", "ReaL accuracy", "share with one of the right labels", best="max"),
    Plot("mean_average_precision", "Mean average precision", "mean over classes (0–1)", best="max"),
    Plot("mean_iou", "Mean IoU", "intersection over union, mean over classes", best="max"),
    Plot("ap", "Average precision", "COCO's, mean over overlaps and classes", best="max"),
    Plot("ap50", "AP50", "average precision at an overlap of one half", best="max"),
    Plot("next_accuracy", "Sentence pairs", "share of pairs told apart", best="max"),
    Plot("bleu", "BLEU", "BLEU (0–100)", best="max"),
    Plot("f1", "F1", "F1 (0–1)", best="max"),
    Plot("exact_match", "Exact match", "share of answers found exactly", best="max"),
    Plot("matthews", "Matthews", "Matthews correlation", best="max"),
    Plot("spearman", "Spearman", "rank correlation", best="max"),
    Plot("learning_rate", "Learning rate", "learning rate", noisy=False),
    Plot("tokens_per_second", "Speed", "target tokens per second"),
    Plot("examples_per_second", "Speed", "examples per second"),
    Plot("pixels_per_second", "Speed", "pixels that are learned, per second"),
)


def draw_curves(record: Record, folder: Path) -> dict[str, Path]:
    """Draws every plot for which the run has values; {title: PNG file}."""
    drawn = {}
    for plot in PLOTS:
        splits = [split for split in record.splits() if any(record.curve(split, plot.metric)[1])]
        if splits:
            drawn[plot.title] = folder / f"{plot.metric}.png"
            draw_curve(record, plot, splits, drawn[plot.title])
    return drawn


def draw_curve(record: Record, plot: Plot, splits: list[str], path: Path) -> None:
    """One metric of the given splits over steps."""
    with figure(path, 6.4, 3.6) as drawn:
        axes = drawn.subplots()
        for split in splits:
            steps, values = record.curve(split, plot.metric)
            draw_line(axes, plot, split, np.array(steps), np.array(values), colour(split, splits))
            if plot.best and split != "train" and len(values) > 1:
                mark_best(axes, plot, np.array(steps), np.array(values), colour(split, splits))
        finish_axes(axes, plot, record, splits)


def draw_line(axes, plot: Plot, split: str, steps, values, line_colour: str) -> None:
    """One curve, with a marker for each point where there are few."""
    marker = MARKERS.get(split, "^") if len(steps) <= 60 else None
    if len(steps) == 1:
        marker = "o"
    if len(steps) > 120 and plot.noisy:
        axes.plot(steps, values, color=line_colour, alpha=0.25, linewidth=0.8)
        values = running_mean(values, len(steps) // 40, plot.log)
    axes.plot(steps, values, color=line_colour, linewidth=1.8, marker=marker, markersize=4, label=split)


def running_mean(values: np.ndarray, reach: int, log: bool) -> np.ndarray:
    """Mean of each value and up to `reach` neighbours on either side; of logarithms, if the axis is one."""
    values = np.log(values) if log else values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    # as far on one side as on the other, so that the ends are not pulled inwards
    half = np.minimum(reach, np.minimum(index, len(values) - 1 - index))
    means = (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)
    return np.exp(means) if log else means


def mark_best(axes, plot: Plot, steps, values, line_colour: str) -> None:
    """A ring around the best value with the value beside it."""
    at = int(np.argmax(values) if plot.best == "max" else np.argmin(values))
    axes.plot(steps[at], values[at], "o", markersize=9, fillstyle="none", color=line_colour)
    late = at > len(steps) / 2
    axes.annotate(
        f"best {values[at]:.4g}",
        (steps[at], values[at]),
        xytext=(-4 if late else 4, -14 if plot.best == "max" else 10),
        textcoords="offset points",
        ha="right" if late else "left",
        color=line_colour,
        fontsize=9,
    )


def finish_axes(axes, plot: Plot, record: Record, splits: list[str]) -> None:
    """Title, labels with units, scales, legend."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    axes.set_title(plot.title)
    axes.set_xlabel("step")
    axes.set_ylabel(plot.unit)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.margins(x=0.02, y=0.12)
    if plot.log:
        scale_logarithmically(axes)
    elif plot.metric in SPEEDS:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    elif plot.metric == "learning_rate":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif plot.metric == "bleu":
        axes.set_ylim(bottom=0)
    smoothing = (record.config.get("task") or {}).get("label_smoothing")
    if plot.metric == "loss" and smoothing and "train" in splits:
        note = f"train includes label smoothing {smoothing:g}"
        axes.set_title(note, loc="right", fontsize=8, fontweight="normal", color=GREY)
    if len(splits) > 1:
        axes.legend(loc="best")


def scale_logarithmically(axes) -> None:
    """A logarithmic axis whose ticks are round numbers, enough of them to read values off also within one decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    digits = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 1 else (1, 2, 5) if decades < 4 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    axes.yaxis.set_major_locator(
        FixedLocator([d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high])
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1e4 else f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
