"""Sentence vectors from the command line: in order, what they are used for, and what their folder says about pooling."""

import functools
import json

import jax
import numpy as np
import pytest
from launching import call, fails

from experiments import embed
from transformers_jax import config as configuration
from transformers_jax import models
from transformers_jax.errors import UserError
from transformers_jax.inference import embeddings
from transformers_jax.inference.predictor import Loaded
from transformers_jax.interchange import huggingface, recipe
from transformers_jax.runs.experiment import Experiment
from transformers_jax.tasks.parts.metrics import spearman

LINES = ["The value of an attribute.", "", "A name is bound to an object in the module.", "The value of an attribute.", "x"]
STDIN = "\n".join(LINES).encode()
PAIRS = [(LINES[0], LINES[0]), (LINES[0], "x y z"), (LINES[2], "A name is bound.")]


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """A model that was read is kept: each reading compiles anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings.Embedder, "of", functools.cache(embeddings.Embedder.of))
        yield


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    """The pretrained model as a folder of `transformers`, without a head."""
    run, path = Experiment(configuration.read(encoder), encoder), tmp_path_factory.mktemp("folder")
    fields = dict(run.config.model) | {"vocab_size": run.tokenizer.vocab_size, "head": "none"}
    params = {k: x for k, x in jax.device_get(run.trained()["params"]).items() if k in ("embeddings", "encoder", "pooler")}
    huggingface.save(path, fields, params, run.tokenizer)
    return path


def rows(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def hidden_of(folder, text: str) -> np.ndarray:
    """[T, D] by the model itself, one row of exactly this text."""
    run = Experiment(configuration.read(folder), folder)
    ids = run.tokenizer.joined(run.tokenizer.encode(text)).ids
    batch = {"tokens": np.array([ids]), "positions": np.arange(len(ids))[None], "segments": np.ones([1, len(ids)], int)}
    batch["token_types"] = 0 * batch["tokens"]
    return np.asarray(run.model.apply({"params": run.trained()["params"]}, batch, True, method="encode"))[0]


def test_vectors_come_in_order(encoder, folder, capfd, monkeypatch):
    code, out, err = call(embed, capfd, f"--init_from={encoder}", stdin=STDIN, monkeypatch=monkeypatch)
    found = rows(out)
    assert code == 0 and [row["text"] for row in found] == LINES and found[1]["vector"] is None, err
    vectors = [np.array(row["vector"]) for row in found if row["vector"]]
    assert all(abs(np.linalg.norm(v) - 1) < 1e-5 for v in vectors) and np.allclose(vectors[0], vectors[2], atol=1e-6)
    mean = hidden_of(encoder, LINES[0]).mean(axis=0)
    assert np.allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-5)
    code, of_folder, err = call(embed, capfd, f"--init_from={folder}", stdin=STDIN, monkeypatch=monkeypatch)
    assert code == 0 and np.allclose([r["vector"] for r in rows(of_folder) if r["vector"]], vectors, atol=1e-5), err


@pytest.mark.parametrize("kind, made", [("first", lambda h: h[0]), ("max", lambda h: h.max(axis=0))])
def test_pooling_of_the_flags(kind, made, encoder, capfd, monkeypatch):
    flags = [f"--init_from={encoder}", f"--pooling={kind}", "--nonormalise"]
    code, out, err = call(embed, capfd, *flags, stdin=LINES[0].encode(), monkeypatch=monkeypatch)
    assert code == 0 and np.allclose(rows(out)[0]["vector"], made(hidden_of(encoder, LINES[0])), atol=1e-5), err


def test_nearest_lines_of_a_corpus(encoder, tmp_path, capfd, monkeypatch):
    (tmp_path / "corpus").write_text("A name is bound.\n\nThe value of an attribute.\nSomething else, entirely.\n")
    flags = [f"--init_from={encoder}", "--nearest=2", f"--corpus={tmp_path}/corpus"]
    code, out, err = call(embed, capfd, *flags, stdin=STDIN, monkeypatch=monkeypatch)
    found = rows(out)
    assert code == 0 and [row["text"] for row in found] == LINES and found[1]["nearest"] == [], err
    best = found[0]["nearest"]
    assert len(best) == 2 and best[0] == {"line": 3, "text": LINES[0], "similarity": 1.0} and best[1]["similarity"] <= 1


def test_similarity_file(encoder, tmp_path, capfd):
    file, flags = tmp_path / "pairs.tsv", [f"--init_from={encoder}", f"--similarity_file={tmp_path}/pairs.tsv"]
    file.write_text("".join(f"{score}\t{a}\t{b}\n" for score, (a, b) in zip(("5", "1", "2.5"), PAIRS, strict=True)))
    code, out, err = call(embed, capfd, *flags)
    first, second = (embeddings.Embedder.of(str(encoder))(texts) for texts in zip(*PAIRS, strict=True))
    wanted = spearman([5, 1, 2.5], (first * second).sum(-1))
    assert code == 0 and json.loads(out)["pairs"] == 3 and json.loads(out)["spearman"] == pytest.approx(wanted, abs=1e-4), err
    file.write_text("5\ta\tb\nfive\ta\tb\n")
    fails(embed, capfd, *flags, says=["line 2", "'five' is no number"])
    file.write_text("")
    fails(embed, capfd, *flags, says=["is empty"])


def test_summary_is_of_the_text_in_its_order(encoder, capfd, monkeypatch):
    text = "Names are bound. Values are read! Is a name a value? Nothing.\nThe last line has no mark"
    parts = embeddings.sentences_of(text)
    assert parts == ["Names are bound.", "Values are read!", "Is a name a value?", "Nothing.", "The last line has no mark"]
    code, out, err = call(embed, capfd, f"--init_from={encoder}", "--summary=3", stdin=text.encode(), monkeypatch=monkeypatch)
    chosen = out.splitlines()
    assert code == 0 and len(chosen) == 3 and chosen == [part for part in parts if part in chosen], err
    code, out, _ = call(embed, capfd, f"--init_from={encoder}", "--summary=3", stdin=b"\n", monkeypatch=monkeypatch)
    assert code == 0 and not out.strip()


def test_the_central_sentence_is_the_one_that_the_others_are_like():
    middle = np.array([1.0, 1.0, 1.0, 0.0])
    vectors = np.stack([middle, *(middle + 2 * np.eye(4)[i] for i in range(3)), np.array([0, 0, 0, 1.0])])
    ranks = embeddings.centrality(vectors)
    assert ranks.argmax() == 0 and ranks.argmin() == 4 and ranks.sum() == pytest.approx(1)
    assert embeddings.summary(list("abcde"), vectors, 1) == ["a"]


def test_nearest_is_exact_and_stable():
    queries, corpus = np.eye(3)[:2], np.array([[0, 2, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], float)
    assert embeddings.nearest(queries, corpus, 2)[1] == [(0, 1.0), (2, 1.0)]
    assert embeddings.nearest(queries, corpus, 1)[0] == [(1, pytest.approx(0.5**0.5))]
    assert len(embeddings.nearest(queries, corpus, 9)[0]) == 4


def write_recipe(folder, pooling: dict, *, normalise: bool = True, window: int = 12) -> None:
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if normalise else [])]
    modules = [{"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (kind, path) in enumerate(kinds)]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16} | pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": window}))


def test_recipe_of_sentence_transformers(tmp_path):
    assert recipe.read(tmp_path) == recipe.Recipe("mean", True, 0)
    write_recipe(tmp_path, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, normalise=False)
    assert recipe.read(tmp_path) == recipe.Recipe("first", False, 12)
    write_recipe(tmp_path, {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True})
    with pytest.raises(UserError, match="the pooling max and mean is not supported|the pooling mean and max is not supported"):
        recipe.read(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing"):
        recipe.read(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(UserError, match="module Dense is not supported"):
        recipe.read(tmp_path)


def write(folder, **files) -> None:
    """JSON files, "pooling" in the folder of the pooling."""
    names = {"pooling": "1_Pooling/config.json", "normalize": "2_Normalize/config.json", "window": "sentence_bert_config.json"}
    names |= {"prompts": "config_sentence_transformers.json", "tokenizer": "tokenizer_config.json", "modules": "modules.json"}
    for name, content in files.items():
        (folder / names[name]).parent.mkdir(exist_ok=True)
        (folder / names[name]).write_text(json.dumps(content))


TODAY = {
    "modules": [
        {"idx": 0, "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"},
    ],
    "pooling": {"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True},
    "normalize": {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
    "window": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    },
    "prompts": {"model_type": "SentenceTransformer", "prompts": {"query": "query: ", "document": ""},
                "default_prompt_name": "query", "similarity_fn_name": "dot", "__version__": {"transformers": "5"}},
    "tokenizer": {"model_max_length": 8},
}  # fmt: skip


def test_the_files_of_today(tmp_path):
    write(tmp_path, **TODAY)
    prompts = (("query", "query: "), ("document", ""))
    wanted = recipe.Recipe("mean", True, 8, prompts=prompts, prompt="query", similarity="dot")
    assert recipe.read(tmp_path) == wanted and wanted.before() == "query: " and wanted.before("document") == ""
    write(tmp_path, window={"max_seq_length": 32, "do_lower_case": True}, tokenizer={"model_max_length": 10**30})
    assert recipe.read(tmp_path) == wanted._replace(max_length=32, lowercase=True)
    write(tmp_path, window={"max_seq_length": None})
    assert recipe.read(tmp_path).max_length == 0
    for mode, name in {"cls": "first", "lasttoken": "last", "weightedmean": "weighted_mean"}.items():
        write(tmp_path, pooling={"embedding_dimension": 16, "pooling_mode": mode})
        assert recipe.read(tmp_path).pooling == name


@pytest.mark.parametrize(
    "files, says",
    [
        ({"pooling": {"pooling_mode": ["mean", "max"]}}, "the pooling mean and max is not supported; one of cls, mean"),
        ({"pooling": {"pooling_mode": "median"}}, "the pooling median is not supported"),
        ({"pooling": {"pooling_mode": "mean", "temperature": 2}}, "1_Pooling/config.json: temperature is 2, which is not comp"),
        ({"window": {"max_seq_length": "long"}}, "sentence_bert_config.json: max_seq_length is 'long', no number of tokens"),
        ({"window": {"do_lower_case": "yes"}}, "do_lower_case is 'yes', neither true nor false"),
        ({"window": {"transformer_task": "fill-mask"}}, "transformer_task is 'fill-mask'; only 'feature-extraction'"),
        ({"prompts": {"similarity_fn_name": "jaccard"}}, "similarity_fn_name 'jaccard' is not one of cosine, dot"),
        ({"prompts": {"default_prompt_name": "query"}}, "default_prompt_name 'query' is not one of its prompts: none"),
        ({"prompts": {"model_type": "SparseEncoder"}}, "model_type is 'SparseEncoder'; only SentenceTransformer is"),
        ({"normalize": {"module_input_name": "token_embeddings"}}, "module_input_name is 'token_embeddings'; only sentence"),
        ({"modules": TODAY["modules"][::-1]}, "the modules are Normalize, Pooling, Transformer; supported are"),
        ({"modules": [{**TODAY["modules"][0], "path": "0_T"}, TODAY["modules"][1]]}, "the weights are in 0_T"),
        ({"modules": {}}, "modules.json: a JSON list was expected"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused(tmp_path, files, says):
    write(tmp_path, **(TODAY | files))
    with pytest.raises(UserError, match=says):
        recipe.read(tmp_path)


def test_case_and_prompts_change_the_vectors(folder, tmp_path):
    tokenizer = huggingface.load(folder).tokenizer
    upper, lower = (embeddings.Sentences(tokenizer, recipe.Recipe(lowercase=x)) for x in (False, True))
    text = "The Value of ENGLISH"
    assert lower.encode({"text": text})["tokens"].tolist() == upper.encode({"text": text.lower()})["tokens"].tolist()
    assert lower.tokenizer.lowercased().encode(text) == lower.tokenizer.encode(text)
    prompts = (("query", "a name: "), ("document", ""))
    embedder = embeddings.Embedder.of(str(folder), prompts=prompts, prompt="query")
    plain = embeddings.Embedder.of(str(folder))
    wanted = plain(["a name: The value.", "", "The value."])
    np.testing.assert_allclose(embedder(["The value.", ""]), wanted[:2], atol=1e-5)
    np.testing.assert_allclose(embedder(["The value."], "document"), wanted[2:], atol=1e-5)
    assert embedder.named("passage", "document") == "document" and plain.named("query") is None
    with pytest.raises(UserError, match="there is no prompt 'other'; the recipe has query, document"):
        embedder(["x"], "other")


def test_a_vector_without_its_prompt(encoder, folder):
    fields = {"prompts": (("query", "a name: "),), "prompt": "query", "pool_prompt": False, "normalise": False}
    tokenizer = huggingface.load(folder).tokenizer
    hidden, skip = hidden_of(encoder, "a name: The value."), 1 + len(tokenizer.encode("a name: "))
    for pooling, wanted in {"mean": hidden[skip:].mean(axis=0), "first": hidden[skip], "last": hidden[-1]}.items():
        found = embeddings.Embedder.of(str(encoder), pooling=pooling, **fields)(["The value."])[0]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_similarities_of_vectors():
    a, b = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 2.0]])
    assert embeddings.similarities(a, b, "dot").tolist() == [[11, 4, 5], [4, 2, 2]]
    np.testing.assert_allclose(embeddings.similarities(a, b, "euclidean")[0], [-(8**0.5), -1, 0])
    assert embeddings.similarities(a, b, "manhattan")[0].tolist() == [-4, -1, 0]
    np.testing.assert_allclose(embeddings.paired(a, b[:2]), [11 / 5 / 5**0.5, 1])
    assert [i for i, _ in embeddings.nearest(a, b, 3, "dot")[0]] == [0, 2, 1]
    assert [i for i, _ in embeddings.nearest(a, b, 3, "euclidean")[0]] == [2, 1, 0]


RECIPES = [
    recipe.Recipe("mean", True, 12),
    recipe.Recipe("first", False, 40),
    recipe.Recipe("last", True, 0, True, (("query", "q: "),), "query", False, "dot"),
]


@pytest.mark.parametrize("wanted", RECIPES)
def test_what_is_written_is_read_back(tmp_path, wanted):
    recipe.write(tmp_path, wanted, 16)
    assert recipe.read(tmp_path) == wanted


def test_a_text_that_is_too_long_keeps_its_end(folder):
    embedder = embeddings.Embedder.of(str(folder))
    tokenizer = huggingface.load(folder).tokenizer
    tokens = embeddings.Sentences(tokenizer, embedder.recipe).encode({"text": "value " * 999})["tokens"]
    assert len(tokens) == embedder.recipe.max_length and tokens[-1] == tokenizer.eos_id


def test_mistakes(encoder, tmp_path, capfd, monkeypatch):
    fails(embed, capfd, says=["--init_from is missing"])
    fails(embed, capfd, "--init_from=nowhere/at/all", says=["nowhere/at/all"])
    fails(embed, capfd, f"--init_from={encoder}", "--nearest=3", says=["--nearest and --corpus"])
    fails(embed, capfd, f"--init_from={encoder}", "--summary=1", f"--similarity_file={tmp_path}/x", says=["give one"])
    fails(embed, capfd, f"--init_from={encoder}", "--pooling=mid", says=["'mid'", "mean, first"])
    fails(embed, capfd, f"--init_from={encoder}", "--nearest=3", "--corpus=nowhere", says=["--corpus", "nowhere"])
    flags = [f"--init_from={encoder}"]
    out = fails(embed, capfd, *flags, stdin=b"x\n\xff\n", monkeypatch=monkeypatch, says=["line 2 is not UTF-8"])
    assert len(out.splitlines()) == 1


def test_layers_and_words(encoder, capfd, monkeypatch):
    def shown(*flags, stdin=None):
        given = {"stdin": LINES[0].encode() if stdin is None else stdin, "monkeypatch": monkeypatch}
        code, out, err = call(embed, capfd, f"--init_from={encoder}", *flags, **given)
        assert code == 0, err
        return rows(out)

    last, same = shown(), shown("--layers=-1")
    assert np.allclose(last[0]["vector"], same[0]["vector"], atol=1e-6)
    both = np.array(shown("--layers=:", "--nonormalise")[0]["vector"])  # of the embeddings and the one layer
    mean = np.array(shown("--layers=0:", "--combine=mean", "--nonormalise")[0]["vector"])
    hidden = hidden_of(encoder, LINES[0])
    assert len(both) == 2 * hidden.shape[1] and np.allclose(both[hidden.shape[1] :], hidden.mean(axis=0), atol=1e-5)
    assert np.allclose(mean, both.reshape(2, -1).mean(axis=0), atol=1e-5)
    text = "The  value, unboundable"
    found = shown("--words", stdin=f"{text}\n\n".encode())
    assert found[0]["words"] == ["The", "value,", "unboundable"] and found[1] == {"text": "", "words": [], "vectors": []}
    tokenizer, hidden = Experiment(configuration.read(encoder), encoder).tokenizer, hidden_of(encoder, text)
    sizes = [len(tokenizer.encode(word)) for word in found[0]["words"]]
    firsts = 1 + np.cumsum([0, *sizes[:-1]])
    assert max(sizes) > 1 and np.allclose(found[0]["vectors"], hidden[firsts], atol=1e-5)
    means = shown("--words", "--pooling=mean", stdin=text.encode())[0]["vectors"]
    assert np.allclose(means, [hidden[a : a + n].mean(axis=0) for a, n in zip(firsts, sizes, strict=True)], atol=1e-5)
    long = shown("--words", "--layers=0", stdin=b"value " * 700)[0]  # beyond what the model reads: in windows
    assert len(long["vectors"]) == 700 and all(long["vectors"])
    for flags, says in {
        ("--layers=5",): "the model has layers 0 to 1", ("--layers=last",): "give one as -2",
        ("--combine=sum",): "give --layers",
        ("--words", "--summary=2"): "--summary is of sentences",
    }.items():  # fmt: skip
        fails(embed, capfd, f"--init_from={encoder}", *flags, stdin=b"x\n", monkeypatch=monkeypatch, says=[says])


def test_a_translator_is_no_encoder(run, capfd):
    fails(embed, capfd, f"--init_from={run}", says=["holds no encoder"])
    luong = models.build({"name": "luong", "width": 8}, 10)
    with pytest.raises(UserError, match="W holds no encoder"):
        embeddings.Embedder(Loaded(luong, {}, None, None, None, "W"), recipe.Recipe())
