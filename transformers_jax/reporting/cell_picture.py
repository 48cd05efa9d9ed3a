"""A genome's cells as a picture, as in figure 3 of So, Liang and Le 2019, "The Evolved Transformer": boxes of layers, norms
and activations, combiners, skip lines; encoder and decoder side by side, both growing upwards."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers_jax.genomes.branch import kind
from transformers_jax.genomes.cell import widths
from transformers_jax.genomes.genome import EVOLVED_TRANSFORMER, Branch, Genome, GenomeBlock, fields, load, replace
from transformers_jax.reporting.cell_layout import RADIUS, CellLayout, Line, Part, Planner, Point
from transformers_jax.reporting.style import GREY, INK, figure

KINDS = {
    "norm": ("normalisation", "#f6e8a6"),
    "activation": ("activation", "#ddd8ee"),
    "wide": ("wide convolution", "#a9d2ef"),
    "pointwise": ("position-wise", "#b3dfca"),
    "attention": ("self-attention", "#f5bd9b"),
    "encoder": ("attention to the encoder", "#ecb3d1"),
}
"""What boxes are, for the legend, and their colours."""

SIGNS = {"add": "+", "multiply": "×", "concat": "‖"}
ACTIVATIONS = {"swish": "swish", "relu": "ReLU", "leaky_relu": "leaky ReLU"}
CARD, EDGE, LINE = "#f6f6f7", "#8b8b90", "#3f3f45"
MARGIN, AROUND, BELOW = 0.2, 0.2, 0.62  # of the picture; from a cell to its card's edge; for what stands below and above it
CHIP, LEGEND = (1.7, 0.25), (1.75, 0.21)


def genome_of(model: Mapping) -> Genome | None:
    """The genome of a run's model, given its config.model; None where its blocks are no genome's.

    Raises:
      UserError: it names a genome that there is not, or an invalid one.
    """
    if model.get("genome"):
        return load(model["genome"])
    if model.get("name") != "evolved_transformer":
        return None
    heads = model.get("num_heads", 8)
    names = {"att8": f"att{heads}", "att16": f"att{max(min(2 * heads, 16), heads)}"}
    changes = {name: names[value] for name, value in fields(EVOLVED_TRANSFORMER).items() if value in names}
    layers = {"encoder": 3, "decoder": 4}
    return replace(EVOLVED_TRANSFORMER, changes | {f"{s}_cells": model.get(f"{s}_layers", n) for s, n in layers.items()})


def draw_cell(genome: Genome, path: Path, *, width: int = 0, unit: int = 0, title: str = "") -> None:
    """Draws both cells of a genome into a PNG file.

    Every box of a layer tells its output width after a colon. Numbers on the trunk are hidden states; those that no block
    reads are added to the cell's output.

    Args:
      width: of the model, D; if 0, widths are told as multiples of the unit s, and D is 2 s.
      unit: width of one relative output dimension; if 0, D // 2.
      title: above the picture.

    Raises:
      UserError: hidden states grow too wide, or matplotlib is not installed.
    """
    encoder = plan(genome.encoder, width, unit)
    decoder = plan(genome.decoder, width, unit)
    between = 2 * AROUND + 0.45
    wide = encoder.left + encoder.right + decoder.left + decoder.right + between + 2 * (MARGIN + AROUND)
    top = max(encoder.top, decoder.top) + AROUND + BELOW
    head = 0.4 if title else 0.0
    shown = [found for name, found in KINDS.items() if any(b.kind == name for b in (*encoder.boxes, *decoder.boxes))]
    columns = min(len(shown), int((wide - MARGIN) // LEGEND[0]))
    legend = -AROUND - BELOW - 0.18
    low = legend - LEGEND[1] * (-(-len(shown) // columns) - 1) - MARGIN
    with figure(path, wide, top + head + MARGIN - low) as drawn:
        drawn.set_layout_engine("none")
        axes = drawn.add_axes((0, 0, 1, 1), xlim=(0, wide), ylim=(low, top + head + MARGIN))
        axes.set_axis_off()
        at = MARGIN + AROUND + encoder.left
        draw_stack(axes, encoder, at, genome.encoder_cells, ("Encoder", "source", "encoder output", "encoder"))
        bridge = at
        at += encoder.right + between + decoder.left
        draw_stack(axes, decoder, at, genome.decoder_cells, ("Decoder", "target so far", "next token", ""))
        draw_bridge(axes, encoder, bridge, decoder.top, at - decoder.left - AROUND)
        draw_legend(axes, shown, columns, legend)
        if title:
            axes.text(MARGIN, top + head - 0.1, title, fontsize=11, fontweight="bold", va="center")


def plan(blocks: Sequence[GenomeBlock], width: int = 0, unit: int = 0) -> CellLayout:
    """Where the parts of one cell stand; the arguments are those of `draw_cell`."""
    scale = "" if width else "s"
    width = width or 2 * (unit or 1)
    found = widths(tuple(blocks), width, unit or width // 2)
    texts = {}
    for number, (block, pairs) in enumerate(zip(blocks, found.branches, strict=True), start=1):
        for side, branch, pair in zip((-1, 1), (block.left, block.right), pairs, strict=True):
            if pair:
                texts[number, side] = parts(branch, f"{pair[1]}{scale}")
    closing = [(f"conv 1×1 : {width}{scale}", "pointwise", False)] if found.output != width else []
    return Planner(blocks, texts, SIGNS, closing).layout()


def parts(branch: Branch, width: str) -> list[Part]:
    """A live branch's boxes from the bottom up; none for an identity that changes nothing."""
    found = [("layer norm", "norm", True)] if branch.norm == "layer_norm" else []
    if branch.layer != "id":
        name, colour = layer_name(branch.layer)
        found.append((f"{name} : {width}", colour, False))
    if branch.activation != "none":
        found.append((ACTIVATIONS[branch.activation], "activation", True))
    return found


