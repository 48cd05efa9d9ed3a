"""Models are compiled often here and run for milliseconds: most of XLA's optimisations would cost more than they save."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
