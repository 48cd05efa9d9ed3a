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
