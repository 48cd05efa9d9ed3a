"""What a checkpoint is checked by before it is believed: its files, the sums of its arrays, the tree that was expected.

Nothing here knows the format the arrays are stored in.
"""

import errno
import json
import os
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

SEAL = "files.json"
_SMALL = 2**20  # bytes: files up to here have their CRC in the seal
_LISTED = 4  # leaves that a message names

Leaves = dict[tuple[str, ...], jax.Array | np.ndarray | jax.ShapeDtypeStruct]


class Damaged(Exception):
    """A checkpoint that cannot be read back as it was written: the message says what is wrong with it."""


def flatten(tree) -> Leaves:
    """Leaves by path: dict keys, fields and indices as strings; Python numbers as numpy."""

    def text(key) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(map(text, path)): x if hasattr(x, "dtype") else np.asarray(x) for path, x in pairs}


def difference(saved: Leaves, wanted: Leaves) -> str:
    """What two trees do not share, on one line, "" if nothing: names on either side, and leaves of another form.

    At most some names of each kind stand there, with the count: `only in checkpoint: params/a; only in model: params/b;
    differs: params/c float32[4,8] vs float32[4,16]`.
    """

    def form(x) -> str:
        return f"{np.dtype(x.dtype)}[{','.join(map(str, x.shape))}]"

    def part(title: str, names: list[str]) -> list[str]:
        more = f", … ({len(names)} in all)" if len(names) > _LISTED else ""
        return [f"{title}: {', '.join(names[:_LISTED])}{more}"] if names else []

    def names(keys) -> list[str]:
        return sorted("/".join(k) for k in keys)

    forms = [("/".join(k), form(saved[k]), form(wanted[k])) for k in sorted(saved.keys() & wanted.keys())]
    return "; ".join(
        part("only in checkpoint", names(saved.keys() - wanted.keys()))
        + part("only in model", names(wanted.keys() - saved.keys()))
        + part("differs", [f"{name} {old} vs {new}" for name, old, new in forms if old != new])
    )


def sums(leaves: Leaves) -> dict[str, int]:
    """{path: the words of the leaf (4 bytes, or fewer where an element has fewer) added modulo 2³²}.

    One pass over memory, where the arrays are; the same number for every sharding; another one after any single change.
    """
    # One after the other: sums over several devices of one process wait for each other when they all run at once.
    arrays = {name: x for name, x in leaves.items() if isinstance(x, jax.Array)}
    on_device = {name: jax.block_until_ready(_device_sum(x)) for name, x in arrays.items()}
    if any(not x.is_fully_addressable for x in on_device.values()):
        on_device = multihost_utils.process_allgather(on_device, tiled=True)
    on_device = jax.device_get(on_device)
    return {"/".join(k): int(on_device[k]) if k in on_device else _host_sum(x) for k, x in leaves.items()}


@jax.jit
def _device_sum(x: jax.Array) -> jax.Array:
    if x.dtype in (jnp.bool_, jnp.int4, jnp.uint4):
        x = x.astype(jnp.int8)
    words = jax.lax.bitcast_convert_type(x, f"uint{min(8 * x.dtype.itemsize, 32)}")
    return jnp.sum(words, dtype=jnp.uint32)


def _host_sum(x: np.ndarray) -> int:
    x = x.astype(np.int8) if x.dtype in (jnp.int4, jnp.uint4) else x
    words = np.ascontiguousarray(x).reshape(-1).view(f"uint{min(8 * x.dtype.itemsize, 32)}")
    return int(words.sum(dtype=np.uint64)) % 2**32


def seal(folder: epath.Path) -> None:
    """Lists the files of a finished checkpoint in it."""
    (folder / SEAL).write_text(json.dumps(_files(folder)))


def verify(folder: epath.Path) -> None:
    """Raises Damaged unless every file has the size and the CRC it was sealed with."""
    found = _files(folder)
    for name, (size, crc) in read_json(folder / SEAL).items():
        if name not in found:
            raise Damaged(f"{name} is missing")
        if found[name][0] != size:
            raise Damaged(f"{name} has {found[name][0]} bytes, {size} were written")
        if found[name][1] != crc:
            raise Damaged(f"{name} has other bytes than were written")


def _files(folder: epath.Path) -> dict[str, list]:
    """{name: [bytes, CRC-32 of a small file or None]} of all files below the folders of `folder`."""
    files, folders = {}, [path for path in folder.iterdir() if path.is_dir()]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                folders.append(path)
            else:
                size = path.stat().length
                crc = zlib.crc32(path.read_bytes()) if size <= _SMALL else None
                files[os.fspath(path.relative_to(folder))] = [size, crc]
    return files


def read_json(path: epath.Path):
    """The value in a JSON file; Damaged when it is missing or torn."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise Damaged(f"{path.name} cannot be read") from error


def disk_error(error: BaseException | None) -> str | None:
    """Why the disk refused, or None if the error is another: TensorStore's own errors say it in their text."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            if os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def reading_error(error: BaseException | None) -> OSError | None:
    """Why the machine could not read a file that may well be whole; None where the file itself is to blame."""
    while error is not None:
        if isinstance(error, OSError) and error.errno and error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            return error
        for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EACCES, errno.EPERM, errno.EIO):
            if os.strerror(code) in str(error):
                return OSError(code, os.strerror(code))
        error = error.__cause__ or error.__context__
    return None
