"""Every model on every kind of mesh: what one device learns and decodes, all of them do."""

import functools

import processes
import pytest
import tiny_meshes
from tiny_meshes import CONTINUING, DECODING, MODELS, WAYS

CORE = ("transformer", "luong", "bert", "gpt", "vit")
"""One of each kind: attention and a recurrence that decode, an encoder, a decoder and images. The others are `slow`."""


@functools.cache
def trained(*names):
    """Model → way → what it gave, of models that share a process of eight devices."""
    return processes.finish(processes.start(tiny_meshes.__file__, *names, devices=8))[0]


def of_model(name):
    return trained(*(CORE if name in CORE else (name,)))[name]


def cases(names):
    return [pytest.param(name, marks=[] if name in CORE else pytest.mark.slow) for name in names]


def test_every_model_has_its_case():
    from transformers_jax import models

    assert set(models.known()) <= MODELS.keys()


@pytest.mark.parametrize("name", cases(MODELS))
@pytest.mark.parametrize("way", WAYS)
def test_a_mesh_learns_what_one_device_does(name, way):
    found, one = of_model(name)[way], of_model(name)["undropped" if way == "pmap" else "one"]
    for mine, its in zip(found["steps"], one["steps"], strict=True):  # the mean loss, the gradient's norm
        assert mine == pytest.approx(its, rel=1e-5)
    assert found["evaluated"] == pytest.approx(one["evaluated"], rel=1e-5)
    assert one["steps"][0][0] != one["evaluated"] and one["steps"][0][1] > 0.1


@pytest.mark.parametrize("name", cases(DECODING + CONTINUING))
@pytest.mark.parametrize("way", [way for way in WAYS if way != "pmap"])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_mesh_decodes_what_one_device_does(name, way, method):
    """The longest outputs stand on some devices only: the others must go on with them, or all wait for ever."""
    found, one = of_model(name)[way]["decoded"][method], of_model(name)["one"]["decoded"][method]
    assert [ids for ids, _ in found] == [ids for ids, _ in one]
    assert [score for _, score in found] == pytest.approx([score for _, score in one], abs=1e-3)
    assert len({len(ids) for ids, _ in one}) > 3 and len({tuple(ids) for ids, _ in one}) > 6
