"""LoRA adapters in GGUF files, as llama.cpp reads them beside the model they were trained with, both ways.

    general.type = "adapter", adapter.type = "lora", adapter.lora.alpha     y = Wx + alpha / r · B(Ax)
    NAME.lora_a [r, A]  NAME.lora_b [C, r]                                  beside the matrix of that name

Rows of B are ordered as those of the matrix, see `gguf_llama`. Parts whose scale is not alpha / r have it in their B.

Axes: A inputs, C outputs, r rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.finetuning.lora import LEAF
from transformers_jax.interchange import gguf, gguf_llama, mapping
from transformers_jax.interchange.gguf import GgufFile
from transformers_jax.interchange.gguf_values import Value

ALPHA = "adapter.lora.alpha"


def write(path: Path, config: Mapping, plan: Sequence[mapping.Planned], leaves: Mapping[str, np.ndarray]) -> None:
    """Writes an adapter.

    Args:
      config: config.json of the base.
      plan: of the model, see `mapping.plan`.
      leaves: what was learned by our names, layers apart, and lora_scale of each kernel.

    Raises:
      UserError: the base is no Llama, or something was learned that llama.cpp has no place for.
    """
    if config["model_type"] != gguf_llama.ARCHITECTURE:
        raise UserError(f"an adapter of {config['model_type']} is not written to GGUF, those of {gguf_llama.ARCHITECTURE} are")
    if other := sorted(name for name in leaves if not LEAF.search(name) or name.endswith("lora_magnitude")):
        raise UserError(f"llama.cpp's adapters have no place for {other[0]} ({len(other)} such): give --merge")
    tensors, alpha = {}, None
    for planned in plan:
        prefix = next(iter(planned.ours)).removesuffix("kernel")
        if (a := leaves.get(f"{prefix}lora_a")) is None:
            continue
        b, whole = np.asarray(leaves[f"{prefix}lora_b"], np.float32), float(leaves[f"{prefix}lora_scale"]) * a.shape[1]
        alpha = whole if alpha is None else alpha
        rows, heads = b.T * np.float32(whole / alpha), gguf_llama.heads_of(planned.theirs, config)
        name = gguf_llama.own_name(planned.theirs)
        tensors[f"{name}.lora_a"] = np.ascontiguousarray(a.T, np.float32)
        tensors[f"{name}.lora_b"] = np.ascontiguousarray(gguf_llama.to_pairs(rows, heads) if heads else rows)
    metadata = {"general.architecture": gguf_llama.ARCHITECTURE, "general.type": "adapter", "adapter.type": "lora"}
    gguf.write(path, metadata | {ALPHA: Value("float32", alpha)}, tensors)


def read(path: Path, plan: Sequence[mapping.Planned]) -> dict[str, np.ndarray]:
    """Our leaves of a file's adapter, layers apart: lora_a [A, r], lora_b [r, C] and lora_scale [].

    Raises:
      UserError: no such file, no adapter of a Llama, or one of another model.
    """
    file = GgufFile(path)
    if file.metadata.get("adapter.type") != "lora":
        raise UserError(f"{path} holds no LoRA adapter: its adapter.type is {file.metadata.get('adapter.type')}")
    by_name, found = {planned.theirs: planned for planned in plan}, {}
    alpha = float(file.metadata.get(ALPHA, 0.0))
    for full in file.tensors:
        name, dot, part = full.rpartition(".lora_")
        if part == "b":
            continue
        planned = by_name.get(gguf_llama.hf_name(name))
        if not dot or planned is None or f"{name}.lora_b" not in file.tensors:
            raise UserError(f"{path}: {full} is no part of an adapter of this model")
        (kernel, shape), a, b = next(iter(planned.ours.items())), file.tensor(full), file.tensor(f"{name}.lora_b")
        outputs, inputs = planned.shape()
        if (a.shape[1], b.shape) != (inputs, (outputs, a.shape[0])):
            raise UserError(f"{path}: {name} has parts {list(a.shape)} and {list(b.shape)}, and is {inputs} to {outputs} here")
        if "self_attn.q_proj" in planned.theirs or "self_attn.k_proj" in planned.theirs:
            b = gguf_llama.to_halves(b, shape[1])
        prefix = kernel.removesuffix("kernel")
        scale = np.float32(alpha / a.shape[0] if alpha else 1.0)
        found |= {f"{prefix}lora_a": a.T, f"{prefix}lora_b": b.T, f"{prefix}lora_scale": scale}
    return found