def layer_name(layer: str) -> tuple[str, str]:
    """A layer's name in a picture, and its kind."""
    name, number, reduction = kind(layer)
    return {
        "conv": (f"conv {number}×1", "wide" if number > 1 else "pointwise"),
        "sep": (f"separable conv {number}×1", "wide"),
        "light": (f"light conv {number}×1 r {reduction}", "wide"),
        "att": (f"{number}-head self-attention", "attention"),
        "enc": ("attend to encoder", "encoder"),
        "GLU": ("gated linear unit", "pointwise"),
    }[name]


def draw_stack(axes, cell: CellLayout, x: float, cells: int, names: tuple[str, str, str, str]) -> None:
    """One cell on its card at x, with what goes in and out.

    Args:
      names: of the stack, of its input and output, and the kind whose colour the output has.
    """
    from matplotlib.patches import FancyBboxPatch

    title, source, output, colour = names
    low, high = -AROUND, cell.top + AROUND
    corner, size = (x - cell.left - AROUND, low), (cell.left + cell.right + 2 * AROUND, high - low)
    card = FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.12", fc=CARD, ec="#cfcfd4", lw=0.8, zorder=0)
    axes.add_patch(card)
    axes.text(corner[0] + 0.02, high + 0.11, title, fontsize=9.5, fontweight="bold", va="center")
    axes.text(corner[0] + size[0] - 0.02, high + 0.11, f"{cells} ×", fontsize=9.5, fontweight="bold", va="center", ha="right")
    below, above = low - BELOW + CHIP[1] / 2 + 0.08, high + BELOW - CHIP[1] / 2 - 0.08
    draw_box(axes, (x, below), CHIP, f"embedding of {source}", "#ffffff")
    draw_box(axes, (x, above), CHIP, f"layer norm → {output}", KINDS[colour][1] if colour else "#ffffff")
    draw_line(axes, Line(((x, below + CHIP[1] / 2), (x, -RADIUS))), 0.0)
    draw_line(axes, Line(((x, cell.top), (x, above - CHIP[1] / 2))), 0.0)
    draw_parts(axes, cell, x)


