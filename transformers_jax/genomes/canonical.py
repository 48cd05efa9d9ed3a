"""One genome for all that compute the same function, so that equal functions are trained once.

Two genomes are equal here when both cells are, up to a renaming of parameters, the same expression of their input. A cell is
read into a graph whose nodes are its input, its normalised or activated states and its blocks; the graph is put in an order
that does not depend on how the genome was written; and a genome is written from the ordered graph. The rules, and why the
function stays:

1. Dead branch. Its fields are never read (`genome.py`), and a block with one is its other branch, whatever the combiner and
   the side: it is written `live | dead`, adding, with the fields of `DEAD`.
2. Width of `id`. The identity keeps its input's width: the field has no effect.
3. Activation without effect. relu and leaky_relu leave alone what is never negative: on an `id` branch that reads such a
   state they are dropped. A state is never negative when each branch of its block ends in relu or hands on such a state:
   sums, products and concatenations of such arrays and the paddings 0 and 1 are not negative, and dropout keeps signs.
   (Behind any other layer, activation and dropout follow each other: what comes out is not what went in.)
4. Commutative combiners. add and multiply pad the narrower side with their neutral element, whichever side it is: the
   branches may be swapped. concat may not.
5. Identity chains, and blocks without parameters. An identity has neither parameters nor dropout, so that equal identities of
   one value are one value. A block of one `id` is another name of the state, or of the normalised or activated state, that it
   reads; a block of two is another name of an earlier one that combines the same. Names get no node: their readers read the
   node of the value. Two things keep count of names. The layer norm belongs to a hidden state: two names of one value, both
   read normalised, have two norms with parameters of their own, and these stay two nodes. And each state that nobody
   reads, names included, is one term of the cell's output: a node remembers how often it is added.
6. Order. A block depends on the blocks that it reads and on nothing else, and the output is a sum: each order that keeps
   inputs before readers computes the same. Of all these the one with the smallest sequence of tokens is taken.

A genome has a fixed number of blocks, so the names that rule 5 makes needless are written as a chain of identities behind the
last term of the output: a name that reads a term, unread itself, is added in its place.
Algebra across blocks, such as regrouping sums, is not attempted: such genomes count as different. Equal genomes draw
different random numbers for initialisation and dropout: their fitness is equal up to that noise.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator

from transformers_jax.genomes.genome import DEAD, UNSAID_WIDTH, Branch, Genome, GenomeBlock, unused_states
from transformers_jax.genomes.vocabulary import ACTIVATIONS, COMBINERS, DECODER_LAYERS

ORDERED = "concat"  # the combiner whose sides may not be swapped


@dataclasses.dataclass(frozen=True)
class Norm:
    """The layer norm of one hidden state; `source` is the node of its value."""

    source: int


@dataclasses.dataclass(frozen=True)
class Activated:
    """What an `id` branch with an activation gives for a node."""

    source: int
    activation: str


@dataclasses.dataclass(frozen=True)
class Combined:
    """A block that is more than a name: one or two reads (node, layer, width, activation) and their combiner.

    The activation of an `id` is none: it reads an `Activated` node.
    """

    reads: tuple[tuple[int, str, int, str], ...]
    combiner: str


Node = Norm | Activated | Combined
Token = tuple  # of numbers and tuples of them: a node with its sources given by place, so that tokens of any two nodes compare


def canonical(genome: Genome) -> Genome:
    """The one genome that stands for all which compute the same function as this; its own canonical form.

    The genome must have at least one live branch in each block; a valid one stays valid.
    """
    return dataclasses.replace(genome, encoder=_canonical_cell(genome.encoder), decoder=_canonical_cell(genome.decoder))


def key(genome: Genome) -> str:
    """32 hexadecimal digits, equal for genomes whose `canonical` forms are equal."""
    return hashlib.sha256(canonical(genome).text().encode()).hexdigest()[:32]


def _canonical_cell(cell: tuple[GenomeBlock, ...]) -> tuple[GenomeBlock, ...]:
    graph = _Graph(cell)
    return tuple(_Writer(_order(graph.nodes, graph.terms), len(cell)).cell)


# ---- reading a cell into a graph (rules 1, 2, 3, 5) ----------------------------------------------------------------------


class _Graph:
    """The nodes of a cell, sources before readers; node 0 (None) is the cell's input. `node_of` names each hidden state's."""

    def __init__(self, cell: tuple[GenomeBlock, ...]):
        self.nodes: list[Node | None] = [None]
        self.node_of = [0]
        self.norm_of: dict[int, int] = {}  # hidden state → node of its layer norm
        self.known: dict[Node, int] = {}  # nodes without parameters: one for each value
        self.never_negative: set[int] = set()
        for block in cell:
            self.node_of.append(self.block(block))
        self.terms = Counter(self.node_of[state] for state in unused_states(cell))  # how often a node is added to the output

    def add(self, node: Node, never_negative: bool = False) -> int:
        self.nodes.append(node)
        if never_negative:
            self.never_negative.add(len(self.nodes) - 1)
        return len(self.nodes) - 1

    def add_once(self, node: Node, never_negative: bool) -> int:
        if node not in self.known:
            self.known[node] = self.add(node, never_negative)
        return self.known[node]

    def read(self, branch: Branch) -> tuple[int, str, int, str]:
        """A branch as Combined has it."""
        source = self.node_of[branch.input]
        if branch.norm == "layer_norm":
            if branch.input not in self.norm_of:
                self.norm_of[branch.input] = self.add(Norm(source))
            source = self.norm_of[branch.input]
        if branch.layer != "id":
            return source, branch.layer, branch.width, branch.activation
        no_effect = branch.activation in ("relu", "leaky_relu") and source in self.never_negative
        if branch.activation != "none" and not no_effect:
            source = self.add_once(Activated(source, branch.activation), branch.activation == "relu")
        return source, "id", UNSAID_WIDTH, "none"

    def block(self, block: GenomeBlock) -> int:
        """The node of a block's value."""
        reads = tuple(self.read(branch) for branch in block.branches)
        identities = [layer == "id" for _, layer, _, _ in reads]
        if identities == [True]:
            return reads[0][0]
        never_negative = all(act == "relu" or (layer == "id" and node in self.never_negative) for node, layer, _, act in reads)
        if all(identities):
            ordered = reads if block.combiner == ORDERED else tuple(sorted(reads))
            return self.add_once(Combined(ordered, block.combiner), never_negative)
        return self.add(Combined(reads, block.combiner if len(reads) == 2 else "add"), never_negative)


