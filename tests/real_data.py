"""Real data where it is present."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def shared_data(name: str) -> Path:
    """Path of real data under ../shared/data; skips the test, saying so, where it is missing."""
    path = REPOSITORY.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"needs real data at ../shared/data/{name}, which is not here")
    return path
