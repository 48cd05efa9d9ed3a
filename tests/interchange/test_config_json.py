"""Odd values of a foreign config.json are one line each; what a folder cannot say is refused when it is written."""

import json
import os
import stat

import numpy as np
import pytest

from transformers_jax import models, parameters
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface, mapping, weights

SIZES = dict(width=8, num_heads=2, mlp_width=16, layers=2, max_length=12, vocab_size=20)


def made(name: str = "bert", **more):
    """(fields, parameters of zeros)."""
    fields = SIZES | dict(name=name, head="sequence") | more
    shapes = mapping.shapes(models.build(fields, 0))
    return fields, parameters.nest({key: np.zeros(shape, np.float32) for key, shape in shapes.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    huggingface.save(folder, *made())
    return folder


def changed(folder, tmp_path, **values):
    config = json.loads((folder / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    if not (tmp_path / weights.SINGLE).exists():
        os.link(folder / weights.SINGLE, tmp_path / weights.SINGLE)
    return tmp_path


@pytest.mark.parametrize(
    "values, says",
    [
        ({"is_decoder": True}, "is_decoder is True, which is not computed here"),
        ({"hidden_size": "24"}, "hidden_size is '24', no whole number"),
        ({"hidden_size": True}, "hidden_size is True, no whole number"),
        ({"hidden_size": float("nan")}, "hidden_size is nan, no whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0: give 1 or more"),
        ({"intermediate_size": [16]}, r"intermediate_size is \[16\], no whole number"),
        ({"hidden_dropout_prob": "a"}, "hidden_dropout_prob is 'a', no number"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5: give a number 0 or more, and below 1"),
        ({"layer_norm_eps": None}, "no layer_norm_eps"),
        ({"hidden_act": None}, "the activation None is none of"),
        ({"hidden_act": ["gelu"]}, "a value is not of its key's kind"),
        ({"model_type": ["bert"]}, "model_type is .*no text"),
        ({"architectures": "BertModel"}, "architectures is 'BertModel', no list"),
        ({"architectures": {"a": 1}}, "architectures is .*no list"),
        ({"num_labels": "3"}, "num_labels is '3': give 1 or more"),
        ({"pad_token_id": "x"}, "pad_token_id is 'x', no id of a token"),
        ({"id2label": "x"}, "id2label is 'x'; it has a name for each number"),
        ({"id2label": ["a"]}, r"id2label is \['a'\]; it has a name"),
        ({"id2label": {"a": "b"}}, "id2label is .*it has a name"),
        ({"id2label": {"0": "a", "5": "b"}}, "id2label is .*it has a name"),
        ({"id2label": {"0": ["a"], "1": "b"}}, "id2label is .*it has a name"),
        ({"num_hidden_layers": 1}, "fewer layers than the weights have, which hold bert.encoder.layer.1.attention"),
    ],
)
def test_odd_values_are_one_line(folder, tmp_path, values, says):
    with pytest.raises(UserError, match=says):
        huggingface.opened(changed(folder, tmp_path, **values))


def test_null_says_nothing_where_nothing_is_needed(folder, tmp_path):
    there = changed(folder, tmp_path, pad_token_id=None, id2label=None, num_labels=None)
    assert huggingface.opened(there).fields["labels"] == 2


def test_null_where_positions_count_from_it(tmp_path):
    huggingface.save(tmp_path, *made(variant="roberta", position_offset=2, token_types=1))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": None}))
    with pytest.raises(UserError, match="null is pad_token_id"):
        huggingface.opened(tmp_path)


@pytest.mark.parametrize(
    "name, more, says",
    [
        ("bert", {"position_offset": 2}, "config.model.position_offset is 2, which transformers' bert does not have"),
        ("distilbert", {"norm_epsilon": 1e-5}, "config.model.norm_epsilon is 1e-05; transformers' distilbert has 1e-12"),
    ],
)
def test_what_a_folder_cannot_say_is_not_written(tmp_path, name, more, says):
    with pytest.raises(UserError, match=says):
        huggingface.save(tmp_path / "out", *made(name, **more))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_whole_count_before_a_stale_index(folder, tmp_path, caplog):
    there = changed(folder, tmp_path)
    (there / weights.INDEX).write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    assert "bert.pooler.dense.weight" in weights.Weights(there).names() and "the first is read" in caplog.text


def test_files_of_weights_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        huggingface.save(tmp_path, *made())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / weights.SINGLE).stat().st_mode) == 0o640
