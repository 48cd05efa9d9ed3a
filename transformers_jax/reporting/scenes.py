"""Pictures of a run that labels pixels or finds objects: its worst images, how well each class is found, and confusions.

Axes: L labels, h height, w width of an image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformers_jax.data.images.decode import decode
from transformers_jax.reporting.style import COLOURS, GREY, figure
from transformers_jax.runs.experiment import Experiment
from transformers_jax.runs.record import Record
from transformers_jax.tasks.parts import scenes
from transformers_jax.tasks.segmentation import classes_of

MOST_SCENES = 6
MOST_CLASSES = 30


class Scene(NamedTuple):
    """An image, uint8 [h, w, C], with its true classes and those that were found, uint8 [h, w]; what it is called."""

    image: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    title: str


def worst_scenes(run: Experiment) -> tuple[list[Scene], tuple[str, ...]]:
    """(the worst images that samples.jsonl has, names of the classes); empty before a run has ended.

    Raises:
      UserError: there is no trained model, or an image is no longer there.
    """
    from transformers_jax.inference import predictor

    samples = [sample for sample in run.samples() if {"image", "mask", "mean_iou"} <= set(sample)][:MOST_SCENES]
    if not samples:
        return [], run.task.labels.names
    there = predictor.trained(run)
    task, _ = there.task.answering(there.model, top=1)
    examples = [{"image": sample["image"], "mask": sample["mask"]} for sample in samples]
    found = classes_of(task, examples, there.predictor(task)(task.examples(examples)))
    drawn = []
    for example, classes, sample in zip(examples, found, samples, strict=True):
        fields = task.encode(example)
        title = f"{Path(sample['image']).name}  mean IoU {sample['mean_iou']:.2f}"
        drawn.append(Scene(fields["image"], fields["mask"], classes, title))
    return drawn, task.labels.names


def draw_scenes(drawn: Sequence[Scene], names: Sequence[str], path: Path) -> None:
    """A row an image: the image, its true classes, and those that were found, each laid over the image."""
    from matplotlib.patches import Patch

    tall = 2.6 * float(np.mean([scene.truth.shape[0] / scene.truth.shape[1] for scene in drawn])) + 0.35
    used = sorted({int(k) for scene in drawn for k in np.unique([*np.unique(scene.truth), *np.unique(scene.found)])})
    used = [k for k in used if k < len(names)]
    with figure(path, 8.4, tall * len(drawn) + 0.3 * (1 + len(used) // 6)) as canvas:
        grid = canvas.subplots(len(drawn), 3, squeeze=False)
        for row, scene in zip(grid, drawn, strict=True):
            pictures = scene.image, scenes.blended(scene.image, scene.truth), scenes.blended(scene.image, scene.found)
            for axes, picture, title in zip(row, pictures, (scene.title, "truth", "prediction"), strict=True):
                axes.imshow(np.broadcast_to(picture, (*picture.shape[:2], 3)))
                axes.set_title(title, fontsize=8, fontweight="normal", pad=3)
                axes.set_axis_off()
        palette = scenes.colours(256) / 255
        patches = [Patch(color=palette[k], label=names[k]) for k in used]
        canvas.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8)


def confusion_of(samples: Sequence[Mapping]) -> tuple[np.ndarray, list[str]] | None:
    """([L, L] pixels of class i that were taken for class j, names of the classes) of all samples; None where none has any."""
    total: dict[tuple[str, str], int] = {}
    for sample in samples:
        for true, row in sample.get("pixels", {}).items():
            for found, count in row.items():
                total[true, found] = total.get((true, found), 0) + count
    names = list(dict.fromkeys(name for pair in total for name in pair))
    table = np.array([[total.get((true, found), 0) for found in names] for true in names])
    return (table, names) if names else None


def draw_iou(table: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A bar for the intersection over union of each class, the best first, with its share of the pixels beside its name."""
    values, shares = scenes.intersection_over_union(table), table.sum(axis=1) / table.sum()
    order = np.argsort(-values)[:MOST_CLASSES]
    with figure(path, 7.5, 0.28 * len(order) + 1.0) as canvas:
        axes = canvas.subplots()
        axes.barh(range(len(order)), values[order], color=COLOURS["validation"], height=0.7)
        axes.set_yticks(range(len(order)), [f"{names[k]} ({shares[k]:.1%})" for k in order], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.axvline(float(np.nanmean(values)), color=GREY, linewidth=1, linestyle="--")
        axes.set_xlabel(f"intersection over union; mean {np.nanmean(values):.3f}")
        axes.grid(False, axis="y")


def draw_pixels(table: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A square of colour for each pair of classes, the share of the true class's pixels, with it written in per cent."""
    order = np.argsort(-table.sum(axis=1))[:MOST_CLASSES]
    shares = table[np.ix_(order, order)] / table.sum(axis=1)[order, None].clip(1)
    edge = max(3.0, 0.4 * len(order)) + 1.6
    with figure(path, edge, edge) as canvas:
        axes = canvas.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.grid(False)
        axes.set_xticks(range(len(order)), [names[k] for k in order], rotation=90, fontsize=8)
        axes.set_yticks(range(len(order)), [names[k] for k in order], fontsize=8)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for (i, j), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(j, i, f"{share:.0%}", ha="center", va="center", fontsize=6, color="white" if share > 0.5 else "black")


def draw_objects(samples: Sequence[Mapping], path: Path) -> None:
    """A row an image: its true boxes, crowds dashed, and beside them those that were found, each with its label and score.

    Args:
      samples: as `tasks.detection` writes them: {"image": path, "truth": [...], "objects": [...], "ap50"}.
    """
    from matplotlib.patches import Rectangle

    images = [decode(sample["image"], where=sample["image"]) for sample in samples]
    names = sorted({thing["label"] for sample in samples for thing in (*sample["truth"], *sample["objects"])})
    palette = dict(zip(names, scenes.colours(len(names) + 1)[1:] / 255, strict=True))
    tall = 4.2 * float(np.mean([image.shape[0] / image.shape[1] for image in images])) + 0.35
    with figure(path, 8.6, tall * len(images)) as canvas:
        grid = canvas.subplots(len(images), 2, squeeze=False)
        for row, image, sample in zip(grid, images, samples, strict=True):
            score = f"  AP50 {sample['ap50']:.2f}" if "ap50" in sample else ""
            sure = [thing for thing in sample["objects"] if thing["score"] >= scenes.SURE]
            found = f"found, score {scenes.SURE:g} and more{score}"
            pairs = (sample["truth"], f"{Path(sample['image']).name}  truth"), (sure, found)
            for axes, (things, title) in zip(row, pairs, strict=True):
                axes.imshow(image)
                axes.set_title(title, fontsize=8, fontweight="normal", pad=9)
                axes.set_axis_off()
                for thing in things:
                    (left, top, right, bottom), ink = thing["box"], palette[thing["label"]]
                    style = dict(fill=False, edgecolor=ink, linestyle="--" if thing.get("crowd") else "-", linewidth=1.2)
                    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
                    said = f"{thing['label']} {thing['score']:.2f}" if "score" in thing else thing["label"]
                    behind = dict(boxstyle="square,pad=0.1", facecolor="white", edgecolor="none", alpha=0.7)
                    axes.text(left, top, said, fontsize=5, va="bottom", color="black", bbox=behind)


def worst_objects(samples: Sequence[Mapping]) -> list[Mapping]:
    """The first samples, the worst, of images whose objects are known and whose files are still there."""
    known = (sample for sample in samples if {"image", "truth", "objects"} <= set(sample))
    return [sample for sample in known if Path(sample["image"]).is_file()][:MOST_SCENES]


def of_each_label(record: Record) -> dict[str, tuple[float, float]]:
    """{label: (average precision, the same at an overlap of one half)} of a finished run; empty before it has ended."""
    split = "test" if "test" in record.splits() else "final"
    names = [name.removeprefix("ap50_") for name in record.metrics(split) if name.startswith("ap50_")]
    return {name: tuple(record.last(split, f"{key}_{name}")[1] for key in ("ap", "ap50")) for name in names}


def draw_precisions(of_labels: Mapping[str, tuple[float, float]], path: Path) -> None:
    """Two bars for each label, its average precision at an overlap of one half, and the mean over overlaps; the best first."""
    names = sorted(of_labels, key=lambda name: -of_labels[name][1])[:MOST_CLASSES]
    values = np.array([of_labels[name] for name in names])  # [labels, 2]
    with figure(path, 7.5, 0.45 * len(names) + 1.3) as canvas:
        axes = canvas.subplots()
        for k, (what, colour) in enumerate((("mean over overlaps (AP)", "train"), ("overlap 0.5 (AP50)", "validation"))):
            at = np.arange(len(names)) + 0.2 - 0.4 * k
            axes.barh(at, values[:, k], height=0.38, color=COLOURS[colour], label=f"{what}, mean {values[:, k].mean():.3f}")
            for place, value in zip(at, values[:, k], strict=True):
                axes.text(value + 0.01, place, f"{value:.2f}", va="center", fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.08)
        axes.set_xlabel("average precision")
        axes.grid(False, axis="y")
        canvas.legend(loc="outside lower center", ncols=2, fontsize=8)
