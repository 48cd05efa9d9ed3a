"""Makes the report of a run or a search: pictures and one page, in the folder `report/` of its workdir."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from transformers_jax.errors import UserError
from transformers_jax.files import write_whole
from transformers_jax.genomes.genome import from_json
from transformers_jax.reporting import scenes, search_pictures
from transformers_jax.reporting.attention import Attention
from transformers_jax.reporting.cell_picture import draw_cell, genome_of
from transformers_jax.reporting.confusion import draw_confusion, table_of
from transformers_jax.reporting.curves import draw_curves
from transformers_jax.reporting.page import page
from transformers_jax.reporting.pictures import draw_attention, draw_positions
from transformers_jax.reporting.search_page import search_page
from transformers_jax.reporting.word_vectors import WordVectors, draw_word
from transformers_jax.runs.record import Record, read_record


def make_report(
    workdir,
    *,
    attention: Attention | None = None,
    samples: Sequence[Mapping[str, str]] | None = None,
    positions: bool = True,
    word: WordVectors | None = None,
    images: tuple[Sequence[scenes.Scene], Sequence[str]] | None = None,
    more: Mapping[str, Callable[[Path], None]] = MappingProxyType({}),
) -> Path:
    """Writes report/index.html and its pictures as PNG files beside it; a run or search may still be going on.

    Args:
      workdir: of a run: metrics.jsonl, and where there are, config.json and samples.jsonl; or of a search.
      attention: weights of one sentence pair to draw (see `attention.attention_of`); none if not given.
      samples: e.g. {"source": …, "reference": …, "translation": …}; those of samples.jsonl if not given.
      positions: draw the sinusoidal positions as well.
      images: scenes with their true and their found classes, and the names of the classes (see `scenes.worst_scenes`).
      word: one word's vectors in different sentences (see `encoder.word_example`); none if not given.
      more: title → what draws a picture into a file (see `vision_pictures.pictures`).

    Returns:
      The path of the page.

    Raises:
      UserError: no such workdir, nothing written in it yet, or matplotlib is not installed.
    """
    folder = Path(workdir) / "report"
    if search_pictures.is_search(workdir):
        return _write(folder, _search_report(Path(workdir), folder))
    record = read_record(workdir)
    curves = draw_curves(record, folder)
    pictures = {}
    if attention is not None:
        pictures["Attention"] = folder / "attention.png"
        draw_attention(attention, pictures["Attention"])
    if word is not None:
        pictures["A word in different sentences"] = folder / "word.png"
        draw_word(word, pictures["A word in different sentences"])
    pictures |= _cells(record, folder)
    if positions:
        pictures["Positions"] = folder / "positions.png"
        draw_positions(pictures["Positions"])
    samples = record.samples if samples is None else list(samples)
    task = (record.config.get("task") or {}).get("name")
    if task in ("image_classification", "image_distillation") and (table := table_of(samples)):
        pictures["Confusions"] = folder / "confusions.png"
        draw_confusion(*table, pictures["Confusions"])
    for title, draw in more.items():
        pictures[title] = folder / f"{title.lower().replace(' ', '_')}.png"
        draw(pictures[title])
    if images and images[0]:
        pictures["Worst images"] = folder / "scenes.png"
        scenes.draw_scenes(*images, pictures["Worst images"])
    if table := scenes.confusion_of(samples):
        pictures |= {"Intersection over union": folder / "iou.png", "Confusions": folder / "confusions.png"}
        scenes.draw_iou(*table, pictures["Intersection over union"])
        scenes.draw_pixels(*table, pictures["Confusions"])
        samples = [{key: value for key, value in sample.items() if key != "pixels"} for sample in samples]
    if worst := scenes.worst_objects(samples):
        pictures["Worst images"] = folder / "objects.png"
        scenes.draw_objects(worst, pictures["Worst images"])
        samples = [_counted(sample) for sample in samples]
    if of_labels := scenes.of_each_label(record):
        pictures["Average precision of each label"] = folder / "precisions.png"
        scenes.draw_precisions(of_labels, pictures["Average precision of each label"])
    return _write(folder, page(record, curves, pictures, samples))


def _counted(sample: Mapping) -> dict:
    """A sample of objects for the table: how many there are and were found."""
    return dict(sample) | {key: len(sample[key]) for key in ("truth", "objects") if key in sample}


def _cells(record: Record, folder: Path) -> dict[str, Path]:
    """The cells of a run's model, where a genome or the Evolved Transformer makes its blocks."""
    model = record.config.get("model") or {}
    try:
        genome = genome_of(model)
        if genome is None:
            return {}
        draw_cell(genome, folder / "cell.png", width=model.get("width", 0), unit=model.get("genome_unit", 0))
    except UserError as error:
        logging.getLogger(__name__).warning("the report is without the model's cells: %s", error)
        return {}
    return {"Cells": folder / "cell.png"}


def _search_report(workdir: Path, folder: Path) -> str:
    """Draws a search; the page as text."""
    history = search_pictures.read_history(workdir)
    pictures = {"The winner's cells": folder / "cell.png", "Fitness": folder / "fitness.png"}
    winner, width = history.winner, history.config.model.width
    draw_cell(from_json(winner["genome"]), pictures["The winner's cells"], width=width, unit=winner["unit"])
    search_pictures.draw_fitness(history, pictures["Fitness"])
    if history.summary.get("final"):
        pictures["Comparison"] = folder / "finals.png"
        search_pictures.draw_finals(history, pictures["Comparison"])
    pictures["Parameters and perplexity"] = folder / "front.png"
    search_pictures.draw_front(history, pictures["Parameters and perplexity"])
    first = search_pictures.lineage(history.rows[history.methods[0]], winner)[0]
    if first["id"] != winner["id"]:
        pictures |= {"Family tree of the winner": folder / "family.png", "The first ancestor's cells": folder / "ancestor.png"}
        search_pictures.draw_family(history, pictures["Family tree of the winner"])
        draw_cell(from_json(first["genome"]), pictures["The first ancestor's cells"], width=width, unit=first["unit"])
    return search_page(history, pictures, workdir)


def _write(folder: Path, text: str) -> Path:
    """Writes the page, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    write_whole(path, text)
    return path
