"""Where the parts of a genome's cell stand in its picture: boxes, combiners and lines, in inches.

A cell grows upwards along a trunk at x = 0, on which every hidden state has a point. A block's boxes stand on the trunk, or
left and right of it where both branches have some. What reads the state just below comes from the trunk; what reads an older
one comes from a lane beside the boxes, one for each such state and side, the shorter further in.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers_jax.genomes.genome import Branch, GenomeBlock, unused_states

BOX_WIDTH, LAYER_HEIGHT, SLIM_HEIGHT = 1.86, 0.27, 0.19
"""Boxes of layers; those of norms and activations are slimmer."""

GAP = 0.07  # between the boxes of a branch
COLUMN = 1.05  # from the trunk to the middle of a branch that stands beside it
BYPASS, LANE = 0.17, 0.15  # from boxes to the nearest line beside them; between lanes
RADIUS = 0.095  # of a combiner's circle
ENTRY, ARROW, LEAVE = 0.2, 0.17, 0.25  # state → its lines part → first box; last box or combiner → next point

Point = tuple[float, float]
Part = tuple[str, str, bool]
"""The text of a box, its kind, and whether it is slim."""


class Box(NamedTuple):
    """A layer, norm or activation: x of its middle, y of its bottom, its size, its text, its kind (a colour)."""

    x: float
    bottom: float
    height: float
    text: str
    kind: str
    width: float = BOX_WIDTH


class Line(NamedTuple):
    """A connection through points; with an arrow at its end, or not."""

    points: tuple[Point, ...]
    arrow: bool = True


class CellLayout(NamedTuple):
    """A cell's picture. Its input enters at (0, 0) and its output leaves at (0, top).

    combiners: (centre, sign).  states: (point, number).  joins: where a line parts from a lane.
    left, right: how far it reaches on either side of the trunk.
    """

    boxes: list[Box]
    lines: list[Line]
    combiners: list[tuple[Point, str]]
    states: list[tuple[Point, int]]
    joins: list[Point]
    left: float
    right: float
    top: float


def has_boxes(branch: Branch) -> bool:
    return branch.live and not branch.plain_identity


def live(block: GenomeBlock) -> list[tuple[int, Branch]]:
    """(side, branch) of the branches that are not dead; -1 is left, 1 is right."""
    return [(side, branch) for side, branch in ((-1, block.left), (1, block.right)) if branch.live]


def beside(block: GenomeBlock) -> bool:
    """Whether both branches of a block have boxes, which then stand beside each other."""
    return has_boxes(block.left) and has_boxes(block.right)


def reach(block: GenomeBlock) -> float:
    """From the trunk to the outer edge of a block's boxes."""
    return BOX_WIDTH / 2 + (COLUMN if beside(block) else 0.0)


