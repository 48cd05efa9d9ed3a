"""What the processes of a run agree on."""

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from transformers_jax.errors import DiskError
from transformers_jax.training import integrity
from transformers_jax.training.integrity import Damaged


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all call it together."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def together(folder: epath.Path, read):
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
