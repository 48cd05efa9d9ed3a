"""Parameters for tests of models, without the compilation that a model's own take."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def drawn(abstract, seed=1):
    """Parameters of these shapes, none of them one or zero, so that a forgotten one shows."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        middle, size = (1.0, 0.2) if path[-1].key == "scale" else (0.0, 0.3 if x.ndim > 1 else 0.2)
        return jnp.asarray(middle + size * rng.standard_normal(x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(abstract))
