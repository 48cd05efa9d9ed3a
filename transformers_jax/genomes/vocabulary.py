"""The choices of the search space (So, Liang & Le 2019, "The Evolved Transformer", section 3.1 and appendix A).

A cell is a list of blocks; a block combines a left and a right branch; a branch reads a hidden state, may normalise it, applies
a layer and an activation. Hidden state 0 is the cell's input, hidden state i the output of block i.

Layer names: `conv1` is a convolution of width 1; `sep9` a separable convolution of width 9; `light7r4` a lightweight
convolution of width 7 with reduction 4; `att8` self-attention with 8 heads; `GLU` a gated linear unit; `id` the identity;
`dead` no branch; `enc` attends to the encoder's output and exists in decoder cells only.
"""

import functools
import math
import re

NORMS = ("layer_norm", "none")

CONVOLUTIONS = tuple(f"conv{width}" for width in (1, 3))
SEPARABLE_CONVOLUTIONS = tuple(f"sep{width}" for width in (3, 5, 7, 9, 11))
LIGHTWEIGHT_CONVOLUTIONS = tuple(f"light{width}r{reduction}" for width in (3, 5, 7, 15) for reduction in (1, 4, 16))
SELF_ATTENTIONS = tuple(f"att{heads}" for heads in (4, 8, 16))

LAYERS = CONVOLUTIONS + SEPARABLE_CONVOLUTIONS + LIGHTWEIGHT_CONVOLUTIONS + SELF_ATTENTIONS + ("GLU", "id", "dead")
DECODER_LAYERS = LAYERS + ("enc",)

WIDTHS = tuple(range(1, 11))  # relative output dimension; the absolute width is this times a unit that the band decides
ACTIVATIONS = ("swish", "relu", "leaky_relu", "none")
COMBINERS = ("add", "concat", "multiply")
CELLS = tuple(range(1, 7))

ENCODER_BLOCKS = 6
DECODER_BLOCKS = 8


def space_size() -> int:
    """Number of genomes: (6!·8!)²·2²⁸·25¹²·26¹⁶·10²⁸·4²⁸·3¹⁴·6², about 7.30·10¹¹⁵ (the paper, appendix A)."""

    def cell(blocks: int, layers: int) -> int:
        branch = len(NORMS) * layers * len(WIDTHS) * len(ACTIVATIONS)
        inputs = math.factorial(blocks)  # block i reads one of i states
        return inputs**2 * (branch**2 * len(COMBINERS)) ** blocks * len(CELLS)

    return cell(ENCODER_BLOCKS, len(LAYERS)) * cell(DECODER_BLOCKS, len(DECODER_LAYERS))


@functools.cache
def choices(name: str) -> tuple:
    """The values that the field of a genome may take, by the names of `genome.fields`: `encoder.0.left.layer`.

    The input of block i, counted from 0, is one of the states 0 … i. Raises KeyError for a name that is none of the 156.
    """
    if name in ("encoder_cells", "decoder_cells"):
        return CELLS
    matched = re.fullmatch(r"(encoder|decoder)\.(\d+)\.(?:(?:left|right)\.(input|norm|layer|width|activation)|combiner)", name)
    blocks = ENCODER_BLOCKS if name.startswith("encoder") else DECODER_BLOCKS
    if matched is None or int(matched[2]) >= blocks:
        raise KeyError(f"a genome has no field {name!r}")
    layers = LAYERS if matched[1] == "encoder" else DECODER_LAYERS
    values = {
        "input": tuple(range(int(matched[2]) + 1)),
        "norm": NORMS,
        "layer": layers,
        "width": WIDTHS,
        "activation": ACTIVATIONS,
    }
    return values[matched[3]] if matched[3] else COMBINERS
