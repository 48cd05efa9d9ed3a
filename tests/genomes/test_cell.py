"""From genome to model: what each token means, and what holds for any genome."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cells import BATCH, VOCAB, build, compiled, draw, forward_and_backward, make_batch

from transformers_jax import models
from transformers_jax.errors import UserError
from transformers_jax.genomes import cell
from transformers_jax.genomes.genome import (
    EVOLVED_TRANSFORMER,
    TRANSFORMER,
    InvalidGenome,
    parse,
    parse_cell,
    random_genome,
    replace,
)
from transformers_jax.layers.masks import Mask
from transformers_jax.models import transformer, with_genome
from transformers_jax.planning import counts
from transformers_jax.search.mutation import mutate


def genomes(number, seed=0, *, widest=12):
    """Random and mutated genomes by turns, with at most two cells and narrow enough for a test."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < number:
        drawn = random_genome(rng) if len(found) % 2 else mutate(EVOLVED_TRANSFORMER, rng, 0.08)[0]
        drawn = replace(drawn, {"encoder_cells": min(drawn.encoder_cells, 2), "decoder_cells": min(drawn.decoder_cells, 2)})
        wide = max(max(cell.widths(blocks, 2, 1).states) if fits(drawn) else 99 for blocks in (drawn.encoder, drawn.decoder))
        if wide <= 2 * widest:
            found.append(drawn)
    return found


def fits(genome, width=2, unit=1):
    try:
        for blocks in (genome.encoder, genome.decoder):
            cell.widths(blocks, width, unit)
    except InvalidGenome as error:
        assert "wide" in str(error)
        return False
    return True


# ---- any genome ----------------------------------------------------------------------------------------------------------


def traced(genome, unit, options):
    """Parameters of both cells, by tracing, as often as they are stacked."""
    x, segments = jnp.zeros((1, 2, 16)), jnp.ones((1, 2), jnp.int32)
    mask, causal = Mask(segments, segments), Mask(segments, segments, True)
    encoder, decoder = (cell.block(kind, getattr(genome, kind), 16, unit, options)() for kind in ("encoder", "decoder"))
    encoder = jax.eval_shape(lambda: encoder.init(jax.random.key(0), x, mask, True))
    decoder = jax.eval_shape(lambda: decoder.init(jax.random.key(0), x, x, causal, mask, True))
    return genome.encoder_cells * counts.count(encoder) + genome.decoder_cells * counts.count(decoder)


@pytest.mark.parametrize("every", [50, pytest.param(1, marks=pytest.mark.slow)])
def test_many_genomes_build_and_count_or_say_why_not(every):
    """500 drawn and mutated genomes are counted, each as it is traced (most of them in the slow suite), or are too wide."""
    rng, found = np.random.default_rng(7), {"built": 0, "rejected": 0}
    for number in range(500):
        genome = mutate(TRANSFORMER, rng, 0.1)[0] if number % 2 else random_genome(rng)
        unit = int(rng.integers(1, 9))
        if fits(genome, 16, unit):
            count = with_genome.count_parameters(genome, 16, unit, VOCAB, num_heads=2) - 4 * 16 - VOCAB * 16
            assert number % every or count == traced(genome, unit, cell.BranchOptions(num_heads=2)), genome.text()
        else:
            with pytest.raises(InvalidGenome, match="times the model's 16"):
                build(genome, genome_unit=unit)
        found["built" if fits(genome, 16, unit) else "rejected"] += 1
    assert found["built"] > 400, found


@pytest.mark.parametrize("fields", [
    dict(attention_bias=True), dict(relative_distance=2), dict(share_embeddings=False), dict(positions="learned", max_length=9),
])  # fmt: skip
def test_counts_follow_the_config(fields):
    for genome in genomes(2, seed=5):
        shapes = counts.shapes(build(genome, num_heads=3, **fields), BATCH)["params"]
        assert counts.count(shapes) == with_genome.count_parameters(genome, 16, 0, VOCAB, num_heads=3, **fields), genome.text()


ROWS = LENGTH = 8
"""All tests below use batches of one shape, and one program for each genome's outputs and gradients."""

EVERY_KIND = parse("""
    encoder ×1: 0*sep3 2 | 0:id ; 1*att8 1 | 1*conv3 1 relu | concat ; 2:sep9 2 | 1:id ;
                0*light5r4 2 | 3*GLU 2 leaky_relu | multiply ; 4:conv1 3 swish | dead ; 5:sep11 2 | 3:id
    decoder ×2: 0*att4 2 | 0:id ; 1*enc 1 swish | 1*light7r4 2 leaky_relu | multiply ; 2:conv3 2 | 1:id ;
                3*sep5 3 | 2:GLU 1 | concat ; 4:light3r1 4 | 3:id ; 5*att16 2 swish | 5:id ;
                6*enc 2 | 4*light15r16 2 | concat ; 7:conv1 2 | 6:id
""")


