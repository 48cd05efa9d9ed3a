"""Checkpoints: state, data position and resolved config of a step, together. Every call of Orbax stands in this file.

One folder a step:
    state/       every array of the state, sharded as it was; not compressed: random floats hardly shrink, and packing
                 them takes the processor away from the run. Of a run beside a base, which is read elsewhere, what learns
    extra/       one JSON file a process: what the loop must remember (data position, the open window of metrics), a
                 sum of the words of every array, and the name of the base
    config/      the resolved config
    files.json   size of every file above, and the CRC of the small ones

A save copies the arrays to the host and returns; a thread writes them to a folder with a temporary name, which is
renamed when it is complete, so that a process killed at any moment leaves whole checkpoints only. Reading checks the
files first, then the sums: a damaged checkpoint is named, and the one before is taken.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from transformers_jax.errors import DiskError, UserError
from transformers_jax.training import integrity
from transformers_jax.training.integrity import Damaged, Leaves

INFERENCE = ("params", "frozen", "model_state")
"""The fields of a state that a model is applied with."""

AVERAGE = "average"
"""The field of a state with the moving average of its parameters, if there is one: a model is applied with that."""

_TEMPORARY = ".orbax-checkpoint-tmp"


class Base(NamedTuple):
    """A pretrained model that checkpoints name in place of holding a copy of it.

    path: where it is read.
    fingerprint: what tells it from another.
    """

    path: str
    fingerprint: str

    @staticmethod
    def has(name: tuple[str, ...]) -> bool:
        """Whether it has this leaf of a state, which checkpoints leave out: frozen, and no constant of a part of low rank."""
        return name[0] == "frozen" and not re.match("lora_", name[-1])


class AllDamaged(UserError):
    """A folder's checkpoints cannot be read back, not one of them."""


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save.

    All processes of a run call every method alike. Reading changes nothing on the disk: another program may read while
    the run goes on.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 3, base: Base | None = None):
        """directory: of the steps' folders, made by the first save. keep: newest checkpoints that a save leaves.
        base: what is frozen in the state, if that is read elsewhere: it is neither saved nor restored."""
        quiet()
        path = os.fspath(directory)
        self.directory = epath.Path(path if "://" in path else os.path.abspath(path))
        self._keep = keep
        self.base = base
        self._saving: int | None = None  # step whose save is under way
        self._damaged: list[int] = []  # steps that restore_latest passed over: the next save removes them
        self._ready = False  # the directory exists and holds no leftovers

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        extra = ocp.JsonCheckpointHandler(
            filename=_extra_name(jax.process_index()),
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=None),  # every process writes
        )
        arrays, config = ocp.PyTreeCheckpointHandler(use_compression=False), ocp.JsonCheckpointHandler()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add("state", ocp.args.PyTreeSave, arrays)
        registry.add("state", ocp.args.PyTreeRestore, arrays)
        registry.add("extra", ocp.args.JsonSave, extra)
        registry.add("config", ocp.args.JsonSave, config)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            create=False,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
        )
        return ocp.CheckpointManager(self.directory, options=options, handler_registry=registry)

    # Writing

    def save(
        self, step: int, state, extra: dict | None = None, config: dict | None = None, instead_of: int | None = None
    ) -> None:
        """Saves a state in the background; does nothing when this step is already there.

        Waits for the save before, and returns when all is copied: arrays may be donated, dicts changed right after.

        Args:
          step: optimizer steps taken.
          state: tree of arrays, of which each process may hold a part.
          extra: JSON values of this process.
          config: JSON values, the same in all processes.
          instead_of: a step whose checkpoint is removed first, if there are others beside it.

        Raises:
          DiskError: this save or the one before could not be written (disk full, no permission); older ones stay.
        """
        self.wait()
        try:
            self._prepare()
            there = self._manager.all_steps()
            if step in there:
                return
            if instead_of in there and len(there) > 1:
                self._manager.delete(instead_of)
            leaves = {name: x for name, x in integrity.flatten(state).items() if self.holds(name)}
            record = {"processes": jax.process_count(), "sums": integrity.sums(leaves), "extra": extra or {}}
            record |= {"base": self.base._asdict()} if self.base else {}
            record, config = json.loads(json.dumps([record, config or {}]))  # a copy: they are written later
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave(traverse_util.unflatten_dict(leaves)),
                extra=ocp.args.JsonSave(record),
                config=ocp.args.JsonSave(config),
            )
            self._saving = step
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            self._failed(step, error)

    def wait(self) -> None:
        """Waits for the save under way; raises DiskError if it could not be written."""
        if self._saving is not None:
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                self._failed(self._saving, error)
            self._saving = None

    def close(self) -> None:
        """Waits for the save under way and ends the threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            if "_manager" in self.__dict__:
                self._manager.close()
                del self._manager

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.close()
        except UserError:
            if kind is None:  # else the first error is the one to show
                raise

    def _prepare(self) -> None:
        """Before the first save: makes the directory, removes what a killed run left and what was found damaged."""
        if not self._ready:
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()
            any_process(False)  # the others wait for the first
            self._ready = True
        while self._damaged:
            self._manager.delete(self._damaged.pop())

    def _remove_leftovers(self) -> None:
        for path in self.directory.iterdir():
            if _TEMPORARY in path.name:
                path.rmtree(missing_ok=True)

    def _seal(self) -> None:
        """Orbax calls this in the first process when all files are written, before the folder gets its final name."""
        (folder,) = (path for path in self.directory.iterdir() if path.name.split(".")[0] == str(self._saving))
        integrity.seal(folder)

    def _failed(self, step: int, error: Exception):
        """Raises a DiskError where the disk is to blame, and removes the unfinished folder; else raises the error."""
        self._saving = None
        reason = integrity.disk_error(error)
        if reason is None:
            raise error
        kept = "none"
        if self.directory.is_dir():
            if jax.process_index() == 0:
                self._remove_leftovers()
            self._manager.reload()
            kept = ", ".join(map(str, self._manager.all_steps())) or kept
        raise DiskError(f"cannot write checkpoint {self.directory / str(step)}: {reason}; kept: {kept}") from error

    # Reading

    def holds(self, name: tuple[str, ...]) -> bool:
        """Whether a leaf of a state is saved and restored, by its path (see `integrity.flatten`)."""
        return not (self.base and self.base.has(name))

    def all_steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending; damaged ones are among them."""
        self.wait()
        return sorted(self._manager.all_steps())

    def restore_latest(self, abstract_state):
        """The newest checkpoint that is whole; a warning names the damaged ones it passed over.

        Args:
          abstract_state: the expected state: arrays, or `jax.ShapeDtypeStruct`s with the shardings to restore to, on
            any mesh. A numpy leaf comes back as numpy, and what the base has as it is.

        Returns:
          (step, state, extra of this process), or None when there is no checkpoint.

        Raises:
          UserError: the checkpoint is of another model, or another number of processes wrote it; AllDamaged.
          DiskError: the machine cannot read a checkpoint, which may be whole: none is passed over for that.
        """
        leaves = integrity.flatten(abstract_state)
        for step, (arrays, record) in self._newest(lambda step: self._read(step, leaves)):
            if record["processes"] != jax.process_count():
                folder, count = self.directory / str(step), record["processes"]
                raise UserError(f"checkpoint {folder} holds the data positions of {count} processes: start as many")
            self._damaged = [s for s in self.all_steps() if s > step]
            return step, _like(abstract_state, arrays, leaves), record["extra"]
        return None

    def restore_params(self, step: int | None = None, abstract: dict | None = None) -> dict:
        """What a model is applied with, without optimizer state; `params` are their moving average where there is one.

        Args:
          step: which checkpoint; None is the newest that is whole.
          abstract: {"params": …, "frozen": …, "model_state": …} or some of these, as for `restore_latest`. None takes
            all of them as numpy arrays, whole in each process.

        Returns:
          A dict of the same fields; {} for one that the checkpoint does not have.

        Raises:
          UserError: no such checkpoint, or it is damaged, or of another model.
          DiskError: the machine cannot read it.
        """
        return self._fields(1, step, abstract)

    def average(self, last_n: int, abstract: dict | None = None) -> dict:
        """As `restore_params`, each parameter the mean over the newest checkpoints (Vaswani et al. 2017, section 6.1).

        The mean is taken in float32 and given the parameter's dtype. Parameters that are not floating point and the
        fields beside `params` come from the newest. Of fewer than `last_n` whole checkpoints: the mean of those.
        """
        return self._fields(last_n, None, abstract)

    def saved_config(self, step: int | None = None) -> dict | None:
        """The config beside a checkpoint, the newest readable one by default; None when there is no checkpoint."""

        def read(step):
            folder = self.directory / str(step)
            return _together(folder, lambda: integrity.read_json(folder / "config" / "metadata"))

        return next((config for _, config in self._newest(read, step)), None)

    def saved_base(self, step: int | None = None) -> Base | None:
        """The base that a checkpoint names, the newest readable one by default; None where it holds the whole model."""

        def read(step):
            folder = self.directory / str(step)
            return _together(folder, lambda: _record(folder)).get("base")

        found = next((base for _, base in self._newest(read, step)), None)
        return found and Base(**found)

    def _fields(self, count: int, step: int | None, abstract: dict | None) -> dict:
        """The fields of `abstract` (by default INFERENCE) of the newest checkpoint, `params` averaged over `count`."""
        fields = INFERENCE if abstract is None else tuple(abstract)
        leaves = None if abstract is None else integrity.flatten(abstract)
        read, newest, total = 0, {}, {}
        for _, (arrays, _) in self._newest(lambda step: self._read(step, leaves, fields), step):
            newest = newest or arrays
            if count > 1:
                learnt = {k: x for k, x in arrays.items() if k[0] == "params" and jnp.issubdtype(x.dtype, jnp.floating)}
                total = {k: x.astype(np.float32) + total.get(k, np.float32(0)) for k, x in learnt.items()}
            read += 1
            if read == count:
                break
        if not read:
            raise UserError(f"no checkpoint in {self.directory}")
        if read < count:
            absl_logging.warning("%s has %d checkpoints to average, not %d", self.directory, read, count)
        arrays = newest | {k: (x / np.float32(read)).astype(newest[k].dtype) for k, x in total.items()}
        if abstract is not None:
            return _like(abstract, arrays, leaves)
        return {field: {} for field in fields} | traverse_util.unflatten_dict(arrays)

    def _newest(self, read, step: int | None = None) -> Iterator[tuple]:
        """Yields (step, read(step)) from the newest on, with a warning for each damaged one; or the one `step` only."""
        steps = self.all_steps()
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are: {steps or 'none'}")
        whole = False
        for candidate in steps[::-1] if step is None else [step]:
            folder = self.directory / str(candidate)
            try:
                result = read(candidate)
            except Damaged as error:
                if step is not None:
                    raise UserError(f"checkpoint {folder} is damaged: {error}") from error
                absl_logging.warning("checkpoint %s is damaged and passed over: %s", folder, error)
            else:
                whole = True
                yield candidate, result
        if steps and not whole:
            raise AllDamaged(f"all {len(steps)} checkpoints in {self.directory} are damaged; remove it to start anew")

    def _read(self, step: int, leaves: Leaves | None, fields: tuple[str, ...] = ()) -> tuple[Leaves, dict]:
        """(arrays, record of this process) of one checkpoint, after all checks.

        leaves: what to restore to, None for numpy. fields: read no leaf but those below them.
        """
        folder = self.directory / str(step)
        record = _together(folder, lambda: integrity.verify(folder) or _record(folder))
        metadata = _together(folder, lambda: self._manager.item_metadata(step)["state"].tree)
        saved = traverse_util.flatten_dict(metadata)
        to_apply = bool(fields) and any(name[0] == AVERAGE for name in saved)
        if to_apply:
            saved = _renamed({name: x for name, x in saved.items() if name[0] != "params"}, AVERAGE, "params")
        saved = {name: x for name, x in saved.items() if not fields or name[0] in fields}
        if leaves is None:
            leaves = {name: np.empty(x.shape, x.dtype) for name, x in saved.items()}
        leaves = {name: x for name, x in leaves.items() if self.holds(name)}
        self._check_base(folder, record)
        if mismatch := integrity.difference(saved, leaves):
            raise UserError(f"checkpoint {folder} does not fit the model: {mismatch}")
        targets = {name: _target(x) for name, x in leaves.items()}
        item = traverse_util.unflatten_dict(_renamed(targets, "params", AVERAGE) if to_apply else targets)
        wanted = ocp.args.PyTreeRestore(
            item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=bool(fields)
        )
        restored = _together(folder, lambda: self._manager.restore(step, args=ocp.args.Composite(state=wanted))["state"])
        arrays = traverse_util.flatten_dict(restored)
        changed = [name for name, value in integrity.sums(arrays).items() if record["sums"].get(name) != value]
        _together(folder, lambda: _no(changed))
        return _renamed(arrays, AVERAGE, "params") if to_apply else arrays, record

    def _check_base(self, folder: epath.Path, record: dict) -> None:
        """Raises UserError unless a checkpoint was made beside the base that is there."""
        found = record.get("base")
        if self.base and found and found["fingerprint"] != self.base.fingerprint:
            raise UserError(
                f"checkpoint {folder} was trained beside another base: {found['path']} with fingerprint "
                f"{found['fingerprint'][:12]}, and {self.base.path} has {self.base.fingerprint[:12]}; give that base back"
            )