def draw_parts(axes, cell: CellLayout, x: float) -> None:
    """What is on the card: lines, then what covers them."""
    from matplotlib.patches import Circle

    for line in cell.lines:
        draw_line(axes, line, x)
    for at, y in cell.joins:
        axes.add_patch(Circle((x + at, y), 0.025, fc=LINE, ec="none", zorder=4))
    for box in cell.boxes:
        draw_box(axes, (x + box.x, box.bottom + box.height / 2), (box.width, box.height), box.text, KINDS[box.kind][1])
    for (at, y), sign in cell.combiners:
        axes.add_patch(Circle((x + at, y), RADIUS, fc="#ffffff", ec=LINE, lw=0.9, zorder=5))
        axes.text(x + at, y - 0.005, sign, fontsize=9, ha="center", va="center_baseline", zorder=6)
    for (at, y), number in cell.states:
        axes.add_patch(Circle((x + at, y), 0.068, fc=CARD, ec="none", zorder=5))
        axes.text(x + at, y, str(number), fontsize=6.5, color=GREY, ha="center", va="center", zorder=6)


def draw_box(axes, centre: Point, size: tuple[float, float], text: str, colour: str) -> None:
    """A rounded box with its text in the middle."""
    from matplotlib.patches import FancyBboxPatch

    corner = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    style = "round,pad=0,rounding_size=0.05"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, fc=colour, ec=EDGE, lw=0.6, zorder=4))
    fitting = 7.5 * min(1.0, 15.5 * size[0] / max(len(text), 1))  # points, so that long texts stay inside
    axes.text(*centre, text, fontsize=fitting, color=INK, ha="center", va="center", zorder=5)


def draw_line(axes, line: Line, x: float) -> None:
    """A connection with rounded corners, moved by x; where it crosses another, the other is cut."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    points = [(x + at, y) for at, y in line.points]
    vertices, codes = [points[0]], [Curve.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
    curve = Curve([*vertices, points[-1]], [*codes, Curve.LINETO])
    style = "-|>,head_width=1.6,head_length=2.6" if line.arrow else "-"
    fixed = {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 1, "capstyle": "butt", "fill": False}
    axes.add_patch(FancyArrowPatch(path=curve, arrowstyle="-", color=CARD, lw=3, zorder=2, **fixed))
    axes.add_patch(FancyArrowPatch(path=curve, arrowstyle=style, color=LINE, lw=0.9, zorder=3, **fixed | {"fill": True}))


def _towards(corner: Point, other: Point, radius: float = 0.06) -> Point:
    """The point at most a radius from a corner on the way to another point."""
    distance = abs(corner[0] - other[0]) + abs(corner[1] - other[1])  # lines are level or upright
    share = min(radius, distance / 2) / distance
    return corner[0] + share * (other[0] - corner[0]), corner[1] + share * (other[1] - corner[1])


def draw_bridge(axes, encoder: CellLayout, x: float, decoder_top: float, edge: float) -> None:
    """The arrow from the encoder's output, above x, to the decoder's card, whose left edge is at `edge`."""
    start, y = x + CHIP[0] / 2, encoder.top + AROUND + BELOW - CHIP[1] / 2 - 0.08
    low, turn = min(y, decoder_top), edge - 0.2
    points = ((start, y), (edge, y)) if low == y else ((start, y), (turn, y), (turn, low), (edge, low))
    draw_line(axes, Line(points), 0.0)


def draw_legend(axes, shown: Sequence[tuple[str, str]], columns: int, top: float) -> None:
    """What the colours mean, in rows of so many columns below y = top."""
    for number, (text, colour) in enumerate(shown):
        row, column = divmod(number, columns)
        left, y = MARGIN + column * LEGEND[0], top - row * LEGEND[1]
        draw_box(axes, (left + 0.1, y), (0.2, 0.14), "", colour)
        axes.text(left + 0.26, y, text, fontsize=7.5, color=INK, va="center")