@pytest.fixture(scope="module", params=["every kind", 0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 7))])
def built(request):
    """The model of a genome, scanned or not, with its parameters: one with every kind of layer, and drawn ones."""
    genome = EVERY_KIND if request.param == "every kind" else genomes(7)[request.param]
    model = build(genome, scan_layers=request.param != 1, genome_unit=4)
    return model, draw(model)


def logits_of(built, batch):
    return np.asarray(forward_and_backward(*built, batch)[0])


def test_cached_decoding_equals_the_full_forward(built):
    model, params = built
    batch = make_batch(ROWS, LENGTH, [8, 7, 6, 5, 4, 3, 2, 1])
    wanted = logits_of(built, batch)
    fields = {k: batch[k] for k in ("source", "source_positions", "source_segments")} | {"first": batch["target_inputs"][:, 0]}
    start = compiled(lambda fields: model.apply({"params": params}, fields, LENGTH, method="start", mutable=["cache"])[1])
    step = compiled(lambda state, tokens: model.apply({"params": params, **state}, tokens, method="step", mutable=["cache"]))
    state = start(fields)
    for t in range(LENGTH):
        got, state = step(state, batch["target_inputs"][:, t])
        np.testing.assert_allclose(got, wanted[:, t], atol=1e-4, rtol=1e-4)


def test_a_position_never_sees_later_ones(built):
    batch = make_batch(ROWS, LENGTH)
    for name, value in batch.items():  # all rows are the same
        batch[name] = np.repeat(value[:1], ROWS, axis=0)
    before = logits_of(built, batch)
    for t in range(1, LENGTH):  # row t is changed from position t on
        batch["target_inputs"][t, t:] = (batch["target_inputs"][t, t:] + 5) % VOCAB
    after = logits_of(built, batch)
    for t in range(1, LENGTH):
        np.testing.assert_array_equal(after[t, :t], before[t, :t])
        assert np.abs(after[t, t] - before[t, t]).max() > 1e-3


def test_packed_examples_and_padding_never_see_each_other(built):
    """Row 0 holds two examples; rows 1 and 2 one of them each, before padding full of tokens."""
    batch, lengths = make_batch(ROWS, LENGTH, seed=2), {"source": (3, 5), "target": (4, 2)}
    for stream, (first, second) in lengths.items():
        tokens = batch["target_inputs" if stream == "target" else "source"]
        positions, segments = batch[f"{stream}_positions"], batch[f"{stream}_segments"]
        tokens[1, :first], tokens[2, :second] = tokens[0, :first], tokens[0, first : first + second]
        positions[0, first:] -= first
        segments[0, first:], segments[0, first + second :] = 2, 0
        segments[1, first:], segments[2, second:] = 0, 0
    logits = logits_of(built, batch)
    np.testing.assert_allclose(logits[0, :4], logits[1, :4], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(logits[0, 4:6], logits[2, :2], atol=1e-5, rtol=1e-5)
    assert np.abs(logits[0, :2] - logits[2, :2]).max() > 1e-3


def test_all_parameters_learn(built):
    _, gradients = forward_and_backward(*built, make_batch(ROWS, LENGTH))
    for path, gradient in jax.tree_util.tree_flatten_with_path(gradients)[0]:
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), jax.tree_util.keystr(path)


# ---- the meaning of a genome, piece by piece -----------------------------------------------------------------------------


def encoder_cell(text, unit=4):
    """A function of x [B, S, 8] and the parameters that a cell in compact notation computes, and its initial parameters."""
    module = cell.EncoderCell(parse_cell(text), 8, unit, cell.BranchOptions())
    mask = Mask(*2 * (jnp.ones((1, 3), jnp.int32),))
    params = nn.unbox(module.init(jax.random.key(0), jnp.zeros((1, 3, 8)), mask, True)).get("params", {})
    params = jax.tree.map(lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape), params)
    return lambda x: module.apply({"params": params}, x, mask, True), params


X = np.random.default_rng(3).standard_normal((1, 3, 8)).astype(np.float32)


def linear(x, params):
    return x @ params["kernel"] + params["bias"]


def test_add_pads_with_zeros_and_multiply_with_ones():
    for combiner, neutral in (("", 0), (" | multiply", 1)):
        run, params = encoder_cell(f"0:conv1 1 | 0:id{combiner}")
        narrow = np.pad(linear(X, params["left_0"]["linear"]), ((0, 0), (0, 0), (0, 4)), constant_values=neutral)
        np.testing.assert_allclose(run(X), narrow * X if neutral else narrow + X, atol=1e-5)


def test_concat_sets_side_by_side_and_wide_output_is_projected():
    run, params = encoder_cell("0:conv1 1 leaky_relu | 0:id | concat")
    h = linear(X, params["left_0"]["linear"])
    wanted = linear(np.concatenate([np.where(h > 0, h, 0.2 * h), X], axis=-1), params["project"])
    np.testing.assert_allclose(run(X), wanted, atol=1e-5)


