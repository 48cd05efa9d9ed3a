"""Exact parameter counts, pinned. The Transformer column is that of So, Liang, Le 2019 with 33,288 embedding rows."""

import jax
import numpy as np
import pytest

from transformers_jax import models

BATCH = {
    name: np.zeros((1, 2), np.int32)
    for name in "source source_positions source_segments target_inputs targets target_positions target_segments".split()
}


def count(fields: dict, vocab_size: int) -> int:
    model = models.build(fields, vocab_size)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "width, heads, wanted",
    [(128, 4, 7_029_248), (432, 8, 45_786_816), (512, 8, 61_147_136), (768, 8, 124_750_848), (1024, 16, 210_374_656)],
)
def test_transformer(width, heads, wanted, scan):
    fields = dict(name="transformer", width=width, num_heads=heads, hidden=4 * width, scan_layers=scan)
    assert count(fields, 33_288) == wanted == 168 * width**2 + 124 * width + 33_288 * width
