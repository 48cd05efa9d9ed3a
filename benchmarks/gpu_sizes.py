"""The models that `benchmarks.gpu` measures, and what both its sides must agree on; importing it imports nothing of either.

Axes: B rows, T length.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """One model and the shape of its batch.

    fields: of `config.model`.
    task: name of the file in `transformers_jax.tasks` whose loss is trained.
    rows, length: B and T (of translation, source and target each).
    """

    fields: dict
    task_name: str
    rows: int
    length: int
    vocab_size: int
    dtype: str = "bfloat16"

    @property
    def tokens(self) -> int:
        """Tokens that a step learns from: of translation those of the target."""
        return self.rows * self.length

    def batch(self) -> dict[str, np.ndarray]:
        """Rows without padding, drawn; each field [B, T] int32."""
        rng, shape = np.random.default_rng(0), (self.rows, self.length)
        drawn = {name: rng.integers(5, self.vocab_size, shape).astype(np.int32) for name in ("a", "b")}
        places = np.broadcast_to(np.arange(self.length, dtype=np.int32), shape).copy()
        ones = np.ones(shape, np.int32)
        if self.task_name == "translation":
            found = {"source": drawn["a"], "target_inputs": drawn["b"], "targets": np.roll(drawn["b"], -1, axis=1)}
            for stream in "source", "target":
                found |= {f"{stream}_positions": places, f"{stream}_segments": ones}
            return found
        found = {"tokens": drawn["a"], "token_types": ones * 0, "positions": places, "segments": ones}
        if self.task_name == "masked_lm":
            weights = (rng.random(shape) < 0.15).astype(np.int32)
            found |= {"targets": drawn["b"], "weights": weights}
        return found

    def task(self) -> Any:
        """The task, as far as its loss needs one: no tokenizer."""
        import importlib

        made = importlib.import_module(f"transformers_jax.tasks.{self.task_name}").Task
        return {"translation": lambda: made(None), "masked_lm": lambda: made.__new__(made)}[self.task_name]()


def _transformer(width: int, heads: int, layers: int, **more) -> dict:
    sizes = {"width": width, "num_heads": heads, "mlp_width": 4 * width}
    return {"name": "transformer", **sizes, "encoder_layers": layers, "decoder_layers": layers, "dropout": 0.1} | more


_BERT = {"name": "bert", "head": "masked_lm", "dropout": 0.1, "attention_dropout": 0.0, "scan_layers": True}
MODELS = {
    "bert_base": Size(_BERT, "masked_lm", 64, 512, 30_522),
    "transformer_big": Size(_transformer(1024, 16, 6, dropout=0.3), "translation", 128, 128, 33_288),
    "evolved_big": Size(
        {"name": "evolved_transformer", "width": 1024, "num_heads": 16, "dropout": 0.3}, "translation", 128, 128, 33_288
    ),
}
SMALL = {
    "bert_base": Size(
        _BERT | {"width": 32, "num_heads": 2, "mlp_width": 64, "layers": 2, "max_length": 32}, "masked_lm", 2, 32, 64
    ),
    "transformer_big": Size(_transformer(32, 2, 2), "translation", 2, 16, 64),
    "evolved_big": Size(
        {"name": "evolved_transformer", "width": 32, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1},
        "translation", 2, 16, 64,
    ),
}  # fmt: skip
