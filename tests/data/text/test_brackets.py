"""Tagged text in brackets: read, written, and what is no such text."""

import pytest
from ml_collections import ConfigDict

from transformers_jax.data import sources
from transformers_jax.data.text import brackets
from transformers_jax.errors import UserError
from transformers_jax.runs import labels
from transformers_jax.tasks.parts import entities

LINE = "[ORG U.N.] official [PER Ekeus] heads for [LOC New York] ."


def test_a_line_is_words_and_tags():
    words, tags = brackets.read(LINE)
    assert words == ["U.N.", "official", "Ekeus", "heads", "for", "New", "York", "."]
    assert tags == ["B-ORG", "O", "B-PER", "O", "O", "B-LOC", "I-LOC", "O"]
    assert brackets.written(words, entities.spans(tags)) == LINE


@pytest.mark.parametrize("words", [["[", "1", "]"], ["a[b]", "\\", "[x"], ["日本", "naïve", "🙂]"], ["[ORG"], ["a\\]"]])
def test_any_words_are_read_back(words):
    for found in (), [(0, len(words), "LOC")]:
        line = brackets.written(words, found)
        read, tags = brackets.read(line)
        assert read == words and entities.spans(tags) == set(found)


def test_neighbours_of_a_type_stay_two():
    line = "[PER Anna] [PER Bob] sing"
    words, tags = brackets.read(line)
    assert tags == ["B-PER", "B-PER", "O"] and brackets.written(words, entities.spans(tags)) == line


@pytest.mark.parametrize(
    "line, says",
    [
        ("[ORG U.N. official", "does not end"), ("official]", "ends an entity that has not begun"),
        ("[ORG]", "begins no entity"),
        ("[ORG a [PER b] c]", "'\\[PER' begins no entity"), ("see [1] there", "begins no entity"), ("a[b", "bracket inside"),
        ("[ ORG a]", "begins no entity"), ("[ORG ]", "has no word"),
    ],
)  # fmt: skip
def test_mistakes_name_the_line(tmp_path, line, says):
    (tmp_path / "a.txt").write_text(f"{LINE}\n\n{line}\n", encoding="utf-8")
    config = ConfigDict({"source": "brackets", "train": str(tmp_path / "a.txt")})
    with pytest.raises(UserError, match=f"a.txt, line 3: .*{says}"):
        sources.open_source(config, "train")


def test_files_are_a_source_with_labels(tmp_path):
    (tmp_path / "a.txt").write_bytes(f"\ufeff{LINE}\r\n\r\nAnna sings\r\n".encode())
    data = {"source": "brackets", "train": str(tmp_path / "a.txt")}
    source = sources.open_source(ConfigDict(data), "train")
    assert len(source) == 2 and source[1] == {"words": ["Anna", "sings"], "tags": ["O", "O"]}
    assert source.where(1).endswith("line 3")
    found = labels.of_training(ConfigDict({"task": {"name": "tagging", "labels": ()}, "data": data}))
    assert found == ("B-LOC", "B-ORG", "B-PER", "I-LOC", "O")
