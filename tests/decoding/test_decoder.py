import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from transformers_jax import models
from transformers_jax.decoding.decoder import Decoder
from transformers_jax.errors import UserError


def test_outputs_come_in_the_order_of_the_sources_one_for_each():
    model, params = toy.make(vocab_size=9)
    sources = toy.sentences(23, 8, vocab_size=9)
    sources[4] = sources[22] = []
    decoder = Decoder(model, params, **toy.options(method="greedy", batch_size=8, lengths=(8,)))
    together = decoder.decode(sources)
    assert len(together) == 23 and together[4] == together[22] == [([], 0.0)]
    for source, [(ids, score)] in zip(sources, together, strict=True):
        [[(alone, its_score)]] = decoder.decode([source])
        assert alone == ids and its_score == pytest.approx(score, abs=1e-5)
    assert len({tuple(found[0].ids) for found in together}) > 5
    assert decoder.decode([]) == []


def test_no_source_with_tokens_needs_no_model():
    decoder = Decoder(None, None, **toy.options())
    assert decoder.decode([[], []]) == [[([], 0.0)], [([], 0.0)]]


def test_a_beam_does_not_see_other_sentences_either():
    model, params = toy.make(vocab_size=9, seed=3)
    sources = toy.sentences(11, 8, vocab_size=9)
    decoder = Decoder(model, params, **toy.options(beam_size=3, n_best=2, batch_size=12, extra_length=6, lengths=(8,)))
    for source, found in zip(sources, decoder.decode(sources), strict=True):
        [alone] = decoder.decode([source])
        assert [ids for ids, _ in found] == [ids for ids, _ in alone]
        np.testing.assert_allclose([score for _, score in found], [score for _, score in alone], atol=1e-5)


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_a_broken_model_gives_one_output_too(method):
    model, params = toy.make()
    broken = jax.tree.map(lambda x: x * np.nan, params)
    assert Decoder(model, broken, **toy.options(method=method, batch_size=4)).decode([[3, 4]]) == [[([], -np.inf)]]


def test_compiled_once_a_length_and_size_and_not_again_for_other_parameters():
    model, params = toy.make(vocab_size=9)
    decoder = Decoder(model, params, **toy.options(method="greedy", batch_size=4))
    short, long = [[3]] * 4, [[3] * 7] * 4
    first = decoder.decode(short)
    assert decoder.compilations == 1
    decoder.decode([[4, 5]] * 3 + [[5] * 4])  # the same length to pad to
    decoder.decode(short + short)
    assert decoder.compilations == 1
    decoder.decode(long + short + [[4] * 8] * 4)
    assert decoder.compilations == 2
    other = jax.tree.map(lambda x: jnp.flip(x, axis=0), params)
    assert decoder.decode(short, other) != first
    assert decoder.decode(short) == first
    decoder.decode(short + [[3]])  # a last batch of one: the smaller size
    assert decoder.compilations == 3


def test_sizes_of_the_last_batch_are_few():
    model, params = toy.make()
    assert Decoder(model, params, **toy.options(method="greedy", batch_size=256)).sizes == [1, 4, 16, 64, 256]
    assert Decoder(model, params, **toy.options(beam_size=4, batch_size=200)).sizes == [1, 4, 13, 50]


def test_a_long_source_is_cut_with_one_warning_and_keeps_its_end(caplog):
    model, params = toy.make()
    decoder = Decoder(model, params, **toy.options(method="greedy", batch_size=4))
    long, longer = [3] * 9 + [4], [*[3] * 20, toy.EOS]
    with caplog.at_level(logging.WARNING, logger="absl"):
        found = decoder.decode([[3], long, longer], first=40)
    assert len(caplog.records) == 1
    assert "2 of 3 sources have more than 8 tokens" in caplog.text and "number 42, of 10 tokens" in caplog.text
    cut = decoder.decode([[3] * 8, [*[3] * 7, toy.EOS]])
    assert [found[1][0].ids, found[2][0].ids] == [cut[0][0].ids, cut[1][0].ids]


def test_limits_follow_each_source():
    model, params = toy.make()
    options = toy.options(max_ratio=1.5, extra_length=1, max_length=9, batch_size=8, beam_size=2, eos_id=99)  # it never ends
    for method in ("greedy", "beam", "sample"):
        decoder = Decoder(model, params, **options | {"method": method})
        found = decoder.decode([[3], [3, 4], [3] * 8])
        assert [len(best[0].ids) for best in found] == [decoder.limit(n) for n in (1, 2, 8)] == [2, 4, 9]


@pytest.mark.parametrize("method", ["sample", "beam"])
def test_outputs_that_need_more_steps_than_usual_get_them(method, monkeypatch):
    batches, decode_batch = [], Decoder._decode_batch
    monkeypatch.setattr(Decoder, "_decode_batch", lambda *a: batches.append((len(a[2]), a[-1])) or decode_batch(*a))
    model, params = toy.make(vocab_size=9)
    sources = toy.sentences(24, 3, vocab_size=9)
    options = toy.options(batch_size=96, method=method, extra_length=30)
    twice = Decoder(model, params, **options | {"lengths": (3,)})  # at first up to 16 steps
    found = twice.decode(sources)
    [(everyone, patient), (few, again)] = batches
    assert (everyone, patient, again) == (24, False, True) and 1 <= few <= 12
    once = Decoder(model, params, **options | {"lengths": (24,)})
    assert found == [[(ids, pytest.approx(score, abs=1e-4)) for ids, score in best] for best in once.decode(sources)]
    lengths = [len(best[0].ids) for best in found]
    assert min(lengths) < 16 < max(lengths)
    assert batches[2:] == [(24, False)] and once.compilations == 1


