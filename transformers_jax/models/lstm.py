"""The LSTM as a language model (Zaremba, Sutskever and Vinyals 2014, "Recurrent Neural Network Regularization"): the decoder of
`luong`, which has no source to attend to. Each state depends on all tokens before it, through the state in front alone.

Axes: B batch rows, T length, P prompt length, D width, which is the cells' too, V vocabulary.

With N layers: V · D parameters for the embedding, which the softmax shares (Press and Wolf 2017), and N · (8·D² + 4·D).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.embeddings import embed, embedding_table
from transformers_jax.layers.recurrent import LSTM, cell, product
from transformers_jax.models.protocol import CONTINUES, TEXT, Protocol
from transformers_jax.outputs import LanguageModelOutput

HEADS = ("causal_lm",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of `config.model`; the defaults are the medium model of Zaremba et al., section 4.1.

    dropout: on each layer's input and on the last one's output, never between times.
    head: "causal_lm", the only one.
    """

    vocab_size: int
    width: int = 650
    layers: int = 2
    dropout: float = 0.5
    head: str = "causal_lm"
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.head not in HEADS:
            raise UserError(f"config.model.head is {self.head!r}; of an lstm it is {HEADS[0]}")
        if self.layers < 1:
            raise UserError(f"config.model.layers is {self.layers}; it must be 1 or more")


class Model(nn.Module):
    """`__call__` trains; `start` and `step` go on from prompts, position by position, with the states as cache."""

    config: Config

    def setup(self):
        c = self.config
        self.embedding = embedding_table(self, "embedding", c.vocab_size, c.width, c.param_dtype)
        self.decoder = [LSTM(c.width, c.width, c.dtype, c.param_dtype) for _ in range(c.layers)]
        self.drop = Dropout(c.dropout)

    @nn.nowrap
    def protocol(self) -> Protocol:
        """What this model tells about itself; its input may have any length."""
        about = {"head": "causal_lm", "heads": HEADS, "token_heads": HEADS}
        return Protocol(reads=(TEXT,), does=(CONTINUES,), fields=("tokens", "positions", "segments"), **about)

    def __call__(self, batch: dict, *, deterministic: bool = True) -> LanguageModelOutput:
        """Hidden states of every position, given the tokens of its segment up to it, and the softmax's table."""
        tokens = batch["tokens"]  # [B, T]
        positions = batch["positions"]  # [B, T]

        hidden = self.read(tokens, positions, deterministic)[-1][0]  # [B, T, D]
        return LanguageModelOutput(self.drop(hidden, deterministic=deterministic), self.table())

    def read(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> list[tuple[jax.Array, jax.Array]]:
        """Each layer's (h, c) after every position of tokens [B, T], [B, T, D] each; a segment begins at position 0."""
        x = embed(self.embedding, tokens, self.config.dtype)  # [B, T, D]
        states = []
        for layer in self.decoder:
            states.append(layer(self.drop(x, deterministic=deterministic), positions == 0))
            x = states[-1][0]
        return states

    def start(self, batch: dict, length: int) -> jax.Array:
        """Reads the prompts, but for their last tokens.

        Args:
          batch: tokens, positions and segments [B, P], as of `decoder_only.DecoderOnly.start`.
          length: of what is written; the states do not grow with it.

        Returns:
          the token that the first step reads, [B] int32: each prompt's last.
        """
        del length
        tokens = batch["tokens"]  # [B, P]
        positions = batch["positions"]  # [B, P]
        segments = batch["segments"]  # [B, P]

        last = jnp.maximum(jnp.sum(segments > 0, axis=1, dtype=jnp.int32) - 1, 0)[:, None]  # [B, 1]
        for number, state in enumerate(self.read(tokens, positions, True)):
            for name, x in zip("hc", state, strict=True):
                before = jnp.take_along_axis(x, jnp.maximum(last - 1, 0)[..., None], axis=1)[:, 0]  # [B, D]
                self.put_variable("cache", f"{name}_{number}", jnp.where(last > 0, before, jnp.zeros_like(before)))
        return jnp.take_along_axis(tokens, last, axis=1)[:, 0]

    def step(self, tokens: jax.Array) -> jax.Array:
        """Reads the next token of each row, [B], and returns the logits of the one after it, [B, V] float32."""
        x = embed(self.embedding, tokens, self.config.dtype)  # [B, D]
        for number, layer in enumerate(self.decoder):
            kernel, recurrent, bias = layer.matrices()
            weights = {"kernel": kernel, "recurrent": recurrent}
            h, c = (self.get_variable("cache", f"{name}_{number}") for name in "hc")
            gates = product(weights, "kernel", x) + product(weights, "recurrent", h) + bias  # [B, 4 D]
            x, c = cell(gates, c, h.dtype)
            self.put_variable("cache", f"h_{number}", x)
            self.put_variable("cache", f"c_{number}", c)
        return jnp.einsum("bd,vd->bv", x, self.table(), preferred_element_type=jnp.float32)

    def table(self) -> jax.Array:
        """The softmax's vectors of tokens [V, D]."""
        return self.embedding.astype(self.config.dtype)
