"""Reading checkpoints; `checkpoint` says what they are, and writes them. Every call of Orbax stands in these two files."""

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

from transformers_jax.errors import UserError
from transformers_jax.training import integrity
from transformers_jax.training.integrity import Damaged, Leaves
from transformers_jax.training.processes import together

INFERENCE = ("params", "frozen", "model_state")
"""The fields of a state that a model is applied with."""

AVERAGE = "average"
"""The field of a state with the moving average of its parameters, if there is one: a model is applied with that."""


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


class Reader:
    """The checkpoints of one run, as they are read.

    All processes of a run call every method alike. Nothing changes on the disk: another program may read while the run goes on.

    Attributes:
      directory: of the steps' folders.
      base: what is frozen in the state, if that is read elsewhere: it is neither saved nor restored.
    """

    def __init__(self, directory: str | os.PathLike, base: Base | None = None):
        quiet()
        path = os.fspath(directory)
        self.directory = epath.Path(path if "://" in path else os.path.abspath(path))
        self.base = base
        self._damaged: list[int] = []  # steps that restore_latest passed over

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        extra = ocp.JsonCheckpointHandler(
            filename=extra_name(jax.process_index()),
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=None),  # every process writes
        )
        arrays, config = ocp.PyTreeCheckpointHandler(use_compression=False), ocp.JsonCheckpointHandler()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add("state", ocp.args.PyTreeSave, arrays)
        registry.add("state", ocp.args.PyTreeRestore, arrays)
        registry.add("extra", ocp.args.JsonSave, extra)
        registry.add("config", ocp.args.JsonSave, config)
        return ocp.CheckpointManager(self.directory, options=self._options(), handler_registry=registry)

    def _options(self) -> ocp.CheckpointManagerOptions:
        return ocp.CheckpointManagerOptions(create=False)

    def wait(self) -> None:
        """Waits for what is under way."""

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
            return together(folder, lambda: integrity.read_json(folder / "config" / "metadata"))

        return next((config for _, config in self._newest(read, step)), None)

    def saved_base(self, step: int | None = None) -> Base | None:
        """The base that a checkpoint names, the newest readable one by default; None where it holds the whole model."""

        def read(step):
            folder = self.directory / str(step)
            return together(folder, lambda: _record(folder)).get("base")

        found = next((base for _, base in self._newest(read, step)), None)
        return found and Base(**found)

    def saved_extra(self, step: int | None = None) -> dict | None:
        """What this process saved beside a checkpoint, the newest readable one by default; None when there is no checkpoint."""

        def read(step):
            folder = self.directory / str(step)
            return together(folder, lambda: _record(folder)["extra"])

        return next((extra for _, extra in self._newest(read, step)), None)

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
        record = together(folder, lambda: integrity.verify(folder) or _record(folder))
        metadata = together(folder, lambda: self._manager.item_metadata(step)["state"].tree)
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
        restored = together(folder, lambda: self._manager.restore(step, args=ocp.args.Composite(state=wanted))["state"])
        arrays = traverse_util.flatten_dict(restored)
        changed = [name for name, value in integrity.sums(arrays).items() if record["sums"].get(name) != value]
        together(folder, lambda: _no(changed))
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


def _record(folder: epath.Path) -> dict:
    """What this process saved beside the state; the first one's where there were fewer processes."""
    own = folder / "extra" / extra_name(jax.process_index())
    return integrity.read_json(own if own.exists() else own.parent / extra_name(0))


def _renamed(leaves: dict, field: str, new: str) -> dict:
    """Leaves by path, those of one field of a state as those of another."""
    return {(new, *name[1:]) if name[0] == field else name: x for name, x in leaves.items()}


def _no(changed: list[str]) -> None:
    if changed:
        raise Damaged(f"{changed[0]} is not what was saved")


def extra_name(process: int) -> str:
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