# ---- the order (rules 4, 6) ----------------------------------------------------------------------------------------------


def _sources(node: Node) -> tuple[int, ...]:
    return tuple(read[0] for read in node.reads) if isinstance(node, Combined) else (node.source,)


NORM, COMBINED, ACTIVATED = range(3)  # the first number of a token


def _token(node: Node, terms: int, places: dict[int, int]) -> Token:
    """A node as numbers, its sources by place. Branches that may be swapped: identities last, else the wider first."""
    if isinstance(node, Norm):
        return (NORM, places[node.source], terms)
    if isinstance(node, Activated):
        return (ACTIVATED, places[node.source], ACTIVATIONS.index(node.activation), terms)
    reads = [
        (layer == "id", -width, DECODER_LAYERS.index(layer), ACTIVATIONS.index(activation), places[source])
        for source, layer, width, activation in node.reads
    ]
    if node.combiner != ORDERED:
        reads.sort()
    return (COMBINED, tuple(reads), COMBINERS.index(node.combiner), terms)


def _order(nodes: list[Node | None], terms: Counter) -> list[Token]:
    """The smallest sequence of tokens that any order with sources before readers gives, after the input's token.

    The sequence says everything about the graph, so graphs that differ in their numbering only, and no others, have the same.
    It grows by the smallest token that any of the best orders so far allows; orders that tie are all followed. Nodes with
    equal tokens that nothing reads are interchangeable: one of them is followed.
    """
    read = {source for node in nodes[1:] for source in _sources(node)}
    sequence = [(COMBINED, (), 0, terms[0])]
    orders = [{0: 0}]
    for place in range(1, len(nodes)):
        best, following = None, []
        for places in orders:
            unread_taken = False
            for number in range(1, len(nodes)):
                if number in places or not all(source in places for source in _sources(nodes[number])):
                    continue
                token = _token(nodes[number], terms[number], places)
                if best is None or token < best:
                    best, following, unread_taken = token, [], False
                if token == best and not (number not in read and unread_taken):
                    following.append({**places, number: place})
                    unread_taken |= number not in read
        sequence.append(best)
        orders = following
    return sequence


