"""A genome: the Evolved Transformer's encoder and decoder cell as data (So, Liang & Le 2019, section 3.1).

What a cell computes. Hidden state 0 is its input and hidden state i the output of block i (counted from 1). A branch takes
its input state, layer-normalised or not, applies its layer and then its activation; `id` keeps its input's width, every other
layer gives `width` units. One layer norm belongs to one hidden state of one cell: all branches that read that state
normalised share it. *add* pads the narrower side with 0, *multiply* pads it with 1. A dead branch is absent: the block is its
other branch, whatever the combiner. Hidden states that no live branch reads, 0 included, are summed into the cell's output.

Text form, one cell a line: `encoder ×3: 0*GLU 2 | 0:id ; 1*conv1 8 relu | 1*conv3 1 relu ; …`. A branch is
`input:layer width activation`, with `*` in place of `:` for a layer norm first; blocks are apart by ` ; ` and a block is
`left | right`, then ` | concat` or ` | multiply` where it does not add. Unsaid: activation none, and for `id` and `dead`
the width 2; a bare `dead` reads state 0 without a norm. (`x3` is read as `×3`.)
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.genomes import vocabulary
from transformers_jax.genomes.vocabulary import choices

UNSAID_WIDTH = 2  # the width of `id` and `dead` where a text leaves it out: neither has an effect


class InvalidGenome(UserError):
    """The genome is outside the search space; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Branch:
    """One side of a block: its values are those of `vocabulary`, `input` a hidden state before the block's own."""

    input: int
    norm: str
    layer: str
    width: int
    activation: str

    @property
    def live(self) -> bool:
        return self.layer != "dead"

    @property
    def plain_identity(self) -> bool:
        """Whether the branch is its input, untouched."""
        return self.layer == "id" and self.norm == "none" and self.activation == "none"


DEAD = Branch(0, "none", "dead", UNSAID_WIDTH, "none")


