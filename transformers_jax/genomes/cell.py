"""From a genome to a model: the cell as a Flax module with a block's signature, and how many parameters it has.

Axes: B batch rows, T target length, S source length, D model width, C a hidden state's width.

The meaning is that of `genomes.genome`; the source is So, Liang, Le 2019, section 3.1, and what the paper leaves open is as in
tensor2tensor (`models/neural_architecture_search/nas_model.py`):

- a branch is norm, layer, activation, dropout; identity has no dropout;
- attention is as wide inside as its input, and attention to the encoder reads the last encoder cell after the final norm;
- `dropout` is that of branches whose block is as wide as the model or narrower, as the ends of the hand-written models'
  sublayers are; wider blocks are inside of such sublayers, and have `hidden_dropout`.

A cell whose output is not D wide ends in a linear map to D. One cell is one layer of `layers.blocks.Stack`: scanned, it is
compiled once however many there are.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from transformers_jax import models
from transformers_jax.errors import UserError
from transformers_jax.genomes import branch as branches
from transformers_jax.genomes.branch import BranchLayer, BranchOptions, combine
from transformers_jax.genomes.genome import Branch, Genome, GenomeBlock, InvalidGenome, load_sized, unused_states
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.masks import Mask
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.projections import Linear
from transformers_jax.models import encoder, transformer

WIDEST = 64
"""Hidden states may be so many times as wide as the model; concatenations of concatenations are wider soon."""


@dataclasses.dataclass(frozen=True)
class Widths:
    """Widths within one cell.

    states: of each hidden state, that of the cell's input first.
    branches: (input, output) of each block's left and right branch; None for a dead one.
    output: of the sum of unused states.
    """

    states: tuple[int, ...]
    branches: tuple[tuple[tuple[int, int] | None, ...], ...]
    output: int


def widths(blocks: tuple[GenomeBlock, ...], width: int, unit: int) -> Widths:
    """The widths of a cell whose input is `width` wide.

    Args:
      unit: what one relative output dimension stands for.

    Raises:
      InvalidGenome: a hidden state is more than WIDEST times as wide as the input.
    """
    states, found = [width], []
    for number, block in enumerate(blocks, 1):
        both = tuple(
            (states[b.input], branches.output_width(b, states[b.input], unit)) if b.live else None
            for b in (block.left, block.right)
        )
        outputs = [pair[1] for pair in both if pair]
        states.append(sum(outputs) if block.combiner == "concat" else max(outputs))
        if states[-1] > WIDEST * width:
            raise InvalidGenome(f"block {number} is {states[-1]} wide, more than {WIDEST} times the model's {width}")
        found.append(both)
    return Widths(tuple(states), tuple(found), max(states[i] for i in unused_states(blocks)))


class Cell(nn.Module):
    """What both cells share: parameters, and the way through the blocks.

    Parameters: norm_{i} of hidden state i, left_{i} and right_{i} the layers of block i + 1, and `project` the map to D.

    blocks: of one cell.
    width: D.
    unit: width of one relative output dimension.
    """

    blocks: tuple[GenomeBlock, ...]
    width: int
    unit: int
    options: BranchOptions

    causal = False

    def setup(self):
        found, options = widths(self.blocks, self.width, self.unit), self.options
        types = dict(dtype=options.dtype, param_dtype=options.param_dtype)
        normed = {b.input for block in self.blocks for b in block.branches if b.norm == "layer_norm"}
        self.norm = [LayerNorm(**types) if i in normed else None for i in range(len(found.states))]

        def layer(branch: Branch, pair: tuple[int, int] | None):
            return BranchLayer(branch, *pair, causal=self.causal, options=options) if pair else None

        self.left = [layer(b.left, pairs[0]) for b, pairs in zip(self.blocks, found.branches, strict=True)]
        self.right = [layer(b.right, pairs[1]) for b, pairs in zip(self.blocks, found.branches, strict=True)]
        self.drop, self.hidden_drop = Dropout(options.dropout), Dropout(options.hidden_dropout)
        self.project = Linear(self.width, ("mlp", "embed"), **types) if found.output != self.width else None

    def layers(self) -> list[BranchLayer]:
        """All live branches."""
        return [layer for pair in zip(self.left, self.right, strict=True) for layer in pair if layer is not None]

    def through(self, x: jax.Array, apply: Callable, deterministic: bool = True) -> jax.Array:
        """x [B, T, D] through all blocks → [B, T, D].

        Args:
          apply: (BranchLayer, its input [B, T, C]) → its output.
        """
        found, states, normed = widths(self.blocks, self.width, self.unit), [x], {}
        for block, *layers in zip(self.blocks, self.left, self.right, strict=True):
            outputs = []
            for layer in layers:
                if layer is None:
                    continue
                i, h = layer.branch.input, states[layer.branch.input]
                if layer.branch.norm == "layer_norm":
                    h = normed[i] = normed[i] if i in normed else self.norm[i](h)
                h = apply(layer, h)
                if layer.branch.layer != "id":
                    drop = self.hidden_drop if found.states[len(states)] > self.width else self.drop
                    h = drop(h, deterministic=deterministic)
                outputs.append(h)
            states.append(combine(block.combiner, outputs))
        x = combine("add", [states[i] for i in unused_states(self.blocks)])
        return x if self.project is None else self.project(x)


class EncoderCell(Cell):
    """A cell with the signature of `layers.blocks.EncoderBlock`."""

    def __call__(self, x: jax.Array, mask: Mask, deterministic: bool) -> jax.Array:
        """x [B, S, D] → [B, S, D]."""
        return self.through(x, lambda layer, h: layer(h, mask, deterministic=deterministic), deterministic)


class DecoderCell(Cell):
    """A cell with the signature of `layers.blocks.DecoderBlock`; `start` and `step` decode with a cache."""

    causal = True

    def __call__(
        self, x: jax.Array, encoded: jax.Array, self_mask: Mask, cross_mask: Mask, deterministic: bool
    ) -> jax.Array:
        """x [B, T, D], encoded [B, S, D] → [B, T, D]."""

        def apply(layer, h):
            return layer(h, self_mask, encoded, cross_mask, deterministic=deterministic)

        return self.through(x, apply, deterministic)

    def start(self, encoded: jax.Array, length: int) -> jax.Array:
        """Makes the cache for `length` target positions from encoded [B, S, D], and returns encoded."""
        for layer in self.layers():
            layer.start(encoded, length)
        return encoded

    def step(self, x: jax.Array, index: jax.Array, source_segments: jax.Array) -> jax.Array:
        """One target position x [B, 1, D] at position `index` → [B, 1, D]."""
        return self.through(x, lambda layer, h: layer.step(h, index, source_segments))


def blocks(genome: Genome, width: int, unit: int, options: BranchOptions) -> tuple[Callable, Callable]:
    """What makes one encoder cell and one decoder cell: the fields `encoder_block` and `decoder_block` of a model."""
    shared = dict(width=width, unit=unit or width // 2, options=options)
    return (
        functools.partial(EncoderCell, blocks=genome.encoder, **shared),
        functools.partial(DecoderCell, blocks=genome.decoder, **shared),
    )


def build(config, vocab_size: int) -> nn.Module:
    """The model that `config` describes, with the cells of `config.genome` as its layers.

    Args:
      config: a mapping with the fields of an architecture's `Config`, of which `genome` is not empty.
      vocab_size: number of rows of the embedding.

    Raises:
      UserError: no such genome, an invalid one, or an architecture that takes none.
    """
    model = models.build(config, vocab_size)
    if isinstance(model, encoder.Encoder):
        return _encoder(model, config)
    if not isinstance(model, transformer.Model):
        raise UserError(f"config.model.genome: {config['name']} takes no genome; give config.model.name=transformer")
    genome, unit = read(config)
    cells = dict(encoder_layers=genome.encoder_cells, decoder_layers=genome.decoder_cells)
    c = dataclasses.replace(model.config, genome=genome.text(), genome_unit=unit, norm="pre", **cells)
    for cell in (genome.encoder, genome.decoder):
        widths(cell, c.width, unit or c.width // 2)
    encoder_block, decoder_block = blocks(genome, c.width, unit, options_of(c))
    return model.clone(config=c, encoder_block=encoder_block, decoder_block=decoder_block)


def _encoder(model: encoder.Encoder, config) -> encoder.Encoder:
    """An encoder with the genome's encoder cells as its layers."""
    genome, unit = read(config)
    c = dataclasses.replace(model.config, genome=genome.text(), genome_unit=unit, layers=genome.encoder_cells)
    widths(genome.encoder, c.width, unit or c.width // 2)
    return model.clone(config=c, block=blocks(genome, c.width, unit, options_of(c))[0])


def read(config) -> tuple[Genome, int]:
    """The genome of `config.genome`, a JSON file, a text or a name, and its width unit, 0 where nothing says it.

    The unit is `config.genome_unit`, or what a JSON file has as "unit" beside the genome; where the file's "width" is another
    than the config's, in proportion, so that a block stays as wide beside the model as it was found.

    Raises:
      UserError: there is no such genome, or it is invalid.
    """
    try:
        genome, unit, width = load_sized(config["genome"])
    except UserError as error:
        raise type(error)(f"config.model.genome: {error}") from error
    if unit and width:
        unit = max(1, round(unit * config.get("width", width) / width))
    return genome, config.get("genome_unit", 0) or unit


def options_of(config: transformer.Config | encoder.Config) -> BranchOptions:
    """The fields of a model's config that its branches share."""
    shared = dataclasses.fields(BranchOptions)
    return BranchOptions(**{field.name: getattr(config, field.name, field.default) for field in shared})


def count_parameters(genome: Genome, width: int, unit: int, vocab_size: int, **fields) -> int:
    """How many parameters the model of a genome has, by arithmetic: nothing is traced.

    Args:
      width: D.
      unit: width of one relative output dimension; 0 is D // 2.
      vocab_size: rows of the embedding.
      fields: others of `transformer.Config` that differ from its defaults, such as num_heads or share_embeddings.

    Raises:
      InvalidGenome: a hidden state grows too wide.
    """
    c = transformer.Config(vocab_size, width, **fields)
    tables = 1 if c.share_embeddings else 2
    positions = 2 * c.max_length if c.positions == "learned" else 0
    cells = ((genome.encoder, genome.encoder_cells), (genome.decoder, genome.decoder_cells))
    layers = sum(number * _count_cell(cell, width, unit or width // 2, options_of(c)) for cell, number in cells)
    return layers + 2 * 2 * width + (tables * vocab_size + positions) * width


def _count_cell(blocks: tuple[GenomeBlock, ...], width: int, unit: int, options: BranchOptions) -> int:
    found = widths(blocks, width, unit)
    normed = {b.input for block in blocks for b in block.branches if b.norm == "layer_norm"}
    count = sum(2 * found.states[i] for i in normed)
    for block, pairs in zip(blocks, found.branches, strict=True):
        for branch, pair in zip((block.left, block.right), pairs, strict=True):
            count += branches.parameters(branch.layer, *pair, width, options) if pair else 0
    return count + ((found.output + 1) * width if found.output != width else 0)
