"""The notebook's door: load, predict, embed, translate, train and evaluate in a few lines, imported at first use."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import transformers_jax as tj
from transformers_jax import config as configuration
from transformers_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """(A run of the tiny BERT that learned two labels from a table, its model as `train` returns it.)"""
    folder = tmp_path_factory.mktemp("notebook")
    rows = [f"{'good' if i % 2 else 'bad'} film number {i}\t{i % 2}" for i in range(32)]
    (folder / "train.tsv").write_text("\n".join(rows) + "\n")
    config = configuration.load(f"{CONFIGS}/bert.py:sentences").copy_and_resolve_references()
    config.model.update(width=16, num_heads=2, mlp_width=32, layers=1, max_length=64)
    config.tokenizer.update(vocab_size=60)
    config.data.update(train=f"{folder}/train.tsv", validation=f"{folder}/train.tsv", batch_size=8)
    config.training.update(steps=4, eval_every=4, checkpoint_every=4)
    return folder / "W", tj.train(config, folder / "W")


def test_a_model_that_was_trained_here_is_the_one_that_is_loaded(labelled):
    workdir, trained = labelled
    model = tj.load(workdir)
    lines = ["good film", {"first": "bad film"}]
    found = model.predict(lines)
    assert found == trained.predict(lines)
    assert [set(answer) for answer in found] == [{"first", "prediction", "probabilities"}] * 2
    assert model.predict([]) == [] and model.tokenizer.vocab_size == 60
    scores = tj.evaluate(workdir, "validation")
    assert scores["split"] == "validation" and 0 <= scores["accuracy"] <= 1


def test_a_batch_through_the_module(labelled):
    model = tj.load(labelled[0])
    output = model(model.module.protocol().example())
    assert output.logits.shape[-1] == 2 and np.isfinite(output.logits).all()
    assert model.params["classifier"]["kernel"].shape == (16, 2)


def test_vectors_of_sentences(labelled):
    vectors = labelled[1].embed(["good film", "", "bad film"], pooling="first")
    assert vectors.shape == (3, 16) and not vectors[1].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[0]), 1, atol=1e-5)


def test_what_a_model_cannot_do_is_said(labelled):
    with pytest.raises(UserError, match="does not translate"):
        labelled[1].translate(["a"])
    with pytest.raises(UserError, match="no such folder"):
        tj.load("no/such/place/at/all")
    with pytest.raises(AttributeError, match="no attribute 'laod'; it has Model, evaluate, load, train"):
        tj.laod  # noqa: B018


def test_importing_the_package_imports_no_jax():
    code = "import sys, transformers_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_readmes_example_runs(labelled):
    """Its lines about a model, with the run above for the model; those that train are the calls tested above."""
    readme = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    code = readme.split("```python\n")[1].split("```")[0]
    asked, trained = code.split("tj.train(")
    names: dict = {}
    exec(asked.replace('tj.load("F")', f"tj.load({str(labelled[0])!r})"), names)
    assert names["vectors"].shape == (2, 16) and names["output"].logits.shape[-1] == 2 and names["kernels"]
    assert 'tj.evaluate("W", "validation")' in trained and ".translate([" in trained