@dataclasses.dataclass(frozen=True)
class GenomeBlock:
    """Two branches and how they are combined."""

    left: Branch
    right: Branch
    combiner: str = "add"

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The live branches, left before right."""
        return tuple(branch for branch in (self.left, self.right) if branch.live)


@dataclasses.dataclass(frozen=True)
class Genome:
    """6 encoder blocks, 8 decoder blocks, and how often each cell is stacked."""

    encoder: tuple[GenomeBlock, ...]
    decoder: tuple[GenomeBlock, ...]
    encoder_cells: int
    decoder_cells: int

    def text(self) -> str:
        """The compact notation, a line a cell; `parse` reads it back to an equal genome."""
        encoder, decoder = cell_text(self.encoder), cell_text(self.decoder)
        return f"encoder ×{self.encoder_cells}: {encoder}\ndecoder ×{self.decoder_cells}: {decoder}"

    def to_json(self) -> str:
        """One line of JSON with every field spelt out; `from_json` reads it back to an equal genome."""
        return json.dumps(dataclasses.asdict(self))


# ---- the fields, flat ----------------------------------------------------------------------------------------------------


BRANCH_FIELDS = tuple(field.name for field in dataclasses.fields(Branch))


def fields(genome: Genome) -> dict[str, int | str]:
    """The 156 fields by name: `encoder.0.left.layer` … `decoder.7.combiner`, `encoder_cells`, `decoder_cells`."""
    flat = {}
    for cell in ("encoder", "decoder"):
        for i, block in enumerate(getattr(genome, cell)):
            for side in ("left", "right"):
                branch = getattr(block, side)
                flat |= {f"{cell}.{i}.{side}.{name}": getattr(branch, name) for name in BRANCH_FIELDS}
            flat[f"{cell}.{i}.combiner"] = block.combiner
    return flat | {"encoder_cells": genome.encoder_cells, "decoder_cells": genome.decoder_cells}


def replace(genome: Genome, changes: Mapping[str, int | str]) -> Genome:
    """The genome with some of its `fields` changed. Raises KeyError for a name that is none of them."""
    flat = fields(genome)
    for name, value in changes.items():
        if name not in flat:
            raise KeyError(f"a genome has no field {name!r}")
        flat[name] = value

    def branch(prefix: str) -> Branch:
        return Branch(*(flat[f"{prefix}.{name}"] for name in BRANCH_FIELDS))

    def block(prefix: str) -> GenomeBlock:
        return GenomeBlock(branch(f"{prefix}.left"), branch(f"{prefix}.right"), flat[f"{prefix}.combiner"])

    encoder = tuple(block(f"encoder.{i}") for i in range(len(genome.encoder)))
    decoder = tuple(block(f"decoder.{i}") for i in range(len(genome.decoder)))
    return Genome(encoder, decoder, flat["encoder_cells"], flat["decoder_cells"])


# ---- what makes a genome valid -------------------------------------------------------------------------------------------


def unused_states(cell: tuple[GenomeBlock, ...]) -> tuple[int, ...]:
    """The hidden states that no live branch reads, in order: their sum is the cell's output. The last block's is always one."""
    read = {branch.input for block in cell for branch in block.branches}
    return tuple(state for state in range(len(cell) + 1) if state not in read)


def identity_path(cell: tuple[GenomeBlock, ...]) -> tuple[int, ...] | None:
    """A path of hidden states from the cell's input to its output along untouched, added identities, or None.

    A block carries state j on when it has a branch that is j itself (`id`, no norm, no activation) and adds, or has no other
    live branch. The path ends in a state that is summed into the output; a cell that never reads its input has the path (0,).
    """
    unused, paths = unused_states(cell), {0: (0,)}
    for number, block in enumerate(cell, 1):
        for branch in block.branches:
            carries = branch.plain_identity and (block.combiner == "add" or len(block.branches) == 1)
            if carries and branch.input in paths:
                paths[number] = (*paths[branch.input], number)
    return next((paths[state] for state in unused if state in paths), None)


def check(genome: Genome) -> None:
    """Raises InvalidGenome, with the reason, unless the genome is in the search space (the paper, section 3.1):

    its fields have values of the vocabulary; no block has two dead branches; the decoder attends to the encoder; and in
    either cell an unbroken path of identities and additions runs from input to output.
    """
    for cell, blocks in (("encoder", vocabulary.ENCODER_BLOCKS), ("decoder", vocabulary.DECODER_BLOCKS)):
        if len(getattr(genome, cell)) != blocks:
            raise InvalidGenome(f"{cell}: {len(getattr(genome, cell))} blocks instead of {blocks}")
    for name, value in fields(genome).items():
        if value not in choices(name) or type(value) is not type(choices(name)[0]):  # True and 1.0 are no 1
            raise InvalidGenome(f"{name}: {value!r} is none of {', '.join(map(str, choices(name)))}")
    for cell in ("encoder", "decoder"):
        _check_cell(cell, getattr(genome, cell))
    if not any(branch.layer == "enc" for block in genome.decoder for branch in block.branches):
        raise InvalidGenome("decoder: no branch attends to the encoder (layer enc)")


def _check_cell(name: str, cell: tuple[GenomeBlock, ...]) -> None:
    for number, block in enumerate(cell, 1):
        if not block.branches:
            raise InvalidGenome(f"{name}: both branches of block {number} are dead")
    if identity_path(cell) is None:
        raise InvalidGenome(f"{name}: no unbroken path of identities and additions from the cell's input to its output")


# ---- text and JSON -------------------------------------------------------------------------------------------------------


def _branch_text(branch: Branch) -> str:
    if branch == DEAD:
        return "dead"
    text = f"{branch.input}{'*' if branch.norm == 'layer_norm' else ':'}{branch.layer}"
    if branch.width != UNSAID_WIDTH or branch.layer not in ("id", "dead"):
        text += f" {branch.width}"
    return text if branch.activation == "none" else f"{text} {branch.activation}"


def cell_text(cell: tuple[GenomeBlock, ...]) -> str:
    """One cell in the compact notation; `parse_cell` reads it back."""
    combiners = ["" if block.combiner == "add" else f" | {block.combiner}" for block in cell]
    blocks = zip(cell, combiners, strict=True)
    return " ; ".join(f"{_branch_text(block.left)} | {_branch_text(block.right)}{combiner}" for block, combiner in blocks)


def _parse_branch(text: str, where: str) -> Branch:
    matched = re.fullmatch(r"(?:(\d+)\s*([:*])\s*)?(\w+)(?:\s+(\d+))?(?:\s+([a-z_]+))?", text.strip())
    if matched is None:
        raise UserError(f"{where}: cannot read the branch {text.strip()!r}; write it as '0*conv1 8 relu', '0:id' or 'dead'")
    state, mark, layer, width, activation = matched.groups()
    if layer not in vocabulary.DECODER_LAYERS:
        raise UserError(f"{where}: no layer {layer!r}; there are {', '.join(vocabulary.DECODER_LAYERS)}")
    if state is None and layer != "dead":
        raise UserError(f"{where}: the branch {text.strip()!r} does not say which state it reads, as in '0:{layer}'")
    if width is None and layer not in ("id", "dead"):
        raise UserError(f"{where}: the branch {text.strip()!r} does not say its relative width, as in '0:{layer} 2'")
    if activation not in (None, *vocabulary.ACTIVATIONS):
        raise UserError(f"{where}: no activation {activation!r}; there are {', '.join(vocabulary.ACTIVATIONS)}")
    norm = "layer_norm" if mark == "*" else "none"
    return Branch(int(state or 0), norm, layer, int(width or UNSAID_WIDTH), activation or "none")


def parse_cell(text: str, where: str = "cell") -> tuple[GenomeBlock, ...]:
    """The blocks of one cell in the compact notation. Raises UserError naming the block and what is wrong in it."""
    blocks = []
    for number, block in enumerate(text.split(";"), 1):
        here = f"{where} block {number}"
        parts = block.split("|")
        combiner = parts[2].strip() if len(parts) == 3 else "add"
        if len(parts) not in (2, 3) or combiner not in vocabulary.COMBINERS:
            raise UserError(f"{here}: {block.strip()!r} is not 'left | right' or 'left | right | concat' (or multiply)")
        blocks.append(GenomeBlock(_parse_branch(parts[0], here), _parse_branch(parts[1], here), combiner))
    return tuple(blocks)


CELL_HEAD = re.compile(r"\b(encoder|decoder)\s*[×x]\s*(\d+)\s*:")


def parse(text: str) -> Genome:
    """The genome of a text in the compact notation, valid or not. Raises UserError naming cell, block and what is wrong."""
    parts = CELL_HEAD.split(text)
    if len(parts) != 7 or {parts[1], parts[4]} != {"encoder", "decoder"} or parts[0].strip():
        raise UserError(f"genome {text[:60]!r}: not 'encoder ×3: … decoder ×3: …', each cell once")
    cells = {parts[i]: (parse_cell(parts[i + 2], parts[i]), int(parts[i + 1])) for i in (1, 4)}
    return Genome(cells["encoder"][0], cells["decoder"][0], cells["encoder"][1], cells["decoder"][1])


def _read_object(value: object, kind: type, where: str) -> dict:
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise UserError(f"{where}: not a JSON object with the keys {', '.join(names)}")
    return value


def from_json(text: str, where: str = "genome") -> Genome:
    """The genome of `to_json`'s form, valid or not. Raises UserError naming the place that is wrong."""
    return _from_json(text, where)[0]


