"""One HTML page about a run that needs nothing beside it: pictures are inside, there is no script and no link."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from transformers_jax.reporting.curves import PLOTS
from transformers_jax.runs.record import Record, is_number

MOST_SAMPLES = 50
PIXELS = 1.5
"""Of a tall picture, for one of the page's: as large as is easily read."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #6b6b70; --line: #e3e3e6; --back: #ffffff; --panel: #f7f7f8;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --soft: #a0a0a6; --line: #3a3a3e; --back: #17171a;
  --panel: #202024; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.5rem 4rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .9rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p.lead { color: var(--soft); margin: 0; }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 0; padding: 0; list-style: none; }
.facts li { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; }
.facts b { display: block; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .85rem; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; }
figure img { display: block; width: 100%; height: auto; }
figure.wide { margin-bottom: 1rem; }
figure.wide img { width: auto; max-width: 100%; margin: 0 auto; max-height: 60rem; }
figure.tall { margin-bottom: 1rem; }
figure.tall img { max-width: 100%; margin: 0 auto; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem;
  white-space: pre-wrap; font: .88em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.samples td { min-width: 14rem; overflow-wrap: anywhere; }
.samples td:first-child, .samples th:first-child { min-width: 2rem; color: var(--soft); }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.config { columns: 22rem; column-gap: 2rem; }
.config section { break-inside: avoid; margin-bottom: 1.2rem; }
.config h3 { margin: 0 0 .2rem; font-size: .95rem; color: var(--accent); }
.config td { padding: .2rem .8rem .2rem 0; }
.config td:first-child { color: var(--soft); }
""".strip()


def page(
    record: Record,
    curves: Mapping[str, Path],
    pictures: Mapping[str, Path],
    samples: Sequence[Mapping],
) -> str:
    """The page as text.

    Args:
      record: the run.
      curves: PNG files of curves by title, shown side by side.
      pictures: PNG files by title, each shown at full width under its own heading.
      samples: rows of a table, whose columns are their keys in order of appearance.
    """
    parts = [heading(record), "<h2>Course</h2>", '<div class="pictures">']
    parts += [picture(title, path) for title, path in curves.items()]
    parts += ["</div>", "<h2>Metrics</h2>", metrics_table(record)]
    if samples:
        parts += ["<h2>Samples</h2>", samples_table(samples)]
    for title, path in pictures.items():
        parts += [f"<h2>{escape(title)}</h2>", picture(title, path, wide=True)]
    if record.config:
        parts += ["<h2>Configuration</h2>", config_tables(record.config)]
    return document(record.name, parts)


def document(name: str, parts: Sequence[str]) -> str:
    """The whole page of a workdir's name and the parts of its body."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(name)} · report</title>",
            f"<style>\n{STYLE}\n</style>",
            "</head>",
            "<body>",
            *parts,
            "</body>",
            "</html>",
            "",
        ]
    )


def heading(record: Record) -> str:
    """The run's name, what it is, how far it is, and its best values."""
    config = record.config
    names = [str((config.get(part) or {}).get("name", "")) for part in ("task", "model")]
    languages = (config.get("data") or {}).get("languages") or ()
    lead = " · ".join([*(n for n in names if n), *(["–".join(map(str, languages))] if languages else [])])
    steps = (config.get("training") or {}).get("steps")
    step = record.last_step()
    reached = f"of {steps:,} steps" + ("" if step >= steps else " so far") if is_number(steps) else "steps"
    facts = [(f"{step:,}", reached)]
    for plot in PLOTS:
        for split in record.splits():
            taken, values = record.curve(split, plot.metric)
            if plot.best and split != "train" and values:
                value, at = (max if plot.best == "max" else min)(
                    zip(values, taken, strict=True), key=lambda pair: pair[0]
                )
                facts.append(
                    (
                        number(value),
                        f"best {split} {plot.title if plot.title.isupper() else plot.title.lower()}, step {at:,}",
                    )
                )
    return masthead(record.name, lead, facts)


def masthead(name: str, lead: str, facts: Sequence[tuple[str, str]]) -> str:
    """The top of a page: the workdir's name, what it is, and (value, what it is) of the most important facts."""
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(what)}</span></li>" for value, what in facts)
    return f'<h1>{escape(name)}</h1>\n<p class="lead">{escape(lead)}</p>\n<ul class="facts">{items}</ul>'


def picture(title: str, path: Path, wide: bool = False) -> str:
    """A PNG file inside the page; a wide one fits the window, unless it is a tall one, which has its own size."""
    content = path.read_bytes()
    data = base64.b64encode(content).decode("ascii")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    tall = wide and height > width
    kind = ' class="tall"' if tall else ' class="wide"' if wide else ""
    size = f' style="width: {width / PIXELS:.0f}px"' if tall else ""
    return f'<figure{kind}><img src="data:image/png;base64,{data}" alt="{escape(title)}"{size}></figure>'


def metrics_table(record: Record) -> str:
    """The last value of every metric, a column for each split, and the step it is from."""
    splits = record.splits()
    names = list(dict.fromkeys(name for split in splits for name in record.metrics(split)))
    rows = []
    for name in names:
        cells = []
        for split in splits:
            step, value = record.last(split, name) or ("", "")
            text = number(value) if is_number(value) else escape(value)
            cells.append(f'<td class="number" title="step {step}">{text}</td>' if text else "<td></td>")
        rows.append(f"<tr><td><code>{escape(name)}</code></td>{''.join(cells)}</tr>")
    last = [max(row["step"] for row in record.rows if row["split"] == split) for split in splits]
    heads = "".join(f"<th>{escape(s)}, step {step:,}</th>" for s, step in zip(splits, last, strict=True))
    return f'<div class="scroll"><table><tr><th>last value</th>{heads}</tr>{"".join(rows)}</table></div>'


def samples_table(samples: Sequence[Mapping]) -> str:
    """The first samples, one a row."""
    columns = list(dict.fromkeys(key for sample in samples for key in sample))
    heads = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    rows = []
    for count, sample in enumerate(samples[:MOST_SAMPLES], start=1):
        cells = "".join(f'<td dir="auto">{escape(shown(sample.get(column, "")))}</td>' for column in columns)
        rows.append(f"<tr><td>{count}</td>{cells}</tr>")
    left = len(samples) - MOST_SAMPLES
    more = f'<p class="lead">and {left:,} more</p>' if left > 0 else ""
    table = f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"
    return f'<div class="scroll samples">{table}</div>{more}'


def config_tables(config: Mapping) -> str:
    """Every key of the configuration, a table for each part."""
    groups = {"": {key: value for key, value in config.items() if not isinstance(value, Mapping)}}
    groups |= {key: flatten(value) for key, value in config.items() if isinstance(value, Mapping)}
    sections = []
    for title, values in groups.items():
        rows = "".join(
            f"<tr><td><code>{escape(str(key))}</code></td><td><code>{escape(shown(value))}</code></td></tr>"
            for key, value in values.items()
        )
        head = f"<h3>{escape(str(title))}</h3>" if title else ""
        sections += [f"<section>{head}<table>{rows}</table></section>"] if values else []
    return f'<div class="config">{"".join(sections)}</div>'


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    found = {}
    for key, value in tree.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def shown(value) -> str:
    """Strings as they are, anything else as JSON writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def number(value: float) -> str:
    """Four digits, with separators from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
