"""A small parallel corpus."""

from pathlib import Path

import numpy as np

WORDS = {"man": "Mann", "woman": "Frau", "dog": "Hund", "runs": "läuft", "red": "rot", "big": "groß", "the": "das"}


def write(folder: Path, **counts: int) -> Path:
    """Files SPLIT.en and SPLIT.de of so many lines by split, the same at each call."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        lines = [random.choice(list(WORDS), random.integers(2, 9)) for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(" ".join(line) + " .\n" for line in lines))
        (folder / f"{split}.de").write_text("".join(" ".join(WORDS[w] for w in line) + " .\n" for line in lines))
    return folder
