"""The launchers from the command line: a run from beginning to end, and one that is killed again and again."""

import json
import signal
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from launching import REPOSITORY, call, command, content, fails, finish, metrics, start

from experiments import evaluate, launch, pretrain, report, translate
from experiments import lines as line_blocks
from transformers_jax import config as configuration
from transformers_jax.files import locked

# -- a run -------------------------------------------------------------------------------------------------------------


def test_run_leaves_its_workdir(run):
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "tensorboard", "checkpoints", "samples.jsonl", "lock"} == {
        f.name for f in run.iterdir()
    }
    lines = metrics(run)
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == [2, 4, 6, 8, 10, 12] and train[-1]["loss"] < train[0]["loss"]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [6, 12]
    assert lines[-1]["split"] == "test" and lines[-1]["sentences"] == 12 and "bleu_signature" in lines[-1]
    assert len((run / "samples.jsonl").read_text().splitlines()) == 12


def test_config_is_saved_resolved(run, corpus):
    config = configuration.read(run)
    assert config.data.train == corpus[0].partition("=")[2] and config.training.steps == 12


def test_finished_run_does_nothing(run, corpus, capfd):
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file() and f.suffix == ".jsonl"}
    code, out, err = call(pretrain, capfd, *command(run, corpus)[2:])
    assert code == 0 and out == "" and "step" not in err, err
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_evaluate(run, capfd):
    with locked(run, ""):  # while it is trained in
        flags = ["--config.decoding.beam_size=3", "--average=2", "--samples=3"]
        code, out, err = call(evaluate, capfd, f"--workdir={run}", *flags)
    scores = json.loads(out.splitlines()[-1])
    assert code == 0 and scores["split"] == "test" and scores["sentences"] == 12, err
    assert [line.split()[0] for line in out.splitlines()[:-1] if line] == ["source", "reference", "translation"] * 3
    assert 0 <= scores["bleu"] <= 100 and "tok:13a" in scores["bleu_signature"] and scores["copy_bleu"] < 100
    assert scores["perplexity"] > 1 and 0 <= scores["accuracy"] <= 1 and scores["seconds"] > 0
    assert scores["loss"] == pytest.approx(metrics(run)[-1]["loss"], rel=1e-4)


def test_report(run, capfd):
    code, out, err = call(report, capfd, f"--workdir={run}")
    assert code == 0 and Path(out.strip()).is_file(), err
    assert (run / "report" / "attention.png").is_file()


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--config.training.parallelism=pmap"],
        [f"--config={REPOSITORY}/configs/luong.py:tiny", "--config.data.batching=buckets"],
    ],
)
def test_dry_run_prints_and_writes_nothing(tmp_path, corpus, capfd, more):
    code, out, err = call(pretrain, capfd, *command(tmp_path / "w", corpus, "--dry_run", *more)[2:])
    assert code == 0 and not (tmp_path / "w").exists(), err
    for word in "parameters", "FLOPs a step", "memory a device", "mesh", "attention", "compile time":
        assert any(line.startswith(word) for line in out.splitlines()), out
    assert "no run is faster" in out  # a batch of buckets has as many tokens at any width


def test_translate_keeps_lines_and_their_order(run, capfd, monkeypatch, caplog):
    lines = ["the man .", "", "red dog runs", "the " * 400, "   ", "日本語 🙂", "the man ."]
    data = "\r\n".join(lines).encode()
    code, out, err = call(translate, capfd, f"--workdir={run}", "--method=greedy", stdin=data, monkeypatch=monkeypatch)
    found = out.split("\n")
    assert code == 0 and found.pop() == "" and len(found) == len(lines), err
    assert found[1] == found[4] == "" and found[0] == found[6] and all(found[i] for i in (0, 2, 3))
    assert "cut" in err and "the first is number 4" in err  # the long line is named
    monkeypatch.setattr(line_blocks, "BLOCK", 2)  # blocks, and Unix line ends, change nothing
    data = "\n".join(lines + [""]).encode()
    again = call(translate, capfd, f"--workdir={run}", "--method=greedy", stdin=data, monkeypatch=monkeypatch)[1]
    assert again == out


