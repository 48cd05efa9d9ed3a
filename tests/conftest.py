"""Shared by all tests: forced CPU devices, real data where it is present."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_data(name: str) -> Path:
    """Path of real data under ../shared/data; skips the test, saying so, where it is missing."""
    path = REPOSITORY.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"needs real data at ../shared/data/{name}, which is not here")
    return path


@pytest.fixture(autouse=True)
def usual_random_numbers():
    """A launcher called in this process sets the generator of random numbers: the next test has JAX's own again."""
    yield
    import jax

    jax.config.update("jax_default_prng_impl", "threefry2x32")
