"""What finetuning changed: singular values, shares of energy, and what an outlier does to a quantised kernel."""

import json

import numpy as np
import pytest

from experiments import finetune, launch, report
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.interchange import huggingface, mapping
from transformers_jax.models import build
from transformers_jax.parameters import nest
from transformers_jax.reporting import updates

pytest.importorskip("matplotlib")

TEXTS = ["bad dull film", "good fine film", "a dull one", "a fine one"]


def test_the_share_of_energy():
    values = np.array([3.0, 2.0, 1.0, 0.0])
    assert [updates.energy(values, r) for r in (1, 2, 4)] == [9 / 14, 13 / 14, 1.0]


def test_singular_values_are_those_of_the_change():
    random = np.random.default_rng(0)
    changed, same = "encoder/layer_0/a/kernel", "encoder/layer_0/b/kernel"
    before = {changed: random.standard_normal((6, 5)), same: np.ones((4, 4))}
    change = np.outer(np.arange(6), np.ones(5))
    after = before | {changed: before[changed] + change}
    found = updates.spectra(before, after)
    assert set(found) == {changed}
    (values,) = found.values()
    np.testing.assert_allclose(values[0], np.linalg.norm(change), rtol=1e-12)
    assert values[1] < 1e-12 and updates.energy(values, 1) == pytest.approx(1.0)


def test_layers_are_in_order():
    names = ["stage_0/layer_10/x", "stage_0/layer_2/x", "stage_1/layer_0/x"]
    assert list(updates.by_layer(dict.fromkeys(names, np.ones(2)))) == ["stage_0 2", "stage_0 10", "stage_1 0"]
    assert list(updates.by_layer({"encoder/layer_1/x": np.ones(2), "encoder/layer_0/x": np.ones(2)})) == ["0", "1"]


def test_an_outlier_ruins_one_constant_for_all_and_not_those_of_blocks():
    """Of 4,096 normal numbers the error of a whole constant grows with the outlier, until all others are zero."""
    kernel = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    errors = updates.outlier_errors(kernel)
    whole, blocks = errors["whole"], errors["blocks"]
    assert whole == sorted(whole) and whole[0] < 0.02 and whole[-1] > 0.9
    assert max(blocks) < 0.13 and all(block < one for block, one in zip(blocks, whole, strict=True))
    # the block of the outlier alone is lost: √(64 / 4096) = 0.125 of the norm


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of a tiny BERT of drawn numbers."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), learn("wordpiece", TEXTS, 80)
    fields = dict(name="bert", width=16, num_heads=2, mlp_width=24, layers=2, max_length=32, head="none", vocab_size=80)
    fields["vocab_size"] = tokenizer.vocab_size
    random, model = np.random.default_rng(0), build(fields, fields["vocab_size"])
    params = {name: 0.2 * random.standard_normal(s).astype(np.float32) for name, s in mapping.shapes(model).items()}
    huggingface.save(folder, fields, nest(params), tokenizer)
    (folder / "train.tsv").write_text("".join(f"{text}\t{i % 2}\n" for i, text in enumerate(TEXTS * 4)))
    return folder


@pytest.mark.parametrize(
    "more, picture",
    [
        ([], "singular_values_of_what_was_learned.png"),
        (["--config.finetuning.method=lora", "--config.finetuning.quantization=int8"], "an_outlier_in_a_quantised_kernel.png"),
    ],
)
def test_a_report_has_the_picture(base, tmp_path, capfd, more, picture):
    short = ["--config.task.max_length=16", "--config.data.lengths.tokens=16", "--config.data.batch_size=4"]
    short += ["--config.training.steps=2", "--config.finetuning.evaluations=1", f"--config.data.train={base}/train.tsv"]
    flags = [f"--init_from={base}", f"--workdir={tmp_path}/w", f"--config.data.validation={base}/train.tsv", *short, *more]
    assert launch.call(finetune.main, finetune.FLAGS, ["finetune", "--config=configs/bert.py:sentences", *flags]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["metric"] == "accuracy"
    assert launch.call(report.main, report.FLAGS, ["report", f"--workdir={tmp_path}/w"]) == 0
    assert (tmp_path / "w/report" / picture).stat().st_size > 5000
