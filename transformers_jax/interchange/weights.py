"""Files of weights in the safetensors format, one or several of them: a folder's leaves by name.

Pickles are not read: whoever unpickles a file runs whatever code its author put into it.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transformers_jax.errors import UserError

SINGLE, INDEX, SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SHARD_BYTES = 5 * 10**9
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""Types of numbers, by their names in a file: all but float8 and packed ones."""


class Weights:
    """The arrays of a folder, each read when it is asked for.

    Raises:
      UserError: no weights, pickled ones, a damaged or truncated file, a shard that its index lacks or the other way round.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / INDEX
        if index.is_file() and (folder / SINGLE).is_file():
            logging.warning("%s has %s and %s: the first is read, as transformers reads it", folder, SINGLE, INDEX)
        elif index.is_file():
            self._files = self._sharded(index)
            return
        file = self._single()
        self._files = dict.fromkeys(self._open(file).keys(), file)

    @cached_property
    def _handles(self) -> dict:
        return {}

    def names(self) -> list[str]:
        """Of all leaves."""
        return list(self._files)

    def array(self, name: str) -> np.ndarray:
        """One leaf, in the file's own dtype."""
        try:
            return self._open(self._files[name]).get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{self._files[name]}: {name} cannot be read: {error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a leaf.

        Raises:
          UserError: its dtype is not read here.
        """
        leaf = self._open(self._files[name]).get_slice(name)
        if leaf.get_dtype() not in DTYPES:
            raise UserError(
                f"{self._files[name]}: {name} is of dtype {leaf.get_dtype()}, which is not read here; {', '.join(DTYPES)} are"
            )
        return tuple(leaf.get_shape())

    def part(self, name: str, axis: int, start: int, stop: int) -> np.ndarray:
        """Of a leaf what lies from `start` to `stop` along an axis; no more is read."""
        leaf = self._open(self._files[name]).get_slice(name)
        shape = leaf.get_shape()
        if not shape or (start, stop) == (0, shape[axis]):
            return self.array(name)
        return leaf[(*[slice(None)] * axis, slice(start, stop))]

    def kernel(self, name: str) -> Callable | None:
        """What `Leaf.kernel` is of a leaf; None for a plain array."""
        return None

    def _open(self, file: Path):
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(str(file), framework="numpy")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} is truncated or no safetensors file ({error}): get it anew") from error
        return self._handles[file]

    def _single(self) -> Path:
        """The only file of weights."""
        found = sorted(self.folder.glob("*.safetensors"))
        if (self.folder / SINGLE) in found:
            return self.folder / SINGLE
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{self.folder}: {len(found)} safetensors files, but neither {SINGLE} nor {INDEX}")
        for file in sorted(self.folder.iterdir()):
            refuse_pickle(file)
        raise UserError(f"{self.folder}: no weights; wanted {SINGLE}, or {INDEX} with its shards")

    def _sharded(self, index: Path) -> dict[str, Path]:
        """The file of each leaf."""
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {name: self.folder / Path(file).name for name, file in listed.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is damaged: no weight_map in it ({error})") from error
        if missing := sorted({file.name for file in files.values() if not file.is_file()}):
            raise UserError(f"{index} lists the shard {missing[0]}, which is missing: get it, or the whole folder anew")
        if unlisted := sorted(set(self.folder.glob(SHARDS)) - set(files.values())):
            raise UserError(f"{index} does not list the shard {unlisted[0].name}: the index is another model's; get both anew")
        for file in sorted(set(files.values())):
            there, wanted = set(self._open(file).keys()), {name for name, f in files.items() if f == file}
            if different := sorted(there ^ wanted):
                where = "is in the shard only" if different[0] in there else "is in the index only"
                raise UserError(f"{index} does not fit {file.name}: {different[0]} {where}")
        return files


class Leaf:
    """An array that is read when it is asked for: `np.asarray(leaf)`. It has the shape of what is to be read.

    read: gives the array, in the file's dtype.
    parts: what it is stacked of, if it is.
    kernel: (shape, inputs) → a quantised kernel of this shape, where the file has it so, without rounding anything.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        read: Callable[[], np.ndarray],
        parts: Sequence = (),
        kernel: Callable[[tuple[int, ...], int], Any] | None = None,
    ):
        self.shape, self.read, self.parts, self.kernel = shape, read, parts, kernel

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, rows: slice) -> "Leaf":
        """Some of its rows, unread too."""
        return Leaf((len(range(self.shape[0])[rows]), *self.shape[1:]), lambda: self.read()[rows])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def stacked(leaves: Sequence) -> "np.ndarray | Leaf":
    """Arrays of one shape as one, or leaves as a leaf."""
    if not any(isinstance(leaf, Leaf) for leaf in leaves):
        return np.stack(leaves)
    return Leaf((len(leaves), *leaves[0].shape), lambda: np.stack([np.asarray(leaf) for leaf in leaves]), leaves)


def refuse_pickle(file: Path) -> None:
    """Raises UserError for a file of pickled weights."""
    if file.suffix in PICKLES:
        raise UserError(
            f"{file} is a pickle, and reading a pickle runs whatever code is in it: it is refused. Get the model's "
            "safetensors, or write them where you trust the file: model.save_pretrained(folder) of transformers does"
        )


def save(arrays: dict[str, np.ndarray], file: Path) -> None:
    """Writes a safetensors file that others may read as they may read any new file here: the library itself shuts them out."""
    file.touch()
    mode = file.stat().st_mode
    save_file(arrays, file, metadata={"format": "pt"})
    file.chmod(mode & 0o777)


def write(folder: Path, leaves: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes model.safetensors, or shards of up to `shard_bytes` with their index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = total = 0
    for name, array in leaves:
        if shards[-1] and size + array.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = np.asarray(array, order="C")  # the library writes memory as it lies
        size, total = size + array.nbytes, total + array.nbytes
    for stale in (SINGLE, INDEX, *(file.name for file in folder.glob(SHARDS))):
        (folder / stale).unlink(missing_ok=True)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, shard in zip(names, shards, strict=True):
        save(shard, folder / file)
    if count > 1:
        listed = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": listed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
