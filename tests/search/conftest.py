"""A small corpus."""

import aligned
import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with small aligned files."""
    return aligned.write(tmp_path_factory.mktemp("corpus"), train=300, validation=12)
