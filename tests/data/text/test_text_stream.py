"""Texts of files one after the other: the same as where files are in memory."""

import gzip

import pytest
from ml_collections import ConfigDict

from transformers_jax.data.sources import open_source
from transformers_jax.data.text.text_stream import texts
from transformers_jax.errors import UserError

CONTENT = "\ufeff# one\r\n\n\n  two é\nthree\n \nfour\n# five\n\n"


@pytest.mark.parametrize("unit, begins", [("line", ""), ("document", ""), ("document", "# "), ("file", "")])
@pytest.mark.parametrize("zipped", [False, True])
def test_as_the_source_has_them(tmp_path, unit, begins, zipped):
    content = CONTENT.encode()
    (tmp_path / "a.txt").write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    config = ConfigDict(dict(source="text", train=str(tmp_path / "a.txt"), unit=unit, begins=begins, tfds_name=""))
    source = open_source(config, "train")
    wanted = [source[i]["text"] for i in range(len(source))]
    assert list(texts([tmp_path / "a.txt"], unit, begins)) == wanted and len(wanted) > (unit == "line")


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a\\nb"}\n\n{"text": "c", "id": 3}\n', mtime=0))
    assert list(texts([path], "document")) == ["a\nb", "c"]


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.jsonl", b'{"text": "a"}\n{"texts": "b"}\n', "a.jsonl, line 2 is no JSON object with a text"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl, line 1: text is no text"),
        ("a.txt", b"a\nb\xff\n", "--files: .*a.txt, line 2 is not UTF-8"),
        ("a.txt", gzip.compress(b"abc" * 99, mtime=0)[:-9], "--files: cannot read .*a.txt"),
        ("b.txt", None, "--files: no file .*b.txt"),
    ],
)
def test_mistakes(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        list(texts([tmp_path / name], "document"))
