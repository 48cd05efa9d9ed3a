"""What GPT, Llama and their kin share: the fields of their configs, and the ways through a decoder without an encoder.

Axes: B batch rows, T length, P prompt length, D model width, V vocabulary.

A batch has `tokens`, `positions` and `segments`, each [B, T]. Rows may be packed: a token sees those before it in its segment.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers.embeddings import held_table, lookup, token_scores
from transformers_jax.layers.feedforward import ACTIVATIONS
from transformers_jax.layers.masks import Mask, Place
from transformers_jax.layers.quantized import is_quantized
from transformers_jax.models.protocol import CONTINUES, TEXT, Protocol
from transformers_jax.outputs import EncoderOutput, LanguageModelOutput

HEADS = ("none", "causal_lm")


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of `config.model` that all decoders without an encoder have; the defaults are GPT-2 small's.

    layers: how often the block is stacked.  mlp_width: width inside the feed-forward.  max_length: longest input.
    activation: a name of `layers.feedforward.ACTIVATIONS`.
    dropout: on sublayer outputs; embedding_dropout on embeddings, attention_dropout on weights.
    head: "causal_lm" gives an `LanguageModelOutput`, "none" an `EncoderOutput` of hidden states alone.
    tie_embeddings: the softmax shares the tokens' embedding; otherwise it has a table of its own, lm_head.
    stddev: of the initial numbers.  norm_epsilon: of the norms.
    scan_layers: one compiled block for all layers; without it the program is larger, and faster on CPUs.
    attention: which kernel; "auto" chooses by shape and dtype.
    genome: other blocks than these, as a genome's JSON file, text or name; its cells, made causal, are the layers.
    genome_cell: which of the genome's cells: "decoder", without its attention to an encoder, or "encoder".
    genome_unit: width that one relative output dimension of the genome stands for; 0 is width // 2.
    """

    vocab_size: int
    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    layers: int = 12
    max_length: int = 1024
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu_tanh"
    head: str = "causal_lm"
    tie_embeddings: bool = True
    norm_epsilon: float = 1e-5
    stddev: float = 0.02
    scan_layers: bool = False
    remat: bool = False
    attention: str = "auto"
    dtype: str = "float32"
    param_dtype: str = "float32"
    genome: str = ""
    genome_cell: str = "decoder"
    genome_unit: int = 0

    def __post_init__(self):
        if self.head not in HEADS:
            raise UserError(f"config.model.head is {self.head!r}; it is one of {', '.join(HEADS)}")
        if self.layers < 1:
            raise UserError(f"config.model.layers is {self.layers}; it must be 1 or more")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"config.model.activation is {self.activation!r}; it is one of {', '.join(ACTIVATIONS)}")

    def block_fields(self) -> dict:
        """The fields of a `layers.blocks.CausalBlock` that have the same names."""
        names = "num_heads mlp_width dropout attention_dropout activation attention norm_epsilon dtype param_dtype"
        return {name: getattr(self, name) for name in names.split()} | {"stddev": nn.initializers.normal(self.stddev)}


