"""Models are compiled often and run for milliseconds: without most of XLA's optimisations the tests take half the time."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
