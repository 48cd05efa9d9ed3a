"""What a folder of `transformers` says about its task: labels, lengths, how images are prepared and texts become vectors."""

import json

import jax
import numpy as np
import pytest

from transformers_jax import config as configuration
from transformers_jax import models
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.errors import UserError
from transformers_jax.interchange import huggingface, mapping, recipe
from transformers_jax.layers.pooling import Recipe
from transformers_jax.layers.resize import resize
from transformers_jax.runs import adoption, foreign_task

SIZES = dict(width=8, num_heads=2, mlp_width=16, layers=1, max_length=48)
SEGFORMER = dict(
    name="segformer", widths=(4, 6), depths=(1, 1), num_heads=(1, 2), reductions=(2, 1), mlp_ratios=(2, 2), patch_sizes=(7, 3),
    strides=(4, 2), decoder_width=6, head="segmentation", labels=3,
)  # fmt: skip


def save(folder, fields: dict, tokenizer=None, **more):
    """A folder of random parameters; its module."""
    rng, model = np.random.default_rng(0), models.build(fields, fields.get("vocab_size", 0))
    shapes = mapping.shapes(model)
    found = mapping.variables((name, rng.random(shape).astype(np.float32)) for name, shape in shapes.items())
    params = found.pop("params")
    huggingface.save(folder, fields | {"vocab_size": fields.get("vocab_size", 0)}, params, tokenizer, model_state=found, **more)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return learn("wordpiece", ["the man walks near the river", "anna reads"] * 3, 60, lowercase=True)


def encoder(folder, tokenizer, head: str, **more):
    fields = dict(name="bert", head=head, vocab_size=tokenizer.vocab_size, **SIZES)
    return save(folder, fields | ({"labels": len(more["labels"])} if "labels" in more else {}), tokenizer, **more)


@pytest.mark.parametrize(
    "head, labels, name",
    [
        ("sequence", ("neg", "pos"), "sequence_classification"), ("tagging", ("O", "B-PER"), "tagging"),
        ("span", (), "span_qa"), ("multiple_choice", (), "multiple_choice"),
    ],
)  # fmt: skip
def test_heads_have_tasks_as_long_as_the_model_reads(tokenizer, tmp_path, head, labels, name):
    about = encoder(tmp_path, tokenizer, head, **({"labels": labels} if labels else {})).protocol()
    task = foreign_task.of_folder(tmp_path, about, tokenizer)
    assert task.name == name and task.label_names == labels
    if head == "span":
        assert task.max_length == 48 and task.max_question + task.stride < 48
        example = {"question": "who walks " * 30, "context": "the man walks near the river " * 9}
        assert all(len(task.encode(window)["tokens"]) <= 48 for window in task.examples([example]))
    elif head != "tagging":
        assert task.max_length == 48


@pytest.mark.parametrize("head", ["none", "masked_lm", "pretraining", "next_sentence"])
def test_heads_that_say_no_task(tokenizer, tmp_path, head):
    assert foreign_task.of_folder(tmp_path, encoder(tmp_path, tokenizer, head).protocol(), tokenizer) is None


def test_numbers_and_several_labels(tokenizer, tmp_path):
    about = encoder(tmp_path, tokenizer, "sequence", labels=("score",)).protocol()
    assert foreign_task.of_folder(tmp_path, about, tokenizer).labels is None
    about = encoder(tmp_path, tokenizer, "sequence", labels=("a", "b")).protocol()
    for kind in "multi_label_classification", "regression":
        said = json.loads((tmp_path / "config.json").read_text()) | {"problem_type": kind}
        (tmp_path / "config.json").write_text(json.dumps(said))
        with pytest.raises(UserError, match=f"problem_type {kind} of 2 labels is not supported"):
            foreign_task.of_folder(tmp_path, about, tokenizer)


def test_a_segmenter_sees_all_of_an_image_where_its_folder_says_so(tmp_path):
    model = save(tmp_path, SEGFORMER, labels=("sky", "road", "car"))
    said = {"image_processor_type": "SegformerImageProcessor", "size": {"height": 32, "width": 48}, "do_reduce_labels": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    task = foreign_task.of_folder(tmp_path, model.protocol(), None)
    assert (task.first, task.void, task.labels.names) == (1, 0, ("sky", "road", "car"))
    asked, _ = task.answering(model, top=5)
    image = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    source = [{"image": image}]
    fields = asked.unaugmented(asked.encode(asked.examples(source)[0]))
    assert fields["image"].shape == (32, 48, 3) and fields["mask"].shape == (32, 48)
    logits = np.random.default_rng(1).standard_normal((1, 8, 12, 3)).astype(np.float32)
    (classes,) = asked._classes(source, {"logits": logits})
    wanted = resize(jax.numpy.asarray(logits), (20, 50), "bilinear")[0].argmax(-1)
    assert classes.dtype == np.uint8 and np.array_equal(classes, wanted)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said | {"size": {"shortest_edge": 32}}))
    with pytest.raises(UserError, match="images are squeezed into one size"):
        foreign_task.of_folder(tmp_path, model.protocol(), None)
    (tmp_path / "preprocessor_config.json").unlink()
    assert not foreign_task.of_folder(tmp_path, model.protocol(), None)._squeezed  # windows over images in their own size


def test_finetuning_goes_on_with_a_sentence_folders_recipe(tokenizer, tmp_path):
    encoder(tmp_path, tokenizer, "none")
    config = configuration.load("configs/sentence_bert.py:sts")
    plain = adoption.adopted(config, str(tmp_path))
    assert plain.task.max_length == config.task.max_length and plain.task.pooling == "mean"
    given = Recipe("first", False, 12, True, (("query", "q: "),), "query", True, "dot")
    recipe.write(tmp_path, given, 8)
    found = adoption.adopted(config, str(tmp_path))
    keys = ("pooling", "normalise", "max_length", "lowercase", "prompts", "prompt", "similarity")
    assert tuple(found.task[key] for key in keys) == ("first", False, 12, True, ("query=q: ",), "query", "dot")
    assert found.data.lengths.tokens == 12
    config.task.update(pooling="max", max_length=20)
    config.data.lengths.tokens = 20
    own = adoption.adopted(config, str(tmp_path), {"task.pooling": "max", "task.max_length": 20, "data.lengths.tokens": 20})
    assert (own.task.pooling, own.task.max_length, own.data.lengths.tokens, own.task.normalise) == ("max", 20, 20, False)
    (tmp_path / "w").mkdir()
    configuration.save(found, tmp_path / "w")
    assert foreign_task.recipe_of(tmp_path / "w")["prompts"] == ("query=q: ",)  # of a workdir its own
    classes = configuration.load("configs/bert.py:sentences")
    assert adoption.adopted(classes, str(tmp_path)).task.max_length == classes.task.max_length