def test_dead_branches_pass_the_other_through_and_read_nothing():
    run, params = encoder_cell("0*conv1 2 | 0:dead 3 | multiply ; 0:dead | 0:id")
    assert set(params) == {"norm_0", "left_0"}
    h = np.asarray(run(X)) - X  # state 1, which nothing reads, is added to state 2
    p = params["norm_0"]
    normed = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]
    np.testing.assert_allclose(h, linear(normed, params["left_0"]["linear"]), atol=1e-5)


def test_states_that_nobody_reads_are_added_the_input_among_them():
    run, params = encoder_cell("0:dead | 0:id ; 1:conv1 2 | dead ; 1:conv1 1 swish | dead")
    narrow = linear(X, params["left_2"]["linear"])
    wanted = linear(X, params["left_1"]["linear"]) + np.pad(narrow / (1 + np.exp(-narrow)), ((0, 0), (0, 0), (0, 4)))
    np.testing.assert_allclose(run(X), wanted, atol=1e-5)
    run, params = encoder_cell("0:dead | 0:id")
    np.testing.assert_array_equal(run(X), X)


def test_one_norm_serves_all_that_read_a_state():
    _, params = encoder_cell("0*conv1 2 | 0*GLU 2 ; 0*id | 1:id")
    assert [name for name in params if name.startswith("norm")] == ["norm_0"]


def test_lightweight_convolutions_widen_by_whole_factors_or_not_at_all():
    for width, wanted in ((4, 16), (3, 8), (1, 8)):
        (pair, _), *_ = cell.widths(parse_cell(f"0:light3r4 {width} | 0:id"), 8, 4).branches
        assert pair == (8, wanted)


def test_attention_is_as_wide_inside_as_its_input():
    _, params = encoder_cell("0:att4 3 | 0:id")
    assert params["left_0"]["self_attention"]["query"]["kernel"].shape == (8, 4, 2)
    assert params["left_0"]["self_attention"]["out"]["kernel"].shape == (4, 2, 12)
    _, params = encoder_cell("0:att16 2 | 0:id")  # heads that do not divide the width are rounded up
    assert params["left_0"]["self_attention"]["query"]["kernel"].shape == (8, 16, 1)


# ---- from the config -----------------------------------------------------------------------------------------------------


def test_genomes_come_from_files_texts_and_names(tmp_path):
    file = tmp_path / "best.json"
    file.write_text(EVOLVED_TRANSFORMER.to_json())
    for source in (file, "evolved_transformer", EVOLVED_TRANSFORMER.text(), EVOLVED_TRANSFORMER.to_json()):
        assert with_genome.read({"genome": str(source), "genome_unit": 0}) == (EVOLVED_TRANSFORMER, 0)
    file.write_text(json.dumps(json.loads(EVOLVED_TRANSFORMER.to_json()) | {"unit": 24}))
    assert with_genome.read({"genome": str(file), "genome_unit": 0}) == (EVOLVED_TRANSFORMER, 24)
    assert with_genome.read({"genome": str(file), "genome_unit": 7}) == (EVOLVED_TRANSFORMER, 7)
    sized = tmp_path / "sized.json"  # a unit that was found beside another width
    sized.write_text(json.dumps(json.loads(file.read_text()) | {"width": 64}))
    assert with_genome.read({"genome": str(sized), "genome_unit": 0, "width": 256}) == (EVOLVED_TRANSFORMER, 96)
    assert with_genome.read({"genome": str(sized), "genome_unit": 7, "width": 256}) == (EVOLVED_TRANSFORMER, 7)
    model = models.build({"name": "transformer", "genome": str(file), "norm": "post"}, VOCAB)
    c = model.config
    assert (c.encoder_layers, c.decoder_layers, c.genome_unit, c.norm) == (3, 4, 24, "pre")


def test_mistakes_are_named(tmp_path):
    file = tmp_path / "broken.json"
    file.write_text("{")
    dead = EVOLVED_TRANSFORMER.text().replace("0*GLU 2 | 0:id", "dead | dead")
    cases = {"nowhere.json": "no such file", str(file): "not JSON", dead: "block 1 are dead", "transfromer": "no such file"}
    for source, says in cases.items():
        with pytest.raises(UserError, match=f"config.model.genome.*{says}"):
            models.build({"name": "transformer", "genome": source}, VOCAB)
    with pytest.raises(UserError, match="genome is not a field of evolved_transformer"):
        models.build({"name": "evolved_transformer", "genome": "transformer"}, VOCAB)
    with pytest.raises(ValueError, match="models.build"):
        counts.shapes(transformer.Model(transformer.Config(VOCAB, genome="transformer")), BATCH)
