import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from transformers_jax.decoding import beam
from transformers_jax.decoding.decoder import Decoder


@pytest.mark.parametrize(("size", "k"), [(7, 2), (64, 8), (643, 1), (1003, 8)])
def test_top_k_is_exact_also_in_ties(size, k):
    random = np.random.default_rng(size + k)
    for x in (random.normal(size=(5, size)), random.integers(0, 3, (5, size)), np.full((5, size), -np.inf)):
        x = jnp.asarray(x, jnp.float32)
        for chunk in (4, 64):
            for ours, theirs in zip(beam.top_k(x, k, chunk), jax.lax.top_k(x, k), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_length_penalty_of_wu_et_al():
    assert beam.length_penalty(1, 0.6) == 1
    assert beam.length_penalty(7, 0.0) == 1
    np.testing.assert_allclose(beam.length_penalty(7, 0.6), 2**0.6)


def greedy_by_hand(params, source, limit):
    output = []
    while len(output) < limit and toy.EOS not in output:
        output.append(int(toy.log_probabilities(params, source, np.array([[toy.BOS, *output]]))[0, -1].argmax()))
    return output


def test_greedy_is_the_argmax_of_each_prefix():
    model, params = toy.make(vocab_size=9)
    sources = toy.sentences(40, 8, vocab_size=9)
    decoder = Decoder(model, params, **toy.options(method="greedy", extra_length=6, batch_size=16))
    ended = 0
    for source, [(ids, score)] in zip(sources, decoder.decode(sources), strict=True):
        expected = greedy_by_hand(params, source, 6)
        ended += expected[-1] == toy.EOS
        assert ids == [token for token in expected if token != toy.EOS]
        assert score == pytest.approx(toy.log_probability(params, source, expected), abs=1e-4)
    assert 3 < ended < 37  # both ways of ending were seen


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_the_widest_beam_finds_what_enumeration_finds(alpha):
    model, params = toy.make()
    sources = toy.sentences(6, 8)
    decoder = Decoder(model, params, **toy.options(beam_size=128, n_best=5, alpha=alpha, batch_size=1024))
    for source, found in zip(sources, decoder.decode(sources), strict=True):
        every = toy.enumerate_ended(params, source, limit=4)
        every.sort(key=lambda pair: -pair[1] / beam.length_penalty(len(pair[0]) + 1, alpha))
        assert [ids for ids, _ in found] == [ids for ids, _ in every[:5]]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in every[:5]], atol=1e-4)


