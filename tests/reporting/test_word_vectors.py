"""Pictures of an encoder: heads over a sentence, one word in different sentences; of an untrained model, which has both."""

import numpy as np
import pytest

from experiments import launch, report
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.errors import UserError
from transformers_jax.models import build
from transformers_jax.reporting import word_vectors
from transformers_jax.reporting.word_vectors import WordVectors

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")  # comes with matplotlib

TEXTS = [
    "She sat on the bank of the river.", "The bank lent her money.", "A river bank is steep.", "The Bank, of course, was shut.",
    "They embank the river.", "bank", "Nothing here.", "The bank lent her money.",
]  # fmt: skip


def test_occurrences_are_whole_words_each_text_once():
    sentences, places = word_vectors.occurrences("bank", TEXTS)
    assert sentences == [TEXTS[i] for i in (0, 1, 2, 3, 5)]
    assert [s[a:b] for s, (a, b) in zip(sentences, places, strict=True)] == ["bank", "bank", "bank", "Bank", "bank"]
    assert word_vectors.occurrences("bank", TEXTS, 2)[0] == TEXTS[:2]


def test_telling_word():
    assert word_vectors.telling_word(TEXTS) == "bank"
    many = [f"often number{'a' * i} {'seldom' if i < 14 else ''}" for i in range(20)]
    assert word_vectors.telling_word(many) == "seldom"  # of those in 14 texts the rarest
    with pytest.raises(UserError, match="give --word and --sentences"):
        word_vectors.telling_word(["one text only"])


def test_word_vectors_are_means_over_the_tokens_of_the_word():
    def states(sentences):
        hidden = [np.arange(8.0).reshape(4, 2) + i for i in range(len(sentences))]
        spans = [[(0, 0), (a, a + 2), (a + 2, a + 4), (0, 0)] for a in (s.lower().index("bank") for s in sentences)]
        return hidden, spans

    found = word_vectors.word_vectors("bank", TEXTS, states)
    assert found.sentences == [TEXTS[i] for i in (0, 1, 2, 3, 5)]
    assert np.array_equal(found.vectors, [[3 + i, 4 + i] for i in range(5)])  # rows 1 and 2: (2, 3) and (4, 5)
    with pytest.raises(UserError, match="2 sentences have it, 3 are needed"):
        word_vectors.word_vectors("money", [*TEXTS, "Her money."], states)
    with pytest.raises(UserError, match="beyond what the model reads"):
        word_vectors.word_vectors("bank", TEXTS, lambda s: ([np.zeros((1, 2))] * len(s), [[(0, 0)]] * len(s)))


def test_principal_plane_keeps_distances_of_points_on_a_plane():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((9, 2)) * [3, 1]
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0][:2]
    points, shares = word_vectors.principal_plane(flat @ turn + 5)
    apart = lambda x: np.linalg.norm(x[:, None] - x, axis=-1)  # noqa: E731
    assert np.allclose(apart(points), apart(flat)) and shares.sum() == pytest.approx(1) and shares[0] > shares[1]
    points, shares = word_vectors.principal_plane(np.ones((3, 4)))
    assert not points.any() and not shares.any()


def test_a_long_sentence_is_shown_around_its_word():
    text = "a " * 100 + "bank" + " b" * 100
    shown = word_vectors.shown(text, 200, 204)
    assert "«bank»" in shown and len(shown) == word_vectors.LONGEST + 2 and shown[0] == shown[-1] == "…"
    assert word_vectors.shown("The bank.", 4, 8) == "The «bank»."


@pytest.fixture(scope="module")
def model():
    """A tokenizer, a tiny BERT and its random numbers."""
    import flax.linen as nn
    import jax

    t = learn("wordpiece", TEXTS * 3, 60, lowercase=True)
    made = build(dict(name="bert", width=16, num_heads=4, mlp_width=16, layers=3, max_length=32, head="none"), t.vocab_size)
    batch = {n: np.ones((1, 4), np.int32) for n in ("tokens", "positions", "segments", "token_types")}
    return t, made, nn.unbox(made.init(jax.random.key(0), batch))["params"]


