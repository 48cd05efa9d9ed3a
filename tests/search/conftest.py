"""A small corpus, and programs that are compiled in a moment."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

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


OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(scope="module")
def quick_programs(tmp_path_factory):
    """Programs are compiled quickly rather than well, and once in a module."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_disable_most_optimizations", True)
    for name, value in zip(OPTIONS, (str(tmp_path_factory.mktemp("programs")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
