"""What QLoRA taught a language model: its held-out loss and five answers before, after, and with the adapter off.

    python -m benchmarks.adapters_instruct WORKDIR

WORKDIR is that of a run by `experiments.finetune` with method lora. "before" is the quantised base alone, "off" the trained
model with a scale of zero: their losses and answers must be equal. The last line is one JSON object.
"""

import json
import sys

import jax

from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.finetuning import lora
from transformers_jax.inference import predictor
from transformers_jax.inference.generate import Generator, Options
from transformers_jax.runs.evaluate import Scorer
from transformers_jax.runs.experiment import Experiment

ASKED = (
    "What is the capital of France?", "Give three tips for staying healthy.", "Write a short poem about the sea.",
    "Explain what a prime number is.", "Rewrite this sentence politely: Send me the report now.",
)  # fmt: skip


def main(workdir: str) -> None:
    config = configuration.read(workdir)
    jax.config.update("jax_default_prng_impl", config.prng)
    run = Experiment(config, workdir)
    there, scorer, found = predictor.trained(run), Scorer(run), {}
    leaves = parameters.flat(there.variables["params"])
    forms = {
        "before": {name: leaf for name, leaf in leaves.items() if not lora.LEAF.search(name)},
        "after": leaves,
        "off": {name: 0 * leaf if name.endswith("lora_scale") else leaf for name, leaf in leaves.items()},
    }
    prompts = [{"messages": [{"role": "user", "content": text}]} for text in ASKED]
    for name, own in forms.items():
        params = parameters.nest(own)
        loss = scorer.losses("validation", params, {})["loss"]
        generate = Generator(there._replace(variables={"params": params, "model_state": {}}), Options(max_tokens=60))
        answers = [one["outputs"][0]["text"] for one in generate(prompts)]
        found[name] = {"loss": loss, "answers": answers}
        print(json.dumps({name: found[name]}, ensure_ascii=False), flush=True)
    same = {"off_is_before": found["off"] == found["before"]}
    print(json.dumps({name: {"loss": round(x["loss"], 5), "answers": x["answers"]} for name, x in found.items()} | same))


if __name__ == "__main__":
    main(sys.argv[1])
