"""The Transformer (Vaswani et al. 2017, "Attention Is All You Need"): encoder, decoder, one shared embedding.

Axes: B batch rows, S source length, T target length, D model width, V vocabulary.

With pre-norm, no attention biases and one shared embedding of V rows, n + n layers of width D and hidden width 4D have
28·n·D² + (20·n + 4)·D + V·D parameters.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.layers.blocks import DecoderBlock, EncoderBlock, Stack
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.embeddings import embed, embedding_table
from transformers_jax.layers.masks import Mask
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.positions import LearnedPositions, sinusoidal_at
from transformers_jax.models.protocol import Protocol, translator
from transformers_jax.outputs import LanguageModelOutput


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of `config.model`; the defaults are the base model of Vaswani et al., table 3, with pre-norm.

    norm: "pre" or "post".  positions: "interleaved" or "concatenated" sinusoids, "learned", or "none".
    relative_distance: Shaw's relative positions clipped there; 0 is none.  max_length: rows of learned positions.
    share_embeddings: one matrix for source, target and softmax; otherwise the source has its own.
    attention: which kernel; "auto" chooses by shape and dtype.
    dropout: on embeddings and sublayer outputs; attention_dropout on weights; mlp_dropout inside the feed-forward.
    genome: other blocks than these, as a genome's JSON file, text or name; its cells are the layers (`models.with_genome`).
    genome_unit: width that one relative output dimension of the genome stands for; 0 is width // 2.
    """

    vocab_size: int
    width: int = 512
    num_heads: int = 8
    mlp_width: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    norm: str = "pre"
    positions: str = "interleaved"
    relative_distance: int = 0
    max_length: int = 512
    activation: str = "relu"
    attention_bias: bool = False
    share_embeddings: bool = True
    scan_layers: bool = True
    remat: bool = False
    attention: str = "auto"
    dtype: str = "float32"
    param_dtype: str = "float32"
    genome: str = ""
    genome_unit: int = 0

    def block_fields(self) -> dict:
        """The fields that blocks take, by the same names."""
        names = "num_heads mlp_width dropout attention_dropout mlp_dropout norm activation attention_bias"
        names += " relative_distance attention dtype param_dtype"
        return {name: getattr(self, name) for name in names.split()}


