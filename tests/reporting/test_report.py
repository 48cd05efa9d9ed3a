"""The report of a made-up run: real pictures, a page that stands alone, files as a running or killed run leaves."""

import base64
import builtins
import io
import json
import logging
import math
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax.errors import UserError
from transformers_jax.layers.positions import STYLES, sinusoidal
from transformers_jax.models import build
from transformers_jax.reporting import attention as attention_module
from transformers_jax.reporting.attention import Attention, attention_of, attention_weights, encoder_decoder_layers
from transformers_jax.reporting.curves import running_mean
from transformers_jax.reporting.pictures import draw_attention, panels_beside, shift_matrix, shorten
from transformers_jax.reporting.report import make_report
from transformers_jax.runs.experiment import Experiment
from transformers_jax.runs.record import read_lines, read_record

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")  # comes with matplotlib

CONFIG = {
    "seed": 0,
    "model": {"name": "transformer", "width": 256},
    "task": {"name": "translation", "label_smoothing": 0.1},
    "data": {"languages": ["en", "de"], "lengths": {"source": 64}, "train": "<corpus>.en"},
    "training": {"steps": 4000},
}
SAMPLES = [
    {
        "source": "A <b>man</b> & a dog.",
        "reference": "Ein Mann & ein Hund.",
        "translation": 'Ein "Mann" <script>x</script>',
    },
    {"source": "See http://example.org", "reference": "Siehe http://example.org", "translation": "日本 Siehe"},
]


def metrics(steps: int) -> list[dict]:
    rows = []
    for step in range(10, steps + 1, 10):
        loss = 2 + 6 * math.exp(-step / 300)
        rows.append(
            {
                "step": step,
                "split": "train",
                "loss": loss,
                "perplexity": math.exp(loss),
                "learning_rate": 1e-3 * min(1, step / 400),
                "tokens_per_second": 4000 + step % 70,
            }
        )
        if step % 500 == 0:
            rows.append({"step": step, "split": "validation", "loss": loss + 0.1, "perplexity": math.exp(loss + 0.1)})
            rows[-1] |= {"bleu": 30 - 20 * math.exp(-step / 900), "bleu_signature": "nrefs:1|tok:13a"}
    return rows


def write(folder, rows, config=CONFIG, samples=None, torn=""):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    return folder


def image(path, least=(300, 200)):
    """The picture, found to be a PNG of a sensible size on which something is drawn."""
    picture = Image.open(path if not isinstance(path, bytes) else io.BytesIO(path))
    assert picture.format == "PNG"
    assert picture.width >= least[0] and picture.height >= least[1]
    assert picture.width <= 4000 and picture.height <= 4000
    assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    return picture


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    workdir = write(
        tmp_path_factory.mktemp("runs") / "my <run>", metrics(2000), samples=SAMPLES, torn='{"step": 2010, "spl'
    )
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 3)).astype(np.float32)
    attention = Attention(weights, ["Ein", "$x$", "</s>"], ["A", "man", "$5", "</s>"], "Layer 2 of 2")
    return workdir, make_report(workdir, attention=attention)


def test_pictures_are_real(reported):
    workdir, page = reported
    assert page == workdir / "report" / "index.html"
    names = {path.name for path in page.parent.iterdir()}
    assert names == {
        *("loss.png", "perplexity.png", "bleu.png", "learning_rate.png", "tokens_per_second.png"),
        *("attention.png", "positions.png", "index.html"),
    }
    for path in page.parent.glob("*.png"):
        image(path)


def test_page_holds_the_pictures_and_needs_nothing_else(reported):
    _, page = reported
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 7
    for source in sources:
        head, data = source.split(",", 1)
        assert head == "data:image/png;base64"
        image(base64.b64decode(data, validate=True))
    assert not re.search(r"<(script|link|iframe|a|base|object)\b|href=|url\(|@import", text)


def test_page_shows_metrics_config_and_samples_escaped(reported):
    _, page = reported
    text = page.read_text(encoding="utf-8")
    assert "my &lt;run&gt;" in text and "<run>" not in text
    assert "A &lt;b&gt;man&lt;/b&gt; &amp; a dog." in text
    assert "&lt;script&gt;x&lt;/script&gt;" in text and "日本 Siehe" in text
    assert "&lt;corpus&gt;.en" in text and "lengths.source" in text and "label_smoothing" in text
    assert "of 4,000 steps so far" in text and "<b>2,000</b>" in text
    last = metrics(2000)[-1]
    assert last["split"] == "validation" and f'title="step 2000">{last["bleu"]:.4g}<' in text
    assert "nrefs:1|tok:13a" in text and "best validation BLEU, step 2,000" in text