def test_heads_of_a_sentence(model):
    t, made, params = model
    ids = t.joined(t.encode(TEXTS[0])).ids
    batch = word_vectors._row(np.asarray(ids, np.int32))
    assert batch["tokens"].shape[1] % 16 == 0
    tokens = [t.token(i) for i in ids]
    last = word_vectors.heads_of(made, params, batch, tokens)
    assert last.weights.shape == (4, len(ids), len(ids)) and last.title.endswith("layer 3 of 3")
    assert np.allclose(last.weights.sum(-1), 1, atol=1e-5)  # nothing goes to the padding
    first = word_vectors.heads_of(made, params, batch, tokens, layer=0)
    assert first.title.endswith("layer 1 of 3") and not np.allclose(first.weights, last.weights)
    assert (first.down, first.across) == ("tokens that attend", "tokens attended to")
    with pytest.raises(UserError, match="no layer 3; there are 3"):
        word_vectors.heads_of(made, params, batch, tokens, layer=3)


def test_picture_of_a_word(tmp_path):
    rng = np.random.default_rng(0)
    found = WordVectors("bank", TEXTS[:4], [(15, 19), (4, 8), (8, 12), (4, 8)], rng.standard_normal((4, 12)))
    word_vectors.draw_word(found, tmp_path / "word.png")
    picture = np.asarray(Image.open(tmp_path / "word.png").convert("L"))
    assert picture.shape[1] > 1000 and (picture < 100).sum() > 500


@pytest.fixture
def run(tmp_path):
    """The workdir of an encoder that was trained two steps on text files."""
    from transformers_jax import config as configuration
    from transformers_jax.runs import train as pretraining

    (tmp_path / "train.txt").write_text("\n".join(TEXTS * 4) + "\n")
    config = configuration.load("configs/roberta.py:tiny")
    config.update_from_flattened_dict({
        "data.train": str(tmp_path / "train.txt"), "data.validation": str(tmp_path / "train.txt"), "training.steps": 2,
        "model.layers": 1, "tokenizer.vocab_size": 300, "optimizer.warmup_steps": 1,
    })  # fmt: skip
    pretraining.pretrain(config, tmp_path / "w")
    return tmp_path / "w"


def test_report_of_a_run_has_both(run, tmp_path, capsys):
    def made(*more) -> int:
        return launch.call(report.main, report.FLAGS, ["report", f"--workdir={run}", *more])

    assert made() == 0
    page = (run / "report" / "index.html").read_text()
    assert "<h2>Attention</h2>" in page and "<h2>A word in different sentences</h2>" in page and "<h2>Positions" not in page
    (tmp_path / "s.txt").write_text("\n".join(f"{t} A river." for t in TEXTS) + "\n")
    assert made("--word=river", f"--sentences={tmp_path}/s.txt") == 0
    capsys.readouterr()
    assert made("--word=nowhere") == 2
    assert "error: --word=nowhere: 0 sentences have it" in capsys.readouterr().err


def test_report_of_a_folder_without_a_run(model, tmp_path, capsys):
    import jax

    from transformers_jax.interchange import huggingface

    t, made, params = model
    fields = {"name": "bert", **{key: getattr(made.config, key) for key in ("width", "num_heads", "mlp_width", "layers")}}
    fields |= {"max_length": 32, "head": "sequence", "labels": 2, "vocab_size": t.vocab_size}
    params = jax.device_get(params)
    params = params | {"classifier": {"kernel": np.ones((16, 2), np.float32), "bias": np.zeros(2, np.float32)}}
    huggingface.save(tmp_path / "hf", fields, params, t, labels=("water", "money"))
    (tmp_path / "s.txt").write_text("\n".join(TEXTS) + "\n")

    def called(*more) -> int:
        return launch.call(report.main, report.FLAGS, ["report", f"--init_from={tmp_path}/hf", *more])

    assert called("--word=bank", f"--sentences={tmp_path}/s.txt", f"--out={tmp_path}/page") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert all(f"<h2>{title}</h2>" in page for title in ("Answers", "Attention", "A word in different sentences"))
    assert "water" in page and "money" in page and (tmp_path / "page" / "attention.png").exists()
    assert called(f"--out={tmp_path}/plain") == 0  # no data are needed
    assert "<h2>Attention</h2>" in (tmp_path / "plain" / "index.html").read_text()
    capsys.readouterr()
    assert called("--word=bank") == 2 and "0 sentences have it" in capsys.readouterr().err
    assert launch.call(report.main, report.FLAGS, ["report", f"--workdir={tmp_path}", f"--out={tmp_path}/x"]) == 2
