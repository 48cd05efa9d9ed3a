"""Causal language model and instruction tuning: what is predicted from what, which tokens count, bits of a byte, samples."""

import math

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from transformers_jax import tasks
from transformers_jax.data import pipeline
from transformers_jax.data.text.conversations import messages_of
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.errors import UserError
from transformers_jax.models import gpt
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.tasks import causal_lm, distillation, instruction
from transformers_jax.training.metrics import means

TEXTS = ["the cat sat on the mat", "", "é日本 a dog", "the end"]


def config(**keys) -> ConfigDict:
    return ConfigDict(dict(batching="documents", batch_size=2, lengths={"tokens": 16}, prefetch=0) | keys)


ROWS = config()


@pytest.fixture(scope="module")
def tokenizer():
    return learn("byte_bpe", TEXTS, 280)


def random_output(tokenizer, batch) -> LanguageModelOutput:
    """Hidden states and a table drawn at random."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal([*batch["tokens"].shape, 8]).astype(np.float32)
    return LanguageModelOutput(hidden, rng.standard_normal([tokenizer.vocab_size, 8]).astype(np.float32))


def test_each_token_is_predicted_from_the_one_before(tokenizer):
    task = tasks.build({"name": "causal_lm"}, tokenizer)
    fields = task.encode({"text": TEXTS[0]})
    ids = tokenizer.encode(TEXTS[0])
    assert fields["tokens"].tolist() == [tokenizer.bos_id, *ids] and fields["targets"].tolist() == [*ids, tokenizer.eos_id]
    assert fields["weights"].all() and task.model_fields() == {"head": "causal_lm"}
    assert task.main_metric == "loss" and not task.bigger_is_better
    with pytest.raises(UserError, match="has a text, and this one first, second"):
        task.document({"first": "", "second": ""})


def test_scores_are_those_of_whole_logits(tokenizer):
    task, source = causal_lm.Task(tokenizer), [{"text": text} for text in TEXTS]
    sums: dict[str, float] = {}
    nll, correct, count = 0.0, 0, 0
    for batch in pipeline.eval_batches(source, task, ROWS):
        output = random_output(tokenizer, batch)
        loss, weight, more = jax.jit(lambda o, b: task.loss(o, b, train=False))(output, batch)
        for name, value in {"loss": loss, "weight": weight, **more}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        logits = np.asarray(output.hidden @ output.table.T, np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = batch["weights"] > 0
        nll -= np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0][at].sum()
        correct += (logits.argmax(-1) == batch["targets"])[at].sum()
        count += at.sum()
    scores = means(sums)
    assert count == sum(len(tokenizer.encode(text)) + 1 for text in TEXTS) == sums["weight"]
    assert set(scores) == {"loss", "perplexity", "accuracy", "bits_per_byte"}
    assert scores["loss"] == pytest.approx(nll / count, rel=1e-5) and scores["accuracy"] == pytest.approx(correct / count)
    assert scores["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(nll / math.log(2) / sum(len(text.encode()) for text in TEXTS), rel=1e-5)


def test_bits_of_a_byte_by_context(tokenizer):
    """By how many tokens stand in front; together they are those of all."""
    task, source = causal_lm.Task(tokenizer), [{"text": TEXTS[0] * 3}, {"text": TEXTS[2]}]
    (batch,) = pipeline.eval_batches(source, task, config(lengths={"tokens": 80}))
    output = random_output(tokenizer, batch)
    totals = jax.tree.map(np.asarray, jax.jit(task.sums)(output, batch))
    loss, _, more = task.loss(output, batch, train=False)
    assert totals["bits"].sum() == pytest.approx(float(loss) / math.log(2), rel=1e-5)
    assert totals["bytes"].sum() == more["bits_per_weight"]
    scores = task.score_sums(totals)
    longest = len(tokenizer.encode(source[0]["text"]))
    assert list(scores) == [f"bits_per_byte_after_{n}" for n in causal_lm.CONTEXTS if n < longest]
    logits = output.hidden @ output.table.T
    nll = jax.nn.logsumexp(logits, axis=-1) - np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    at = (batch["weights"] > 0) & (batch["positions"] >= 16) & (batch["positions"] < 32)
    size = sum(tokenizer.byte_lengths()[target] for target in batch["targets"][at])
    assert scores["bits_per_byte_after_16"] == pytest.approx(float(nll[at].sum()) / math.log(2) / size, rel=1e-4)


def test_a_token_sees_nothing_of_other_documents(tokenizer):
    """Each document's share of a packed batch has the loss that it has alone."""
    task = causal_lm.Task(tokenizer)
    sizes = dict(width=16, num_heads=2, mlp_width=32, layers=1, max_length=16)
    model = gpt.Model(gpt.Config(tokenizer.vocab_size, dropout=0.0, **sizes))
    source = [{"text": text} for text in TEXTS]
    (together,) = pipeline.eval_batches(source, task, config(batch_size=4))
    params = model.init(jax.random.key(0), together)["params"]

    def loss(batch):
        return float(task.loss(model.apply({"params": params}, batch), batch, train=False)[0])

    alone = [loss(batch) for example in source for batch in pipeline.eval_batches([example], task, config(batch_size=4))]
    assert loss(together) == pytest.approx(sum(alone), rel=1e-5)


