"""Which examples go together into rows and batches: plans over lengths, which touch no tokens.

lengths is [examples, streams]: an example is as long as its tokens on each stream. A row has room for so many tokens on
each stream, and an example takes some of each: packing is filling boxes in several dimensions.
"""

from collections.abc import Sequence

import numpy as np


def pack(lengths: np.ndarray, room: Sequence[int], rng: np.random.Generator) -> list[list[int]]:
    """Rows of example numbers, each number once, with little of the room left empty.

    One row after the other; into it goes, of the examples that still fit, the one that is large where much is free: its
    lengths have the greatest dot product with the free room, both as shares of a row (the dot product heuristic of
    Panigrahy et al. 2011, "Heuristics for Vector Bin Packing"). Some chance in what opens a row keeps the epochs of a
    small corpus from all having the same rows. Of equal examples the first is taken.

    Args:
      lengths: [examples, streams], none over `room`.
      room: the tokens that a row holds, by stream.
      rng: decides what opens a row.

    Raises:
      ValueError: an example that no row holds.
    """
    room = np.asarray(room, np.float32)  # [streams]; whole numbers, exact up to 2^24
    if (lengths > room).any():
        raise ValueError(f"an example of {lengths.max(axis=0).tolist()} tokens is over {room.tolist()}, a row")
    kinds, kind_of, counts = np.unique(lengths, axis=0, return_inverse=True, return_counts=True)
    by_kind = np.split(np.argsort(kind_of.ravel(), kind="stable"), np.cumsum(counts)[:-1])
    members = [numbers[::-1].tolist() for numbers in by_kind] if len(lengths) else []
    sizes = np.ascontiguousarray(kinds.T, np.float32)  # [streams, kinds]
    weights = 1 / room**2
    rows = []
    while members:
        row, free = [], room.copy()
        while members:
            fits = np.logical_and.reduce(sizes <= free[:, None])  # [kinds]
            gains = ((free * weights) @ sizes) * fits
            best = int((gains if row else gains * rng.uniform(0.5, 1, len(gains))).argmax())
            if not fits[best]:
                break
            row.append(members[best].pop())
            free -= sizes[:, best]
            if not members[best]:
                del members[best]
                sizes = np.delete(sizes, best, axis=1)
        rows.append(row)
    return rows


def pack_in_order(lengths: np.ndarray, room: Sequence[int]) -> list[list[int]]:
    """Rows of example numbers in order: an example opens a new row when the last row has no room for it.

    Args and errors as those of `pack`.
    """
    if (lengths > np.asarray(room)).any():
        raise ValueError(f"an example of {lengths.max(axis=0).tolist()} tokens is over {list(room)}, a row")
    rows, free = [], np.zeros(len(room), np.int64)
    for number, sizes in enumerate(lengths):
        if not rows or (sizes > free).any():
            rows.append([])
            free = np.array(room)
        rows[-1].append(number)
        free = free - sizes
    return rows


def bucket(lengths: np.ndarray, widths: Sequence[int], rows: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Batches (bucket, example numbers), each number once, of examples of like length.

    An example belongs into the narrowest bucket that holds it on every stream. What fills no batch of its bucket goes
    with the next wider one, so at most one batch, the last, is not full.

    Args:
      lengths: [examples, streams], none over the widest.
      widths: tokens a row of each bucket holds, ascending.
      rows: examples in a batch of each bucket, not ascending.
    """
    of = np.searchsorted(widths, lengths.max(axis=1, initial=0))  # [examples]
    batches, waiting = [], []
    for i, count in enumerate(rows):
        waiting += np.flatnonzero(of == i).tolist()
        full = len(waiting) // count * count
        batches += [(i, waiting[start : start + count]) for start in range(0, full, count)]
        waiting = waiting[full:]
    if waiting:
        batches.append((int(of[waiting].max()), waiting))
    return batches