@cache
def quiet() -> None:
    """Keeps Orbax's reports out of the log, and the tracebacks of what is raised here anyway; its warnings stay."""

    def worth_reading(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname or record.levelno == logging.WARNING

    def unraisable(ignored) -> None:  # TensorStore's, when other reads or writes end after the one that failed
        if str(ignored.exc_value) != "Event loop is closed":
            before(ignored)

    logging.getLogger("absl").addFilter(worth_reading)
    before, sys.unraisablehook = sys.unraisablehook, unraisable


def _together(folder: epath.Path, read):
    """read(), where what it raises means a damaged file: Damaged in all processes, when it is so for one.

    They agree after each part of a reading, because Orbax lets them wait for one another within a part.

    Raises:
      DiskError: the machine of some process cannot read what is below `folder`, which may be whole.
    """
    result, reason, refused = None, "", ""
    try:
        result = read()
    except (MemoryError, jax.errors.JaxRuntimeError):  # the machine's fault, not the file's
        raise
    except Exception as error:
        if found := integrity.reading_error(error):
            refused = f"cannot read {found.filename or folder}: {found.strerror}"
        else:
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
    if any_process(bool(refused)):
        raise DiskError(refused or f"cannot read {folder}: another process is refused")
    if any_process(bool(reason)):
        raise Damaged(reason or "for another process")
    return result


def _record(folder: epath.Path) -> dict:
    """What this process saved beside the state; the first one's where there were fewer processes."""
    own = folder / "extra" / _extra_name(jax.process_index())
    return integrity.read_json(own if own.exists() else own.parent / _extra_name(0))


def _renamed(leaves: dict, field: str, new: str) -> dict:
    """Leaves by path, those of one field of a state as those of another."""
    return {(new, *name[1:]) if name[0] == field else name: x for name, x in leaves.items()}


def _no(changed: list[str]) -> None:
    if changed:
        raise Damaged(f"{changed[0]} is not what was saved")


def _extra_name(process: int) -> str:
    return f"process_{process}.json"


def _like(tree, arrays: Leaves, expected: Leaves):
    """The tree with the arrays in the place of what was expected; what was not restored stays as it was."""
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays.get(name, x) for name, x in expected.items()])


def _target(x) -> np.ndarray | jax.ShapeDtypeStruct:
    """What Orbax restores a leaf to: numpy as numpy, else with its sharding; the first device where it has none."""
    if isinstance(x, np.ndarray | np.generic):
        return np.empty(x.shape, x.dtype)
    sharding = x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all call it together."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(flag))))
