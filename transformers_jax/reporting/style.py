"""How pictures look: colours that the colour-blind tell apart (Okabe and Ito 2008); matplotlib, imported lazily."""

import contextlib
import warnings
from pathlib import Path

from transformers_jax.errors import UserError

INK, GREY, GRID = "#222222", "#767676", "#e4e4e4"
COLOURS = {"train": "#0072b2", "validation": "#d55e00", "test": "#009e73"}
OTHERS = ("#cc79a7", "#e69f00", "#56b4e9")
MARKERS = {"train": None, "validation": "o", "test": "s"}
DOTS_PER_INCH = 160
FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari")
"""Fonts for scripts that matplotlib's own lacks, taken where they are installed."""

_SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a token is a dollar sign
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextlib.contextmanager
def figure(path: Path, width: float, height: float):
    """A matplotlib figure of so many inches, drawn without a display and saved to `path` at the end.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.font_manager import fontManager
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install transformers_jax[report]") from error
    installed = {font.name for font in fontManager.ttflist}
    fonts = {"font.family": ["DejaVu Sans", *(name for name in FONTS if name in installed)]}
    with matplotlib.rc_context(_SETTINGS | fonts), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a token in a script the font lacks: a box
        drawn = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
        FigureCanvasAgg(drawn)
        yield drawn
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=DOTS_PER_INCH)


def colour(split: str, splits: list[str]) -> str:
    """The colour of a split; splits without one of their own take the others in turn."""
    if split in COLOURS:
        return COLOURS[split]
    return OTHERS[[s for s in splits if s not in COLOURS].index(split) % len(OTHERS)]
