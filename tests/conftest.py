"""Shared by all tests: forced CPU devices, programs compiled quickly and once, and random numbers as JAX has them.

Tests run most programs for milliseconds: XLA's costly optimisations are off, and kernels are made in its older way, which
compiles in half the time on CPUs, here and in the processes that tests start. All processes of one call of pytest share a
folder of compiled programs.
"""

import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

PROGRAMS = None
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers have this process's environment
    PROGRAMS = tempfile.mkdtemp(prefix="programs-")
    os.environ["TRANSFORMERS_JAX_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "-1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA ends at a flag that it does not know
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

import pytest


def pytest_unconfigure():
    if PROGRAMS:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture(autouse=True)
def usual_random_numbers():
    """A launcher called in this process sets the generator of random numbers: the next test has JAX's own again."""
    yield
    import jax

    jax.config.update("jax_default_prng_impl", "threefry2x32")
