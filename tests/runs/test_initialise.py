"""Where training starts from, and conversion: folders of `transformers` and workdirs."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import convert, launch
from transformers_jax import config as configuration
from transformers_jax import models, parameters
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.errors import UserError
from transformers_jax.inference.embeddings import Embedder
from transformers_jax.interchange import huggingface, mapping
from transformers_jax.interchange import recipe as recipes
from transformers_jax.runs import initialise
from transformers_jax.training.checkpoint import Checkpoints

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
LINES = ["a few words", "and more of them", "some words again, and again"] * 3
SIZES = dict(name="bert", width=8, num_heads=2, mlp_width=16, layers=4, max_length=40)


@pytest.fixture(scope="module")
def tokenizer():
    return learn("wordpiece", LINES, 60)


def make(tokenizer, head: str = "masked_lm", **more):
    """(fields, model, random parameters)."""
    fields = SIZES | dict(head=head, vocab_size=tokenizer.vocab_size) | more
    model = models.build(fields, 0)
    rng = np.random.default_rng(0)
    drawn = {n: rng.standard_normal(s).astype(np.float32) for n, s in mapping.shapes(model).items()}
    return fields, model, parameters.nest(drawn)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    fields, _, params = make(tokenizer)
    huggingface.save(folder, fields, params, tokenizer)
    return folder


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("made") / "workdir"
    run(folder, workdir)
    return workdir


def run(source, target) -> int:
    return launch.call(convert.main, convert.FLAGS, ["convert", f"--from={source}", f"--to={target}"])


def flat(params) -> dict:
    return {name: np.asarray(x) for name, x in parameters.flat(params).items()}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", ["folder", "workdir"])
def test_a_new_head_is_new_and_the_rest_is_taken(request, tokenizer, kind, scan):
    source = request.getfixturevalue(kind)
    _, model, _ = make(tokenizer, "sequence", scan_layers=scan)
    taken = flat(initialise.initial(str(source), model, tokenizer))
    shapes = mapping.shapes(model)
    assert {n for n in shapes if n not in taken} == {f"{n}/{p}" for n in ("pooler", "classifier") for p in ("kernel", "bias")}
    assert all(taken[name].shape == shapes[name] for name in taken)
    params = flat(make(tokenizer)[2])
    name = "encoder/layer_2/block/self_attention/query/kernel"
    got = taken["encoder/layer/block/self_attention/query/kernel"][2] if scan else taken[name]
    np.testing.assert_array_equal(got, params[name])


def test_pretrained_parameters_are_placed_as_the_model_s_are_to_be(folder, tokenizer):
    _, model, params = make(tokenizer, "tagging")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=place), params)}
    found = parameters.flat(initialise.placed(initialise.initial(str(folder), model), wanted)["params"])
    assert set(parameters.flat(params)) - set(found) == {"classifier/kernel", "classifier/bias"}
    assert all(isinstance(x, jax.Array) and x.dtype == np.float32 for x in found.values())
    with pytest.raises(ValueError, match="not parameters of the model: other"):
        initialise.placed({"other": np.ones(1)}, wanted)


def test_every_second_layer(folder, tokenizer):
    _, model, _ = make(tokenizer, layers=2)
    taken, params = flat(initialise.initial(str(folder), model, only=(1, 3))), flat(make(tokenizer)[2])
    for new, old in enumerate((1, 3)):
        name = "encoder/layer_{}/block/feed_norm/scale"
        np.testing.assert_array_equal(taken[name.format(new)], params[name.format(old)])


def test_a_model_may_have_fewer_rows_of_tables(folder, tokenizer):
    fields, _, params = make(tokenizer)
    model = models.build(fields | dict(vocab_size=50, max_length=30), 0)
    taken = flat(initialise.initial(str(folder), model))
    np.testing.assert_array_equal(taken["embeddings/position/embedding"], params["embeddings"]["position"]["embedding"][:30])
    assert taken["embeddings/word"].shape == (50, 8) and taken["lm_bias"].shape == (50,)


def test_what_does_not_fit_is_named(folder, tokenizer, tmp_path):
    fields, _, _ = make(tokenizer)

    def fails(says, source=folder, tokenizer=None, **changes):
        with pytest.raises(UserError, match=says):
            initialise.initial(str(source), models.build(fields | changes, 0), tokenizer)

    fails("feed_forward/contract/kernel .16, 8. there, .24, 8. here", mlp_width=24)
    fails("vocabulary does not fit the embedding", vocab_size=99)
    fails("lower config.model.max_length", max_length=41)
    fails("lacks parameters of config.model: encoder/layer_4", layers=5)
    fails("its vocabulary is not that of this run", tokenizer=learn("wordpiece", [*LINES, "other"], 60))
    fails("no such folder", source=tmp_path / "nothing")
    fails("neither a folder of transformers nor a workdir", source=tmp_path)
    (tmp_path / "model.pt").write_bytes(b"")
    fails("is a pickle", source=tmp_path / "model.pt")
    fails("give the folder that holds config.json", source=folder / "config.json")


def test_a_name_on_the_hub_is_fetched(folder, tokenizer, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def fetch(name, allow_patterns):
        asked.append(name)
        assert "*.safetensors" in allow_patterns and not any(p.endswith((".bin", ".pt")) for p in allow_patterns)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert initialise.folder_of("somebody/some-bert") == folder and asked == ["somebody/some-bert"]

    def fail(name, allow_patterns):
        raise OSError("no network\nat all")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="somebody/some-bert: no such folder, and the hub does not give it: no network$"):
        initialise.folder_of("somebody/some-bert")


UNLABELLED = ("none", "pretraining", "span", "multiple_choice")
HEADS = dict.fromkeys(UNLABELLED, {}) | dict.fromkeys(("sequence", "tagging"), dict(labels=3))


@pytest.mark.parametrize("head", HEADS)
def test_there_and_back_again(tokenizer, tmp_path, head):
    fields, _, params = make(tokenizer, head, **HEADS[head])
    labels = ("x", "B-y", "I-y") if "labels" in fields else ()
    huggingface.save(tmp_path / "a", fields, params, tokenizer, labels=labels)
    assert run(tmp_path / "a", tmp_path / "b") == 0 and run(tmp_path / "b", tmp_path / "c") == 0
    config = configuration.read(tmp_path / "b")
    assert config.model.head == head and (not labels or config.task.labels == labels)
    with Checkpoints(tmp_path / "b" / "checkpoints") as checkpoints:
        assert checkpoints.all_steps() == [0]
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    again = huggingface.load(tmp_path / "c")
    assert again.tokenizer.fingerprint() == tokenizer.fingerprint()


def test_a_converted_model_is_a_run(workdir, tokenizer):
    from transformers_jax.runs.experiment import Experiment

    experiment = Experiment(configuration.read(workdir), workdir)
    assert experiment.tokenizer.fingerprint() == tokenizer.fingerprint()
    params = flat(experiment.trained()["params"])
    for name, array in flat(make(tokenizer)[2]).items():
        np.testing.assert_array_equal(params[name], array)


@pytest.mark.parametrize(
    "recipe", [("first", False, 0), ("max", True, 12, True, (("query", "q=: "), ("x", "")), "query", True, "dot")]
)
def test_sentence_vectors_stay_what_they_are(tokenizer, tmp_path, recipe):
    fields, _, params = make(tokenizer, "none")
    huggingface.save(tmp_path / "a", fields, params, tokenizer)
    recipes.write(tmp_path / "a", recipes.Recipe(*recipe), fields["width"])
    assert run(tmp_path / "a", tmp_path / "b") == 0 and run(tmp_path / "b", tmp_path / "c") == 0
    longest = recipe[2] or SIZES["max_length"]
    assert recipes.read(tmp_path / "c") == recipes.Recipe(*recipe)._replace(max_length=longest)
    vectors = [Embedder.of(str(tmp_path / name))(["a few words", "some words " * 30]) for name in "abc"]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize("head", ["sequence", "multiple_choice"])
def test_a_converted_classifier_reads_all_that_the_model_takes(tokenizer, tmp_path, head):
    fields, _, params = make(tokenizer, head, max_length=99, **HEADS[head])
    huggingface.save(tmp_path / "a", fields, params, tokenizer)
    assert run(tmp_path / "a", tmp_path / "b") == 0
    config = configuration.read(tmp_path / "b")
    assert config.task.max_length == config.data.lengths.tokens == 99


def test_another_task_s_classifier_is_not_taken(tokenizer, tmp_path):
    fields, span, params = make(tokenizer, "span")
    huggingface.save(tmp_path / "a", fields, params, tokenizer)
    assert run(tmp_path / "a", tmp_path / "b") == 0
    for source in "ab":
        assert "classifier" in initialise.initial(str(tmp_path / source), span)
        found = initialise.initial(str(tmp_path / source), make(tokenizer, "sequence", labels=2)[1])
        assert "encoder" in found and "classifier" not in found


def test_rows_of_a_head_are_taken_by_the_names_of_their_labels(tokenizer, tmp_path):
    fields, model, params = make(tokenizer, "sequence", labels=3)
    huggingface.save(tmp_path / "a", fields, params, tokenizer, labels=("neg", "pos", "neutral"))
    assert run(tmp_path / "a", tmp_path / "b") == 0
    kernel, bias = np.asarray(params["classifier"]["kernel"]), np.asarray(params["classifier"]["bias"])
    for source in "ab":
        for labels, order in {("pos", "neutral", "neg"): [1, 2, 0], ("Neg", "POS", "neutral"): [0, 1, 2]}.items():
            taken = initialise.initial(str(tmp_path / source), model, tokenizer, labels=labels)["classifier"]
            np.testing.assert_array_equal(np.asarray(taken["kernel"]), kernel[:, order])
            np.testing.assert_array_equal(np.asarray(taken["bias"]), bias[order])
        two = make(tokenizer, "sequence", labels=2)[1]
        taken = initialise.initial(str(tmp_path / source), two, labels=("neutral", "neg"))["classifier"]
        np.testing.assert_array_equal(np.asarray(taken["bias"]), bias[[2, 0]])
        assert "classifier" not in initialise.initial(str(tmp_path / source), model, labels=("good", "bad", "neutral"))


def test_a_head_of_other_labels_begins_anew_and_one_without_names_goes_by_numbers(tokenizer, tmp_path, caplog):
    fields, model, params = make(tokenizer, "sequence", labels=3)
    bias = np.asarray(params["classifier"]["bias"])
    huggingface.save(tmp_path / "a", fields, params, tokenizer, labels=("neg", "pos", "neutral"))
    assert "classifier" not in initialise.initial(str(tmp_path / "a"), model, labels=("good", "bad", "neutral"))
    assert "head's labels are neg, pos, neutral, those of this run good, bad, neutral: the head begins anew" in caplog.text
    huggingface.save(tmp_path / "c", fields, params, tokenizer)  # LABEL_0, LABEL_1, LABEL_2
    taken = initialise.initial(str(tmp_path / "c"), model, labels=("2", "0", "1"))["classifier"]
    np.testing.assert_array_equal(np.asarray(taken["bias"]), bias[[2, 0, 1]])
    assert "classifier" not in initialise.initial(str(tmp_path / "c"), model, labels=("neg", "pos", "neutral"))


def test_labels_that_do_not_exclude_each_other_are_refused(tokenizer, tmp_path, capfd):
    fields, _, params = make(tokenizer, "sequence", labels=3)
    huggingface.save(tmp_path / "a", fields, params, tokenizer)
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"problem_type": "multi_label_classification"}))
    assert run(tmp_path / "a", tmp_path / "b") == 2
    assert "problem_type multi_label_classification of 3 labels is not supported" in capfd.readouterr().err


def test_a_model_that_transformers_does_not_have(tokenizer, tmp_path, capfd):
    config = configuration.load(str(CONFIGS / "transformer.py:tiny"))
    configuration.save(config, tmp_path)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert run(tmp_path, tmp_path / "new") == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "transformers has no architecture for config.model.name=transformer; supported are AlbertModel" in last


def test_a_decoder_is_not_read_as_an_encoder(folder, tmp_path, capfd):
    shutil.copytree(folder, tmp_path / "a")
    file = tmp_path / "a" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"is_decoder": True}))
    assert run(tmp_path / "a", tmp_path / "b") == 2 and not (tmp_path / "b").exists()
    assert "config.json: is_decoder is True, which is not computed here" in capfd.readouterr().err.splitlines()[-1]


def test_mistakes_end_in_one_line(folder, workdir, tmp_path, capfd):
    for arguments, says in (
        ((f"--from={folder}",), "--to is missing"),
        ((f"--from={folder}", f"--to={workdir}"), "is there already: give a new folder"),
        ((f"--from={tmp_path}/none", f"--to={tmp_path}/new"), "--from="),
    ):
        capfd.readouterr()
        assert launch.call(convert.main, convert.FLAGS, ["convert", *arguments]) == 2
        assert says in capfd.readouterr().err.splitlines()[-1]
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "t5", "architectures": ["T5Model"]}))
    assert run(tmp_path / "other", tmp_path / "new") == 2
    assert "'t5' (T5Model) is not supported; supported are" in capfd.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_decoders_there_and_back_again(tmp_path, name):
    """Its workdir has rows no longer than the model reads, and what comes back are the same numbers."""
    tokenizer = learn("byte_bpe", LINES, 300)
    sizes = dict(name=name, width=8, num_heads=2, mlp_width=16, layers=2, max_length=40, head="causal_lm")
    sizes |= {"kv_heads": 1} if name == "llama" else {}
    fields = sizes | {"vocab_size": tokenizer.vocab_size}
    model, rng = models.build(fields, 0), np.random.default_rng(0)
    drawn = {n: rng.standard_normal(s).astype(np.float32) for n, s in mapping.shapes(model).items()}
    huggingface.save(tmp_path / "folder", fields, parameters.nest(drawn), tokenizer)
    assert run(tmp_path / "folder", tmp_path / "W") == 0
    config = configuration.read(tmp_path / "W")
    assert config.data.lengths.tokens == 40 and config.task.name == "causal_lm" and config.model.name == name
    assert run(tmp_path / "W", tmp_path / "back") == 0
    _, leaves, _ = huggingface.opened(tmp_path / "back")
    there, back = huggingface.opened(tmp_path / "folder")[1], {n: np.asarray(x) for n, x in leaves.items()}
    assert there.keys() == back.keys() and all(np.array_equal(np.asarray(there[n]), back[n]) for n in back)


def test_a_base_is_read_again_only_if_its_files_have_changed(folder, tmp_path, monkeypatch):
    copy, note, read = tmp_path / "copy", tmp_path / "base.json", []
    shutil.copytree(folder, copy)
    monkeypatch.setattr(initialise, "read", lambda folder, own=initialise.read: read.append(folder) or own(folder))
    first = initialise.fingerprint_of(str(copy), note)
    assert initialise.fingerprint_of(str(copy), note) == first and read == [copy]
    assert initialise.fingerprint_of(str(folder), note) == first and read == [copy, folder]  # the same numbers elsewhere
    fields, _, params = make(learn("wordpiece", LINES, 60))
    params["embeddings"]["norm"]["bias"] += 1
    huggingface.save(copy, fields, params)
    assert initialise.fingerprint_of(str(copy), note) != first and read == [copy, folder, copy]
    note.write_text("{")
    assert initialise.fingerprint_of(str(folder), note) == first and read[3:] == [folder]
    assert initialise.fingerprint_of(str(folder), tmp_path / "none/base.json") == first  # there is no such folder
