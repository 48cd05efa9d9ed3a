"""Fixtures of the launchers' tests: a corpus, and a run that nothing disturbed."""

import logging
import re

import aligned
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from launching import REPOSITORY, command, finish, start

from experiments import launch, pretrain

SMALLER = ["--config.model.layers=1", "--config.model.width=16", "--config.model.mlp_width=32", "--config.training.steps=6"]
OPTIONS = ("jax_default_prng_impl", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with small aligned files; returns the flags that name them."""
    folder = aligned.write(tmp_path_factory.mktemp("corpus"), train=300, validation=12, test=12)
    return [f"--config.data.{s}={folder}/{s}.en,{folder}/{s}.de" for s in ("train", "validation", "test")]


@pytest.fixture(scope="session", autouse=True)
def settings():
    """JAX and logging are left as they were found by launchers called in this process."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def run(tmp_path_factory, corpus):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("run") / "there" / "not yet"
    code, out, err = finish(start(command(workdir, corpus)))
    assert code == 0 and out == "", err
    return workdir


@pytest.fixture(scope="session")
def prose(tmp_path_factory):
    """A file of English sentences, a blank line between documents: some of Python's own help."""
    from pydoc_data.topics import topics

    folder, documents = tmp_path_factory.mktemp("prose"), []
    for name in sorted(topics)[:20]:
        plain = " ".join(re.sub(r"[^\w\s.,;'-]", " ", topics[name]).split())
        documents.append("\n".join(s.strip() + "." for s in plain.split(". ")[:12] if len(s.split()) > 3))
    (folder / "train.txt").write_text("\n\n".join(documents[2:]) + "\n")
    (folder / "validation.txt").write_text("\n\n".join(documents[:2]) + "\n")
    return [f"--config.data.{split}={folder}/{split}.txt" for split in ("train", "validation")]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory, prose):
    """The workdir of a tiny BERT, pretrained by masked language model and next sentences."""
    workdir = tmp_path_factory.mktemp("encoder") / "w"
    flags = [f"--config={REPOSITORY}/configs/bert.py:tiny", f"--workdir={workdir}", *prose, *SMALLER]
    assert launch.call(pretrain.main, pretrain.FLAGS, ["pretrain", *flags]) == 0
    return workdir
