"""A tiny Llama for GGUF files: its config.json, leaves, and the metadata of a byte-level tokenizer; and whole files."""

from pathlib import Path

import numpy as np
import tokenizers

from transformers_jax.interchange import gguf, gguf_llama
from transformers_jax.interchange.gguf_values import Value

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "rope_scaling": None,
    "vocab_size": 40,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
SPECIAL = ["<|end|>", "<|user|>", "<tool>"]
BYTES = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()))  # as GPT-2 writes the 256 bytes
MERGES = ["a b", "ab c", "Ġ ab", "1 2", "12 3", "Ċ Ċ", "ab Ċ", "' S", "! !", "Ġ Ġ"]
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"


def byte_level(**changes) -> dict:
    """Metadata of a byte-level BPE of a few merges; None leaves a key out."""
    tokens = SPECIAL + BYTES + [merge.replace(" ", "") for merge in MERGES]
    metadata = {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Value("array", [3, 3, 4] + [1] * (len(tokens) - 3), "int32"),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in (metadata | changes).items() if value is not None}


def leaves(config: dict) -> dict[str, np.ndarray]:
    """Random leaves of a Llama, by Hugging Face's names."""
    rng = np.random.default_rng(0)
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    Q, K = (config[f"num_{heads}_heads"] * config["head_dim"] for heads in ("attention", "key_value"))
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    for i in range(config["num_hidden_layers"]):
        matrices = {
            "self_attn.q_proj": (Q, D), "self_attn.k_proj": (K, D), "self_attn.v_proj": (K, D), "self_attn.o_proj": (D, Q),
            "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
        }  # fmt: skip
        for name, shape in matrices.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
            if config["attention_bias" if "attn" in name else "mlp_bias"]:
                shapes[f"model.layers.{i}.{name}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (D,)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: Path, kind: str = "F32", **changes) -> Path:
    """A file of such a model, which writes letters and digits, with matrices of a type.

    changes: keys of its config.json.
    """
    own = byte_level()
    tokens = own["tokenizer.ggml.tokens"]
    config = CONFIG | {"vocab_size": len(tokens)} | changes
    small = {name: 0.3 * x for name, x in leaves(config).items()}
    if "lm_head.weight" in small:
        small["lm_head.weight"] *= np.array([[2.0 * (token.isascii() and token.isalnum())] for token in tokens], np.float32)
    tensors, types = gguf_llama.gguf_tensors(small.items(), config, kind)
    gguf.write(path, own | gguf_llama.gguf_metadata(config, kind), tensors, types)
    return path


def parts(seed: int) -> dict[str, np.ndarray]:
    """What LoRA could have learned beside kernels of one layer, of different ranks and scales, queries and keys among them."""
    random, found = np.random.default_rng(seed), {}
    for name, inputs, outputs, rank in ("self_attention/query", 64, 64, 2), ("self_attention/key", 64, 32, 3), (
        "feed_forward/contract", 96, 64, 2,
    ):  # fmt: skip
        prefix = f"decoder/layer_1/block/{name}/lora_"
        a, b = random.normal(size=(inputs, rank)), random.normal(size=(rank, outputs))
        found |= {f"{prefix}a": np.float32(a), f"{prefix}b": np.float32(b), f"{prefix}scale": np.float32(1 / rank)}
    return found
