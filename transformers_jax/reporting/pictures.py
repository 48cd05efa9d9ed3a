"""Pictures of what a model is made of: attention weights, and sinusoidal positions.

Axes: N heads, T target (query) length, S source (key) length, D model width.
"""

import math
from pathlib import Path

import numpy as np

from transformers_jax.data.text import words
from transformers_jax.layers.positions import STYLES, frequencies, sinusoidal
from transformers_jax.reporting.attention import Attention
from transformers_jax.reporting.style import COLOURS, GREY, figure

LONGEST_LABEL = 14
"""Characters of a token that are shown."""


def draw_attention(attention: Attention, path: Path) -> None:
    """One panel a head, target tokens downwards, source tokens to the right; all panels share one scale.

    Panels grow with the sentences up to a limit; beyond it, labels that would overlap are left out at equal steps.

    Raises:
      ValueError: weights and tokens do not fit together.
    """
    weights = np.asarray(attention.weights, np.float32)  # [N, T, S]
    heads, rows, columns = weights.shape
    if (rows, columns) != (len(attention.target_tokens), len(attention.source_tokens)):
        raise ValueError(f"weights {weights.shape} do not fit {len(attention.target_tokens)} target tokens and "
                         f"{len(attention.source_tokens)} source tokens")  # fmt: skip
    wide = panels_beside(heads, columns)
    high = math.ceil(heads / wide)
    most = 8.0 if heads == 1 else 13.0 / wide
    cell = min(0.3 if heads == 1 else 0.2, most / max(columns, 1))
    panel_width, panel_height = max(1.8, columns * cell), max(1.8, min(rows * cell, 2 * most))
    labels = 0.075 * min(LONGEST_LABEL, max(len(t) for t in [*attention.target_tokens, *attention.source_tokens]))
    size = wide * (panel_width + 0.15) + labels + 1.4, high * (panel_height + 0.35) + labels + 1.0
    with figure(path, *size) as drawn:
        panels = drawn.subplots(high, wide, squeeze=False)
        for number, axes in enumerate(panels.flat):
            if number >= heads:
                axes.set_axis_off()
                continue
            image = axes.imshow(
                weights[number], cmap="Blues", vmin=0, vmax=max(float(weights.max()), 1e-6), aspect="auto"
            )
            axes.grid(False)
            if heads > 1:
                axes.set_title(f"head {number + 1}", fontsize=9, fontweight="normal", pad=4)
            label_tokens(axes.xaxis, attention.source_tokens, panel_width, number + wide >= heads, rotation=90)
            label_tokens(axes.yaxis, attention.target_tokens, panel_height, number % wide == 0)
        drawn.suptitle(attention.title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        drawn.supxlabel(attention.across, fontsize=9, color=GREY)
        drawn.supylabel(attention.down, fontsize=9, color=GREY)
        bar = drawn.colorbar(image, ax=panels, fraction=0.03, pad=0.02, aspect=30, shrink=0.9)
        bar.set_label("attention weight", fontsize=9)


def panels_beside(heads: int, columns: int) -> int:
    """Panels in a row: fewer the more columns each has, and where it can be, so many that no row is left half empty."""
    most = min(heads, 4 if columns <= 36 else 3 if columns <= 48 else 2)
    return next((n for n in range(most, most // 2, -1) if heads % n == 0), most)


def label_tokens(axis, tokens: list[str], inches: float, shown: bool, rotation: float = 0) -> None:
    """Writes tokens along an axis as large as fits, at least 5 points; where they do not fit, every second, third, …"""
    room = inches * 72 / max(len(tokens), 1)  # points for one label
    every = max(1, math.ceil(5.5 / room))
    at = list(range(0, len(tokens), every))
    axis.set_ticks(at, [shorten(tokens[i]) if shown else "" for i in at], rotation=rotation)
    axis.set_tick_params(labelsize=min(8.0, max(5.0, room * every * 0.85)), length=0 if every == 1 else 2)


def shorten(token: str) -> str:
    """At most LONGEST_LABEL characters, none of which breaks the line; the font has no JOIN."""
    token = token.replace(words.JOIN, "▪")
    token = token.encode("unicode_escape").decode() if not token.isprintable() else token
    return token if len(token) <= LONGEST_LABEL else token[: LONGEST_LABEL - 1] + "…"


def shift_matrix(shift: int, width: int, style: str = "interleaved") -> np.ndarray:
    """The matrix M [D, D] with PE(p + shift) = PE(p) @ M for every position p.

    Each pair (sin ωp, cos ωp) is turned by the angle ω·shift, whatever p is (Vaswani et al. 2017, section 3.5: "for any
    fixed offset k, PE(pos + k) can be represented as a linear function of PE(pos)"). D is even.
    """
    matrix = np.zeros((width, width))
    for pair, angle in enumerate(shift * frequencies(width, style)):
        sine, cosine = (2 * pair, 2 * pair + 1) if style == "interleaved" else (pair, width // 2 + pair)
        matrix[sine, sine] = matrix[cosine, cosine] = math.cos(angle)
        matrix[cosine, sine] = math.sin(angle)  # sin(a + b) = sin a cos b + cos a sin b
        matrix[sine, cosine] = -math.sin(angle)  # cos(a + b) = cos a cos b - sin a sin b
    return matrix


def draw_positions(path: Path, *, length: int = 100, width: int = 64, shift: int = 4) -> None:
    """Sinusoidal positions: both orders of their columns, and how a shift turns each pair by an angle of its own."""
    with figure(path, 10.0, 7.4) as drawn:
        upper, lower = drawn.subfigures(2, 1, height_ratios=[1, 0.92])
        tables = upper.subplots(1, 2)
        for axes, style in zip(tables, STYLES, strict=True):
            image = axes.imshow(sinusoidal(length, width, style), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
            axes.set_title(style.capitalize())
            axes.set_xlabel("column of the vector")
            axes.set_ylabel("position")
            axes.grid(False)
        upper.colorbar(image, ax=tables, label="value", fraction=0.04, pad=0.02)
        matrix_axes, *circles = lower.subplots(1, 4, width_ratios=[1.25, 1, 1, 1])
        matrix_axes.imshow(shift_matrix(shift, width).T, cmap="RdBu_r", vmin=-1, vmax=1)
        matrix_axes.set_title(f"PE(p + {shift}) = M · PE(p)", fontsize=10)
        matrix_axes.set_xlabel("column of PE(p)")
        matrix_axes.set_ylabel(f"column of PE(p + {shift})")
        matrix_axes.grid(False)
        for axes, pair in zip(circles, (0, 4, 8), strict=True):
            draw_rotation(axes, pair, width, shift)
        lower.legend(*circles[0].get_legend_handles_labels(), loc="outside lower right", ncols=4, fontsize=9)


def draw_rotation(axes, pair: int, width: int, shift: int) -> None:
    """One (sine, cosine) pair of two positions on the unit circle, and where the shift turns them, by one angle."""
    frequency = float(frequencies(width)[pair])
    turn = frequency * shift
    angles = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angles), np.sin(angles), color=GREY, linewidth=0.8)
    starts = {3: COLOURS["train"], 20: COLOURS["validation"]}
    for number, (position, line_colour) in enumerate(starts.items()):
        start = frequency * position
        arc = np.linspace(start, start + turn, 60)
        radius = 1.0 - 0.25 * (number + 1)
        axes.plot(radius * np.cos(arc), radius * np.sin(arc), color=line_colour, linewidth=1.4)
        for angle, style in ((start, "o"), (start + turn, "s")):
            point = np.cos(angle), np.sin(angle)
            axes.plot([0, point[0]], [0, point[1]], color=line_colour, linewidth=0.8, alpha=0.5)
            name = f"p = {position}" if style == "o" else f"p = {position + shift}"
            axes.plot(*point, style, color=line_colour, markersize=6, label=name, linestyle="none")
    axes.set_title(f"pair {pair} turns by {turn:.2g} rad", fontsize=9)
    axes.set_xlabel(f"cos {frequency:.2g}p")
    axes.set_ylabel(f"sin {frequency:.2g}p", labelpad=0)
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
