"""The cell's picture: what stands where is checked on its plan, for any genome; that it is drawn, on a few."""

import collections

import numpy as np
import pytest

from transformers_jax.genomes.genome import (
    EVOLVED_TRANSFORMER,
    TRANSFORMER,
    InvalidGenome,
    parse_cell,
    random_genome,
    unused_states,
)
from transformers_jax.genomes.vocabulary import DECODER_LAYERS
from transformers_jax.reporting.cell_picture import draw_cell, genome_of, layer_name, plan

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")  # comes with matplotlib


def random_cells(count):
    """Cells of random genomes that do not grow too wide."""
    rng, cells = np.random.default_rng(0), []
    while len(cells) < count:
        genome = random_genome(rng)
        try:
            cells += [(cell, plan(cell)) for cell in (genome.encoder, genome.decoder)]
        except InvalidGenome:
            continue
    return cells


NAMED = [c for g in (TRANSFORMER, EVOLVED_TRANSFORMER) for c in (g.encoder, g.decoder)]
CELLS = [(cell, plan(cell)) for cell in NAMED] + random_cells(60)


def segments(layout):
    return [(line, a, b) for line in layout.lines for a, b in zip(line.points, line.points[1:], strict=False)]


@pytest.mark.parametrize("cell, layout", CELLS)
def test_nothing_covers_anything_else(cell, layout):
    boxes = [(b.x - b.width / 2, b.bottom, b.x + b.width / 2, b.bottom + b.height) for b in layout.boxes]
    assert boxes
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for _, a, b in segments(layout):
        assert a[0] == b[0] or a[1] == b[1], "a slanted line"
        low, high, slack = np.minimum(a, b), np.maximum(a, b), 1e-6
        for left, bottom, right, top in boxes:
            outside = high[0] <= left + slack or low[0] >= right - slack or high[1] <= bottom + slack or low[1] >= top - slack
            assert outside, "a line through a box"
    upright = [(line.points[0], a[0], *sorted((a[1], b[1]))) for line, a, b in segments(layout) if a[0] == b[0] != 0]
    for i, (start, x, low, high) in enumerate(upright):
        for other_start, other_x, other_low, other_high in upright[:i]:
            apart = abs(x - other_x) > 0.04 or high <= other_low or other_high <= low
            assert apart or start == other_start, "two lines on each other"
    assert max(layout.left, layout.right) < 5 and 0 < layout.top < 14
    for line in layout.lines:
        assert all(-layout.left <= x <= layout.right and 0 <= y <= layout.top for x, y in line.points)


@pytest.mark.parametrize("cell, layout", CELLS)
def test_lines_connect_what_the_genome_connects(cell, layout):
    numbers = dict(layout.states)
    rows = [y for (_, y), _ in layout.states]

    def source(line):
        """The hidden state that a line comes from, if from any; where it leaves a lane, the lane's."""
        start = line.points[0]
        if start in layout.joins:
            (lane,) = {id(o): o for o, a, b in segments(layout) if a[0] == b[0] == start[0] and a[1] < start[1] < b[1]}.values()
            return source(lane)
        return numbers.get(start)

    read = collections.defaultdict(list)
    for line in layout.lines:
        state, end = source(line), line.points[-1][1]
        if state is not None:
            read[sum(end > row for row in rows)].append(state)
    for number, block in enumerate(cell, start=1):
        assert sorted(read[number]) == sorted(branch.input for branch in block.branches), f"block {number}"
    unused = list(unused_states(cell))
    if len(unused) > 1:
        assert sorted(read[len(cell) + 1]) == unused
    signs = [sign for _, sign in layout.combiners]
    two = [block.combiner for block in cell if len(block.branches) == 2]
    assert signs == [{"add": "+", "multiply": "×", "concat": "‖"}[name] for name in two] + ["+"] * (len(unused) > 1)


def test_boxes_say_norm_layer_width_and_activation():
    cell = parse_cell("0*sep9 3 relu | 0:id ; 1:light5r4 2 | 0:id leaky_relu | concat ; 2*att16 1 | dead | multiply")
    texts = [box.text for box in plan(cell, width=64, unit=20).boxes]
    assert texts == [
        *("layer norm", "separable conv 9×1 : 60", "ReLU"),
        *("light conv 5×1 r 4 : 64", "leaky ReLU"),  # as wide as its input where 40 is no multiple of 64
        *("layer norm", "16-head self-attention : 20"),
        "conv 1×1 : 64",  # 20 is not the model's width
    ]
    relative = plan(parse_cell("0:GLU 3 | 0:id"))
    assert [box.text for box in relative.boxes] == ["gated linear unit : 3s", "conv 1×1 : 2s"]
    names = {layer_name(layer) for layer in DECODER_LAYERS if layer not in ("id", "dead")}
    assert len(names) == len(DECODER_LAYERS) - 2


@pytest.mark.parametrize("genome", [TRANSFORMER, EVOLVED_TRANSFORMER, random_genome(np.random.default_rng(3))])
def test_cells_are_drawn(tmp_path, genome):
    draw_cell(genome, tmp_path / "cell.png", title="A title")
    picture = Image.open(tmp_path / "cell.png")
    assert picture.format == "PNG" and 800 < picture.width < 4000 and 1200 < picture.height < 4000
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    coloured = (pixels.max(-1) - pixels.min(-1) > 30).mean()
    assert coloured > 0.03 and (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()


def test_the_genome_of_a_run():
    assert genome_of({"name": "transformer"}) is None and genome_of({"name": "luong", "genome": ""}) is None
    assert genome_of({"name": "transformer", "genome": "evolved_transformer"}) == EVOLVED_TRANSFORMER
    assert genome_of({"name": "evolved_transformer"}) == EVOLVED_TRANSFORMER
    small = genome_of({"name": "evolved_transformer", "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2})
    assert (small.encoder_cells, small.decoder_cells) == (1, 2)
    assert small.decoder[0].left.layer == "att4" and small.encoder[3].left.layer == "att2"