def test_a_beam_of_one_is_greedy():
    model, params = toy.make(vocab_size=9)
    sources = jnp.array(toy.sentences(1, 1, 9) + [[4], [5], [8], [3], [6], [7]])

    _, changed = model.apply({"params": params}, toy.batch_of(sources, 0 * sources), 6, method="start", mutable=["cache"])
    cache, structure = jax.tree.flatten(changed["cache"])

    def step(leaves, tokens):
        variables = {"params": params, "cache": structure.unflatten(leaves)}
        logits, changed = model.apply(variables, tokens, method="step", mutable=["cache"])
        return logits, jax.tree.leaves(changed["cache"])

    common = {"limits": jnp.full(len(sources), 6), "ends": (toy.EOS,), "steps": beam.Steps(6)}
    first = jnp.full(len(sources), toy.BOS)
    greedy = beam.one_by_one(step, beam.begun(first, first < 0, cache, 6), beam.greedy, **common).outputs()
    best, _ = beam.beam_search(
        step, cache, lambda leaves, *_: leaves, beam_size=1, n_best=1, alpha=0.0, first=first, **common
    )  # fmt: skip
    assert len(set(np.asarray(greedy.lengths).ravel())) > 1
    np.testing.assert_array_equal(greedy.lengths, best.lengths)
    np.testing.assert_array_equal(greedy.tokens, best.tokens)
    np.testing.assert_allclose(greedy.scores, best.scores, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_beam_scores_are_log_probabilities_and_ranked(alpha):
    model, params = toy.make(vocab_size=9, seed=1)
    sources = toy.sentences(20, 8, vocab_size=9)
    options = toy.options(beam_size=4, n_best=4, alpha=alpha, extra_length=6, batch_size=32)
    decoder = Decoder(model, params, **options)
    for source, found in zip(sources, decoder.decode(sources), strict=True):
        assert len(found) == 4 and len({tuple(ids) for ids, _ in found}) == 4
        ranks, cut = [], []
        for ids, score in found:
            output = ids if len(ids) == decoder.limit(len(source)) else [*ids, toy.EOS]
            assert score == pytest.approx(toy.log_probability(params, source, output), abs=1e-4)
            ranks.append(score / beam.length_penalty(len(output), alpha))
            cut.append(output is ids)
        assert cut == sorted(cut)  # what the limit cut comes last
        ended = sum(not c for c in cut)
        assert ranks[:ended] == sorted(ranks[:ended], reverse=True)


def probabilities_by_prefix(table):
    """A model that is a table, for one row a beam: prefix → probabilities of tokens; its state is the prefixes."""
    prefixes, rows = list(table), {prefix: np.log(np.maximum(p, 1e-30)) for prefix, p in table.items()}
    logits = jnp.array([rows[prefix] for prefix in prefixes])
    size = logits.shape[1]
    after = np.zeros((len(prefixes), size), np.int32)
    for i, prefix in enumerate(prefixes):
        for token in range(size):
            after[i, token] = prefixes.index((*prefix, token)) if (*prefix, token) in rows else i

    def step(leaves, tokens):
        [state], calls = leaves[:1], leaves[1]
        state = jnp.where(tokens == 1, 0, jnp.asarray(after)[state, tokens])
        return logits[state], [state, calls + 1]

    def take(leaves, origins, index):
        beams = origins + jnp.arange(len(origins))[:, None] * origins.shape[1]
        return [leaves[0][beams.reshape(-1)], leaves[1]]

    return step, take


def run_table(table, alpha, limit, beam_size=2, n_best=1):
    step, take = probabilities_by_prefix(table)
    leaves = [jnp.zeros(beam_size, jnp.int32), jnp.zeros((), jnp.int32)]
    seen = []

    def counted(leaves, tokens):
        jax.debug.callback(lambda: seen.append(1))
        return step(leaves, tokens)

    outputs, [done] = beam.beam_search(
        counted, leaves, take, limits=jnp.array([limit]), beam_size=beam_size, n_best=n_best, alpha=alpha,
        first=jnp.array([1]), ends=(2,), steps=beam.Steps(limit),
    )  # fmt: skip
    assert done
    tokens = np.asarray(outputs.tokens[0, 0, : outputs.lengths[0, 0]]).tolist()
    jax.effects_barrier()
    return tokens, float(jnp.exp(outputs.scores[0, 0])), len(seen)


LOOP = {  # tokens 0 pad, 1 bos, 2 eos, 3 and 4
    (): [0, 0, 0.5, 0.4, 0.1],
    (3,): [0, 0, 0.1, 0.9, 0],
    (3, 3): [0, 0, 0.9, 0.1, 0],
    (4,): [0, 0, 1.0, 0, 0],
}


def test_the_search_stops_when_nothing_alive_can_win_and_not_before():
    # alpha 0: the end at once has 0.5, everything that lives at most 0.4
    tokens, probability, steps = run_table(LOOP, alpha=0.0, limit=12)
    assert (tokens, steps) == ([2], 1) and probability == pytest.approx(0.5)
    # alpha 1: 3 3 eos has ln 0.324 / (8/6) = -0.845, which loses to ln 0.5 = -0.693 …
    tokens, _, steps = run_table(LOOP, alpha=1.0, limit=12)
    assert tokens == [2] and 1 < steps < 12
    # … and with alpha 2 wins, by -0.634, though its first tokens looked worse for two steps
    tokens, probability, steps = run_table(LOOP, alpha=2.0, limit=12)
    assert tokens == [3, 3, 2] and probability == pytest.approx(0.324, rel=1e-4) and 3 <= steps <= 12


def test_more_outputs_take_a_longer_search():
    assert run_table(LOOP, alpha=0.0, limit=12, n_best=2)[2] > run_table(LOOP, alpha=0.0, limit=12, n_best=1)[2]
