"""Checkpoints: nothing that was saved is lost or comes back changed."""

import errno
import logging
import os
import shutil
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from processes import finish, free_port
from tiny_checkpoints import begin, make_state, same

from transformers_jax.errors import DiskError, UserError
from transformers_jax.training import integrity
from transformers_jax.training.checkpoint import Checkpoints

BIG = 2**20 + 40  # elements of 2 bytes: a file that is too large for a CRC of its own


def save(directory, *steps, keep=9, make=make_state):
    with Checkpoints(directory, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make(step), {"position": step / 3}, {"model": {"name": "tiny"}, "at": step})


def restore(directory, state=None):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore_latest(make_state() if state is None else state)


def tree_of(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


MOMENTS = ["writing", "before the rename"]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """{name: (directory, processes)} of what needs processes of its own: all started here, to run side by side."""

    def all_of(name, *arguments, **options):
        directory = tmp_path_factory.mktemp("script")
        return directory, [begin(name, directory, *a, **options) for a in arguments]

    port = free_port()
    started = {moment: all_of("killed", (moment,)) for moment in MOMENTS}
    started["meshes"] = all_of("meshes", (), devices=8)
    started["process"] = all_of("process", (0, port), (1, port))
    started["full"] = all_of("full", (), mounted=True)
    yield started
    for _, processes in started.values():
        for process in filter(None, processes):
            process.kill()


# Saving and restoring


def test_state_extra_and_config_come_back_bit_for_bit(tmp_path):
    save(tmp_path / "c", 3, 7)
    step, state, extra = restore(tmp_path / "c")
    assert step == 7 and extra == {"position": 7 / 3}
    assert same(state, make_state(7)) and not same(state, make_state(3))
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.all_steps() == [3, 7]
        assert checkpoints.saved_config() == {"model": {"name": "tiny"}, "at": 7}
        assert checkpoints.saved_config(3)["at"] == 3


def test_an_empty_directory_has_nothing_and_is_not_made(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.all_steps() == []
        assert checkpoints.restore_latest(make_state()) is None and checkpoints.saved_config() is None
        with pytest.raises(UserError, match="no checkpoint in .*c"):
            checkpoints.restore_params()
    assert not (tmp_path / "c").exists()


def test_the_newest_are_kept_and_a_step_is_saved_once(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    before = tree_of(tmp_path)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.all_steps() == [3, 4]
        checkpoints.save(4, make_state(9))
    assert tree_of(tmp_path) == before


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    def make(step):
        r = np.random.default_rng(step)
        return jax.device_put({"params": {str(i): r.normal(size=(300, 400)).astype(np.float32) for i in range(8)}})

    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
    jax.block_until_ready(overwrite(make(0)))
    with Checkpoints(tmp_path) as checkpoints:
        state = make(0)
        checkpoints.save(1, state)
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        assert same(checkpoints.restore_latest(make(1))[1], make(0))


def test_what_is_saved_beside_the_state_may_be_changed_while_it_is_written(tmp_path, monkeypatch):
    written = threading.Event()
    save_fn = ocp.JsonCheckpointHandler._save_fn

    async def late(self, *arguments):
        written.wait(60)
        await save_fn(self, *arguments)

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", late)
    extra, config = {"window": {"sums": {}}}, {"a": [1]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), extra, config)
        extra["window"]["sums"]["loss"] = 1.0
        config["a"].append(2)
        written.set()
        assert checkpoints.restore_latest(make_state())[2] == {"window": {"sums": {}}}
        assert checkpoints.saved_config() == {"a": [1]}


def test_shapes_without_sharding_and_numpy_leaves(tmp_path):
    tree = {"params": {"a": jnp.arange(4.0)}, "n": np.arange(3), "f": np.float64(0.1), "k": 5}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        wanted = tree | {"params": jax.eval_shape(lambda: tree["params"])}
        _, state, _ = checkpoints.restore_latest(wanted)
    assert isinstance(state["params"]["a"], jax.Array) and isinstance(state["n"], np.ndarray)
    assert same(state, tree | {"k": np.asarray(5)})


# Another model


def test_a_checkpoint_of_another_model_is_refused_and_untouched(tmp_path):
    save(tmp_path, 1, 2)
    before = tree_of(tmp_path)
    other = make_state()
    kernel = other.params["dense"].pop("kernel")
    other.params["dense"] |= {"weight": kernel, "bias": other.params["dense"]["bias"].astype(jnp.float32)}
    other = other.replace(opt_state=make_state(rows=5).opt_state)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore_latest(other)
        with pytest.raises(UserError, match="differs: params/dense/bias bfloat16.8. vs float32.8."):
            checkpoints.restore_params(abstract={"params": other.params})
    message = str(error.value)
    assert str(tmp_path / "2") in message and "\n" not in message
    assert "only in checkpoint: params/dense/kernel;" in message and "only in model: params/dense/weight;" in message
    assert "params/dense/bias bfloat16[8] vs float32[8]" in message
    assert "opt_state/0/dense/kernel float32[6,8] vs float32[5,8]" in message
    assert tree_of(tmp_path) == before and restore(tmp_path)[0] == 2


def test_a_long_list_of_differences_is_counted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {f"a{i:03}": jnp.ones(2) for i in range(100)}})
        with pytest.raises(UserError) as error:
            checkpoints.restore_latest({"params": {f"b{i:03}": jnp.ones(2) for i in range(50)}})
    assert "params/a000, params/a001" in str(error.value) and "(100 in all)" in str(error.value)
    assert "(50 in all)" in str(error.value) and len(str(error.value)) < 400


