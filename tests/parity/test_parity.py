"""Our modules and PyTorch's, live, on the same random inputs; and the golden files, which must hold what PyTorch says.

`UPDATE_GOLDEN=1 make parity` writes the golden files anew.
"""

import os

import numpy as np
import pytest
from parity.case import compare
from parity.every import CASES

pytestmark = pytest.mark.slow
UPDATE = os.environ.get("UPDATE_GOLDEN", "") not in ("", "0")


@pytest.fixture(scope="module")
def torch():
    """The module, with one thread: the sizes are so small that more only cost."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: run `make parity`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture(params=list(CASES))
def case(request):
    case = CASES[request.param]
    if case.needs:
        pytest.importorskip(case.needs, reason=f"needs {case.needs}: run `make parity`")
    return case


@pytest.mark.parametrize("seed", [1, 2])
def test_equals_pytorch(torch, case, seed):
    inputs = case.draw(np.random.default_rng(seed))
    compare(case.ours(inputs), case.theirs(torch, inputs), case.tolerance)


def test_golden_file_is_what_pytorch_gives(torch, case):
    if UPDATE:
        inputs = case.draw(np.random.default_rng(0))
        case.save(inputs, case.theirs(torch, inputs))
    inputs, outputs = case.load()
    compare(case.theirs(torch, inputs), outputs, case.tolerance / 2)
