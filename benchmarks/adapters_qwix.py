"""The side of qwix in `benchmarks.adapters`: a Llama of nn.Dense, adapted by qwix, with the same weights and batch as ours.

    python -m benchmarks.adapters_qwix METHOD FORM MODEL LENGTH

As `adapters_side`, with METHOD lora or qlora. qwix looks for weights that are parameters of the module that multiplies by
them as they are, so it does not find those of our layers, which are folded into heads: hence a plain model here.

Axes: B rows, T length, D width, N heads, K heads of keys and values, H head width, V vocabulary.
"""

import functools
import math
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from qwix._src.core import qarray
from qwix._src.providers.ptq import WithAux

from benchmarks.adapters_side import ALPHA, BLOCK, RANK, drawn, serve
from transformers_jax import parameters
from transformers_jax.layers.positions import Rotary
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.runs import initialise
from transformers_jax.tasks import causal_lm

WithAux.one_parameter = True  # a quantised kernel is a leaf, see `parameters`


class Layer(nn.Module):
    """A block of Llama on x [B, T, D]."""

    fields: dict

    @nn.compact
    def __call__(self, x, positions):
        c = self.fields
        heads, kv_heads, width = c["num_heads"], c["kv_heads"], c["width"] // c["num_heads"]
        dense = functools.partial(nn.Dense, use_bias=False)
        h = nn.RMSNorm(c["norm_epsilon"], name="self_norm")(x)
        q, k, v = (
            dense(n * width, name=name)(h).reshape(*h.shape[:-1], n, width)
            for name, n in (("query", heads), ("key", kv_heads), ("value", kv_heads))
        )
        rotary = Rotary(c["rope_theta"])
        q, k = rotary.rotate(q, positions), rotary.rotate(k, positions)
        h = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + dense(c["width"], name="out")(h.reshape(*h.shape[:-2], -1))
        h = nn.RMSNorm(c["norm_epsilon"], name="feed_norm")(x)
        h = nn.silu(dense(c["mlp_width"], name="gate")(h)) * dense(c["mlp_width"], name="expand")(h)
        return x + dense(c["width"], name="contract")(h), None


class Decoder(nn.Module):
    """tokens and positions [B, T] → hidden states [B, T, D] and the table [V, D]."""

    fields: dict
    scanned: bool
    remat: bool

    @nn.compact
    def __call__(self, tokens, positions):
        c = self.fields
        table = self.param("embedding", nn.initializers.normal(0.02), (c["vocab_size"], c["width"]))
        x, layer = table[tokens], nn.remat(Layer, prevent_cse=not self.scanned) if self.remat else Layer
        if self.scanned:
            stack = nn.scan(layer, {"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=c["layers"])
            x, _ = stack(c, name="layer")(x, positions)
        else:
            for i in range(c["layers"]):
                x, _ = layer(c, name=f"layer_{i}")(x, positions)
        return nn.RMSNorm(c["norm_epsilon"], name="final_norm")(x), table


def main(method: str, form: str, path: str, length: str) -> None:
    folder = initialise.folder_of(path)
    fields = initialise.described(folder)
    jax.config.update("jax_default_prng_impl", "rbg")
    plain = Decoder(fields, "scanned" in form, "remat" in form)
    rule = {"module_path": ".*", "rank": RANK, "alpha": ALPHA}
    if method == "qlora":
        rule |= {"weight_qtype": "nf4", "tile_size": BLOCK}
    model = qwix.apply_lora_to_model(plain, qwix.LoraProvider(**rule))
    names = ("tokens", "positions", "targets", "weights", "segments")
    shapes = {name: jax.ShapeDtypeStruct((1, int(length)), jnp.int32) for name in names}
    inputs = shapes["tokens"], shapes["positions"]
    batch = jax.device_put(drawn(shapes, fields["vocab_size"]))
    abstract = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    tx, is_part = optax.adamw(2e-5, weight_decay=0.0), r"_lora_(a|b)$"

    def state_of(params):
        learn, frozen = parameters.split(params, is_part)
        return learn, frozen, tx.init(learn)

    def step(state, batch):
        learn, frozen, opt_state = state

        def loss(learn):
            params = parameters.merge(learn, frozen)
            hidden, table = model.apply({"params": params}, batch["tokens"], batch["positions"])
            total, weight, _ = causal_lm.sums_of(LanguageModelOutput(hidden, table), batch, None)
            return total / weight

        value, gradients = jax.value_and_grad(loss)(learn)
        updates, opt_state = tx.update(gradients, opt_state, learn)
        metrics = {"loss": value, "weight": jnp.float32(1)}
        return (optax.apply_updates(learn, updates), frozen, opt_state), metrics

    began = time.perf_counter()
    program = jax.jit(step, donate_argnums=0).lower(jax.eval_shape(state_of, abstract), batch).compile()
    known = {"compile_seconds": round(time.perf_counter() - began, 1)}
    serve(known, lambda: state_of(read(folder, fields, abstract)), lambda state: program(state, batch))


def read(folder, fields: dict, abstract) -> dict:
    """The weights as qwix has them, quantised matrix by matrix: its own function wants all at once, and no stack of layers."""
    leaves, found = initialise.read(folder)[0], {}
    for i, (name, like) in enumerate(parameters.flat(abstract).items()):
        if name.endswith("_lora_a"):
            bound = 1 / math.sqrt(like.shape[-2])
            found[name] = jax.random.uniform(jax.random.key(i), like.shape, jnp.float32, -bound, bound)
        elif name.endswith("_lora_b"):
            found[name] = jnp.zeros(like.shape, jnp.float32)
        elif name.startswith("layer/"):
            parts = [one(leaves, name.replace("layer/", f"layer_{i}/"), like) for i in range(fields["layers"])]
            found[name] = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *parts)
        else:
            found[name] = jax.tree.map(jnp.asarray, one(leaves, name, like))
    return parameters.nest(found)


def one(leaves: dict, name: str, like):
    """A leaf of ours of one layer, under the name that it has here; quantised where `like` is."""
    layer, _, rest = name.rpartition("/")[0].partition("/")
    places = [name, *(f"decoder/{layer}/block/{part}{rest}/{name.rpartition('/')[2]}" for part in ("", *SUBLAYERS))]
    array = np.asarray(next(leaves[place] for place in places if place in leaves))
    if not isinstance(like, WithAux):
        return array.reshape(like.shape[-1:] if array.ndim == 1 else like.shape[-2:])
    found = like.replace(array=qarray.quantize(jnp.asarray(array.reshape(like.shape[-2:])), like.how))
    return jax.tree.map(np.asarray, found)


SUBLAYERS = ("self_attention/", "feed_forward/")


if __name__ == "__main__":
    main(*sys.argv[1:])
