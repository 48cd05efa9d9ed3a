"""Folders of `transformers` without it: written and read back, and all that can be wrong with them."""

import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformers_jax import models, parameters
from transformers_jax.data.text.tokenizer import learn_bpe
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface, mapping, stacking, weights
from transformers_jax.interchange import tokenizers as files

SIZES = dict(vocab_size=31, width=8, num_heads=2, mlp_width=32, layers=2, max_length=9)
KINDS = {
    "bert": dict(name="bert"),
    "camembert": dict(name="bert", variant="camembert", token_types=1, position_offset=2),
    "albert": dict(name="albert", embedding_width=4, groups=2, inner=2),
    "distilbert": dict(name="distilbert"),
    "flaubert": dict(name="flaubert", norm="pre", languages=2),
}


def make(kind: str, head: str = "none", **more) -> tuple[dict, dict]:
    """(fields, random parameters)."""
    fields = SIZES | KINDS[kind] | dict(head=head) | more
    rng = np.random.default_rng(0)
    shapes = mapping.shapes(models.build(fields, 31))
    return fields, parameters.nest({name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()})


def same(a: dict, b: dict) -> None:
    a, b = parameters.flat(a), parameters.flat(b)
    assert sorted(a) == sorted(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def folder(tmp_path) -> Path:
    """BERT's two heads of pretraining."""
    huggingface.save(tmp_path, *make("bert", "pretraining"))
    return tmp_path


def edit(folder: Path, change) -> None:
    """Rewrites the leaves of a folder."""
    leaves = load_file(folder / "model.safetensors")
    change(leaves)
    save_file(leaves, folder / "model.safetensors")


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(tmp_path, kind):
    _, names = huggingface.maps()[kind]
    for head in names.heads:
        fields, params = make(kind, head, labels=3) if head != "none" else make(kind)
        huggingface.save(tmp_path / head, fields, params)
        found, again, tokenizer = huggingface.load(tmp_path / head)
        same(params, again)
        assert tokenizer is None
        built, wanted = (models.build(f, 31).config for f in (found, fields))
        for field in ("width", "num_heads", "layers", "max_length", "norm_epsilon", "activation", "head", "vocab_size"):
            assert getattr(built, field) == getattr(wanted, field)
        assert built.labels == 3 or head not in ("sequence", "tagging")


def test_stacked_layers_are_the_same_leaves(tmp_path):
    fields, params = make("bert", scan_layers=True)
    assert params["encoder"]["layer"]["block"]["feed_forward"]["expand"]["kernel"].shape == (2, 8, 32)
    huggingface.save(tmp_path, fields, params)
    _, separate, _ = huggingface.load(tmp_path)
    kernels = [separate["encoder"][f"layer_{i}"]["block"]["feed_forward"]["expand"]["kernel"] for i in range(2)]
    np.testing.assert_array_equal(params["encoder"]["layer"]["block"]["feed_forward"]["expand"]["kernel"], kernels)
    same(params, parameters.nest(stacking.arranged(parameters.flat(separate), parameters.flat(params))))


def test_labels_have_their_names(tmp_path):
    fields, params = make("bert", "sequence", labels=2)
    huggingface.save(tmp_path, fields, params, labels=("no", "yes"))
    config = huggingface.read_config(tmp_path)
    assert huggingface.label_names(config) == ["no", "yes"] and config["label2id"] == {"no": 0, "yes": 1}
    assert huggingface.load(tmp_path).fields["labels"] == 2


def test_shards_and_their_index(tmp_path):
    fields, params = make("bert")
    huggingface.save(tmp_path, fields, params, shard_bytes=4000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and set(index["weight_map"].values()) == {file.name for file in shards}
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    same(params, huggingface.load(tmp_path).params)

    listed = dict(index["weight_map"])
    name, file = next(iter(listed.items()))
    moved = index | {"weight_map": listed | {name: shards[-1].name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(moved))
    with pytest.raises(UserError, match=f"does not fit .*{name.split('.')[0]}"):
        huggingface.load(tmp_path)
    rest = {n: f for n, f in listed.items() if f != file}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": rest}))
    with pytest.raises(UserError, match=f"does not list the shard {file}"):
        huggingface.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shards[0].unlink()
    with pytest.raises(UserError, match=f"lists the shard {shards[0].name}, which is missing"):
        huggingface.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match="index.json is damaged"):
        huggingface.load(tmp_path)
    huggingface.save(tmp_path, fields, params)  # in one file again: no shard of before is left
    assert [file.name for file in tmp_path.glob("*safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize("bytes_left", [5, 100, -1])
def test_truncated_files_are_named(folder, bytes_left):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(UserError, match="model.safetensors is truncated"):
        huggingface.load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_pickles_are_refused_with_the_reason(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UserError, match=f"{name} is a pickle, and reading a pickle runs whatever code"):
        huggingface.load(folder)
    with pytest.raises(UserError, match="is a pickle"):
        weights.refuse_pickle(folder / name)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights; wanted model.safetensors"):
        huggingface.load(folder)


def test_unsupported_architectures_are_named_with_what_is_supported(folder):
    edit_config(folder, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    with pytest.raises(UserError, match="'gpt_neox' .GPTNeoXForCausalLM.*supported are .*AlbertModel.*FlaubertModel"):
        huggingface.load(folder)
    edit_config(folder, model_type="bert", architectures=["BertLMHeadModel"])
    with pytest.raises(UserError, match="'BertLMHeadModel' is not supported; of bert, BertModel, BertForMaskedLM"):
        huggingface.load(folder)
    edit_config(folder, architectures=["BertForPreTraining"], hidden_act="mish")
    with pytest.raises(UserError, match="activation 'mish' is none of gelu"):
        huggingface.load(folder)
    (folder / "config.json").write_text('{"model_type"')
    with pytest.raises(UserError, match="config.json is not JSON"):
        huggingface.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing"):
        huggingface.load(folder)


def test_leaves_that_no_row_covers_are_listed(folder):
    edit(folder, lambda leaves: leaves.update({"bert.extra.weight": np.ones(3), "adapter.bias": np.ones(2)}))
    with pytest.raises(UserError, match="2 leaves of the weights have no name here: adapter.bias, bert.extra.weight"):
        huggingface.load(folder)


def test_leaves_that_are_missing_are_listed(folder):
    edit(folder, lambda leaves: [leaves.pop(n) for n in ("cls.predictions.bias", "bert.encoder.layer.1.output.dense.bias")])
    with pytest.raises(UserError, match="lack 2 leaves of BertForPreTraining: bert.encoder.layer.1.*cls.predictions.bias"):
        huggingface.load(folder)


def test_parameters_without_a_name_are_listed(tmp_path):
    fields, params = make("bert")
    more = params | {"scale": np.ones(2), "encoder": params["encoder"] | {"new": {"a": np.ones(1)}}}
    with pytest.raises(UserError, match="2 parameters have no name in BertModel: encoder/new/a, scale"):
        huggingface.save(tmp_path, fields, more)
    fields, params = make("bert", "next_sentence")
    with pytest.raises(UserError, match="no roberta with head 'next_sentence'"):
        huggingface.save(tmp_path, fields | {"variant": "roberta"}, params)
    with pytest.raises(UserError, match="no names in transformers: supported are BertModel|AlbertModel"):
        huggingface.save(tmp_path, {"name": "luong"}, {})


def test_shapes_are_compared_with_the_config(folder):
    edit_config(folder, intermediate_size=16)
    with pytest.raises(UserError, match=r"output.dense.weight has shape \(8, 32\); by config.json it should have \(8, 16\)"):
        huggingface.load(folder)


def test_names_of_older_files_and_repeated_leaves(folder):
    _, params, _ = huggingface.load(folder)

    def older(leaves):
        for name in [n for n in leaves if "LayerNorm" in n]:
            leaves[name.replace("weight", "gamma").replace("bias", "beta")] = leaves.pop(name)
        leaves["bert.embeddings.position_ids"] = np.arange(9)[None]
        leaves["cls.predictions.decoder.weight"] = leaves["bert.embeddings.word_embeddings.weight"].copy()
        leaves["cls.predictions.decoder.bias"] = leaves.pop("cls.predictions.bias")

    edit(folder, older)
    same(params, huggingface.load(folder).params)
    edit_config(folder, architectures=["BertForMaskedLM"])  # as the files of bert-base-uncased say, though they have both heads
    assert huggingface.load(folder).fields["head"] == "pretraining"
    edit(folder, lambda leaves: leaves["cls.predictions.decoder.weight"].__setitem__(0, 7))
    with pytest.raises(UserError, match="decoder.weight is not the same as bert.embeddings.word_embeddings.weight"):
        huggingface.load(folder)


def test_half_precision_stays_until_it_is_on_its_device(folder):
    _, wanted, _ = huggingface.load(folder)

    def halve(leaves):
        for name in leaves:
            leaves[name] = leaves[name].astype(ml_dtypes.bfloat16)

    edit(folder, halve)
    _, params, _ = huggingface.load(folder)
    halved = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), wanted)
    same(halved, params)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}
    assert sorted(huggingface.opened(folder).leaves) == sorted(parameters.flat(params))


@pytest.mark.parametrize(
    ("key", "value", "computed"),
    [
        ("is_decoder", True, False),
        ("add_cross_attention", True, False),
        ("position_embedding_type", "relative_key", "'absolute'"),
        ("pruned_heads", {"0": [1]}, "{}"),
    ],
)
def test_keys_that_change_numbers_are_refused_by_name_and_value(folder, key, value, computed):
    edit_config(folder, **{key: value})
    says = f"config.json: {key} is {value!r}, which is not computed here; of bert only {computed} is"
    with pytest.raises(UserError, match=re.escape(says)):
        huggingface.load(folder)


@pytest.mark.parametrize("value", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_8bit": True}])
def test_a_quantisation_that_is_not_read_is_refused_by_name(folder, value):
    edit_config(folder, quantization_config=value)
    with pytest.raises(UserError, match=f"quantization_config .*{value['quant_method']}.* is not read"):
        huggingface.load(folder)


def test_keys_that_nobody_knows_give_a_warning(folder, caplog):
    edit_config(folder, rope_scaling={"factor": 2.0}, transformers_version="9", unheard_of=None, id2label={"0": "x"})
    with caplog.at_level("WARNING", "absl"):
        huggingface.load(folder)
    (warning,) = [r.getMessage() for r in caplog.records if "config.json" in r.getMessage()]
    assert warning.endswith("not looked at: rope_scaling={'factor': 2.0}")


def test_what_is_written_is_read_without_a_warning(tmp_path, caplog):
    with caplog.at_level("WARNING", "absl"):
        for kind in KINDS:
            huggingface.save(tmp_path / kind, *make(kind, "masked_lm"))
            huggingface.load(tmp_path / kind)
    assert not caplog.records


def test_an_untied_output_is_refused_where_none_is_computed(folder):
    assert huggingface.read_config(folder)["tie_word_embeddings"] is True
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(UserError, match="tie_word_embeddings is False, which is not computed here: bert has one embedding"):
        huggingface.load(folder)
    edit_config(folder, architectures=["BertModel"])  # which has no output that could repeat it
    assert huggingface.load(folder).fields["head"] == "none"


def test_the_prefix_may_be_missing_where_there_is_a_head(folder):
    wanted = huggingface.load(folder).params
    edit(folder, lambda leaves: [leaves.update({n.removeprefix("bert."): leaves.pop(n)}) for n in list(leaves)])
    assert "encoder.layer.0.output.dense.weight" in load_file(folder / "model.safetensors")
    same(wanted, huggingface.load(folder).params)


def test_numbers_of_eight_bits_are_refused_by_name(folder):
    name = "bert.encoder.layer.1.output.dense.weight"
    edit(folder, lambda leaves: leaves.update({name: leaves[name].astype(ml_dtypes.float8_e4m3fn)}))
    with pytest.raises(UserError, match=f"{name} is of dtype F8_E4M3, which is not read here; F64, F32, F16, BF16"):
        huggingface.load(folder)


def test_parameters_are_written_as_they_are(tmp_path):
    fields, params = make("bert")
    huggingface.save(tmp_path, fields, jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params))
    assert {x.dtype.name for x in load_file(tmp_path / "model.safetensors").values()} == {"bfloat16"}
    assert huggingface.read_config(tmp_path)["dtype"] == "bfloat16"


def test_heads_that_are_not_asked_for_are_left_out(folder):
    edit_config(folder, architectures=["BertModel"])
    fields, params, _ = huggingface.load(folder)
    assert fields["pooler"] and "pooler" in params and "lm" not in params
    edit(folder, lambda leaves: [leaves.pop(f"bert.pooler.dense.{part}") for part in ("weight", "bias")])
    fields, params, _ = huggingface.load(folder)
    assert not fields["pooler"] and "pooler" not in params


def test_a_vocabulary_that_does_not_fit(folder):
    learn_bpe(["a few words"], merges=1).save(folder / "tokenizer.json")
    with pytest.raises(UserError, match="vocabulary has 2.. tokens and does not fit the embedding of 31"):
        huggingface.load(folder)


def test_tokenizers_come_and_go(tmp_path):
    tokenizer = learn_bpe(["a few words", "and more of them"], merges=9)
    fields, params = make("bert", vocab_size=tokenizer.vocab_size + 5)
    huggingface.save(tmp_path, fields, params, tokenizer)
    found = huggingface.load(tmp_path)
    assert found.fields["vocab_size"] == tokenizer.vocab_size + 5
    assert found.tokenizer.fingerprint() == tokenizer.fingerprint()
    assert found.tokenizer.encode_pair("a few", "words") == tokenizer.encode_pair("a few", "words")
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    both, joined = library.encode("a few", "words"), tokenizer.encode_pair("a few", "words")
    assert (both.ids, both.type_ids) == (joined.ids, joined.types)
    assert library.encode("a few").ids == tokenizer.encode_pair("a few").ids
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["cls_token"], config["pad_token"]) == ("<s>", "<pad>")
    assert "token_type_ids" in config["model_input_names"] and config["model_max_length"] == found.fields["max_length"]
    fields, params = make("camembert", vocab_size=tokenizer.vocab_size)
    with pytest.raises(UserError, match="position_offset is 2, but .* is 1 with this tokenizer"):
        huggingface.save(tmp_path, fields, params, tokenizer)


def test_no_end_stands_behind_a_prompt(tmp_path):
    import tokenizers

    tokenizer = learn_bpe(["a few words"], merges=9)
    files.write(tmp_path, tokenizer, longest=9, pair_types=False, prompts=True)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("a few").ids == tokenizer.encode_pair("a few").ids[:-1]


def test_all_supported_architectures_have_a_model():
    for name, names in huggingface.maps().values():
        for head in names.heads:
            fields = {"name": name, "head": head} | ({"variant": names.model_type} if name == "bert" else {})
            assert isinstance(models.build(fields, 31), nn.Module)
