"""Decoding from weights in four bits, at batch 1: tokens a second and memory, beside llama.cpp on the same file and
`transformers` in float32.

    python -m benchmarks.quantized --gguf=SmolLM2-135M-Instruct.Q4_1.gguf --cores=0       one pinned core
    python -m benchmarks.quantized --gguf=… --cores=0,1                                   two threads
        [--sides=ours,llama_cpp,transformers,f32] [--tokens=96] [--rounds=4] [--out=FILE]

Each side runs alone, in a process of its own on these cores. `llama_cpp` needs the package xllamacpp, `transformers` PyTorch.
Time is that of `tokens` more tokens: of a text so much longer, less that of a short one. Memory is the peak of resident pages
less what was there before the file was opened, over the bytes of the weights as they are held. A row of JSON is printed, and
added to --out, as each side is done: a side with a row there is left out.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "The capital of France is Paris. The capital of Italy"
SHORT = 8
SIDES = ("ours", "llama_cpp", "transformers", "f32")


def main(argv: list[str]) -> None:
    from absl import app, flags

    flags.DEFINE_string("gguf", None, "file of a Llama", required=True)
    flags.DEFINE_string("cores", "0", "of this machine, with commas")
    flags.DEFINE_list("sides", ["ours", "llama_cpp", "transformers"], f"of {', '.join(SIDES)}; f32: ours from floats")
    flags.DEFINE_integer("tokens", 96, "whose time is taken")
    flags.DEFINE_integer("rounds", 4, "the best of so many counts")
    flags.DEFINE_string("out", None, "file of rows, a line of JSON each")
    app.run(lambda _: measure(flags.FLAGS), [argv[0], *argv[1:]])


def measure(args) -> None:
    """Runs each side that has no row yet."""
    out = Path(args.out) if args.out else None
    done = [json.loads(line) for line in out.read_text().splitlines()] if out and out.exists() else []
    for side in args.sides:
        if any((row["side"], row["cores"]) == (side, args.cores) for row in done):
            continue
        command = [sys.executable, "-m", "benchmarks.quantized", "side", side, args.gguf, str(args.tokens), str(args.rounds)]
        environment = os.environ | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_cpu_prefer_vector_width=512"}
        for _ in range(2):  # the first fills the caches: compiled programs, pages of the file
            found = subprocess.run(["taskset", "-c", args.cores, *command], stdout=subprocess.PIPE, check=True, env=environment)
        row = {"side": side, "cores": args.cores} | json.loads(found.stdout.splitlines()[-1])
        print(json.dumps(row), flush=True)
        if out:
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def run_side(side: str, path: str, tokens: int, rounds: int) -> None:
    """One side's numbers, as JSON on the last line."""
    write, memory = {"ours": ours, "f32": floats, "llama_cpp": llama_cpp, "transformers": in_transformers}[side](path)
    write(SHORT), write(SHORT + tokens)
    best, text = {"wall": 0.0, "processor": 0.0}, ""
    for _ in range(rounds):
        taken = []
        for count in (SHORT, SHORT + tokens):
            began = time.perf_counter(), time.process_time()
            text = write(count)
            taken.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        for which, name in enumerate(best):
            best[name] = max(best[name], tokens / (taken[1][which] - taken[0][which]))
    print(json.dumps({f"tokens_per_{name}_second": round(x, 1) for name, x in best.items()} | memory() | {"text": text[:60]}))


def ours(path: str, quantization: str = ""):
    """Our decoder; compiled programs come from the cache on disk."""
    import jax

    cache = os.environ.get("TRANSFORMERS_JAX_CACHE", str(Path.home() / ".cache" / "transformers_jax" / "xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    from transformers_jax.decoding.prompts import PromptDecoder
    from transformers_jax.inference import predictor

    jax.numpy.zeros(1).block_until_ready()
    before = peak()
    there = predictor.loaded(path, quantization=quantization)
    read = peak() - before
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(there.variables["params"])) / 2**20
    about, prompt = there.model.protocol(), there.tokenizer.encode(PROMPT)
    decoder = PromptDecoder(there.model, there.variables["params"], ends=(), longest=about.longest, mesh=there.mesh)

    def write(count: int) -> str:
        [[found]] = decoder.decode([prompt], limits=count)
        if len(found.ids) != count:
            sys.exit(f"{len(found.ids)} tokens were written in place of {count}")
        return there.tokenizer.decode(found.ids)

    def memory() -> dict:
        used = peak() - before
        found = {"weights_mib": weights, "loaded_mib": read, "peak_mib": used, "peak_over_weights": used / weights}
        return {name: round(x, 2) for name, x in found.items()}

    return write, memory


def floats(path: str):
    """Ours with the same numbers as float32."""
    return ours(path, "none")


def llama_cpp(path: str):
    """llama.cpp with as many threads as there are cores."""
    import xllamacpp

    before = peak()
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = path, 256, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    server = xllamacpp.Server(params)

    def write(count: int) -> str:
        asked = {"prompt": PROMPT, "n_predict": count, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        return server.handle_completions(asked)["choices"][0]["text"]

    size = os.path.getsize(path) / 2**20
    return write, lambda: {"weights_mib": round(size, 1), "peak_mib": round(peak() - before, 1)}


def in_transformers(path: str):
    """`transformers` with the same numbers as float32."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    from transformers_jax.interchange import gguf_llama, gguf_model
    from transformers_jax.interchange.gguf import GgufFile

    before, weights = peak(), gguf_llama.GgufWeights(GgufFile(path))
    tokenizer = gguf_model.opened(path).tokenizer
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**weights.config)).eval()
    model.load_state_dict({name: torch.from_numpy(weights.array(name).copy()) for name in weights.names()}, strict=False)
    model.tie_weights()
    prompt = torch.tensor([tokenizer.encode(PROMPT)])

    def write(count: int) -> str:
        ids = model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        return tokenizer.decode(ids[0, prompt.shape[1] :].tolist())

    return write, lambda: {"peak_mib": round(peak() - before, 1)}


def peak() -> float:
    """The most resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        run_side(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main(sys.argv)