# Damage


def damage(path, how):
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "halved":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:  # a few bytes in the middle are others
        start = len(content) // 2
        path.write_bytes(content[:start] + bytes(255 - b for b in content[start : start + 3]) + content[start + 3 :])


HARMLESS = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # in the folder itself: not needed to read it


def big_state(step=0):
    return jax.device_put({"params": {"a": np.full(BIG, step, jnp.bfloat16), "b": np.arange(3.0, dtype=np.float32) + step}})


def test_whatever_is_damaged_in_the_newest_the_one_before_is_taken(tmp_path, caplog):
    save(tmp_path / "c", 1, 2, make=big_state)
    newest, good = tmp_path / "c" / "2", tmp_path / "good"
    shutil.copytree(newest, good)
    files = sorted(p.relative_to(good) for p in good.rglob("*") if p.is_file())
    assert len(files) > 10 and any(len((good / f).read_bytes()) > 2 * BIG for f in files)
    for file in files:
        for how in ("halved", "emptied", "removed", "changed"):
            damage(newest / file, how)
            caplog.clear()
            step, state, extra = restore(tmp_path / "c", big_state())
            if str(file) in HARMLESS:
                assert step == 2, (file, how)
            else:
                assert step == 1, (file, how)
                (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
                assert str(newest) in warning and "\n" not in warning
            assert same(state, big_state(step)) and extra == {"position": step / 3}
            shutil.rmtree(newest)
            shutil.copytree(good, newest)


def test_a_removed_folder_within_counts_as_damage_and_the_step_can_be_saved_again(tmp_path):
    save(tmp_path, 1, 2, 3)
    shutil.rmtree(tmp_path / "3" / "state")
    (tmp_path / "2" / "extra" / "process_0.json").write_text("{")
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        assert checkpoints.restore_latest(make_state())[0] == 1
        assert (tmp_path / "3").exists()  # reading removes nothing
        checkpoints.save(2, make_state(22), {"position": 0})
        checkpoints.wait()
        assert checkpoints.all_steps() == [1, 2]
        step, state, _ = checkpoints.restore_latest(make_state())
    assert step == 2 and same(state, make_state(22))


def test_all_damaged_is_an_error(tmp_path, caplog):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="all 2 checkpoints in .* are damaged"):
            checkpoints.restore_latest(make_state())
        with pytest.raises(UserError, match=r"/1 is damaged: state/manifest.ocdbt has 0 bytes"):
            checkpoints.restore_params(1)
    assert tree_of(tmp_path)


