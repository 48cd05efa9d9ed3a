"""Small scenes of coloured rectangles on a ground, with their masks and boxes, written as files."""

from pathlib import Path

import numpy as np

LABELS = ("ground", "red", "blue")
COLOURS = ((60, 120, 60), (220, 40, 40), (40, 40, 220))


def scene(random: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[tuple]]:
    """(uint8 [height, width, 3], mask uint8 [height, width], [(label, left, top, right, bottom)] of what is not covered)."""
    mask, boxes = np.zeros([height, width], np.uint8), []
    left, half = int(random.integers(1, width // 8)), width // 2
    for label, start in zip(random.permutation([1, 2]), (left, half + 1), strict=True):
        top, high = int(random.integers(0, height // 3)), int(random.integers(height // 3, height // 2))
        wide = int(random.integers(width // 4, half - left))
        mask[top : top + high, start : start + wide] = label
        boxes.append((LABELS[label], start, top, start + wide, top + high))
    noise = random.integers(-20, 21, [height, width, 3])
    return (np.array(COLOURS)[mask] + noise).clip(0, 255).astype(np.uint8), mask, boxes


def write(folder: Path, counts: dict[str, int], size: tuple[int, int] = (24, 32)) -> None:
    """{split}/a.png and {split}_masks/a.png of so many scenes; pixels at the border of masks are 255."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in counts.items():
        for name in split, f"{split}_masks":
            (folder / name).mkdir(parents=True)
        for i in range(count):
            image, mask, _ = scene(random, *size)
            mask[0], mask[:, 0] = 255, 255
            Image.fromarray(image).save(folder / split / f"{i}.png")
            Image.fromarray(mask).save(folder / f"{split}_masks" / f"{i}.png")


def write_voc(folder: Path, counts: dict[str, int], size: tuple[int, int] = (24, 32)) -> None:
    """ImageSets/Main/{split}.txt, JPEGImages and Annotations of so many scenes; the first of each split has no objects."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name in "ImageSets/Main", "JPEGImages", "Annotations":
        (folder / name).mkdir(parents=True)
    for split, count in counts.items():
        names = [f"{split}_{i}" for i in range(count)]
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            image, _, boxes = scene(random, *size)
            image, boxes = (image, boxes) if i else (np.full_like(image, 90), [])
            Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            (folder / "Annotations" / f"{name}.xml").write_text(annotation(f"{name}.jpg", size, boxes))


def annotation(name: str, size: tuple[int, int], boxes) -> str:
    """Pascal VOC's XML, whose pixels count from 1."""
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for label, left, top, right, bottom in boxes
    )
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    return f"<annotation><filename>{name}</filename>{sides}{objects}</annotation>"