class Planner:
    """Lays out one cell; `layout()` gives the result.

    Args:
      blocks: of the genome.
      texts: (text, kind, slim) of each box of a branch from the bottom up, by block, counted from 1, and side.
      signs: what stands in a combiner's circle, by its name.
      closing: boxes that follow the last block.
    """

    def __init__(self, blocks: Sequence[GenomeBlock], texts: Mapping[tuple[int, int], Sequence[Part]], signs: Mapping[str, str],
                 closing: Sequence[Part] = ()):  # fmt: skip
        self.blocks, self.texts, self.signs, self.closing = blocks, texts, signs, closing
        self.boxes, self.lines, self.combiners, self.joins = [], [], [], []
        self.unused = unused_states(tuple(blocks))[:-1]  # the last is the output anyway
        self._rows()
        self._lanes()

    def _height(self, k: int, side: int) -> float:
        heights = [SLIM_HEIGHT if slim else LAYER_HEIGHT for _, _, slim in self.texts.get((k, side), ())]
        return sum(heights) + GAP * max(len(heights) - 1, 0)

    def _rows(self) -> None:
        """The y of each state, and of each block's parting, first box and combiner."""
        self.state, self.entry, self.bottom, self.combine = [0.0], [0.0], [0.0], [0.0]
        for k, block in enumerate(self.blocks, start=1):
            entry = self.state[-1] + ENTRY
            height = max(self._height(k, -1), self._height(k, 1))
            top = entry + ARROW + height if height else entry
            self.entry.append(entry)
            self.bottom.append(entry + ARROW)
            self.combine.append(top + LEAVE if len(live(block)) == 2 else top)
            self.state.append(self.combine[-1] + LEAVE)
        self.final = self.state[-1] + LEAVE + RADIUS

    def _lanes(self) -> None:
        """The x of each lane: {(side, state): x}, and the rows at which branches leave it."""
        self.leaving: dict[tuple[int, int], list[float]] = {}
        for k, block in enumerate(self.blocks, start=1):
            for side, branch in live(block):
                if branch.input != k - 1:
                    row = self.entry[k] if has_boxes(branch) else self.combine[k]
                    self.leaving.setdefault((side, branch.input), []).append(row)
        self.leaving |= {(1, state): [self.final] for state in self.unused}
        self.lane, taken = {}, []
        for side, state in sorted(self.leaving, key=lambda key: max(self.leaving[key]) - self.state[key[1]]):
            low, high = self.state[state], max(self.leaving[side, state])
            rows = zip(self.blocks, self.bottom[1:], self.combine[1:], strict=True)
            passed = [reach(block) for block, bottom, top in rows if low < top and bottom < high]
            at = max(passed, default=BOX_WIDTH / 2) + 2 * BYPASS
            while any(s == side and abs(at - x) < LANE - 1e-6 and low < b and a < high for s, x, a, b in taken):
                at += LANE
            taken.append((side, at, low, high))
            self.lane[side, state] = side * at

    def layout(self) -> CellLayout:
        """The plan."""
        for k in range(1, len(self.blocks) + 1):
            self._block(k)
        top = self._finish()
        least = max(reach(block) for block in self.blocks) + BYPASS
        left, right = (max([least, *(s * x for x in self.lane.values())]) for s in (-1, 1))
        states = [((0.0, y), number) for number, y in enumerate(self.state)]
        return CellLayout(self.boxes, self.lines, self.combiners, states, self.joins, left, right, top)

    def _from(self, k: int, side: int, branch, row: float) -> list[Point]:
        """Points from a branch's source to (…, row), where it turns to its first box or its combiner."""
        if branch.input == k - 1:
            return [(0.0, self.state[k - 1]), (0.0, row)]
        lane, rows = self.lane[side, branch.input], self.leaving[side, branch.input]
        if row == max(rows):
            return [(0.0, self.state[branch.input]), (lane, self.state[branch.input]), (lane, row)]
        self.joins.append((lane, row))
        return [(lane, row)]

    def _block(self, k: int) -> None:
        block, c = self.blocks[k - 1], self.combine[k]
        branches, apart = live(block), beside(block)
        joined = len(branches) == 2
        for side, branch in branches:
            if has_boxes(branch):
                x = side * COLUMN if apart else 0.0
                top = self._branch(k, side, branch, x)
                if apart:
                    self.lines.append(Line(((x, top), (x, c), (side * RADIUS, c))))
                elif joined:
                    self.lines.append(Line(((x, top), (x, c - RADIUS))))
                else:
                    self.lines.append(Line(((x, top), (x, self.state[k])), arrow=False))
        below = any(has_boxes(branch) for _, branch in branches)  # whether something enters the combiner from below
        for side, branch in branches:
            if branch.plain_identity:
                below = self._wire(k, side, branch, joined, below)
        if joined:
            self.combiners.append(((0.0, c), self.signs[block.combiner]))
            self.lines.append(Line(((0.0, c + RADIUS), (0.0, self.state[k])), arrow=False))

    def _wire(self, k: int, side: int, branch, joined: bool, below: bool) -> bool:
        """An identity's line into the combiner, or past it when the other branch is dead; whether it comes from below."""
        c, s = self.combine[k], self.state[k - 1]
        if not joined:
            start = self._from(k, side, branch, c)
            self.lines.append(Line(_path(*start, (0.0, c), (0.0, self.state[k])), arrow=False))
        elif branch.input != k - 1:
            self.lines.append(Line(_path(*self._from(k, side, branch, c), (side * RADIUS, c))))
        elif below:
            away = BOX_WIDTH / 2 + BYPASS if any(has_boxes(b) for _, b in live(self.blocks[k - 1])) else 3 * BYPASS
            self.lines.append(Line(((0.0, s), (side * away, s), (side * away, c), (side * RADIUS, c))))
        else:
            self.lines.append(Line(((0.0, s), (0.0, c - RADIUS))))
            return True
        return below

    def _branch(self, k: int, side: int, branch, x: float) -> float:
        """A branch's boxes and the line into them; the y of their top."""
        row, y = self.entry[k], self.bottom[k]
        self.lines.append(Line(_path(*self._from(k, side, branch, row), (x, row), (x, y))))
        return self._stack(self.texts[k, side], x, y)

    def _stack(self, texts, x: float, y: float) -> float:
        for number, (text, kind, slim) in enumerate(texts):
            if number:
                self.lines.append(Line(((x, y), (x, y + GAP)), arrow=False))
                y += GAP
            height = SLIM_HEIGHT if slim else LAYER_HEIGHT
            self.boxes.append(Box(x, y, height, text, kind))
            y += height
        return y

    def _finish(self) -> float:
        """The sum with the states that nobody reads, and the closing boxes; the y of the output."""
        y = self.state[-1]
        if self.unused:
            self.lines.append(Line(((0.0, y), (0.0, self.final - RADIUS))))
            for state in self.unused:
                s, lane = self.state[state], self.lane[1, state]
                self.lines.append(Line(((0.0, s), (lane, s), (lane, self.final), (RADIUS, self.final))))
            self.combiners.append(((0.0, self.final), "+"))
            y = self.final + RADIUS
        if self.closing:
            self.lines.append(Line(((0.0, y), (0.0, y + ARROW))))
            y = self._stack(self.closing, 0.0, y + ARROW)
        return y


def _path(*points: Point) -> tuple[Point, ...]:
    """The points without those that lie on the straight line between their neighbours."""
    kept = [points[0]]
    for point, following in zip(points[1:], [*points[2:], None], strict=True):
        before = kept[-1]
        if point == before:
            continue
        straight = following is not None and any(before[i] == point[i] == following[i] for i in (0, 1))
        if not straight:
            kept.append(point)
    return tuple(kept)