# ---- writing the ordered graph as a cell ---------------------------------------------------------------------------------


class _Writer:
    """Writes a token sequence as a cell of `size` blocks.

    A state must be there for the input and for each block with parameters; for each norm of a node, which is read as the norm
    of a state of that value; for a block without parameters that is read at all; and for an activated node that is read by
    another layer or activation, as an `id` can activate what it reads. Beside these each term of the output is a state
    that is not read. Where that is more than a node's own state, `again` is the block that gives another. Each cell with this
    graph has at least these states, for a state has one norm and is read or not: they fit into `size` blocks.
    """

    def __init__(self, sequence: list[Token], size: int):
        self.cell: list[GenomeBlock] = []
        self.states: list[list[int]] = []  # of each place: the states of that value that are read
        self.plain: list[Branch] = []  # of each place: the `id` branch that hands it on
        self.again: list[GenomeBlock] = []
        norms = Counter(token[1] for token in sequence if token[0] == NORM)
        activated = {token[1] for token in sequence if token[0] == ACTIVATED}
        reads = [read for token in sequence if token[0] == COMBINED for read in token[1]]
        by_layer = {source for identity, *_, source in reads if not identity}
        read = set(norms) | activated | {source for *_, source in reads}
        free: list[Iterator[int]] = []  # of each place: the states whose norm is not taken
        for place, token in enumerate(sequence):
            self.states.append([])
            needed = norms[place]
            if token[0] == NORM:
                self.plain.append(_identity(next(free[token[1]]), norm="layer_norm"))
                self.again.append(GenomeBlock(self.plain[place], DEAD))
            elif token[0] == ACTIVATED:
                self.plain.append(dataclasses.replace(self.source(token[1]), activation=ACTIVATIONS[token[2]]))
                self.again.append(GenomeBlock(self.plain[place], DEAD))
                needed = max(needed, place in by_layer | activated)
            elif place and all(identity for identity, *_ in token[1]):
                self.plain.append(_identity(len(self.cell) + 1))
                self.again.append(self.block(token))
                needed = max(needed, place in read)
            else:
                self.states[place].append(self.write(self.block(token)) if place else 0)
                self.plain.append(_identity(self.states[place][0]))
                self.again.append(GenomeBlock(self.plain[place], DEAD))
            while len(self.states[place]) < needed:
                self.states[place].append(self.write(self.again[place]))
            free.append(iter(self.states[place]))
        self.finish([token[-1] for token in sequence], read, size)

    def write(self, block: GenomeBlock) -> int:
        """The state of a block that is written next."""
        self.cell.append(block)
        return len(self.cell)

    def source(self, place: int) -> Branch:
        """The `id` branch that a layer or an activation takes the place of: it has no activation yet."""
        plain = self.plain[place]
        return plain if plain.activation == "none" else _identity(self.states[place][0])

    def block(self, token: Token) -> GenomeBlock:
        branches = [
            self.plain[source]
            if identity
            else dataclasses.replace(
                self.source(source), layer=DECODER_LAYERS[layer], width=-width, activation=ACTIVATIONS[activation]
            )
            for identity, width, layer, activation, source in token[1]
        ]
        return GenomeBlock(branches[0], branches[1] if len(branches) == 2 else DEAD, COMBINERS[token[2]])

    def finish(self, terms: list[int], read: set[int], size: int) -> None:
        """Writes the terms of the output that are not there yet, and the identities behind the last."""
        last = 0
        for place, count in enumerate(terms):
            if self.states[place] and place not in read and count == 1:
                last = self.states[place][0]
            else:
                for _ in range(count):
                    last = self.write(self.again[place])
        while len(self.cell) < size:
            last = self.write(GenomeBlock(_identity(last), DEAD))


def _identity(state: int, norm: str = "none") -> Branch:
    return Branch(state, norm, "id", UNSAID_WIDTH, "none")