def _from_json(text: str, where: str) -> tuple[Genome, int, int]:
    """The genome, and what may stand beside its fields: see `load_sized`."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error}") from None
    sizes = [found.pop(name, 0) if isinstance(found, dict) else 0 for name in ("unit", "width")]
    for name, size in zip(("unit", "width"), sizes, strict=True):
        if type(size) is not int or size < 0:
            raise UserError(f"{where}.{name}: {size!r} is no whole number")
    found = _read_object(found, Genome, where)
    cells = {}
    for cell in ("encoder", "decoder"):
        if not isinstance(found[cell], list):
            raise UserError(f"{where}.{cell}: not a list of blocks")
        cells[cell] = []
        for i, item in enumerate(found[cell]):
            here = f"{where}.{cell}.{i}"
            block = _read_object(item, GenomeBlock, here)
            sides = [Branch(**_read_object(block[side], Branch, f"{here}.{side}")) for side in ("left", "right")]
            cells[cell].append(GenomeBlock(*sides, block["combiner"]))
    return Genome(tuple(cells["encoder"]), tuple(cells["decoder"]), found["encoder_cells"], found["decoder_cells"]), *sizes


def load(source: str | Path) -> Genome:
    """The valid genome that a name (`transformer`, `evolved_transformer`), a text or a file of either form means.

    Raises UserError that names what is wrong and where, InvalidGenome (a UserError too) for a genome outside the space.
    """
    return load_sized(source)[0]


def load_sized(source: str | Path) -> tuple[Genome, int, int]:
    """What `load` gives, and what JSON has beside it: "unit", the width unit in a model of "width"; 0 where it has none."""
    text, where = str(source).strip(), "genome"
    if text in NAMED:
        return NAMED[text], 0, 0
    if not (CELL_HEAD.match(text) or text.startswith("{")):
        path, where = Path(text).expanduser(), str(source)
        if not path.is_file():
            known = " or ".join(NAMED)
            raise UserError(f"genome {text!r}: no such file; give a JSON file, a text 'encoder ×3: …' or {known}")
        text = path.read_text(encoding="utf-8").strip()
    found = _from_json(text, where) if text.startswith("{") else (parse(text), 0, 0)
    check(found[0])
    return found


# ---- the seed and the goal -----------------------------------------------------------------------------------------------

# Two layers of Vaswani et al. 2017 make one cell: three cells are the 6 + 6 layers of the base model.
TRANSFORMER = parse("""
    encoder ×3: 0*att8 2 | 0:id ; 1*conv1 8 relu | dead ; 2:conv1 2 | 1:id ;
                3*att8 2 | 3:id ; 4*conv1 8 relu | dead ; 5:conv1 2 | 4:id
    decoder ×3: 0*att8 2 | 0:id ; 1*enc 2 | 1:id ; 2*conv1 8 relu | dead ; 3:conv1 2 | 2:id ;
                4*att8 2 | 4:id ; 5*enc 2 | 5:id ; 6*conv1 8 relu | dead ; 7:conv1 2 | 6:id
