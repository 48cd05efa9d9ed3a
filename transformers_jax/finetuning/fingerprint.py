"""What tells one pretrained model from another: a run that keeps no copy of its base names it by this."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def fingerprint(leaves: Mapping[str, Any]) -> str:
    """SHA-256 over the name, dtype, shape and bytes of each leaf in the order of their names, in hexadecimal.

    Args:
      leaves: by name, layers apart; each is read when its turn comes.
    """
    total = hashlib.sha256()
    for name in sorted(leaves):
        array = np.ascontiguousarray(np.asarray(leaves[name]))
        total.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()
