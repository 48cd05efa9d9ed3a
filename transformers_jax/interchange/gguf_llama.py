"""Llama's config and leaves in GGUF files, under the names that Hugging Face gives them, both ways.

llama.cpp turns the numbers 2j and 2j + 1 of a query's or key's head by one angle, Hugging Face the numbers j and j + H/2.
Its converter therefore orders the rows of the query and key matrices (and their biases) of each head anew: first row,
middle row, second row, the row behind the middle … The products of queries and keys are the same in either order.
`to_halves` makes Hugging Face's order of llama.cpp's, `to_pairs` the other way; rows may be numbers or stored bytes.

The tables are at the bottom: names of tensors, where `{i}` is a layer's number, and keys of the config.

Axes: N heads, H head width, D model width.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.interchange.gguf import Deferred, GgufFile, Stored
from transformers_jax.interchange.gguf_blocks import BLOCK, FILE_TYPES, QUANTISED, packed
from transformers_jax.interchange.gguf_values import Value
from transformers_jax.layers.affine import AffineKernel, from_blocks

ARCHITECTURE, ROPE_FACTORS = "llama", "rope_freqs.weight"
# Of Llama 3.1 and 3.2: pairs that turn less than once in 8,192 positions are slowed by the factor, those of 4 turns are not.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [N · H, …] in llama.cpp's order → in Hugging Face's."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])  # [N, H / 2, 2, …]
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def to_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [N · H, …] in Hugging Face's order → in llama.cpp's."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])  # [N, 2, H / 2, …]
    return halves.swapaxes(1, 2).reshape(rows.shape)


class GgufWeights:
    """The leaves of a Llama in a GGUF file by Hugging Face's names, and its config; arrays are read when they are asked for.

    Raises:
      UserError: another architecture, tensors that no Llama here has, or of a type that is not read.
    """

    def __init__(self, file: GgufFile):
        self.file = file
        factors = file.tensor(ROPE_FACTORS) if ROPE_FACTORS in file.tensors else None
        try:
            self.config = hf_config(file.metadata, file.tensors, factors)
            self._names = {hf_name(name): name for name in file.tensors if name != ROPE_FACTORS}
        except UserError as error:
            raise UserError(f"{file.path}: {error}") from error
        file.check()

    def names(self) -> list[str]:
        """Of all leaves."""
        return list(self._names)

    def array(self, name: str) -> np.ndarray:
        """One leaf as float32, as Hugging Face has it."""
        return self._ordered(name, self.file.tensor(self._own(name)))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a leaf."""
        return tuple(self.file.tensors[self._own(name)].shape)

    def part(self, name: str, axis: int, start: int, stop: int) -> np.ndarray:
        """Of a leaf what lies from `start` to `stop` along an axis."""
        array = self.array(name)
        return array[(*[slice(None)] * axis, slice(start, stop))] if array.ndim else array

    def kernel(self, name: str) -> Callable | None:
        """What `weights.Leaf.kernel` is of a leaf; None for one that is not in blocks."""
        if self.file.tensors[self._own(name)].type not in QUANTISED:
            return None

        def make(shape: tuple[int, ...], inputs: int) -> AffineKernel:
            kind, _, raw = self.stored(name)
            made = from_blocks(kind.lower(), *packed(raw, kind), shape=shape, inputs=inputs)
            self.file.forget()
            return made

        return make

    def stored(self, name: str) -> Stored:
        """One leaf as the file's bytes, rows in Hugging Face's order."""
        stored = self.file.stored(self._own(name))
        return stored._replace(raw=self._ordered(name, stored.raw))

    def _own(self, name: str) -> str:
        if name not in self._names:
            raise UserError(f"{self.file.path} has no {name}")
        return self._names[name]

    def _ordered(self, name: str, rows: np.ndarray) -> np.ndarray:
        heads = heads_of(name, self.config)
        if heads and rows.ndim == 1 and rows.dtype == np.uint8:  # a bias's bytes are one row
            size = rows.size // (heads * self.config["head_dim"])
            return to_halves(rows.reshape(-1, size), heads).reshape(-1)
        return to_halves(rows, heads) if heads else rows


