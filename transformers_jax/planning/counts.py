"""How many parameters a model has, and where, from shapes alone: nothing is allocated."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax

from transformers_jax import parameters


def shapes(model, batch: Mapping) -> dict:
    """The model's variables as shapes: {"params": …, and "batch_stats" where it has running statistics}.

    Args:
      model: a Flax module that takes a batch.
      batch: fields as arrays or `jax.ShapeDtypeStruct`s.
    """
    return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch), dict(batch))


def count(tree) -> int:
    """Elements of all leaves, with or without names of axes around them; of a quantised kernel those that it stands for."""
    leaves = jax.tree.leaves(nn.unbox(tree), is_leaf=parameters.is_packed)
    return sum(x.size if parameters.is_packed(x) else math.prod(x.shape) for x in leaves)


def bytes_of(tree) -> int:
    """Bytes of all leaves in their dtypes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def by_module(params, depth: int = 1) -> dict[str, int]:
    """Elements by module: names cut to `depth` parts, in the order of the tree; they sum to `count(params)`."""
    counts: dict[str, int] = {}
    for name, leaf in parameters.flat(params).items():
        module = "/".join(name.split("/")[:depth])
        counts[module] = counts.get(module, 0) + count(leaf)
    return counts
