"""Our modules against golden files: what PyTorch gave for the same inputs. Needs no PyTorch.

`tests/parity` compares live, and writes the files (`UPDATE_GOLDEN=1 make parity`).
"""

import numpy as np
import pytest
from parity.case import GOLDEN, compare, is_real
from parity.every import CASES


@pytest.mark.parametrize("name", CASES)
def test_equals_pytorch_and_feels_every_input(name):
    """The numbers agree; and so that this says something, a change of any real input shows far above the tolerance."""
    case = CASES[name]
    inputs, outputs = case.load()
    compare(case.ours(inputs), outputs, case.tolerance)
    rng = np.random.default_rng(0)
    for key, value in inputs.items():
        if is_real(key, value):
            changed = {**inputs, key: (value + 0.1 * rng.standard_normal(value.shape)).astype(value.dtype)}
            difference = max(np.max(np.abs(got - outputs[k])) for k, got in case.ours(changed).items())
            assert difference < case.tolerance if key in case.idle else difference > 10 * case.tolerance, key


def test_golden_files_are_small_and_used():
    files = {path.stem: path.stat().st_size for path in GOLDEN.glob("*.npz")}
    assert set(files) == set(CASES)
    assert sum(files.values()) < 300_000
