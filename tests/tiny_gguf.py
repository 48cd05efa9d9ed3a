"""A tiny Llama of drawn numbers in a GGUF file, with a vocabulary of bytes and a chat template."""

from pathlib import Path

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from transformers_jax.interchange import gguf, gguf_llama
from transformers_jax.interchange.gguf_values import Value

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "num_hidden_layers": 2,
    "max_position_embeddings": 128, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}" + (
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|begin|>", "<|user|>", "<|assistant|>"]


def write(path: Path, kind: str = "Q4_1", seed: int = 0) -> Path:
    """The file; its matrices are of type `kind`."""
    tokens = SPECIAL + sorted(ByteLevel.alphabet()) + ["ab"]
    config, random = CONFIG | {"vocab_size": len(tokens)}, np.random.default_rng(seed)
    width, inner, keys = config["hidden_size"], config["intermediate_size"], 2 * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (len(tokens), width), "model.norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        own = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in own.items()}
    leaves = {
        name: (1.0 if len(shape) == 1 else 0.0) + 0.15 * random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": Value("array", [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)), "int32"),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }
    tensors, types = gguf_llama.gguf_tensors(leaves.items(), config, kind)
    gguf.write(path, metadata | gguf_llama.gguf_metadata(config, kind), tensors, types)
    return path