class Model(nn.Module):
    """The encoder–decoder. `__call__` trains; `start` and `step` decode one position at a time with a cache.

    encoder_block, decoder_block: make one block with the methods of `layers.blocks`'; None for those of the config.
    """

    config: Config
    encoder_block: Callable[..., nn.Module] | None = None
    decoder_block: Callable[..., nn.Module] | None = None
    genome_cells = {"encoder_block": ("encoder", "encoder_layers"), "decoder_block": ("decoder", "decoder_layers")}

    def setup(self):
        c = self.config
        if c.genome and self.encoder_block is None:
            raise ValueError("a genome's blocks are made in models.build")
        self.target_embedding = embedding_table(self, "embedding", c.vocab_size, c.width, c.param_dtype)
        self.source_embedding = self.target_embedding
        if not c.share_embeddings:
            self.source_embedding = embedding_table(self, "source_embedding", c.vocab_size, c.width, c.param_dtype)
        if c.positions == "learned":
            self.source_learned = LearnedPositions(c.max_length, c.width, param_dtype=c.param_dtype)
            self.target_learned = LearnedPositions(c.max_length, c.width, param_dtype=c.param_dtype)
        encoder_block = self.encoder_block or functools.partial(EncoderBlock, **c.block_fields())
        decoder_block = self.decoder_block or functools.partial(DecoderBlock, **c.block_fields())
        self.encoder = Stack(encoder_block, c.encoder_layers, c.scan_layers, c.remat)
        self.decoder = Stack(decoder_block, c.decoder_layers, c.scan_layers, c.remat)
        if c.norm == "pre":
            self.encoder_norm = LayerNorm(dtype=c.dtype, param_dtype=c.param_dtype)
            self.decoder_norm = LayerNorm(dtype=c.dtype, param_dtype=c.param_dtype)
        self.drop = Dropout(c.dropout)

    @nn.nowrap
    def protocol(self) -> Protocol:
        """What this model tells about itself; its source and its target are each as long as learned positions allow."""
        return translator(self.config.max_length if self.config.positions == "learned" else 0)

    def __call__(self, batch: dict, *, deterministic: bool = True) -> LanguageModelOutput:
        """Hidden states of every target position, given the source and the target so far."""
        source = batch["source"]  # [B, S]
        source_positions = batch["source_positions"]  # [B, S]
        source_segments = batch["source_segments"]  # [B, S]
        target_inputs = batch["target_inputs"]  # [B, T]
        target_positions = batch["target_positions"]  # [B, T]
        target_segments = batch["target_segments"]  # [B, T]

        encoded = self.encode(source, source_positions, source_segments, deterministic=deterministic)  # [B, S, D]
        x = self.embed_target(target_inputs, target_positions)  # [B, T, D]
        x = self.drop(x, deterministic=deterministic)
        self_mask = Mask(target_segments, target_segments, causal=True)
        cross_mask = Mask(target_segments, source_segments, causal=False)
        x = self.decoder(x, encoded, self_mask, cross_mask, deterministic)  # [B, T, D]
        return LanguageModelOutput(self.finish_decoder(x), self.output_table())

    def encode(self, source, source_positions, source_segments, *, deterministic: bool = True) -> jax.Array:
        """source, its positions and segments [B, S] → [B, S, D]."""
        x = embed(self.source_embedding, source, self.config.dtype)  # [B, S, D]
        x = self.add_positions(x, source_positions, "source_learned")
        x = self.drop(x, deterministic=deterministic)
        x = self.encoder(x, Mask(source_segments, source_segments, causal=False), deterministic)
        return self.encoder_norm(x) if self.config.norm == "pre" else x

    def start(self, batch: dict, length: int) -> jax.Array:
        """Encodes the source and fills the cache for up to `length` target positions.

        Args:
          batch: source, source_positions and source_segments [B, S]; first [B] int32, what targets begin with.

        Returns:
          first, the token that the first step reads.
        """
        source = batch["source"]  # [B, S]
        source_positions = batch["source_positions"]  # [B, S]
        source_segments = batch["source_segments"]  # [B, S]

        self.decoder(self.encode(source, source_positions, source_segments), length, method="start")
        self.put_variable("cache", "source_segments", source_segments)
        self.put_variable("cache", "index", jnp.zeros((), jnp.int32))
        return batch["first"]

    def step(self, tokens: jax.Array) -> jax.Array:
        """Reads the next target token of each row, [B], and returns the logits of the one after it, [B, V] float32."""
        index = self.get_variable("cache", "index")
        source_segments = self.get_variable("cache", "source_segments")  # [B, S]
        positions = jnp.broadcast_to(index, (tokens.shape[0], 1))
        x = self.embed_target(tokens[:, None], positions)  # [B, 1, D]
        x = self.decoder(x, index, source_segments, method="step")  # [B, 1, D]
        self.put_variable("cache", "index", index + 1)
        hidden = self.finish_decoder(x)[:, 0]  # [B, D]
        return jnp.einsum("bd,vd->bv", hidden, self.output_table(), preferred_element_type=jnp.float32)

    def embed_target(self, tokens, positions):
        return self.add_positions(embed(self.target_embedding, tokens, self.config.dtype), positions, "target_learned")

    def add_positions(self, x, positions, learned: str):
        """Adds the encoding of positions [B, S] to x [B, S, D]."""
        if self.config.positions == "none":
            return x
        if self.config.positions == "learned":
            return x + getattr(self, learned)(positions).astype(x.dtype)
        length = positions.shape[1] if positions.shape[1] > 1 else None  # positions of a row are smaller than its length
        return x + sinusoidal_at(positions, self.config.width, self.config.positions, length=length).astype(x.dtype)

    def finish_decoder(self, x):
        return self.decoder_norm(x) if self.config.norm == "pre" else x

    def output_table(self):
        return self.target_embedding.astype(self.config.dtype)  # [V, D]
