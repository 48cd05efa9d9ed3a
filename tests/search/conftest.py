"""A small corpus."""

import numpy as np
import pytest

WORDS = {"man": "Mann", "woman": "Frau", "dog": "Hund", "runs": "läuft", "red": "rot", "big": "groß", "the": "das"}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with small aligned files."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for split, count in ("train", 300), ("validation", 12):
        lines = [random.choice(list(WORDS), random.integers(2, 9)) for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(" ".join(line) + " .\n" for line in lines))
        (folder / f"{split}.de").write_text("".join(" ".join(WORDS[w] for w in line) + " .\n" for line in lines))
    return folder
