"""Checkpoints: state, data position and resolved config of a step, together.

One folder a step:
    state/       every array of the state, sharded as it was; not compressed: random floats hardly shrink, and packing
                 them takes the processor away from the run. Of a run beside a base, which is read elsewhere, what learns
    extra/       one JSON file a process: what the loop must remember (data position, the open window of metrics), a
                 sum of the words of every array, and the name of the base
    config/      the resolved config
    files.json   size of every file above, and the CRC of the small ones

A save copies the arrays to the host and returns; a thread writes them to a folder with a temporary name, which is
renamed when it is complete, so that a process killed at any moment leaves whole checkpoints only. Reading checks the
files first, then the sums: a damaged checkpoint is named, and the one before is taken (`checkpoint_reader`).
"""

import json
import os

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from transformers_jax.errors import DiskError, UserError
from transformers_jax.training import integrity
from transformers_jax.training.checkpoint_reader import AllDamaged, Base, Reader
from transformers_jax.training.processes import any_process

__all__ = ["AllDamaged", "Base", "Checkpoints"]

_TEMPORARY = ".orbax-checkpoint-tmp"


class Checkpoints(Reader):
    """The checkpoints of one run; a context manager that waits for the last save.

    All processes of a run call every method alike.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 3, base: Base | None = None):
        """directory: of the steps' folders, made by the first save. keep: newest checkpoints that a save leaves.
        base: what is frozen in the state, if that is read elsewhere: it is neither saved nor restored."""
        super().__init__(directory, base)
        self._keep = keep
        self._saving: int | None = None  # step whose save is under way
        self._ready = False  # the directory exists and holds no leftovers

    def _options(self) -> ocp.CheckpointManagerOptions:
        ending = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        return ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=False, async_options=ending)

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
