"""Decoding after prompts, with tiny decoders that are built as the models' own tests build them."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transformers_jax import models
from transformers_jax.decoding import requests
from transformers_jax.decoding.prompts import PromptDecoder
from transformers_jax.decoding.sampling import Sampling, penalised
from transformers_jax.errors import UserError

VOCAB, END, LONGEST = 23, 2, 32
PROMPTS = [[5, 7, 9, 11, 4], [3], [8, 8, 8], [6, 12, 19, 4, 7, 3, 20, 21, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17], [9, 3]]
FIELDS = {"width": 16, "num_heads": 4, "mlp_width": 32, "layers": 2, "max_length": LONGEST, "tie_embeddings": False}
KINDS = {
    "gpt": {"name": "gpt"},
    "llama": {"name": "llama", "kv_heads": 2, "window": 6, "scan_layers": True},
}


@functools.cache
def built(kind="gpt"):
    """(model, params) whose outputs vary."""
    model = models.build(FIELDS | KINDS[kind], VOCAB)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), model.protocol().example()))["params"]
    random = np.random.default_rng(4)
    return model, jax.tree.map(lambda x: random.normal(0.0, 0.7, x.shape).astype(np.float32), nn.unbox(shapes))


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
    output = model.apply({"params": params}, batch)
    return output.hidden @ output.table.T


def log_probabilities(ids, kind="gpt"):
    """Of every next token, [len(ids), V], by one full pass."""
    return np.asarray(jax.nn.log_softmax(logits_of(ids, kind)))


def logits_of(ids, kind="gpt"):
    batch = {name: np.zeros((1, 2 * LONGEST), np.int32) for name in ("tokens", "positions", "segments")}
    batch["tokens"][0, : len(ids)], batch["segments"][0, : len(ids)] = ids, 1
    batch["positions"][0, : len(ids)] = range(len(ids))
    return np.asarray(forward(*built(kind), batch))[0, : len(ids)]


def score_by_hand(prompt, output, kind="gpt"):
    """Log-probabilities of the tokens of an output."""
    table = log_probabilities([*prompt, *output], kind)
    return table[np.arange(len(output)) + len(prompt) - 1, output]


@functools.cache
def decoder(kind="gpt", **options):
    """One for all tests that want the same: programs are compiled once."""
    return PromptDecoder(*built(kind), **{"ends": (END,), "longest": LONGEST} | options)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_with_a_cache_takes_the_argmax_of_full_passes(kind):
    found = decoder(kind).decode(PROMPTS, limits=10)
    for prompt, [one] in zip(PROMPTS, found, strict=True):
        written = [*one.ids, END] if one.finish == "end" else one.ids
        table = log_probabilities([*prompt, *written], kind)
        assert table.argmax(axis=1)[len(prompt) - 1 : -1].tolist() == written
        np.testing.assert_allclose(one.logprobs, score_by_hand(prompt, one.ids, kind), atol=1e-4)
        assert one.score == pytest.approx(score_by_hand(prompt, written, kind).sum(), abs=1e-3)
    assert {one.finish for [one] in found} <= {"end", "length"} and len({tuple(one.ids) for [one] in found}) > 3


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_prompts_of_different_length_get_together_what_each_gets_alone(method):
    options = {"beam_size": 3, "n_best": 2} if method == "beam" else {"options": Sampling(1.5, top_k=9, min_p=0.01)}
    ours = decoder("llama", method=method, batch_size=12, **options)
    together = ours.decode(PROMPTS, limits=[9, 4, 12, 8, 1], seed=3)
    assert [len(best[0].ids) <= limit for best, limit in zip(together, [9, 4, 12, 8, 1], strict=True)]
    for i, (prompt, limit) in enumerate(zip(PROMPTS, [9, 4, 12, 8, 1], strict=True)):
        [alone] = ours.decode([prompt], limits=limit, seed=3, first=i)
        assert [one.ids for one in alone] == [one.ids for one in together[i]]
        assert [one.score for one in alone] == pytest.approx([one.score for one in together[i]], abs=1e-4)


def test_a_beam_finds_what_is_likelier_and_scores_are_the_models():
    greedy = decoder("llama").decode(PROMPTS, limits=5)
    found = decoder("llama", method="beam", beam_size=20, n_best=3, alpha=0.0, batch_size=128).decode(PROMPTS, limits=5)
    better = 0
    for prompt, [one], best in zip(PROMPTS, greedy, found, strict=True):
        for output in best:
            written = [*output.ids, END] if output.finish == "end" else output.ids
            assert output.score == pytest.approx(score_by_hand(prompt, written, "llama").sum(), abs=1e-3)
        assert best[0].score >= one.score - 1e-4
        better += best[0].score > one.score + 1e-3
    assert better


def test_few_programs_are_compiled():
    ours = decoder.__wrapped__()
    ours.decode(PROMPTS[:3], limits=10)
    assert ours.compilations == 2  # one reads prompts, one writes
    ours.decode([[4, 5], [9], [8, 8, 8, 7]], limits=7)
    ours.decode(PROMPTS[:3], limits=[1, 2, 15], every=4)
    assert ours.compilations == 2


def test_what_is_watched_is_what_is_returned():
    seen = {}

    def watch(one):
        assert one.ids[: len(seen.get(one.number, []))] == seen.get(one.number, [])
        seen[one.number] = list(one.ids)

    found = decoder().decode(PROMPTS, limits=11, watch=watch, every=2)
    assert found == decoder().decode(PROMPTS, limits=11)
    assert [seen[i] for i in range(len(PROMPTS))] == [one.ids for [one] in found]


def test_any_of_several_end_tokens_ends_an_output():
    [[free]] = decoder(ends=()).decode([PROMPTS[0]], limits=12)
    third = free.ids[2]
    assert third not in free.ids[:2]
    for method in ("greedy", "beam"):
        ended = decoder(ends=(22, third), method=method, beam_size=1).decode([PROMPTS[0]], limits=12)
        assert (ended[0][0].ids, ended[0][0].finish) == (free.ids[:2], "end")
        assert ended[0][0].score == pytest.approx(sum(free.logprobs[:3]), abs=1e-4)


def test_draws_depend_on_seed_prompt_and_sample_alone():
    ours = decoder(method="sample", options=Sampling(1.5), batch_size=8)
    first = ours.decode(PROMPTS, limits=8, samples=3, seed=1)
    assert len({tuple(one.ids) for group in first for one in group}) > 10
    assert first == ours.decode(PROMPTS, limits=8, samples=3, seed=1, every=3)
    assert [one.ids for one in first[1]] != [one.ids for one in ours.decode(PROMPTS, limits=8, samples=3, seed=2)[1]]
    fewer = ours.decode(PROMPTS[2:], limits=8, samples=2, seed=1, first=2)
    assert [[one.ids for one in group] for group in fewer] == [[one.ids for one in group[:2]] for group in first[2:]]


def test_a_repetition_penalty_keeps_tokens_of_prompt_and_output_away():
    logits = jnp.array([[2.0, -1.0, 3.0, 0.5]])
    np.testing.assert_allclose(penalised(logits, jnp.array([[True, True, False, False]]), 2.0), [[1.0, -2.0, 3.0, 0.5]])
    found = decoder(repetition_penalty=1.6, ends=()).decode(PROMPTS[:2], limits=10)
    plain = decoder(ends=()).decode(PROMPTS[:2], limits=10)
    for prompt, [one], [free] in zip(PROMPTS, found, plain, strict=False):
        ids, table = [*prompt, *one.ids], logits_of([*prompt, *one.ids])
        for t in range(len(prompt), len(ids)):
            seen = np.isin(np.arange(VOCAB), ids[:t])
            assert ids[t] == penalised(table[t - 1], seen, 1.6).argmax()
        assert one.ids != free.ids
        np.testing.assert_allclose(one.logprobs, score_by_hand(prompt, one.ids), atol=1e-4)  # the model's own


def test_tokens_without_meaning_are_never_written():
    [[one]] = decoder(vocab_size=9, ends=(), method="sample", options=Sampling(3.0)).decode([[3, 4]], limits=30)
    assert len(one.ids) == 30 and max(one.ids) < 9


def test_a_prompt_that_is_too_long_loses_its_beginning_with_one_warning(caplog):
    long = list(np.random.default_rng(0).integers(3, VOCAB, 50))
    with caplog.at_level(logging.WARNING, logger="absl"):
        found = decoder().decode([[5], long, long], limits=[4, 8, 30], first=10)
    assert len(caplog.records) == 1
    assert "2 of 3 prompts" in caplog.text and "number 12: of its 50 tokens the last 24 are read" in caplog.text
    cut = decoder().decode([long[-24:], long[-16:]], limits=[8, 16])
    assert [found[1][0].ids, found[2][0].ids] == [cut[0][0].ids, cut[1][0].ids]


def test_an_output_ends_at_the_models_longest_or_slides_on():
    stops = decoder(ends=()).decode([PROMPTS[0]], limits=60)[0][0]
    assert len(stops.ids) == LONGEST - 5 and stops.finish == "length"
    slides = decoder(ends=(), slide=True).decode([PROMPTS[0]], limits=60)[0][0]
    assert len(slides.ids) == 60 and slides.ids[: LONGEST - 5] == stops.ids
    again = [*PROMPTS[0], *stops.ids][-LONGEST // 2 :]  # read anew
    assert slides.ids[LONGEST - 5 :][: LONGEST // 2] == decoder(ends=()).decode([again], limits=16)[0][0].ids


@pytest.mark.parametrize(
    ("length", "limit", "longest", "expected"),
    [(5, 10, 0, (5, 10)), (5, 10, 15, (5, 10)), (20, 10, 25, (15, 10)), (20, 40, 32, (16, 16)), (3, 40, 32, (3, 29))],
)
def test_how_prompt_and_output_share_the_longest_input(length, limit, longest, expected):
    assert requests.shared(length, limit, longest) == expected


def spelled(ids):
    return "".join("abcdefghij"[i] for i in ids)


def test_stop_strings_end_a_text_and_are_held_back_while_they_may_come():
    text = requests.OutputText(spelled, [0], ["dce", "ff"])
    assert text([1, 2, 3]) == "bcd" and text.settled([1, 2, 3]) == "bc" and text.settled([1, 3, 2]) == "b"
    assert text.settled([3, 2, 1]) == "dcb"
    one = requests.Continuation([0], 20)
    one.take([1, 3, 2, 4, 6], [-1.0] * 5, ())
    assert text.stop(one, 2) == "b" and (one.ids, one.finish, one.score) == ([1, 3, 2, 4], "stop", -4.0)
    other = requests.Continuation([0], 20)
    other.take([1, 3, 2], [-1.0] * 3, ())
    assert text.stop(other, 0) is None and not other.finish


def test_a_watcher_ends_an_output():
    def watch(one):
        if len(one.ids) >= 3:
            one.cut(3)

    found = decoder(ends=()).decode(PROMPTS[:2], limits=12, watch=watch, every=2)
    assert [(len(one.ids), one.finish) for [one] in found] == [(3, "stop")] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "best"}, "method is 'best'"),
        ({"method": "beam", "n_best": 9}, "n_best is 9"),
        ({"method": "beam", "repetition_penalty": 1.2}, "repetition_penalty is for"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_impossible_options_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        decoder(**wrong)