def test_samples_go_on_from_the_beginnings(tokenizer):
    task, source = causal_lm.Task(tokenizer), [{"text": "the cat sat on the mat " * 9}] * 5
    found = task.continuations(source, lambda prompts: [prompt[1:5] for prompt in prompts])
    ids = tokenizer.encode(source[0]["text"])
    assert len(found) == causal_lm.SAMPLES and found[0] == {
        "prompt": tokenizer.decode(ids[: causal_lm.PROMPT]),
        "continuation": tokenizer.decode(ids[:4]),
        "reference": tokenizer.decode(ids[causal_lm.PROMPT : causal_lm.PROMPT + 4]),
    }


def test_a_student_learns_from_a_teacher(tokenizer):
    """With itself as a teacher, the loss is that of the tokens."""
    task = distillation.Task(tokenizer, teacher="given", of="causal_lm", soft=5.0, hard=2.0, cosine=1.0)
    batch = next(iter(pipeline.eval_batches([{"text": text} for text in TEXTS], task, ROWS)))
    output = random_output(tokenizer, batch)
    plain, weight, _ = causal_lm.Task(tokenizer).loss(output, batch, train=True)
    found = distillation.Distilled(output, output, output.hidden, output.hidden)
    loss, same, sums = task.loss(found, batch, train=True)
    assert float(weight) == float(same) and float(loss) == pytest.approx(2 * float(plain), rel=1e-4)
    assert float(sums["soft"]) == pytest.approx(0, abs=1e-3) and "cosine_distance" in sums


def test_answers_alone_carry_loss(tokenizer):
    task = tasks.build({"name": "instruction"}, tokenizer)
    example = {"instruction": "the cat", "input": "the mat", "output": "the end"}
    fields = task.encode(example)
    text = task.template.render(messages_of(example, alpaca=True))
    ids = tokenizer.encode_marked(text)[0]
    assert fields["tokens"].tolist() == ids[:-1] and fields["targets"].tolist() == ids[1:]
    answer = [*tokenizer.encode("the end"), tokenizer.eos_id]
    assert fields["targets"][fields["weights"] > 0].tolist() == answer and fields["targets"][-1] == tokenizer.eos_id
    with pytest.raises(UserError, match="config.data.batching=documents: examples of config.task.name=instruction are not cut"):
        task.document(example)


def test_conversations_share_rows(tokenizer):
    task, source = instruction.Task(tokenizer), [{"prompt": "the cat", "response": str(i)} for i in range(8)]
    size = len(task.encode(source[0])["tokens"])
    packed = ConfigDict(dict(batching="packing", batch_size=2, lengths={"tokens": 2 * size}, prefetch=0))
    batch = next(pipeline.train_iterator(source, task, packed, seed=0))
    assert batch["segments"].max() == 2 and (batch["weights"].sum(axis=1) == 4).all()  # a digit and the end, twice


def test_samples_of_conversations_are_last_answers(tokenizer):
    task, source = instruction.Task(tokenizer), [{"prompt": "the cat", "response": "the end"}]
    (found,) = task.continuations(source, lambda prompts: [prompt[-2:] for prompt in prompts])
    assert found["prompt"].endswith("the cat\n\n### Response:\n") and found["reference"] == "the end"
    assert found["continuation"] == ":\n"


def test_a_template_file(tokenizer, tmp_path):
    raising = "{% for m in messages %}{{ m.role }}{{ raise_exception('no') if m.role == 'x' }}{% endfor %}"
    (tmp_path / "mine.jinja").write_text(raising)
    task = instruction.Task(tokenizer, template=str(tmp_path / "mine.jinja"))
    with pytest.raises(UserError, match="^a.jsonl, line 7: .*mine.jinja: no$"):
        task.encode({"messages": [{"role": "x", "content": ""}], "where": "a.jsonl, line 7"})
    with pytest.raises(UserError, match="config.task.template: no file"):
        instruction.Task(tokenizer, template="nowhere")