class DecoderOnly(nn.Module):
    """`__call__` trains; `start` and `step` go on from prompts, position by position, with a cache.

    An architecture gives `setup` (with `setup_tables`, and a `layers.blocks.Stack` called decoder), `embed` and `finish`.

    block: makes one block with the methods of `layers.blocks.CausalBlock`; None for the architecture's own.
    """

    config: Any
    block: Callable[..., nn.Module] | None = None
    configs = {}  # by head, the config that a converted model's workdir begins with
    genome_cells = {"block": ("causal", "layers")}

    @nn.nowrap
    def protocol(self) -> Protocol:
        """What this model tells about itself; prompt and output share its longest input."""
        c = self.config
        return Protocol(
            reads=(TEXT,),
            does=(CONTINUES,),
            fields=("tokens", "positions", "segments"),
            longest=c.max_length,
            head=c.head,
            heads=HEADS,
            token_heads=("causal_lm",),
            tied=c.tie_embeddings,
            configs=self.configs,
        )

    def setup_tables(self) -> None:
        """Makes the tokens' embedding and, where it is another, the softmax's; to be called in `setup`."""
        c = self.config
        if c.genome and self.block is None:
            raise ValueError("a genome's blocks are made in models.build")
        self.embedding = held_table(self, "embedding", c.vocab_size, c.width, c.param_dtype, c.stddev)
        if c.head == "causal_lm" and not c.tie_embeddings:
            self.lm_head = held_table(self, "lm_head", c.vocab_size, c.width, c.param_dtype, c.stddev)

    def embed(self, tokens: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        """What the first block reads, [B, T, D], of tokens and positions [B, T]."""
        raise NotImplementedError

    def finish(self, x: jax.Array) -> jax.Array:
        """What stands between the last block and the softmax, [B, T, D] → [B, T, D]."""
        raise NotImplementedError

    def window(self) -> int:
        """How many positions a token sees, its own among them; 0 for all before it."""
        return 0

    def __call__(self, batch: dict, *, deterministic: bool = True) -> LanguageModelOutput | EncoderOutput:
        """Hidden states of every position, given the tokens of its segment up to it; with a head, and the softmax's table."""
        tokens = batch["tokens"]  # [B, T]
        positions = batch["positions"]  # [B, T]
        segments = batch["segments"]  # [B, T]

        x = self.embed(tokens, positions, deterministic)  # [B, T, D]
        x = self.decoder(x, self.mask(positions, segments), deterministic)  # [B, T, D]
        hidden = self.finish(x)
        return EncoderOutput(hidden) if self.config.head == "none" else LanguageModelOutput(hidden, self.table())

    def start(self, batch: dict, length: int) -> jax.Array:
        """Reads the prompts and fills the cache for up to `length` steps.

        Args:
          batch: tokens, positions and segments [B, P], one prompt a row from the left: row b's n_b ≥ 1 tokens have segment 1,
            those behind them 0.

        Returns:
          the token that the first step reads, [B] int32: each prompt's last.
        """
        tokens = batch["tokens"]  # [B, P]
        positions = batch["positions"]  # [B, P]
        segments = batch["segments"]  # [B, P]

        before = jnp.maximum(jnp.sum(segments > 0, axis=1, dtype=jnp.int32) - 1, 0)  # [B]
        x = self.embed(tokens, positions, True)  # [B, P, D]
        self.decoder(x, self.mask(positions, segments), length, method="start")
        self.put_variable("cache", "before", before)
        self.put_variable("cache", "index", jnp.zeros((), jnp.int32))
        return jnp.take_along_axis(tokens, before[:, None], axis=1)[:, 0]

    def step(self, tokens: jax.Array) -> jax.Array:
        """Reads the next token of each row, [B], and returns the logits of the one after it, [B, V] float32."""
        index = self.get_variable("cache", "index")
        before = self.get_variable("cache", "before")  # [B], or one for several outputs of a prompt side by side
        place = Place(index, jnp.repeat(before, tokens.shape[0] // before.shape[0]), self.window())
        x = self.embed(tokens[:, None], place.positions(), True)  # [B, 1, D]
        x = self.decoder(x, place, method="step")  # [B, 1, D]
        self.put_variable("cache", "index", index + 1)
        hidden = self.finish(x)[:, 0]  # [B, D]
        return token_scores(hidden, self.table())

    def mask(self, positions: jax.Array, segments: jax.Array) -> Mask:
        """Who sees whom in rows with these positions and segments [B, T]."""
        return Mask(segments, segments, causal=True, window=self.window(), positions=positions)

    def words(self, tokens: jax.Array) -> jax.Array:
        """Vectors of tokens [B, T] as they are: [B, T, D]."""
        return lookup(self.embedding, tokens, self.config.dtype)

    def table(self) -> Any:
        """The softmax's vectors of tokens [V, D]; a kernel [D, V] where they are held in blocks."""
        tied = self.config.tie_embeddings or self.config.head == "none"
        found = self.embedding if tied else self.lm_head
        return found if is_quantized(found) else found.astype(self.config.dtype)
