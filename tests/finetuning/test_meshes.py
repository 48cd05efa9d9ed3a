"""Finetuning over eight devices: quantised bases are split, the numbers are those of one device, checkpoints move."""

import adapted_meshes
import processes
import pytest


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    found, _ = processes.finish(processes.start(adapted_meshes.__file__, folder, devices=8))
    assert found["devices"] == 8
    return found


@pytest.mark.parametrize("method", adapted_meshes.METHODS)
def test_eight_devices_give_what_one_gives(report, method):
    found = report[method]["2x2x2"]
    assert found["losses"] < 1e-4 and found["params"] < 1e-5 and found["kept"]
    assert found["split"] >= 6 > report[method]["one"]["split"] == 0  # the codes of six stacked kernels


@pytest.mark.parametrize("method", adapted_meshes.METHODS)
def test_a_checkpoint_is_restored_on_another_mesh(report, method):
    """What learned is bit for bit what was saved, beside a base that was read anew; and it has learned."""
    assert report[method]["restored"] == 0 and report[method]["falls"] > 1e-3
