"""The genome as a value: its vocabularies, text and JSON forms, and what makes it valid."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.errors import UserError
from transformers_jax.genomes import vocabulary
from transformers_jax.genomes.genome import (
    EVOLVED_TRANSFORMER,
    TRANSFORMER,
    Branch,
    Genome,
    GenomeBlock,
    InvalidGenome,
    check,
    choices,
    fields,
    from_json,
    identity_path,
    load,
    parse,
    parse_cell,
    random_genome,
    replace,
    unused_states,
)


def anywhere(seed: int) -> Genome:
    """A point of the search space, valid or not."""
    rng = np.random.default_rng(seed)
    return replace(TRANSFORMER, {name: choices(name)[rng.integers(len(choices(name)))] for name in fields(TRANSFORMER)})


genomes = st.integers(0, 2**32 - 1).map(anywhere)

TRANSFORMER_ENCODER = "0*att8 2 | 0:id ; 1*conv1 8 relu | dead ; 2:conv1 2 | 1:id ; "
TRANSFORMER_ENCODER += "3*att8 2 | 3:id ; 4*conv1 8 relu | dead ; 5:conv1 2 | 4:id"
TRANSFORMER_DECODER = "0*att8 2 | 0:id ; 1*enc 2 | 1:id ; 2*conv1 8 relu | dead ; 3:conv1 2 | 2:id ; "
TRANSFORMER_DECODER += "4*att8 2 | 4:id ; 5*enc 2 | 5:id ; 6*conv1 8 relu | dead ; 7:conv1 2 | 6:id"
EVOLVED_ENCODER = """0*GLU 2 | 0:id ; 1*conv1 8 relu | 1*conv3 1 relu ; 2*sep9 1 | 1:id ;
                     3*att8 2 | 3:id ; 4*conv1 8 relu | dead ; 5:conv1 2 | 4:id"""
EVOLVED_DECODER = """0*att16 2 | 0*enc 2 ; 0:id | 1:id ; 2*sep11 4 relu | 2*sep7 1 ; 3*sep7 2 | 2:id ;
                     4*att8 2 | 4:id ; 5*enc 2 | 5:id ; 6*conv1 8 swish | dead ; 7*conv1 2 | 6:id"""


def changed(name: str, value) -> Genome:
    return replace(TRANSFORMER, {name: value})


# ---- vocabulary and fields ----


def test_space_has_the_papers_size():
    size = vocabulary.space_size()
    branches = 2**28 * 25**12 * 26**16 * 10**28 * 4**28
    assert size == (math.factorial(6) * math.factorial(8)) ** 2 * branches * 3**14 * 6**2
    assert f"{size:.3e}" == "7.296e+115"


def test_space_is_the_product_of_the_fields():
    assert len(fields(TRANSFORMER)) == 156
    assert math.prod(len(choices(name)) for name in fields(TRANSFORMER)) == vocabulary.space_size()


def test_layers_are_25_and_the_decoder_attends_to_the_encoder_too():
    assert len(set(vocabulary.LAYERS)) == 25
    assert set(vocabulary.DECODER_LAYERS) - set(vocabulary.LAYERS) == {"enc"}


def test_fields_by_name():
    values = fields(EVOLVED_TRANSFORMER)
    assert values["encoder.1.right.layer"] == "conv3"
    assert values["encoder.1.right.norm"] == "layer_norm"
    assert values["decoder.6.left.activation"] == "swish"
    assert values["decoder.7.left.input"] == 7
    assert values["decoder.7.combiner"] == "add"
    assert (values["encoder_cells"], values["decoder_cells"]) == (3, 4)


@given(genomes)
@settings(max_examples=50, deadline=None)
def test_fields_and_replace_are_inverse(genome):
    assert replace(TRANSFORMER, fields(genome)) == genome


@pytest.mark.parametrize("name", ["encoder.6.combiner", "decoder.8.left.layer", "encoder.0.left", "encoder.0.up.norm", "cells"])
def test_a_field_that_is_none_raises(name):
    with pytest.raises(KeyError, match="no field"):
        choices(name)
    with pytest.raises(KeyError, match="no field"):
        changed(name, 1)


# ---- text and JSON ----


def test_cells_of_the_transformer_and_the_evolved_transformer():
    assert parse_cell(TRANSFORMER_ENCODER) == TRANSFORMER.encoder
    assert parse_cell(TRANSFORMER_DECODER) == TRANSFORMER.decoder
    assert parse_cell(EVOLVED_ENCODER) == EVOLVED_TRANSFORMER.encoder
    assert parse_cell(EVOLVED_DECODER) == EVOLVED_TRANSFORMER.decoder
    assert (TRANSFORMER.encoder_cells, TRANSFORMER.decoder_cells) == (3, 3)
    assert (EVOLVED_TRANSFORMER.encoder_cells, EVOLVED_TRANSFORMER.decoder_cells) == (3, 4)


def test_notation_says_what_the_fields_are():
    block = parse_cell("0*conv1 8 relu | 3:id | concat")[0]
    assert block == GenomeBlock(Branch(0, "layer_norm", "conv1", 8, "relu"), Branch(3, "none", "id", 2, "none"), "concat")


def test_known_genomes_print_as_they_are_written():
    assert TRANSFORMER.text() == f"encoder ×3: {TRANSFORMER_ENCODER}\ndecoder ×3: {TRANSFORMER_DECODER}"


@given(genomes)
@settings(max_examples=200, deadline=None)
def test_text_round_trip(genome):
    assert parse(genome.text()) == genome
    assert parse(genome.text().replace("\n", " ").replace("×", "x")) == genome


@given(genomes)
@settings(max_examples=100, deadline=None)
def test_json_round_trip(genome):
    assert from_json(genome.to_json()) == genome


@given(genomes, genomes)
@settings(max_examples=50, deadline=None)
def test_different_genomes_have_different_texts(one, other):
    assert (one.text() == other.text()) == (one == other)


@pytest.mark.parametrize(
    "cell, message",
    [
        ("0*att8 2 | 0:id ; 1*conv9 8 | dead", "encoder block 2: no layer 'conv9'"),
        ("0*att8 | 0:id", "encoder block 1: .* relative width"),
        ("att8 2 | 0:id", "encoder block 1: .* which state it reads, as in '0:att8'"),
        ("0*att8 2", "encoder block 1: '0\\*att8 2' is not 'left | right'"),
        ("0*att8 2 | 0:id | average", "encoder block 1: .* concat"),
        ("0*att8 2 rulu | 0:id", "encoder block 1: no activation 'rulu'"),
        ("0*att8 two | 0:id 2 relu none", "encoder block 1: .* relative width"),
        ("0*att8 2 | 0:id 2 relu none", "cannot read the branch '0:id 2 relu none'"),
        ("0*att8 2 | 0:id ;", "encoder block 2: '' is not"),
    ],
)
def test_a_mistyped_text_names_its_place(cell, message):
    with pytest.raises(UserError, match=message):
        parse(f"encoder ×3: {cell} decoder ×3: {TRANSFORMER_DECODER}")


@pytest.mark.parametrize("text", ["", "encoder ×3: 0:id | dead", "encoder ×1: 0:id | dead encoder ×1: 0:id | dead"])
def test_a_text_without_both_cells_is_refused(text):
    with pytest.raises(UserError, match="each cell once"):
        parse(text)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('{"encoder"', "{'encoder'", "not JSON"),
        ('"encoder_cells": 3, ', "", "genome: not a JSON object with the keys encoder, decoder, encoder_cells, decoder_cells"),
        ('"layer": "GLU"', '"layers": "GLU"', "genome.encoder.0.left: .* keys input, norm, layer"),
        ('"combiner": "add"}, ', '"combiner": "add"}, 7, ', "genome.encoder.1: not a JSON object"),
        ('"decoder": [', '"decoder": 1, "more": [', "genome: not a JSON object with the keys"),
    ],
)
def test_mistaken_json_names_its_place(old, new, message):
    text = EVOLVED_TRANSFORMER.to_json()
    assert old in text
    with pytest.raises(UserError, match=message):
        from_json(text.replace(old, new, 1))


def test_load_reads_names_texts_and_files(tmp_path):
    (tmp_path / "best.json").write_text(EVOLVED_TRANSFORMER.to_json())
    (tmp_path / "best.txt").write_text(EVOLVED_TRANSFORMER.text(), encoding="utf-8")
    assert load("transformer") == TRANSFORMER
    for source in (
        "evolved_transformer",
        EVOLVED_TRANSFORMER.text(),
        EVOLVED_TRANSFORMER.to_json(),
        tmp_path / "best.json",
        str(tmp_path / "best.txt"),
    ):
        assert load(source) == EVOLVED_TRANSFORMER


def test_load_names_a_missing_file_and_a_wrong_one(tmp_path):
    with pytest.raises(UserError, match="'bset.json': no such file.*transformer or evolved_transformer"):
        load("bset.json")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(TRANSFORMER.to_json().replace('"layer": "att8"', '"size": 8', 1))
    with pytest.raises(UserError, match="wrong.json.encoder.0.left: "):
        load(wrong)


@pytest.mark.parametrize("value", ['"8"', "8.0", "true", "[8]", "11", "null"])
def test_load_refuses_values_of_another_type(value):
    text = TRANSFORMER.to_json()
    assert '"width": 8' in text
    with pytest.raises(InvalidGenome, match="encoder.1.left.width: "):
        load(text.replace('"width": 8', f'"width": {value}', 1))


# ---- validity ----


@pytest.mark.parametrize("genome", [TRANSFORMER, EVOLVED_TRANSFORMER])
def test_known_genomes_are_valid(genome):
    check(genome)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder.1.left.layer": "dead"}, "encoder: both branches of block 2 are dead"),
        ({"decoder.1.left.layer": "att4", "decoder.5.left.layer": "att4"}, "no branch attends to the encoder"),
        ({"encoder.0.right.norm": "layer_norm"}, "encoder: no unbroken path"),
        ({"encoder.0.right.activation": "relu"}, "encoder: no unbroken path"),
        ({"encoder.0.combiner": "multiply"}, "encoder: no unbroken path"),
        ({"decoder.7.right.layer": "conv1"}, "decoder: no unbroken path"),
        ({"decoder.7.right.input": 3}, "decoder: no unbroken path"),
        ({"encoder.2.left.input": 3}, "encoder.2.left.input: 3 is none of 0, 1, 2"),
        ({"encoder.2.left.layer": "enc"}, "encoder.2.left.layer: 'enc' is none of"),
        ({"decoder.0.left.width": 11}, "decoder.0.left.width: 11 is none of"),
        ({"decoder_cells": 0}, "decoder_cells: 0 is none of 1, 2, 3, 4, 5, 6"),
    ],
)
def test_check_names_the_reason(changes, message):
    with pytest.raises(InvalidGenome, match=message):
        check(replace(TRANSFORMER, changes))


def test_check_counts_blocks():
    with pytest.raises(InvalidGenome, match="encoder: 5 blocks instead of 6"):
        check(Genome(TRANSFORMER.encoder[:5], TRANSFORMER.decoder, 3, 3))


def test_unused_states():
    assert unused_states(TRANSFORMER.encoder) == (6,)
    assert unused_states(parse_cell("0:id | dead ; 0:conv1 2 | dead ; 0:conv1 2 | 1:dead")) == (1, 2, 3)
    assert unused_states(parse_cell("0:dead | 0:conv1 1 ; 1:conv1 2 | 0:dead")) == (2,)


@pytest.mark.parametrize(
    "cell, path",
    [
        ("0*conv1 2 | 0:id ; 1*conv1 2 | 1:id", (0, 1, 2)),
        ("0*conv1 2 | 0:id ; 0*conv1 2 | 0*conv1 2", (0, 1)),
        ("0*conv1 2 | 0:id | multiply ; 1*conv1 2 | 0:id", (0, 2)),
        ("0:id | dead | concat ; 1:id | 1:id", (0, 1, 2)),
        ("0:id | 0:id | concat ; 1:id | dead", None),
        ("0:id swish | dead ; 1:id | dead", None),
        ("0*id | dead ; 1:id | dead", None),
        ("0*conv1 2 | 0:id ; 1*conv1 2 | dead", None),  # state 1 has the input, but is read, and not added to the output
    ],
)
def test_identity_path(cell, path):
    assert identity_path(parse_cell(cell)) == path


# ---- random genomes ----


def test_random_genomes_are_valid_and_cover_the_vocabulary():
    rng = np.random.default_rng(0)
    drawn = [random_genome(rng) for _ in range(400)]
    for genome in drawn:
        check(genome)
    assert len(set(drawn)) == 400
    flat = [fields(genome) for genome in drawn]
    for name in flat[0]:
        kinds = {"input", "norm", "width", "activation", "combiner", "encoder_cells", "decoder_cells"}
        if name.split(".")[-1] in kinds:
            assert {values[name] for values in flat} == set(choices(name)), name
    used = {values[name] for values in flat for name in values if name.endswith("layer")}
    assert used == set(vocabulary.DECODER_LAYERS)


def test_random_genomes_repeat_with_their_generator():
    one, other = (random_genome(np.random.default_rng(7)) for _ in range(2))
    assert one == other != random_genome(np.random.default_rng(8))
