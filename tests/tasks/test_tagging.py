"""Tags for words: tokens, windows, entities as conlleval counts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from real_data import shared_data
from small import Scorer, batch_of, tokenizer

from transformers_jax import batch as contract
from transformers_jax.data.sources import open_source
from transformers_jax.data.text.tokenizer import learn_bpe
from transformers_jax.errors import UserError
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import entities
from transformers_jax.tasks.parts.windows import windows
from transformers_jax.tasks.tagging import Task

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
EXAMPLES = [
    {"words": ["The", "queen", "Elizabeth", "of", "England", "!"], "tags": ["O", "B-PER", "I-PER", "O", "B-LOC", "O"]},
    {"words": ["Paris"], "tags": ["B-LOC"]},
]


def predictions(task, examples, length: int, right=lambda example, word: True) -> dict:
    """What `predict` gives if each word that `right` picks has its tag, and the others that behind it."""
    found = []
    for window in task.examples(examples):
        logits = np.zeros([length, len(task.labels)])
        own = range(window["window"].own_start, window["window"].own_end)
        for place, word in zip(task._places(window), own, strict=True):
            number = task.labels.number(examples[window["example"]]["tags"][word])
            logits[place, number if right(window["example"], word) else (number + 1) % len(task.labels)] = 3
        found.append(logits)
    return {k: np.asarray(v) for k, v in task.predict(LabelOutput(jnp.asarray(found)), {}).items()}


class TestWindows:
    def test_every_item_belongs_to_one_window_and_has_context_there(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            sizes = rng.integers(1, 6, rng.integers(1, 40)).tolist()
            found = windows(sizes, 12, 4)
            assert [i for w in found for i in range(w.own_start, w.own_end)] == list(range(len(sizes)))
            for w in found:
                assert w.start <= w.own_start < w.own_end <= w.end and sum(sizes[w.start : w.end]) <= 12

    def test_overlaps_are_shared_evenly(self):
        assert windows([1] * 10, 6, 4) == [(0, 6, 0, 4), (2, 8, 4, 6), (4, 10, 6, 10)]
        assert windows([1] * 5, 6, 4) == [(0, 5, 0, 5)] and windows([], 6, 4) == [(0, 0, 0, 0)]
        assert windows([9, 1, 1], 6, 4)[0] == (0, 1, 0, 1)
        with pytest.raises(UserError, match="max_length leaves no room"):
            windows([1], 0, 0)


class TestEncoding:
    @pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "unigram"])
    def test_tags_stand_at_first_tokens(self, kind):
        t = tokenizer(kind)
        task = Task(t, labels=LABELS)
        batch = contract.check(batch_of(task, task.examples(EXAMPLES), length=64, rows=3))
        first = batch["weights"][0] > 0
        assert batch["targets"][0][first].tolist() == [0, 1, 2, 0, 3, 0] and batch["weights"].sum() == 7
        assert batch["row_weights"].tolist() == [1, 1, 0]
        tokens = [t.encode((" " if kind == "byte_bpe" else "") + word) for word in EXAMPLES[0]["words"]]
        assert any(len(word) > 1 for word in tokens)
        starts = np.cumsum([1, *map(len, tokens)])[:-1]
        assert np.flatnonzero(first).tolist() == starts.tolist()
        assert batch["tokens"][0][starts].tolist() == [word[0] for word in tokens]

    def test_our_own_vocabulary_too(self):
        task = Task(learn_bpe(["The queen of England !"] * 3, merges=20), labels=LABELS)
        assert task.encode(task.examples(EXAMPLES)[0])["weights"].sum() == 6

    def test_a_word_without_tokens_has_a_tag_all_the_same(self):
        examples = [{"words": ["a", "\u200b", "b"], "tags": ["O", "B-PER", "O"]}]
        task = Task(tokenizer(), labels=LABELS)
        fields = task.encode(task.examples(examples)[0])
        assert fields["tokens"][fields["weights"] > 0].tolist()[1] == tokenizer().unk_id
        assert task.answers(examples, predictions(task, examples, 16))[0]["prediction"] == ["O", "B-PER", "O"]

    def test_words_beyond_the_window_have_a_tag(self):
        rng = np.random.default_rng(0)
        words = rng.choice(EXAMPLES[0]["words"], 300).tolist()
        examples = [{"words": words, "tags": rng.choice(LABELS, 300).tolist()}, *EXAMPLES]
        task = Task(tokenizer(), labels=LABELS, max_length=32)
        found = task.examples(examples)
        assert len(found) > 20 and all(len(task.encode(window)["tokens"]) <= 32 for window in found)
        assert sum(task.encode(window)["weights"].sum() for window in found) == 307
        answers = task.answers(examples, predictions(task, examples, 32))
        assert [answer["prediction"] for answer in answers] == [example["tags"] for example in examples]
        assert all(len(answer["probabilities"]) == len(answer["prediction"]) for answer in answers)

    def test_an_unknown_tag_is_named_with_its_place(self, tmp_path):
        (tmp_path / "x.conll").write_text("a O\n\nb B-ORG\n")
        source = open_source(ConfigDict(dict(source="conll", train=str(tmp_path / "x.conll"))), "train")
        with pytest.raises(UserError, match="x.conll, line 3: the label 'B-ORG' is not one of config.task.labels: O, B-PER"):
            Task(tokenizer(), labels=LABELS).examples(source)


def test_loss_counts_words():
    task = Task(tokenizer(), labels=LABELS)
    batch = batch_of(task, task.examples(EXAMPLES), length=64, rows=3)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=[3, 64, 5]))
    loss, weight, sums = task.loss(LabelOutput(logits), batch, train=True)
    rows, columns = np.nonzero(batch["weights"])
    truth = batch["targets"][rows, columns]
    wanted = -np.asarray(jax.nn.log_softmax(logits))[rows, columns, truth].sum()
    assert float(loss) == pytest.approx(wanted, rel=1e-5) and float(weight) == 7
    assert float(sums["correct"]) == (np.asarray(logits).argmax(-1)[rows, columns] == truth).sum()


def test_scores_and_samples():
    task = Task(tokenizer(), labels=LABELS)
    found = predictions(task, EXAMPLES, 64, right=lambda example, word: (example, word) != (0, 2))
    scores, samples = task.evaluate(Scorer(EXAMPLES, found), "test", {"params": {}, "model_state": {}})
    assert samples[0]["prediction"] == ["O", "B-PER", "B-LOC", "O", "B-LOC", "O"]  # Elizabeth is missed
    assert scores["precision"] == 0.5 and scores["recall"] == pytest.approx(2 / 3) and scores["f1"] == pytest.approx(4 / 7)
    assert scores["tag_accuracy"] == pytest.approx(6 / 7) and scores["f1_PER"] == 0 and scores["entities"] == 3
    assert task.score([{"words": ["x"]}], {k: v[:1] for k, v in found.items()}) == {}
    assert task.model_fields() == {"head": "tagging", "labels": 5}
    assert task.of_line(["a \u00a0  b", "c"]) == {"words": ["a", "\u00a0", "b", "c"]}


class TestEntities:
    @pytest.mark.parametrize(
        "tags, wanted",
        [
            ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
            ("I-PER I-PER O I-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),  # IO
            ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
            ("I-PER B-PER I-PER", {(0, 1, "PER"), (1, 3, "PER")}),
            ("I-PER I-LOC B-LOC", {(0, 1, "PER"), (1, 2, "LOC"), (2, 3, "LOC")}),
            ("O O", set()),
            ("B-creative-work I-creative-work", {(0, 2, "creative-work")}),
            ("B I O I", {(0, 2, "entity"), (3, 4, "entity")}),
            ("NOUN VERB VERB O", {(0, 1, "NOUN"), (1, 3, "VERB")}),
            ("PRON-poss PRON-pers", {(0, 1, "PRON-poss"), (1, 2, "PRON-pers")}),
            ("I-PER B-PER O I-LOC", {(0, 1, "PER"), (1, 2, "PER"), (3, 4, "LOC")}),  # IOB1
            ("S-PER S-PER B-LOC I-LOC E-LOC", {(0, 1, "PER"), (1, 2, "PER"), (2, 5, "LOC")}),  # BIOES
            ("U-PER U-PER B-LOC I-LOC L-LOC", {(0, 1, "PER"), (1, 2, "PER"), (2, 5, "LOC")}),  # BILOU
            ("B-PER E-PER B-PER E-PER", {(0, 2, "PER"), (2, 4, "PER")}),
            ("B-PER L-PER I-PER", {(0, 2, "PER"), (2, 3, "PER")}),
            ("E-PER E-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ],
    )
    def test_spans(self, tags, wanted):
        assert entities.spans(tags.split()) == wanted

    def test_a_case_worked_out_by_hand(self):
        truth = ["B-PER I-PER O B-LOC O".split(), "B-LOC I-LOC".split()]
        found = ["B-PER I-PER O B-PER O".split(), "I-LOC I-LOC".split()]
        scores = entities.score(truth, found)  # right: PER (0, 2), LOC (0, 2); found three, there are three
        assert scores["precision"] == scores["recall"] == scores["f1"] == pytest.approx(2 / 3)
        assert scores["f1_LOC"] == pytest.approx(2 / 3) and scores["f1_PER"] == pytest.approx(2 / 3)
        assert scores["tag_accuracy"] == pytest.approx(5 / 7)
        assert entities.score([["O"]], [["O"]])["f1"] == 0

    @pytest.mark.parametrize(
        "truth, found",
        [
            ("S-PER S-PER O B-LOC E-LOC", "S-PER S-PER O S-LOC S-LOC"),
            ("U-PER U-PER O B-LOC L-LOC", "U-PER U-PER O U-LOC U-LOC"),
            ("B-PER B-PER O B-LOC I-LOC", "B-PER B-PER O B-LOC B-LOC"),
            ("I-PER B-PER O I-LOC I-LOC", "I-PER B-PER O I-LOC B-LOC"),
        ],
    )
    def test_schemes_count_the_same_entities(self, truth, found):
        scores = entities.score([truth.split()], [found.split()])  # of three entities two are right, of four found
        assert scores["entities"] == 3 and scores["recall"] == pytest.approx(2 / 3) and scores["precision"] == 0.5
        assert scores["f1"] == pytest.approx(4 / 7) and scores["f1_PER"] == 1 and scores["f1_LOC"] == 0

    def test_two_neighbours_are_not_one(self):
        for alone in "SU":
            scores = entities.score([f"{alone}-PER {alone}-PER".split()], [f"{alone}-PER O".split()])
            assert scores["f1"] == pytest.approx(2 / 3) and scores["precision"] == 1 and scores["recall"] == 0.5

    def test_marks_without_a_type(self):
        assert entities.score(["B E S".split()], ["B E S".split()])["entities"] == 2
        assert entities.score(["S S".split()], ["S O".split()])["f1_S"] == 0  # a tag by itself: one run of two words


@pytest.mark.parametrize("name, scheme", [("wnut17_dev", "BIO"), ("wikigold", "IO")])
def test_real_sentences(name, scheme):
    source = open_source(ConfigDict(dict(source="conll", train=str(shared_data(f"ner/{name}.conll")))), "train")
    labels = sorted({tag for example in source.examples for tag in example["tags"]})
    assert any(tag.startswith("B-") for tag in labels) == (scheme == "BIO")
    task, examples = Task(tokenizer("unigram"), labels=labels, max_length=64), source.examples[:150]
    assert len(task.examples(examples)) > 150
    found = predictions(task, examples, 64)
    assert [a["prediction"] for a in task.answers(examples, found)] == [e["tags"] for e in examples]
    scores = task.score(examples, found)
    assert scores["f1"] == scores["tag_accuracy"] == 1 and scores["entities"] > 50