def hf_config(metadata: Mapping[str, Any], tensors: Collection[str] = (), rope_factors: np.ndarray | None = None) -> dict:
    """The content of `config.json` of a file's Llama.

    Args:
      metadata: of the file.
      tensors: names of its tensors: they tell of biases, and whether the output shares the embedding.
      rope_factors: numbers of `rope_freqs.weight`, where the file has it.

    Raises:
      UserError: another architecture, a key that is missing, or one that asks for what is not computed.
    """
    _refuse(metadata)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    for key, name in KEYS.items():
        value = metadata.get(key, _DEFAULTS.get(key))
        if value is None:
            raise UserError(f"{key} is missing from the file's metadata")
        if isinstance(value, list):
            raise UserError(f"{key} has a number for each layer; read is one for all of them")
        config[name] = float(str(np.float32(value))) if isinstance(value, float) else value
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = metadata.get("llama.attention.head_count_kv", heads)
    config["head_dim"] = metadata.get("llama.attention.key_length", config["hidden_size"] // heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if metadata.get(key, config["head_dim"]) != config["head_dim"]:
            raise UserError(f"{key} is {metadata[key]}, and a head is {config['head_dim']} wide: they are to be equal")
    config["vocab_size"] = metadata.get("llama.vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ()))
    if not config["vocab_size"]:
        raise UserError("llama.vocab_size is missing from the file's metadata, and so are the tokens")
    config["rope_scaling"] = _rope_scaling(metadata, config, rope_factors)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if (i := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[f"{role}_token_id"] = i
    return config


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor.

    Raises:
      UserError: no Llama here has such a tensor.
    """
    if not (found := _renamed(name, TENSORS)):
        raise UserError(f"the tensor {name} belongs to no Llama that is computed here")
    return found


def own_name(name: str) -> str:
    """llama.cpp's name of a tensor, by Hugging Face's.

    Raises:
      UserError: no Llama that GGUF has has such a tensor.
    """
    if not (found := _renamed(name, {theirs: ours for ours, theirs in TENSORS.items()})):
        raise UserError(f"{name} belongs to no Llama that GGUF has")
    return found


def gguf_metadata(config: Mapping[str, Any], kind: str = "F32") -> dict[str, Value]:
    """The metadata of a Llama with this `config.json` whose matrices are of type `kind`; its tokenizer's are to be added.

    Raises:
      UserError: the config is no Llama's, or asks for what GGUF's Llama has not.
    """
    rope, theta = _rope(config)
    if config.get("model_type") != ARCHITECTURE or config.get("hidden_act", "silu") != "silu":
        raise UserError(f"config.json is of a {config.get('model_type')} with {config.get('hidden_act')}: no Llama with silu")
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        raise UserError(f"config.json: rope_type {rope['rope_type']} is not written to GGUF; default, linear and llama3 are")
    known = dict(config) | {"rope_theta": float(theta)}
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found = {"general.architecture": Value("string", ARCHITECTURE), "general.file_type": Value("uint32", FILE_TYPES[kind])}
    found |= {"general.quantization_version": Value("uint32", 2)}
    for key, name in KEYS.items():
        if known.get(name) is None:
            raise UserError(f"config.json has no {name}")
        found[key] = Value("float32" if key in _FLOATS else "uint32", known[name])
    numbers = {
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.key_length": width,
        "attention.value_length": width,
        "rope.dimension_count": width,
        "vocab_size": config["vocab_size"],
    }
    found |= {f"llama.{key}": Value("uint32", number) for key, number in numbers.items()}
    if rope.get("rope_type") == "linear":
        found["llama.rope.scaling.type"] = Value("string", "linear")
        found["llama.rope.scaling.factor"] = Value("float32", float(rope["factor"]))
    return found


def gguf_tensors(
    leaves: Iterable[tuple[str, np.ndarray | Deferred]], config: Mapping[str, Any], kind: str
) -> tuple[dict[str, Deferred], dict[str, str]]:
    """Leaves by Hugging Face's names as `gguf.write` takes them: tensors by llama.cpp's names, and their types.

    Matrices become `kind`; embedding and output Q8_0 where that is of 4 bits; matrices whose rows are no whole blocks F16;
    vectors F32. The output is left out where it shares the embedding.
    """
    tensors, types = {}, {}
    for name, leaf in leaves:
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        own = own_name(name)
        tensors[own] = Deferred(tuple(leaf.shape), _made(leaf, heads_of(name, config)))
        types[own] = type_of(own, tuple(leaf.shape), kind)
    rope, theta = _rope(config)
    if rope.get("rope_type") == "llama3":
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        factors = rope_factors(width, theta, rope)
        tensors[ROPE_FACTORS], types[ROPE_FACTORS] = Deferred(factors.shape, lambda: factors), "F32"
    return tensors, types


def rope_factors(width: int, theta: float, scaling: Mapping[str, float]) -> np.ndarray:
    """By what Llama 3.1 divides the speed of each pair of a head, float32 [H / 2]: from 1 for the quickest to `factor`."""
    low, high, longest = (scaling[key] for key in _LLAMA3)
    turns = longest * theta ** (-np.arange(0, width, 2) / width) / (2 * np.pi)  # within the length it was trained with
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / scaling["factor"] + share)).astype(np.float32)


def _refuse(metadata: Mapping[str, Any]) -> None:
    """Raises UserError for what is no whole Llama, or has what is not computed."""
    if (architecture := metadata.get("general.architecture")) != ARCHITECTURE:
        raise UserError(f"general.architecture is {architecture}; of GGUF files, those of llama are read")
    if metadata.get("general.type", "model") != "model":
        raise UserError(f"general.type is {metadata['general.type']}; read is model")
    if (parts := metadata.get("split.count", 1)) > 1:
        raise UserError(f"split.count is {parts}: the file is one part of several; join them with llama-gguf-split --merge")
    for key in metadata:
        if key.startswith("llama.") and key not in KEYS and key not in _READ_APART and metadata[key] not in (0, False):
            raise UserError(f"{key} is {metadata[key]}: no Llama that is computed here has this")


def _rope_scaling(metadata: Mapping[str, Any], config: dict, factors: np.ndarray | None) -> dict | None:
    """How positions are stretched, as Hugging Face says it."""
    kind = metadata.get("llama.rope.scaling.type", "none")
    factor = metadata.get("llama.rope.scaling.factor", metadata.get("llama.rope.scale_linear", 1.0))
    if kind not in ("none", "linear"):
        raise UserError(f"llama.rope.scaling.type is {kind}; computed are none and linear")
    linear = (kind == "linear" or "llama.rope.scale_linear" in metadata) and factor not in (0.0, 1.0)
    if factors is None:
        return {"rope_type": "linear", "factor": factor} if linear else None
    found = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
    expected = rope_factors(config["head_dim"], config["rope_theta"], found)
    if linear or factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(f"{ROPE_FACTORS} are not those of Llama 3.1 or 3.2: no other is computed")
    return found


def _rope(config: Mapping[str, Any]) -> tuple[dict, float]:
    """Scaling of positions and their base, in either form in which a config has them."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if "type" in rope:
        rope.setdefault("rope_type", rope["type"])
    return rope, rope.get("rope_theta", config.get("rope_theta", 10000.0))


def heads_of(name: str, config: Mapping[str, Any]) -> int | None:
    """Heads of a leaf whose rows llama.cpp orders anew, by Hugging Face's name."""
    if ".q_proj." in name:
        return config["num_attention_heads"]
    if ".k_proj." in name:
        return config.get("num_key_value_heads") or config["num_attention_heads"]
    return None


def _made(leaf: np.ndarray | Deferred, heads: int | None):
    """A leaf's numbers, when they are written."""

    def make() -> np.ndarray:
        values = np.asarray(leaf.make() if isinstance(leaf, Deferred) else leaf)
        return to_pairs(values, heads) if heads else values

    return make


def type_of(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type of a tensor in a file whose matrices are of type `kind`."""
    if len(shape) < 2:
        return "F32"
    if kind in ("Q4_0", "Q4_1") and name in ("token_embd.weight", "output.weight"):
        kind = "Q8_0"
    return "F16" if kind.startswith("Q") and shape[-1] % BLOCK else kind


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    """A name by a table of patterns."""
    number = re.search(r"\.(\d+)\.", name)
    pattern = name.replace(number.group(), ".{i}.", 1) if number else name
    return table[pattern].replace("{i}", number.group(1) if number else "") if pattern in table else None


TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "blk.{i}.attn_q.weight": "model.layers.{i}.self_attn.q_proj.weight",
    "blk.{i}.attn_q.bias": "model.layers.{i}.self_attn.q_proj.bias",
    "blk.{i}.attn_k.weight": "model.layers.{i}.self_attn.k_proj.weight",
    "blk.{i}.attn_k.bias": "model.layers.{i}.self_attn.k_proj.bias",
    "blk.{i}.attn_v.weight": "model.layers.{i}.self_attn.v_proj.weight",
    "blk.{i}.attn_v.bias": "model.layers.{i}.self_attn.v_proj.bias",
    "blk.{i}.attn_output.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "blk.{i}.attn_output.bias": "model.layers.{i}.self_attn.o_proj.bias",
    "blk.{i}.ffn_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "blk.{i}.ffn_gate.weight": "model.layers.{i}.mlp.gate_proj.weight",
    "blk.{i}.ffn_gate.bias": "model.layers.{i}.mlp.gate_proj.bias",
    "blk.{i}.ffn_up.weight": "model.layers.{i}.mlp.up_proj.weight",
    "blk.{i}.ffn_up.bias": "model.layers.{i}.mlp.up_proj.bias",
    "blk.{i}.ffn_down.weight": "model.layers.{i}.mlp.down_proj.weight",
    "blk.{i}.ffn_down.bias": "model.layers.{i}.mlp.down_proj.bias",
}
KEYS = {
    "llama.block_count": "num_hidden_layers",
    "llama.context_length": "max_position_embeddings",
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "llama.rope.freq_base": "rope_theta",
}
_FLOATS = ("llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base")
_DEFAULTS = {"llama.rope.freq_base": 10000.0}
_READ_APART = (
    "llama.attention.head_count_kv", "llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count",
    "llama.vocab_size", "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear",
    "llama.rope.scaling.finetuned", "llama.rope.scaling.original_context_length",
    "llama.tensor_data_layout",  # what the file was made from
)  # fmt: skip
