"""Shared by all tests: forced CPU devices, and random numbers as JAX has them."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest


@pytest.fixture(autouse=True)
def usual_random_numbers():
    """A launcher called in this process sets the generator of random numbers: the next test has JAX's own again."""
    yield
    import jax

    jax.config.update("jax_default_prng_impl", "threefry2x32")
