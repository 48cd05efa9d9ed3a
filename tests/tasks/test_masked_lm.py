"""Masked language model: what is masked, how it differs between epochs, and the loss of only what is masked."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small import TEXT, Scorer, batch_of, tokenizer

from transformers_jax import batch as contract
from transformers_jax.data.pipeline import train_iterator
from transformers_jax.data.text.tokenizer import learn_bpe
from transformers_jax.errors import UserError
from transformers_jax.outputs import LabelOutput, LanguageModelOutput, PretrainingOutput
from transformers_jax.tasks.masked_lm import FillMask, Task
from transformers_jax.tasks.parts.masking import Masking

LINES = [{"text": line} for line in TEXT]


def restored(fields: dict) -> np.ndarray:
    return np.where(fields["weights"], fields["targets"], fields["tokens"])


class TestMasking:
    def draws(self, count=400, **keys):
        masking = Masking(tokenizer(), **keys)
        tokens = np.asarray(tokenizer().encode(" ".join(TEXT)), np.int32)
        words = np.asarray(tokenizer().encode_with_words(" ".join(TEXT))[1])
        rng = np.random.default_rng(0)
        return tokens, words, [masking(tokens, words, rng) for _ in range(count)]

    def test_fifteen_percent_in_the_proportions_of_the_paper(self):
        tokens, _, draws = self.draws()
        chosen = np.stack([d["weights"] for d in draws]) > 0
        read = np.stack([d["tokens"] for d in draws])
        assert chosen.mean() == pytest.approx(0.15, abs=0.001)
        assert chosen.mean(axis=0).min() > 0.08  # every token has its chance
        assert (read[chosen] == tokenizer().mask_id).mean() == pytest.approx(0.8, abs=0.01)
        stayed = (read == tokens)[chosen].mean()
        assert stayed == pytest.approx(0.1, abs=0.01)
        assert np.array_equal(read[~chosen], np.broadcast_to(tokens, read.shape)[~chosen])
        assert all(np.array_equal(restored(d), tokens) for d in draws)

    def test_random_tokens_are_no_special_ones(self):
        _, _, draws = self.draws()
        read = np.concatenate([d["tokens"] for d in draws])
        special = {tokenizer().pad_id, tokenizer().bos_id, tokenizer().eos_id, tokenizer().unk_id}
        assert special.isdisjoint(read.tolist()) and len(set(read.tolist())) > 80

    def test_whole_words(self):
        tokens, words, draws = self.draws(whole_words=True)
        assert len(set(words.tolist())) < len(words)  # some words have several tokens
        for draw in draws[:50]:
            by_word = [set(draw["weights"][words == word].tolist()) for word in np.unique(words)]
            assert all(len(found) == 1 for found in by_word)
        assert np.mean([d["weights"].mean() for d in draws]) == pytest.approx(0.15, abs=0.01)
        _, _, tokens = self.draws(20)
        assert any(len(set(d["weights"][words == word].tolist())) > 1 for d in tokens for word in np.unique(words))

    def test_a_short_text_has_one_gap_and_an_empty_one_none(self):
        masking, rng = Masking(tokenizer()), np.random.default_rng(0)
        assert masking(np.array([9, 10], np.int32), np.array([0, 1]), rng)["weights"].sum() == 1
        assert masking(np.array([2, 3], np.int32), np.array([-1, -1]), rng)["weights"].sum() == 0

    def test_what_cannot_be_is_said(self):
        with pytest.raises(UserError, match="the vocabulary has no mask token"):
            Masking(learn_bpe(TEXT, merges=5))
        with pytest.raises(UserError, match="config.task.mask_rate=1.5"):
            Masking(tokenizer(), mask_rate=1.5)


class TestEncoding:
    def test_beginning_and_end_are_never_masked(self):
        task = Task(tokenizer())
        for example in LINES:
            fields = task.encode(example)
            assert restored(fields).tolist() == tokenizer().joined(tokenizer().encode(example["text"])).ids
            assert fields["weights"][[0, -1]].tolist() == [0, 0] and fields["weights"].any()
            assert all(np.array_equal(fields[k], task.encode(example)[k]) for k in fields)

    def test_long_texts_are_cut_and_trained_on_in_parts(self):
        task, rng = Task(tokenizer(), max_length=10), np.random.default_rng(0)
        fields, whole = task.encode(LINES[0]), tokenizer().encode(LINES[0]["text"])
        assert restored(fields).tolist() == tokenizer().joined(whole[:8]).ids
        parts = {tuple(restored(task.augment(fields, rng)).tolist()) for _ in range(200)}
        assert parts == {tuple(tokenizer().joined(whole[i : i + 8]).ids) for i in range(len(whole) - 7)}
        assert "whole" not in Task(tokenizer()).encode(LINES[0])

    @pytest.mark.parametrize("masking", ["static", "dynamic"])
    def test_only_dynamic_masks_differ_between_epochs(self, masking):
        keys = ConfigDict(dict(batching="packing", batch_size=1, lengths={"tokens": 64}, window=4, cache=True))
        task = Task(tokenizer(), masking=masking)
        batches = list(itertools.islice(train_iterator(LINES[:1], task, keys, seed=0), 8))
        masks = {batch["weights"].tobytes() for batch in batches}
        assert len(masks) == (1 if masking == "static" else 8)
        assert len({restored(batch).tobytes() for batch in batches}) == 1

    def test_packed_batches_keep_the_contract(self):
        batch = contract.check(batch_of(Task(tokenizer()), LINES, length=128, rows=4, batching="packing"))
        assert batch["segments"].max() > 1 and not batch["weights"][batch["segments"] == 0].any()

    def test_an_unknown_masking_is_named(self):
        with pytest.raises(UserError, match="config.task.masking='random' is not one of dynamic, static"):
            Task(tokenizer(), masking="random")


class TestLoss:
    def test_only_masked_positions_count_wherever_the_hidden_states_are(self):
        task = Task(tokenizer(), masking="static")
        batch = batch_of(task, LINES, length=48)
        rng = np.random.default_rng(0)
        hidden, table = rng.normal(size=[4, 48, 8]), rng.normal(size=[tokenizer().vocab_size, 8])
        bias = rng.normal(size=tokenizer().vocab_size)
        logits = hidden @ table.T + bias
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        rows, columns = np.nonzero(batch["weights"])
        truth = batch["targets"][rows, columns]
        wanted = -log_probabilities[rows, columns, truth].sum()

        whole = task.loss(LanguageModelOutput(*map(jnp.asarray, (hidden, table, bias))), batch, train=True)
        most = int(batch["weights"].sum(axis=1).max()) + 2
        order = np.argsort(-batch["weights"], axis=1, kind="stable")[:, :most]
        some = np.take_along_axis(hidden, order[..., None], axis=1)
        masked = task.loss(LanguageModelOutput(*map(jnp.asarray, (some, table, bias))), batch, train=True)
        for loss, weight, sums in (whole, masked):
            assert float(loss) == pytest.approx(wanted, rel=1e-5) and float(weight) == len(rows)
            assert float(sums["correct"]) == (logits.argmax(-1)[rows, columns] == truth).sum()

    def test_it_is_evaluated_by_its_loss_alone(self):
        task = Task(tokenizer())
        scorer = Scorer((), {})
        assert task.evaluate(scorer, "test", {}) == ({"loss": 0.5}, []) and task.validate(scorer, {}) == {"loss": 0.5}
        assert task.main_metric == "loss" and not task.bigger_is_better
        assert task.model_fields() == {"head": "masked_lm"}


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "unigram"])
def test_gaps_are_written_out(kind):
    t = tokenizer(kind)
    task, text = FillMask(t), "it was the [MASK] of times, it was the <mask>."
    (example,) = task.examples([{"text": text}])
    fields = task.encode(example)
    gaps = np.flatnonzero(fields["targets"])
    assert fields["tokens"][gaps].tolist() == [t.mask_id] * 2 and len(gaps) == 2
    whole = t.joined(t.encode("it was the best of times, it was the age.")).ids
    word = len(t.encode(" best"))
    assert fields["tokens"][: gaps[0]].tolist() == whole[: gaps[0]]
    assert fields["tokens"][gaps[0] + 1 : gaps[1]].tolist() == whole[gaps[0] + word :][: gaps[1] - gaps[0] - 1]
    with pytest.raises(UserError, match="nothing to fill in"):
        task.encode(task.examples([{"text": "it was the best of times"}])[0])


def test_a_text_of_many_gaps_has_several_rows_and_each_gap_its_words():
    t = tokenizer()
    task, texts = FillMask(t, top=2), [{"text": "the " + "[MASK] " * 9}, {"text": "a [MASK]"}]
    rows = task.examples(texts)
    assert [row["example"] for row in rows] == [0, 0, 0, 1]
    fields = [task.encode(row) for row in rows]
    assert [int(f["targets"].sum()) for f in fields] == [4, 4, 1, 1]
    assert np.array_equal(sum(f["targets"] for f in fields[:3]), fields[0]["tokens"] == t.mask_id)
    batch = batch_of(task, rows, length=32)
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=[4, 32, 8]).astype(np.float32), rng.normal(size=[t.vocab_size, 8]).astype(np.float32)
    hidden[1:3] = hidden[0]  # the same text
    for output in LanguageModelOutput(hidden, table), PretrainingOutput(LanguageModelOutput(hidden, table), None):
        found = task.answers(texts, {k: np.asarray(v) for k, v in task.predict(output, batch).items()})
        assert [len(answer["gaps"]) for answer in found] == [9, 1] and all(len(gap) == 2 for gap in found[0]["gaps"])
        logits = hidden[0][fields[0]["tokens"].tolist().index(t.mask_id) + 6] @ table.T
        best = float((np.exp(logits) / np.exp(logits).sum()).max())
        assert found[0]["gaps"][6][0]["probability"] == pytest.approx(best, abs=1e-4)
    with pytest.raises(UserError, match="this model fills no gaps: it gives no tokens but LabelOutput"):
        task.predict(LabelOutput(hidden), batch)