""")
# So, Liang & Le 2019, figure 3.
EVOLVED_TRANSFORMER = parse("""
    encoder ×3: 0*GLU 2 | 0:id ; 1*conv1 8 relu | 1*conv3 1 relu ; 2*sep9 1 | 1:id ;
                3*att8 2 | 3:id ; 4*conv1 8 relu | dead ; 5:conv1 2 | 4:id
    decoder ×4: 0*att16 2 | 0*enc 2 ; 0:id | 1:id ; 2*sep11 4 relu | 2*sep7 1 ; 3*sep7 2 | 2:id ;
                4*att8 2 | 4:id ; 5*enc 2 | 5:id ; 6*conv1 8 swish | dead ; 7*conv1 2 | 6:id
""")
NAMED = {"transformer": TRANSFORMER, "evolved_transformer": EVOLVED_TRANSFORMER}


# ---- random genomes ------------------------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, values: tuple):
    return values[int(rng.integers(len(values)))]


def _random_block(rng: np.random.Generator, number: int, layers: tuple[str, ...]) -> GenomeBlock:
    """Uniform over the blocks with at least one live branch."""
    values = tuple(range(number)), vocabulary.NORMS, layers, vocabulary.WIDTHS, vocabulary.ACTIVATIONS
    while True:
        left, right = (Branch(*(_pick(rng, each) for each in values)) for _ in range(2))
        if left.live or right.live:
            return GenomeBlock(left, right, _pick(rng, vocabulary.COMBINERS))


def _random_cell(rng: np.random.Generator, blocks: int, layers: tuple[str, ...]) -> tuple[GenomeBlock, ...]:
    """Uniform blocks, with identities laid on top, at random, until they make a path from input to output.

    Drawing until a path is there by itself would take some ten thousand cells. The path grows from its last state to a random
    later block; the last block's state is always in the output, so at most `blocks` steps end it.
    """
    cell = [_random_block(rng, number, layers) for number in range(1, blocks + 1)]
    end = 0
    while identity_path(tuple(cell)) is None:
        number = int(rng.integers(end + 1, blocks + 1))
        identity = dataclasses.replace(cell[number - 1].left, input=end, norm="none", layer="id", activation="none")
        pair = (identity, cell[number - 1].right)
        cell[number - 1] = GenomeBlock(*(pair if rng.integers(2) else pair[::-1]), "add")
        end = number
    return tuple(cell)


def random_genome(rng: np.random.Generator) -> Genome:
    """A random valid genome: it passes `check`. The same generator state gives the same genome."""
    encoder = _random_cell(rng, vocabulary.ENCODER_BLOCKS, vocabulary.LAYERS)
    while True:
        decoder = _random_cell(rng, vocabulary.DECODER_BLOCKS, vocabulary.DECODER_LAYERS)
        if any(branch.layer == "enc" for block in decoder for branch in block.branches):
            return Genome(encoder, decoder, _pick(rng, vocabulary.CELLS), _pick(rng, vocabulary.CELLS))
