"""Token files: what is written comes back, memory-mapped; other vocabularies and files that are not whole are refused."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from real_data import shared_data

from transformers_jax.data import pipeline
from transformers_jax.data.sources import open_source
from transformers_jax.data.text.token_files import HEADER, TokenFile, TokenFiles, TokenFileWriter, write
from transformers_jax.data.text.tokenizer import learn_bpe
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.errors import UserError
from transformers_jax.tasks.causal_lm import Task

TEXTS = ["the cat sat on the mat", "", "a dog é日本\nwith two lines", "the end"]


@pytest.fixture(scope="module")
def tokenizer():
    return learn("byte_bpe", TEXTS, 300)


def opened(*paths) -> TokenFiles:
    return open_source(ConfigDict({"source": "tokens", "train": ",".join(map(str, paths))}), "train")


def test_what_is_written_comes_back(tmp_path, tokenizer):
    numbers = write(tmp_path / "a.tokens", tokenizer, TEXTS)
    ids = [tokenizer.encode(text) for text in TEXTS]
    assert numbers == {"documents": 4, "tokens": sum(map(len, ids)), "bytes": sum(len(t.encode()) for t in TEXTS)}
    file = TokenFile(tmp_path / "a.tokens", "key")
    assert [file[i].tolist() for i in range(len(file))] == ids and file[0].dtype == np.uint16
    assert isinstance(file.tokens, np.memmap) and np.shares_memory(file[2], file.tokens)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tokens"]


def test_several_files_are_one_source(tmp_path, tokenizer):
    write(tmp_path / "a.tokens", tokenizer, TEXTS[:3])
    write(tmp_path / "b.tokens", tokenizer, TEXTS[3:])
    write(tmp_path / "c.tokens", tokenizer, [])
    source = opened(*(tmp_path / f"{name}.tokens" for name in "acb"))
    assert [tokenizer.decode(source[i]["ids"]) for i in range(4)] == TEXTS and len(source) == 4
    assert source.where(3).endswith("b.tokens, document 1") and source.where(1).endswith("a.tokens, document 2")
    with pytest.raises(IndexError):
        source[4]


def test_large_vocabularies_have_wider_tokens(tmp_path, tokenizer):
    class Large:
        vocab_size = 2**16 + 1
        fingerprint = tokenizer.fingerprint

    with TokenFileWriter(tmp_path / "a.tokens", Large()) as writer:
        writer.add([65_536, 3], "x")
    assert TokenFile(tmp_path / "a.tokens", "key")[0].tolist() == [65_536, 3]


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path, tokenizer):
    def broken():
        yield "the cat"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write(tmp_path / "a.tokens", tokenizer, broken())
    assert not list(tmp_path.iterdir())


def test_another_vocabulary_is_refused(tmp_path, tokenizer):
    write(tmp_path / "a.tokens", tokenizer, TEXTS)
    other = learn_bpe(TEXTS, 300)
    assert Task(tokenizer).examples(source := opened(tmp_path / "a.tokens")) is source
    with pytest.raises(UserError, match=r"config.data.train: .*a.tokens was made with another vocabulary .*tokenizer.path"):
        Task(other).examples(source)


def test_damaged_files_are_refused(tmp_path, tokenizer):
    path = tmp_path / "a.tokens"
    write(path, tokenizer, TEXTS)
    whole = path.read_bytes()
    for content, says in [
        (whole[:-1], "it was cut off or changed"),
        (whole + b"x", "it was cut off or changed"),
        (whole[: HEADER + 5], "it was cut off or changed"),
        (whole[:100], "is no token file"),
        (b"some text\n" * 999, "is no token file"),
        (whole.replace(b'"uint16"', b'"float9"'), "its header is damaged"),
        (whole[:-8] + bytes(8), "documents are not where"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^config.data.train: .*a.tokens.* {says}"):
            opened(path)
    with pytest.raises(UserError, match="^config.data.train: cannot read .*b.tokens: No such file"):
        opened(tmp_path / "b.tokens")


def test_batches_of_tokens_are_those_of_the_texts(tmp_path, tokenizer):
    write(tmp_path / "a.tokens", tokenizer, TEXTS)
    texts = [{"text": text} for text in TEXTS]
    config = ConfigDict(dict(batching="documents", batch_size=2, lengths={"tokens": 16}, prefetch=0))
    task = Task(tokenizer)
    of_tokens, of_texts = (pipeline.train_iterator(s, task, config, seed=0) for s in (opened(tmp_path / "a.tokens"), texts))
    for _ in range(5):
        first, second = next(of_tokens), next(of_texts)
        assert all(np.array_equal(first[name], second[name]) for name in second)


def test_real_books(tmp_path):
    """46 whole books, of which a part of one is read."""
    from transformers_jax.data.text.text_stream import texts

    path = shared_data("text/books.val.txt.gz")
    books = list(texts([path], "document", "# Title:"))
    tokenizer = learn("byte_bpe", (book[:100_000] for book in books), 1000)
    numbers = write(tmp_path / "books.tokens", tokenizer, books)
    assert numbers["documents"] == len(books) > 1 and numbers["bytes"] == sum(len(book.encode()) for book in books)
    source = opened(tmp_path / "books.tokens")
    assert tokenizer.decode(source[1]["ids"]) == books[1]
    assert tokenizer.byte_lengths()[source[1]["ids"]].sum() == len(books[1].encode())
