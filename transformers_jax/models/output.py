"""What a token model returns: hidden states and the matrix that turns them into logits. A leaf."""

from typing import NamedTuple

import jax


class Output(NamedTuple):
    """Logits are `hidden @ table.T`: left undone, so that the loss can take them in chunks.

    hidden: [B, T, D] final hidden states.
    table: [V, D] output embedding.
    """

    hidden: jax.Array
    table: jax.Array
