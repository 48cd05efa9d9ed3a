"""The PEFT side of `benchmarks.adapters`: a LoRA run's recipe and batches in PyTorch, with the numbers that it began with.

    python -m benchmarks.adapters_peer WORKDIR

Of a run with full finetuning it is `benchmarks.finetuning_peer`. The last line is one JSON object.
"""

import copy
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import peft
import transformers

from benchmarks import finetuning_peer
from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.finetuning import lora
from transformers_jax.interchange import huggingface, mapping
from transformers_jax.interchange import peft as folders
from transformers_jax.runs.experiment import Experiment
from transformers_jax.runs.train import first_state


def main(workdir: str) -> None:
    if configuration.read(workdir).finetuning.method == "lora":
        finetuning_peer.main(workdir, adapted, merged)
    else:
        finetuning_peer.main(workdir)


def adapted(run: Experiment):
    """The run's model with its parts of low rank as they were before the first step."""
    jax.config.update("jax_default_prng_impl", run.config.prng)
    state, options = first_state(run, optax.identity()), run.config.finetuning
    leaves = {name: np.asarray(leaf) for name, leaf in parameters.flat(state.model_params).items()}
    base = {name: leaf for name, leaf in leaves.items() if not lora.LEAF.search(name)}
    own = {name: leaf for name, leaf in leaves.items() if lora.LEAF.search(name)} | parameters.flat(state.params)
    fields = dict(run.config.model) | run.task.model_fields()
    plan = mapping.plan(huggingface.names_of(fields), run.model.protocol().head, mapping.shapes(run.model))
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(Path(folder), fields, parameters.nest(base))
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        folders.write(Path(folder) / "adapter", plan, own, base=folder, head="sequence", dropout=options.dropout)
        return peft.PeftModel.from_pretrained(model, Path(folder) / "adapter", is_trainable=True)


def merged(model):
    """The model without its parts of low rank, which are in its kernels."""
    return copy.deepcopy(model).merge_and_unload()


if __name__ == "__main__":
    main(sys.argv[1])
