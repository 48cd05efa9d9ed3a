import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from transformers_jax.decoding.decoder import Decoder
from transformers_jax.decoding.sampling import Sampling, likeliest, row_keys, sample
from transformers_jax.errors import UserError

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.3, 0.15])


def allowed(sampling, probabilities=PROBABILITIES):
    values, tokens = likeliest(jnp.log(jnp.array([probabilities])), sampling)
    return sorted(int(p) for p, v in zip(tokens[0], values[0], strict=True) if v > -jnp.inf)


def test_top_k_and_top_p_keep_what_they_say():
    assert allowed(Sampling()) == [0, 1, 2, 3, 4]
    assert allowed(Sampling(top_k=2)) == [1, 3]
    assert allowed(Sampling(top_k=2), np.full(5, 0.2)) == [0, 1]  # exactly k, also in a tie
    assert allowed(Sampling(top_k=50)) == [0, 1, 2, 3, 4]
    assert allowed(Sampling(top_p=0.39)) == [1]
    assert allowed(Sampling(top_p=0.41)) == [1, 3]
    assert allowed(Sampling(top_p=0.71)) == [1, 3, 4]
    assert allowed(Sampling(top_p=1e-9)) == [1]
    assert allowed(Sampling(top_k=3, top_p=0.45)) == [1]  # of the three likeliest, the first holds 0.4 / 0.85 = 0.47
    assert allowed(Sampling(temperature=0.1, top_p=0.9)) == [1]
    assert allowed(Sampling(temperature=10.0, top_p=0.9)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    rows = 20_000
    draw = jax.jit(lambda keys, logits, sampling: sample(logits, keys, sampling), static_argnames="sampling")
    keys = jax.jit(row_keys)(jax.random.key(0), jnp.arange(rows), jnp.int32(3))
    logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (rows, 5))
    for sampling, kept in ((Sampling(temperature), 5), (Sampling(temperature, top_k=3), 3)):
        drawn = np.bincount(np.asarray(draw(keys, logits, sampling)), minlength=5) / rows
        expected = np.where(np.argsort(np.argsort(-PROBABILITIES)) < kept, PROBABILITIES ** (1 / temperature), 0)
        np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.015)


def test_a_draw_depends_on_its_row_only_and_on_the_seed():
    model, params = toy.make(vocab_size=30)
    sources = toy.sentences(12, 4, vocab_size=30)
    decoder = Decoder(model, params, **toy.options(method="sample", extra_length=6, batch_size=4, temperature=2.0))
    first = decoder.decode(sources, seed=5)
    assert decoder.decode(sources, seed=5) == first
    assert decoder.decode(sources, seed=6) != first
    assert [out[0].ids for out in decoder.decode(sources[8:], seed=5, first=8)] == [out[0].ids for out in first[8:]]
    changed = [sources[i] if i in (0, 7) else [3, 4, 5, 6, 7, 8] for i in range(12)]  # other lengths, other batches
    again = decoder.decode(changed, seed=5)
    for i in (0, 7):
        assert again[i][0].ids == first[i][0].ids and again[i][0].score == pytest.approx(first[i][0].score, abs=1e-4)
    assert len({tuple(out[0].ids) for out in decoder.decode([sources[0]] * 8, seed=5)}) > 4


def test_scores_of_samples_are_the_models_own():
    model, params = toy.make(vocab_size=9)
    source = [3, 4, 5]
    decoder = Decoder(model, params, **toy.options(method="sample", temperature=1.7, top_k=4, top_p=0.9))
    for [(ids, score)] in decoder.decode([source] * 5):
        output = ids if len(ids) == 4 else [*ids, toy.EOS]
        assert score == pytest.approx(toy.log_probability(params, source, output), abs=1e-4)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(UserError, match=f"decoding.{next(iter(wrong))} is"):
        Sampling(**wrong)