@pytest.mark.parametrize(("length", "first"), [(8, 16), (32, 24)])  # grows after the usual steps, or halfway
@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_caches_that_grow_change_nothing(method, length, first, monkeypatch):
    model, params = toy.make(vocab_size=9)
    options = toy.options(batch_size=16, method=method, extra_length=40, lengths=(length,)) | {"eos_id": 9}  # never comes
    sources = toy.sentences(4, 8, vocab_size=9)
    grows = Decoder(model, params, **options)
    found = grows.decode(sources)
    assert grows._first_room(length) == first and [len(best[0].ids) for best in found] == [40] * 4
    assert grows.compilations == 1  # none ends: no batch is left and begun again
    monkeypatch.setattr(Decoder, "_first_room", lambda self, length: 0)
    whole = Decoder(model, params, **options).decode(sources)
    assert found == [[(ids, pytest.approx(score, abs=1e-4)) for ids, score in best] for best in whole]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "best"}, "method is 'best'; it is one of greedy, beam, sample"),
        ({"beam_size": 0}, "beam_size is 0"),
        ({"n_best": 5}, r"n_best is 5; it must be 1 … beam_size \(4\)"),
        ({"n_best": 2, "method": "greedy"}, "n_best is 2"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"batch_size": 3}, "batch_size is 3; it must hold one beam of 4 rows"),
        ({"extra_length": -1}, "extra_length is -1"),
        ({"max_ratio": -0.5}, "max_ratio is -0.5"),
        ({"max_length": 0}, "max_length is 0"),
        ({"lengths": (8, 4)}, "lengths are"),
        ({"temperature": -1.0, "method": "sample"}, "temperature is -1.0"),
    ],
)
def test_impossible_options_are_refused(wrong, message):
    with pytest.raises(UserError, match=f"decoding.{message}"):
        Decoder(None, None, **toy.options(**wrong))


T, S = 16, 8


@functools.cache
def small(name):
    """(model, params, (source, output) → log-probabilities [T, V] of all next tokens, by one full pass)."""
    sizes = {"width": 16, "encoder_layers": 1, "decoder_layers": 2}
    sizes |= {"num_heads": 2, "relative_distance": 2, "mlp_width": 32} if name == "transformer" else {"lstm_width": 32}
    model = models.build({"name": name, **sizes}, vocab_size=12)
    names = "source source_positions source_segments target_inputs target_positions target_segments".split()
    shapes = jax.eval_shape(model.init, jax.random.key(0), dict.fromkeys(names, jnp.ones((1, 2), jnp.int32)))["params"]
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(0.0, 0.5, x.shape).astype(np.float32), nn.unbox(shapes))
    forward = jax.jit(lambda batch: model.apply({"params": params}, batch))

    def log_probabilities(source, output):
        batch = {name: np.zeros((1, S if name.startswith("source") else T), np.int32) for name in names}
        for field, stream, ids in (("source", "source", source), ("target_inputs", "target", [toy.BOS, *output])):
            batch[field][0, : len(ids)] = ids
            batch[f"{stream}_segments"][0, : len(ids)] = 1
            batch[f"{stream}_positions"][0, : len(ids)] = range(len(ids))
        hidden, table, _ = forward(batch)
        return np.asarray(jax.nn.log_softmax(hidden @ table.T))[0]

    return model, params, log_probabilities


def test_the_transformer_with_its_cache_takes_the_argmax_of_full_passes():
    model, params, log_probabilities = small("transformer")
    sources = toy.sentences(6, S, vocab_size=12)
    options = toy.options(method="greedy", batch_size=8, lengths=(S,), extra_length=10)
    for source, [(ids, score)] in zip(sources, Decoder(model, params, **options).decode(sources), strict=True):
        table = log_probabilities(source, ids)
        output = ids if len(ids) == 10 else [*ids, toy.EOS]
        assert table.argmax(axis=1)[: len(output)].tolist() == output
        assert table[range(len(output)), output].sum() == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("name", ["transformer", "luong"])
def test_scores_of_a_beam_are_those_of_full_passes(name):
    model, params, log_probabilities = small(name)
    sources = toy.sentences(5, S, vocab_size=12)
    options = toy.options(batch_size=32, n_best=4, lengths=(S,), extra_length=10)
    for source, found in zip(sources, Decoder(model, params, **options).decode(sources), strict=True):
        assert len(found) == 4
        for ids, score in found:
            output = ids if len(ids) == 10 else [*ids, toy.EOS]
            assert log_probabilities(source, ids)[range(len(output)), output].sum() == pytest.approx(score, abs=1e-3)


TWO_DEVICES = """
import jax, numpy as np, toy
from transformers_jax.decoding.decoder import Decoder

assert jax.device_count() == 2
mesh = jax.make_mesh((2, 1, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
model, params = toy.make(vocab_size=9)
sources = toy.sentences(7, 4, vocab_size=9)
options = toy.options(beam_size=2, batch_size=16, lengths=(4,))
one, two = Decoder(model, params, **options), Decoder(model, params, mesh=mesh, **options)
assert two.sizes == [2, 8]
for [a], [b] in zip(one.decode(sources), two.decode(sources), strict=True):
    assert a.ids == b.ids and abs(a.score - b.score) < 1e-4, (a, b)
split = [two._place(x) for x in np.zeros((2, 8, 4), "int32")] + [two._place(x) for x in np.zeros((2, 8), "int32")]
program = two._search.lower(params, *split, np.uint32(0), np.int32(8)).compile().as_text()
assert program.count(" all-gather(") == 4  # the results; nothing moves between devices before
assert " all-reduce(" not in program and " all-to-all(" not in program
print("same")
"""


def test_two_devices_find_the_same():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    here = Path(__file__).resolve().parent
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{here}:{here.parent.parent}", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", TWO_DEVICES], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == "same"
