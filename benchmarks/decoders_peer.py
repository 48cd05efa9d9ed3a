"""The sides of `benchmarks.decoders` that are not ours, one a call; prints one JSON object.

    python benchmarks/decoders_peer.py step STEPS                 GPT-2 of transformers on PyTorch, a training step
    python benchmarks/decoders_peer.py decode REPEATS FOLDER      SmolLM2 by transformers' generate
    python benchmarks/decoders_peer.py llama_cpp REPEATS FILE     SmolLM2 by llama.cpp, of the package xllamacpp
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from decoders_timing import BATCHES, LENGTH, PROMPT, ROWS, decoding, product_peak, seconds


def step(steps: int) -> dict[str, float]:
    """Seconds of a training step of GPT-2 small with AdamW."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(0, 50_257, (ROWS, LENGTH))

    def train():
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    return {"step": seconds(train, steps), "peak": torch_peak()}


def decode(repeats: int, folder: str) -> dict[str, float]:
    """Tokens a second, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def write(asked, count):
        ids, config = torch.tensor(asked), GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert found.shape[1] == ids.shape[1] + count

    with torch.inference_mode():
        return decoding(write, repeats) | {"peak": torch_peak()}


def llama_cpp(repeats: int, file: str) -> dict[str, float]:
    """Tokens a second, greedily; rows of a batch are requests at the same time."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_gpu_layers = file, 0
    params.n_parallel, params.n_ctx = max(BATCHES), max(BATCHES) * 4 * PROMPT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.verbosity = 0
    server = xllamacpp.Server(params)
    common = {"ignore_eos": True, "cache_prompt": False, "temperature": 0.0}

    def write(asked, count):
        with ThreadPoolExecutor(len(asked)) as pool:
            found = pool.map(lambda ids: server.handle_completions({"prompt": ids, "n_predict": count, **common}), asked)
            assert all(one["usage"]["completion_tokens"] == count for one in found)

    return decoding(write, repeats)


def torch_peak() -> float:
    import torch

    a = torch.full((1024, 1024), 0.5)
    return product_peak(lambda: a @ a, 1024)


if __name__ == "__main__":
    part, count, *where = sys.argv[1:]
    print(json.dumps({"step": step, "decode": decode, "llama_cpp": llama_cpp}[part](int(count), *where)))