def test_translate_n_best(run, capfd, monkeypatch):
    flags = [f"--workdir={run}", "--beam_size=2", "--nbest=2", "--alpha=0"]
    code, out, err = call(translate, capfd, *flags, stdin=b"the man .\n\n", monkeypatch=monkeypatch)
    rows = [line.split(" ||| ") for line in out.splitlines()]
    assert code == 0 and [row[0] for row in rows] == ["0", "0", "1"], err
    assert float(rows[0][2]) >= float(rows[1][2])


def test_a_sample_depends_on_seed_and_line(run, capfd, monkeypatch):
    def drawn(seed):
        flags = [f"--workdir={run}", "--method=sample", f"--seed={seed}", "--config.decoding.temperature=2.0"]
        return call(translate, capfd, *flags, stdin=b"the man .\n" * 4, monkeypatch=monkeypatch)[1]

    whole = drawn(1)
    assert len(set(whole.splitlines())) > 1 and drawn(2) != whole
    monkeypatch.setattr(line_blocks, "BLOCK", 2)
    assert drawn(1) == whole


def test_translate_names_the_line_that_is_not_utf8(run, capfd, monkeypatch):
    data = b"the man .\nred \xff dog\n"
    flags = [f"--workdir={run}", "--method=greedy"]
    out = fails(translate, capfd, *flags, stdin=data, monkeypatch=monkeypatch, says=["line 2 is not UTF-8"])
    assert len(out.splitlines()) == 1  # what came before is translated


def test_nobody_reads_the_translations(run):
    arguments = ["-m", "experiments.translate", f"--workdir={run}", "--method=greedy"]
    process = start(arguments, stdin=subprocess.PIPE)
    process.stdout.close()
    code, _, err = finish(process, "the man .\n" * 3)
    assert code == 0 and "Traceback" not in err and "BrokenPipe" not in err, err


def test_a_compiled_program_without_its_time_does_not_keep_others_out(tmp_path):
    cache = pytest.importorskip("jax._src.lru_cache").LRUCache(str(tmp_path), max_size=100)
    cache.put("a", b"program")
    (tmp_path / "a-atime").unlink()  # its process was killed
    with pytest.raises(FileNotFoundError):
        cache.put("b", b"another")
    launch._date(tmp_path)
    cache.put("b", b"another")
    assert cache.get("a") == b"program" and cache.get("b") == b"another"


# -- killed ------------------------------------------------------------------------------------------------------------

MOMENTS = (  # what is seen on stderr, and the signal it is answered with
    ("parameters; start", signal.SIGKILL),  # before the first step
    ("step 4/12", signal.SIGKILL),  # beside the first checkpoint
    ("step 6  validation", signal.SIGTERM),
    ("step 10/12", signal.SIGKILL),
    ("step 12  validation", signal.SIGKILL),  # before the last test
)


def test_killed_run_ends_as_one_that_was_not(tmp_path, run, corpus, capfd, monkeypatch):
    workdir = tmp_path / "killed"
    for words, number in MOMENTS:
        with start(command(workdir, corpus), stdout=subprocess.DEVNULL) as process:
            seen = []
            for line in process.stderr:
                seen.append(line)
                if words in line:
                    process.send_signal(number)
            code = process.wait()
        assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL), (words, "".join(seen))
        assert not any("Traceback" in line for line in seen), "".join(seen)
    code, _, err = finish(start(command(workdir, corpus)))
    assert code == 0, err

    assert metrics(workdir) == metrics(run)
    (params, extra), (other_params, other_extra) = content(workdir), content(run)
    jax.tree.map(np.testing.assert_array_equal, params, other_params)
    assert extra == other_extra
    assert (workdir / "samples.jsonl").read_text() == (run / "samples.jsonl").read_text()
    assert (workdir / "tokenizer.json").read_text() == (run / "tokenizer.json").read_text()