def test_samples_that_are_given_replace_those_of_the_workdir(tmp_path):
    workdir = write(tmp_path / "run", metrics(30), samples=SAMPLES)
    page = make_report(workdir, samples=[{"prompt": "Once <upon>", "text": "a time"}], positions=False)
    text = page.read_text(encoding="utf-8")
    assert "Once &lt;upon&gt;" in text and "<th>prompt</th>" in text and "dog" not in text


@pytest.mark.parametrize("rows", [metrics(10), [{"step": 0, "split": "validation", "perplexity": 7.5, "loss": None}]])
def test_a_run_that_has_just_begun(tmp_path, rows):
    page = make_report(write(tmp_path / "run", rows, config=None), positions=False)
    image(page.parent / "perplexity.png")
    assert "Configuration" not in page.read_text(encoding="utf-8")


def test_lines_that_are_torn_or_came_twice(tmp_path, caplog):
    rows = [{"step": s, "split": "train", "loss": float(s)} for s in (1, 2, 3)]
    folder = write(tmp_path / "run", rows, torn='{"step": 4, "lo')
    with caplog.at_level(logging.WARNING):
        assert read_record(folder).curve("train", "loss") == ([1, 2, 3], [1.0, 2.0, 3.0])
    assert not caplog.records
    with (folder / "metrics.jsonl").open("a") as file:  # resumed from step 2 by another process
        file.write('{"step": 3, "split": "train", "loss": 9}\n\n[1]\n{"step": 4, "split": "train", "loss": NaN}\n')
        file.write('{"step": 5, "split": "train", "loss": null}\n{"step": 6, "split": "train", "loss": 6}\n')
    with caplog.at_level(logging.WARNING):
        record = read_record(folder)
    assert [r.getMessage().split("metrics.jsonl, ")[1] for r in caplog.records] == [
        "line 4 is not a JSON object: left out",
        "line 6 is not a JSON object: left out",
    ]
    assert record.curve("train", "loss") == ([1, 2, 3, 6], [1.0, 2.0, 3.0, 6.0])
    assert record.last_step() == 6 and record.splits() == ["train"] and record.last("train", "bleu") is None
    assert read_lines(folder / "no such file") == []


def test_only_a_line_feed_ends_a_line(tmp_path, caplog):
    samples = [{"source": "one\u2028two\u2029three\x85four\x0c"}, {"source": "five"}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
    assert read_lines(tmp_path / "samples.jsonl") == samples and not caplog.records


def test_what_cannot_be_reported_is_said(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    begun = write(tmp_path / "begun", [], torn='{"step"')
    broken = write(tmp_path / "broken", metrics(10))
    (broken / "config.json").write_text("{")
    for folder, words in [
        (tmp_path / "missing", "no workdir"),
        (empty, "no metrics.jsonl"),
        (begun, "no metrics yet"),
        (broken, "config.json is not JSON"),
    ]:
        with pytest.raises(UserError, match=words):
            make_report(folder)
        assert not (folder / "report").exists()

    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install transformers_jax\[report\]"):
        make_report(write(tmp_path / "run", metrics(10)))


@pytest.mark.parametrize("heads, rows, columns", [(1, 2, 2), (5, 3, 130)])
def test_attention_pictures_of_any_size(tmp_path, heads, rows, columns):
    weights = np.random.default_rng(0).random((heads, rows, columns))
    attention = Attention(
        weights, ["日本", "\n", *["x"] * rows][:rows], ["▁Donaudampfschifffahrt$", *["y"] * columns][:columns]
    )
    draw_attention(attention, tmp_path / "attention.png")
    image(tmp_path / "attention.png")
    with pytest.raises(ValueError, match="do not fit"):
        draw_attention(attention._replace(target_tokens=["one"]), tmp_path / "other.png")


def test_panels_fill_their_rows_and_labels_stay_short():
    assert [panels_beside(heads, 20) for heads in (1, 2, 4, 6, 8, 12, 16)] == [1, 2, 4, 3, 4, 4, 4]
    assert panels_beside(16, 100) == 2
    assert shorten("Donaudampfschifffahrt") == "Donaudampfsch…" and shorten("a\nb") == "a\\nb" and shorten("ü▁￭") == "ü▁▪"


def test_running_mean_keeps_a_line_and_its_ends():
    line = np.linspace(3, 9, 50)
    np.testing.assert_allclose(running_mean(line, 7, log=False), line)
    np.testing.assert_allclose(running_mean(np.exp(line), 7, log=True), np.exp(line))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shift", [-3, 8])
def test_a_shift_is_one_linear_map_for_all_positions(style, shift):
    table = sinusoidal(60, 16, style)
    matrix = shift_matrix(shift, 16, style)
    np.testing.assert_allclose((table @ matrix)[10:50], table[10 + shift : 50 + shift], atol=1e-5)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(16), atol=1e-12)  # rotations


TRANSFORMER = dict(name="transformer", width=8, num_heads=2, mlp_width=8, encoder_layers=2, decoder_layers=2)
BATCH = {
    "source": np.array([[5, 6, 7, 2, 0]], np.int32),
    "source_positions": np.array([[0, 1, 2, 3, 0]], np.int32),
    "source_segments": np.array([[1, 1, 1, 1, 0]], np.int32),
    "target_inputs": np.array([[1, 8, 9]], np.int32),
    "targets": np.array([[8, 9, 2]], np.int32),
    "target_positions": np.array([[0, 1, 2]], np.int32),
    "target_segments": np.array([[1, 1, 1]], np.int32),
}


def initial(fields):
    """A model, and random parameters of its shapes."""
    import flax.linen as nn
    import jax

    model, draw = build(fields, 11), np.random.default_rng(0)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), BATCH))["params"]
    return model, jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), shapes)