def test_sums_know_any_change_whatever_the_type():
    leaves = integrity.flatten(make_state(4))
    before = integrity.sums(leaves)
    assert before == integrity.sums({k: np.asarray(x) for k, x in leaves.items()})  # on the host as on the device
    for name, x in leaves.items():
        changed = np.array(x).reshape(-1)
        changed[-1] = not changed[-1] if changed.dtype == bool else changed[-1] + 1
        after = integrity.sums(leaves | {name: jnp.asarray(changed.reshape(x.shape))})
        assert {k for k in before if before[k] != after[k]} == {"/".join(name)}


# Only what a model needs


def test_params_alone(tmp_path):
    save(tmp_path, 1, 2, 3)
    with Checkpoints(tmp_path) as checkpoints:
        newest, first = checkpoints.restore_params(), checkpoints.restore_params(1)
        wanted = {"params": make_state().params}
        placed = checkpoints.restore_params(abstract=wanted)
        with pytest.raises(UserError, match=r"no checkpoint of step 5 in .*; there are: \[1, 2, 3\]"):
            checkpoints.restore_params(5)
    assert set(newest) == {"params", "frozen", "model_state"}
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(newest))
    for got, step in ((newest, 3), (first, 1)):
        state = make_state(step)
        assert same(got, {"params": state.params, "frozen": state.frozen, "model_state": state.model_state})
    assert same(placed, {"params": make_state(3).params}) and isinstance(placed["params"]["count"], jax.Array)


def test_average_of_the_last(tmp_path, caplog):
    save(tmp_path, 1, 2, 3, 4)
    (tmp_path / "3" / "files.json").unlink()
    states = [make_state(step) for step in (4, 2)]
    with Checkpoints(tmp_path) as checkpoints:
        mean = checkpoints.average(2)
        placed = checkpoints.average(2, {"params": make_state().params})
        everything = checkpoints.average(9)
        assert same(checkpoints.average(1), checkpoints.restore_params())
    kernels = [np.asarray(s.params["dense"]["kernel"]) for s in states]
    np.testing.assert_array_equal(mean["params"]["dense"]["kernel"], (kernels[0] + kernels[1]) / np.float32(2))
    biases = [np.asarray(s.params["dense"]["bias"], np.float32) for s in states]
    np.testing.assert_array_equal(mean["params"]["dense"]["bias"], ((biases[0] + biases[1]) / 2).astype(jnp.bfloat16))
    np.testing.assert_array_equal(mean["params"]["count"], states[0].params["count"])  # not floating: of the newest
    np.testing.assert_array_equal(mean["model_state"]["mask"], states[0].model_state["mask"])
    assert same(jax.tree.map(np.asarray, placed), {"params": mean["params"]})
    kernels.append(np.asarray(make_state(1).params["dense"]["kernel"]))
    np.testing.assert_allclose(everything["params"]["dense"]["kernel"], np.mean(kernels, axis=0), atol=1e-6)
    assert "has 3 checkpoints to average, not 9" in caplog.text and f"{tmp_path / '3'} is damaged" in caplog.text


# The disk and the process


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ESTALE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("part", ["files", "record", "arrays"])
def test_what_the_machine_cannot_read_is_not_damaged(tmp_path, monkeypatch, part, code):
    save(tmp_path, 1, 2, keep=2)
    before = tree_of(tmp_path)

    def refused(*_, **__):
        if part == "arrays":  # as TensorStore says it
            raise ValueError(f"NOT_FOUND: Error opening {tmp_path}/2/state/d/1: [OS error {code}: {os.strerror(code)}]")
        raise OSError(code, os.strerror(code), f"{tmp_path}/2/there")

    where = {"files": (integrity, "verify"), "record": (integrity, "read_json"), "arrays": (ocp.CheckpointManager, "restore")}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(*where[part], refused)
            for read in (lambda: checkpoints.restore_latest(make_state()), checkpoints.restore_params):
                with pytest.raises(DiskError, match=rf"cannot read {tmp_path}/2(/there)?: {os.strerror(code)}$"):
                    read()
        assert checkpoints.restore_latest(make_state())[0] == 2  # it can be read again
        checkpoints.save(3, make_state(3))
        checkpoints.wait()
        assert checkpoints.all_steps() == [2, 3]
    assert {name: text for name, text in tree_of(tmp_path).items() if name[0] == "2"} == {
        name: text for name, text in before.items() if name[0] == "2"
    }


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR])
def test_a_file_that_is_not_there_or_no_file_is_damage(tmp_path, monkeypatch, caplog, code):
    save(tmp_path, 1, 2)

    def missing(folder):
        if folder.name == "2":
            raise OSError(code, os.strerror(code), f"{folder}/there")

    monkeypatch.setattr(integrity, "verify", missing)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_state())[0] == 1
    assert f"{tmp_path / '2'} is damaged and passed over" in caplog.text


