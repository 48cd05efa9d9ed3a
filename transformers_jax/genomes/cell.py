"""From a genome to a model: the cell as a Flax module with a block's signature, and how many parameters it has.

Axes: B batch rows, T target length, S source length, D model width, C a hidden state's width.

The meaning is that of `genomes.genome`; the source is So, Liang, Le 2019, section 3.1, and what the paper leaves open is as in
tensor2tensor (`models/neural_architecture_search/nas_model.py`):

- a branch is norm, layer, activation, dropout; identity has no dropout;
- attention is as wide inside as its input, and attention to the encoder reads the last encoder cell after the final norm;
- `dropout` is that of branches whose block is as wide as the model or narrower, as the ends of the hand-written models'
  sublayers are; wider blocks are inside of such sublayers, and have `mlp_dropout`.

A cell whose output is not D wide ends in a linear map to D. One cell is one layer of `layers.blocks.Stack`: scanned, it is
compiled once however many there are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from transformers_jax.genomes import branch as branches
from transformers_jax.genomes.branch import BranchLayer, BranchOptions, combine
from transformers_jax.genomes.genome import DEAD, Branch, GenomeBlock, InvalidGenome, unused_states
from transformers_jax.layers.adapter import adapted
from transformers_jax.layers.dropout import Dropout
from transformers_jax.layers.masks import Mask, Place
from transformers_jax.layers.norms import LayerNorm
from transformers_jax.layers.projections import Linear

WIDEST = 64
"""The most that a hidden state may be wider than the model. Each concatenation may double the width: some genomes exceed it."""


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
    """What all cells share: parameters, and the way through the blocks.

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
        self.drop, self.mlp_drop = Dropout(options.dropout), Dropout(options.mlp_dropout)
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
                    drop = self.mlp_drop if found.states[len(states)] > self.width else self.drop
                    h = drop(h, deterministic=deterministic)
                outputs.append(h)
            states.append(combine(block.combiner, outputs))
        x = combine("add", [states[i] for i in unused_states(self.blocks)])
        return adapted(self, "cell_adapter", x if self.project is None else self.project(x))


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


class CausalCell(Cell):
    """A cell with the signature of `layers.blocks.CausalBlock`: of either of a genome's cells that has no attention to an
    encoder. Its convolutions read what stands before."""

    causal = True

    def __call__(self, x: jax.Array, mask: Mask, deterministic: bool) -> jax.Array:
        """x [B, T, D] → [B, T, D]; the mask is causal."""
        return self.through(x, lambda layer, h: layer(h, mask, deterministic=deterministic), deterministic)

    def start(self, x: jax.Array, mask: Mask, length: int) -> jax.Array:
        """Prompts x [B, P, D] → [B, P, D]; also makes the cache of what `length` steps read."""
        return self.through(x, lambda layer, h: layer.start_prompt(h, mask, length))

    def step(self, x: jax.Array, place: Place) -> jax.Array:
        """One position x [B, 1, D] that stands at `place` → [B, 1, D]."""
        return self.through(x, lambda layer, h: layer.step_prompt(h, place))


def without_encoder(blocks: tuple[GenomeBlock, ...]) -> tuple[GenomeBlock, ...]:
    """The blocks of a cell with its branches that attend to an encoder dead, as tensor2tensor's Evolved Transformer decodes
    where there is none.

    Raises:
      InvalidGenome: a block has no other branch.
    """

    def kept(branch: Branch) -> Branch:
        return DEAD if branches.kind(branch.layer)[0] == "enc" else branch

    found = tuple(dataclasses.replace(b, left=kept(b.left), right=kept(b.right)) for b in blocks)
    for number, block in enumerate(found, 1):
        if not block.branches:
            raise InvalidGenome(f"block {number} has no branch but attention to an encoder, and the model has no encoder")
    return found


KINDS = {"encoder": EncoderCell, "decoder": DecoderCell, "causal": CausalCell}
"""Cells by what they become in a model."""


def block(kind: str, blocks: tuple[GenomeBlock, ...], width: int, unit: int, options: BranchOptions) -> Callable:
    """What makes one cell of `blocks`: the field of a model that takes blocks of this kind, one of KINDS."""
    return functools.partial(KINDS[kind], blocks=blocks, width=width, unit=unit or width // 2, options=options)


def options_of(config: Any) -> BranchOptions:
    """The fields of a model's `Config` that its branches share."""
    shared = dataclasses.fields(BranchOptions)
    return BranchOptions(**{field.name: getattr(config, field.name, field.default) for field in shared})


def count_cell(blocks: tuple[GenomeBlock, ...], width: int, unit: int, options: BranchOptions) -> int:
    """How many parameters one cell has, by arithmetic: nothing is traced."""
    found = widths(blocks, width, unit)
    normed = {b.input for block in blocks for b in block.branches if b.norm == "layer_norm"}
    count = sum(2 * found.states[i] for i in normed)
    for block, pairs in zip(blocks, found.branches, strict=True):
        for branch, pair in zip((block.left, block.right), pairs, strict=True):
            count += branches.parameters(branch.layer, *pair, width, options) if pair else 0
    return count + ((found.output + 1) * width if found.output != width else 0)
