"""A whole model out of one GGUF file: what it holds, and what it writes."""

import numpy as np
import pytest
from tiny_llama import CONFIG, byte_level, leaves

from transformers_jax.errors import UserError
from transformers_jax.inference import predictor
from transformers_jax.inference.generate import Generator, Options
from transformers_jax.inference.likelihood import Likelihood
from transformers_jax.interchange import gguf, gguf_llama, gguf_model, mapping


@pytest.fixture
def path(tmp_path):
    own = byte_level(tokenizer__ggml__eot_token_id=1)
    config = CONFIG | {"vocab_size": len(own["tokenizer.ggml.tokens"])}
    small = {name: 0.2 * x for name, x in leaves(config).items()}
    tensors, types = gguf_llama.gguf_tensors(small.items(), config, "F32")
    gguf.write(tmp_path / "tiny.gguf", own | gguf_llama.gguf_metadata(config), tensors, types)
    return tmp_path / "tiny.gguf"


def test_what_a_file_holds(path):
    found = gguf_model.opened(path)
    assert (found.fields["name"], found.fields["variant"], found.fields["layers"]) == ("llama", "llama", 2)
    assert found.ends == (0, 1) and "<|user|>" in found.tokenizer.chat_template  # of a text, and of a turn
    assert found.tokenizer.decode(found.tokenizer.encode("abc 123")) == "abc 123"
    params = mapping.variables(mapping.streamed(found.leaves))["params"]
    config = CONFIG | {"vocab_size": found.fields["vocab_size"]}
    wanted = 0.2 * leaves(config)["model.layers.1.mlp.up_proj.weight"].T
    np.testing.assert_allclose(params["decoder"]["layer_1"]["block"]["feed_forward"]["expand"]["kernel"], wanted, rtol=1e-6)


def test_it_is_loaded_scores_and_writes(path):
    there = predictor.loaded(str(path))
    asked = [{"prompt": "abc 1"}, {"messages": [{"role": "user", "content": "ab"}]}]
    generate = Generator(there, Options(max_tokens=6))
    for one, example in zip(generate(asked), asked, strict=True):
        ids = generate.prompt_ids(example)
        [[written]] = generate.tokens([ids])
        assert one["outputs"][0]["logprob"] == pytest.approx(written.score, abs=1e-3)
        scored = Likelihood(there)._predict([{"before": ids, "ids": written.ids}])
        assert written.ids and scored["likeliest"][0] and scored["logprob"][0] == pytest.approx(sum(written.logprobs), abs=1e-3)


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path, path):
    with pytest.raises(UserError, match="none.gguf: no such file"):
        gguf_model.opened(tmp_path / "none.gguf")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match="cut.gguf"):
        gguf_model.opened(tmp_path / "cut.gguf")