def test_attention_weights_of_scanned_and_unscanned_layers_are_the_same():
    import jax

    scanned, params = initial({**TRANSFORMER, "scan_layers": True})
    loose = {k: v for k, v in params.items() if k not in ("encoder", "decoder")}
    for side in ("encoder", "decoder"):
        stacked = params[side]["layer"]
        loose[side] = {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(2)}
    one = attention_weights(scanned, params, BATCH)
    other = attention_weights(build({**TRANSFORMER, "scan_layers": False}, 11), loose, BATCH)
    assert list(one) == list(other) and len(one) == 6
    for name in one:
        assert one[name].shape[:2] == (1, 2)
        np.testing.assert_allclose(one[name], other[name], atol=1e-5)
    names = encoder_decoder_layers(one)
    assert len(names) == 2 and "0" in names[0] and "1" in names[1]
    for name in names:
        assert one[name].shape == (1, 2, 3, 5)
        np.testing.assert_allclose(one[name].sum(-1), 1, atol=1e-5)
        assert not one[name][..., 4].any()  # padding

    shown = attention_of(scanned, params, BATCH, ["a", "b", "c", "</s>"], ["x", "y", "</s>"], layer=0)
    np.testing.assert_array_equal(shown.weights, one[names[0]][0, :, :, :4])
    assert shown.title.endswith("layer 1 of 2")
    with pytest.raises(UserError, match="no layer 2"):
        attention_of(scanned, params, BATCH, ["a"], ["x"], layer=2)


def test_attention_weights_of_the_recurrent_model(tmp_path):
    model, params = initial(dict(name="luong", width=8, encoder_layers=1, decoder_layers=1))
    shown = attention_of(model, params, BATCH, ["a", "b", "c", "</s>"], ["x", "y", "</s>"])
    assert shown.weights.shape == (1, 3, 4)
    np.testing.assert_allclose(shown.weights.sum(-1), 1, atol=1e-5)
    draw_attention(shown, tmp_path / "attention.png")
    image(tmp_path / "attention.png")


def test_layers_are_told_apart_and_sorted_by_number():
    stacked = np.arange(12.0).reshape(12, 1, 1, 1, 1)
    found = attention_module._by_layer(("decoder", "layer", "cross_attention"), stacked)
    names = sorted(found, key=attention_module._natural)
    assert names == [f"decoder/layer_{i}/cross_attention" for i in range(12)]
    assert [found[name].item() for name in names] == list(range(12))
    assert list(attention_module._by_layer(("stack", "attention"), stacked[:2])) == [
        "stack/attention/0",
        "stack/attention/1",
    ]
    with pytest.raises(UserError, match="no layer attends"):
        encoder_decoder_layers({"encoder/layer_0/self_attention": stacked[0]})


def test_a_run_without_texts_is_reported(tmp_path):
    answered = {"image": "uint8 [28, 28, 1]", "prediction": "7", "probabilities": [0.1, 0.9]}
    samples = [answered, {"text": "a source of five words", "gaps": []}]
    run = Experiment(ConfigDict(), write(tmp_path / "run", metrics(30), samples=samples))
    with pytest.raises(UserError, match="no short sentence"):
        attention_module.attention_example(run)
    page = make_report(run.workdir, positions=False).read_text()
    assert "uint8 [28, 28, 1]" in page and "<th>prediction</th>" in page