def test_a_full_disk_while_writing_keeps_the_older_ones(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(folder):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(integrity, "seal", full)
            checkpoints.save(2, make_state(2))
            with pytest.raises(UserError, match=r"cannot write checkpoint .*/2: No space left on device; kept: 1$"):
                checkpoints.save(3, make_state(3))
        assert [p.name for p in tmp_path.iterdir()] == ["1"]
        assert same(checkpoints.restore_latest(make_state())[1], make_state(1))
        checkpoints.save(3, make_state(3))  # there is room again
        checkpoints.wait()
        assert checkpoints.all_steps() == [3]


def test_a_full_file_system(scripts):
    directory, (process,) = scripts["full"]
    if process is None:
        pytest.skip("may not mount a small file system here")
    report, err = finish(process)
    assert report["error"] == f"cannot write checkpoint {directory}/2: No space left on device; kept: 1"
    assert report["left"] == ["1"] and report["restored"] == 1
    assert "Traceback" not in err, err


def test_a_folder_one_may_not_write(tmp_path):
    (tmp_path / "c").write_text("a file")
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(UserError, match=r"cannot write checkpoint .*c/1: (File exists|Not a directory)"):
            checkpoints.save(1, make_state())


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_saving(scripts, moment):
    directory, (process,) = scripts[moment]
    finish(process, code=-signal.SIGKILL)
    leftovers = [p for p in directory.iterdir() if p.name != "1"]
    assert len(leftovers) == 1 and "tmp" in leftovers[0].name
    with Checkpoints(directory, keep=9) as checkpoints:
        step, state, _ = checkpoints.restore_latest(make_state())
        assert step == 1 and same(state, make_state(1)) and checkpoints.all_steps() == [1]
        assert leftovers[0].exists()  # a reader leaves it: it may be a save of a run that lives
        checkpoints.save(2, make_state(2))
        checkpoints.wait()
        assert sorted(p.name for p in directory.iterdir()) == ["1", "2"]


def test_another_mesh(scripts):
    """Eight devices, data=8, then data=2, fsdp=4, then one device, here; and many arrays on fsdp=2, tensor=4."""
    directory, (process,) = scripts["meshes"]
    report, _ = finish(process)
    assert report["devices"] == 8 and report["shard"] == [1, 8]
    assert report["same"] and report["params"] and report["average"] and report["both_ways"]
    assert same(restore(directory, make_state(rows=8))[1], make_state(5, rows=8))


def test_each_process_keeps_its_own_extra(scripts):
    directory, processes = scripts["process"]
    reports = [finish(process)[0] for process in processes]
    for i, report in enumerate(reports):
        assert report["extra"] == {"position": i} and report["step"] == 1 and report["sum"] == 28.0
        assert report["fallback"] == 1  # what is damaged for one process is passed over by both
        assert report["refused"].startswith(f"cannot read {directory}/2")  # and what one cannot read, by neither
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(UserError, match="holds the data positions of 2 processes"):
            checkpoints.restore_latest({"params": {"a": jnp.arange(8.0)}})
        assert same(checkpoints.restore_params(1)["params"], {"a": np.arange(8.0, dtype=np.float32)})


def test_the_log_has_no_reports_of_the_library(tmp_path, caplog):
    from absl import logging as absl_logging

    caplog.set_level(logging.INFO, logger="absl")
    absl_logging.info("a report of ours")
    save(tmp_path, 1)
    restore(tmp_path)
    assert [r.getMessage() for r in caplog.records] == ["a report of ours"]
