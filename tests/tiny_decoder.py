"""A tiny GPT with a tokenizer, whose numbers are drawn, and the folder of Hugging Face's that holds it."""

import functools
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from transformers_jax import models
from transformers_jax.data.text.tokenizer import learn_bpe
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.inference.predictor import Loaded
from transformers_jax.interchange import huggingface
from transformers_jax.mesh import make_mesh
from transformers_jax.parameters import flat, nest

LINES = [f"the {a} of the {b} is {c}, and so it goes on." for a in ("king", "end", "capital") for b in ("sea", "land")
         for c in ("old", "far away", "7")]  # fmt: skip
FIELDS = {"name": "gpt", "width": 16, "num_heads": 2, "mlp_width": 32, "layers": 2, "max_length": 32, "tie_embeddings": False}
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@functools.cache
def tokenizer(kind: str = "bpe"):
    return learn_bpe(LINES, 320) if kind == "bpe" else learn(kind, LINES, 320)


@functools.cache
def parameters(vocab_size: int):
    """(model, params) whose outputs vary, and hardly have a byte in them that is no character."""
    model = models.build(FIELDS, vocab_size)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), model.protocol().example()))["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda x: random.normal(0.0, 0.6, x.shape).astype(np.float32), nn.unbox(shapes))
    params["embedding"] *= 3.0
    params["position"]["embedding"] *= 3.0
    params["lm_head"][3:259] = 0.0  # the bytes
    return model, params


@functools.cache
def there() -> Loaded:
    """The model as `predictor.loaded` gives it."""
    t = tokenizer()
    model, params = parameters(t.vocab_size)
    variables = {"params": params, "model_state": {}}
    return Loaded(model, variables, t, make_mesh({"data": 1}, jax.devices()[:1]), None, Path("tiny"), (t.eos_id,))


def write(folder: Path, changes: dict | None = None) -> Path:
    """The model as a folder of Hugging Face's, with other numbers for some parameters by name."""
    t = tokenizer()
    model, params = parameters(t.vocab_size)
    params = nest(flat(params) | (changes or {}))
    huggingface.save(folder, FIELDS | {"vocab_size": t.vocab_size, "head": "causal_lm"}, params, t)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder
