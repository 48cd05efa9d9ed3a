"""A genome's cells as the blocks of a model: for any architecture whose `Model` says in `genome_cells` which fields take them.

Axes: D model width.
"""

import dataclasses

import flax.linen as nn

from transformers_jax.errors import UserError
from transformers_jax.genomes import cell
from transformers_jax.genomes.genome import Genome, GenomeBlock, load_sized
from transformers_jax.models import gpt, transformer


def with_cells(model: nn.Module, config) -> nn.Module:
    """The model with the cells of `config.genome` as its layers.

    Args:
      model: of an architecture; its attribute `genome_cells` names the fields that make a block, and for each the cell of
        the genome ("encoder", "decoder", or "causal" for the one that `config.genome_cell` names, made causal and without
        attention to an encoder) and the field of `Config` that is the number of layers.
      config: a mapping with the fields of the architecture's `Config`, of which `genome` is not empty.

    Raises:
      UserError: no such genome, an invalid one, or a cell that cannot do without an encoder in a model that has none.
    """
    genome, unit = read(config)
    cells = {field: (*_cell(genome, kind, model.config), layers) for field, (kind, layers) in model.genome_cells.items()}
    numbers = {layers: number for _, number, layers in cells.values()}
    c = dataclasses.replace(model.config, genome=genome.text(), genome_unit=unit, **numbers)
    if hasattr(c, "norm"):  # the norms of cells stand in front of their layers
        c = dataclasses.replace(c, norm="pre")
    unit = unit or c.width // 2
    made = {}
    for field, (blocks, *_) in cells.items():
        cell.widths(blocks, c.width, unit)
        made[field] = cell.block(model.genome_cells[field][0], blocks, c.width, unit, cell.options_of(c))
    return model.clone(config=c, **made)


def _cell(genome: Genome, kind: str, config) -> tuple[tuple[GenomeBlock, ...], int]:
    """(blocks of one cell, how many cells) for a kind of cell that `genome_cells` names.

    Raises:
      UserError: no such cell, or one that cannot do without an encoder.
    """
    which = config.genome_cell if kind == "causal" else kind
    if which not in ("encoder", "decoder"):
        raise UserError(f"config.model.genome_cell is {which!r}; it is encoder or decoder")
    blocks, number = getattr(genome, which), getattr(genome, f"{which}_cells")
    if kind != "causal":
        return blocks, number
    try:
        return cell.without_encoder(blocks), number
    except UserError as error:
        raise type(error)(f"config.model.genome: {error}; give config.model.genome_cell=encoder") from error


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
    layers = sum(number * cell.count_cell(blocks, width, unit or width // 2, cell.options_of(c)) for blocks, number in cells)
    return layers + 2 * 2 * width + (tables * vocab_size + positions) * width


def count_continuing(genome: Genome, width: int, unit: int, vocab_size: int, **fields) -> int:
    """The same of a `gpt` with the genome's cells; fields: of `gpt.Config`.

    Raises:
      InvalidGenome: also where the cell cannot do without an encoder.
    """
    c = gpt.Config(vocab_size, width, **fields)
    blocks, number = _cell(genome, "causal", c)
    tables = 1 if c.tie_embeddings else 2
    cells = number * cell.count_cell(blocks, width, unit or width // 2, cell.options_of(c))
    return cells + 2 * width + (tables * vocab_size + c.max_length) * width
