"""BLEU by the tokenisation of the target language."""

import importlib.util

import pytest

from transformers_jax import config as configuration
from transformers_jax.runs.experiment import settled
from transformers_jax.tasks import translation


@pytest.mark.parametrize(
    "language, found, reference",
    [
        ("zh", "他昨天去了北京的学校。", "他昨天去了北京的大学。"),
        ("ja", "彼は昨日東京の学校へ行きました。", "彼は昨日京都の学校へ行きました。"),
        ("ko", "그는어제서울에있는학교에갔습니다", "그는어제부산에있는학교에갔습니다"),
        ("th", "เขาไปโรงเรียนเมื่อวานนี้", "เขาไปตลาดเมื่อวานนี้"),
    ],
)
def test_languages_without_spaces_have_a_score(language, found, reference):
    tokenize = translation.tokenisation_of(language)
    scores = translation.bleu([found], [reference], tokenize)
    assert translation.bleu([found], [reference])["bleu"] < 1 < 20 < scores["bleu"] < 99
    assert f"tok:{tokenize}" in scores["bleu_signature"]
    assert translation.bleu([reference], [reference], tokenize)["bleu"] == pytest.approx(100)


def test_tokenisation_by_language(monkeypatch):
    assert [translation.tokenisation_of(x) for x in ("de", "en-US", "zh_CN", "TH")] == ["", "", "zh", "char"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "MeCab")
    assert [translation.tokenisation_of(x) for x in ("ja", "ko")] == ["ja-mecab", "char"]
    assert "tok:13a" in translation.bleu(["a b c d"], ["a b c d"])["bleu_signature"]


def test_a_run_takes_that_of_its_target_language(tmp_path):
    config = configuration.load("configs/transformer.py:tiny")
    for languages, given, wanted in [(("en", "zh"), "", "zh"), (("zh", "en"), "", ""), (("en", "zh"), "char", "char")]:
        config.data.languages, config.task.bleu_tokenize = languages, given
        assert settled(config).task.bleu_tokenize == wanted
