"""Makes a run's report: pictures and one page, in the folder `report/` of its workdir."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers_jax.reporting.attention import Attention
from transformers_jax.reporting.curves import draw_curves
from transformers_jax.reporting.page import page
from transformers_jax.reporting.pictures import draw_attention, draw_positions
from transformers_jax.reporting.record import read_record


def make_report(
    workdir,
    *,
    attention: Attention | None = None,
    samples: Sequence[Mapping[str, str]] | None = None,
    positions: bool = True,
) -> Path:
    """Writes report/index.html and its pictures as PNG files beside it; a run may still be going on.

    Args:
      workdir: of a run: metrics.jsonl, and where there are, config.json and samples.jsonl.
      attention: weights of one sentence pair to draw (see `attention.attention_of`); none if not given.
      samples: e.g. {"source": …, "reference": …, "translation": …}; those of samples.jsonl if not given.
      positions: draw the sinusoidal positions as well.

    Returns:
      The path of the page.

    Raises:
      UserError: no such workdir, nothing written in it yet, or matplotlib is not installed.
    """
    record = read_record(workdir)
    folder = Path(workdir) / "report"
    curves = draw_curves(record, folder)
    pictures = {}
    if attention is not None:
        pictures["Attention"] = folder / "attention.png"
        draw_attention(attention, pictures["Attention"])
    if positions:
        pictures["Positions"] = folder / "positions.png"
        draw_positions(pictures["Positions"])
    text = page(record, curves, pictures, record.samples if samples is None else list(samples))
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "index.html.tmp"
    fresh.write_text(text, encoding="utf-8")
    return fresh.replace(folder / "index.html")
