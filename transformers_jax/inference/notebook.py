"""The notebook's door: a model in a few lines, training and evaluation as the launchers do them.

    import transformers_jax as tj

    model = tj.load("W")                       # a workdir, a folder of transformers, a GGUF file, or a name on the hub
    model.predict(["A gripping film."])        # what its task answers, one dict a line
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from transformers_jax import config as configuration
from transformers_jax.errors import UserError
from transformers_jax.inference import answers, embeddings, predictor
from transformers_jax.inference import generate as generating
from transformers_jax.interchange import gguf_model, huggingface
from transformers_jax.runs import evaluate as evaluation
from transformers_jax.runs import initialise
from transformers_jax.runs import train as training
from transformers_jax.runs.experiment import Experiment


class Model:
    """A model with its numbers, to be asked; made by `load`.

    module: the Flax module, a pure function of parameters and batch.
    params: its parameters, nested dicts of arrays, sharded over the devices.
    tokenizer: None for a model of images.
    """

    def __init__(self, there: predictor.Loaded, run: Experiment | None = None):
        self._there, self._run, self._made = there, run, {}
        self.module, self.params, self.tokenizer = there.model, there.variables["params"], there.tokenizer
        self._apply = jax.jit(lambda variables, batch: there.model.apply(variables, batch, deterministic=True))

    def __call__(self, batch: dict) -> Any:
        """What the module returns for a batch (see `transformers_jax.batch`), one of `transformers_jax.outputs`."""
        return self._apply({"params": self.params, **self._there.variables["model_state"]}, batch)

    def predict(self, lines: Sequence[str | dict], *, top: int = 5) -> list[dict]:
        """What the model's task answers to each line of text, or to each example given as a dict of its keys.

        A model that predicts masked tokens and has no other task fills gaps: "Let's stick to [MASK] in this skit."

        Args:
          top: answers where several are possible.

        Raises:
          UserError: the task has no answers, or a line is not what it reads.
        """
        answer = self._once("answers", top, lambda: answers.answerer(self._there, top=top))
        places = [f"line {i + 1}" for i in range(len(lines))]
        examples = [
            line if isinstance(line, Mapping) else answer.example(line, "text", where)
            for line, where in zip(lines, places, strict=True)
        ]
        return answer(examples, places.__getitem__) if examples else []

    def embed(self, texts: Sequence[str], **recipe: Any) -> np.ndarray:
        """A vector for each text, float32 [texts, width].

        Args:
          recipe: fields of `layers.pooling.Recipe` that are to be others than the model's own: pooling, normalise, max_length.

        Raises:
          UserError: the model is no encoder of texts.
        """

        def make():
            return embeddings.Embedder(self._there, embeddings.recipe_of(self._there)._replace(**recipe))

        return self._once("embed", tuple(sorted(recipe.items())), make)(texts)

    def translate(self, lines: Sequence[str], **decoding: Any) -> list[str]:
        """The best translation of each line; a blank line gives a blank one.

        Args:
          decoding: keys of config.decoding that are to be others: beam_size=8, say.

        Raises:
          UserError: the model is not of a run that learned to translate.
        """
        if self._run is None:
            raise UserError(f"{self._there.folder} is not the workdir of a translator")
        decoder = self._once("decoder", tuple(sorted(decoding.items())), lambda: self._run.decoder(self.params, **decoding))
        return [best[0][0] for best in self._run.task.translate(lines, decoder)]

    def generate(self, prompts: Sequence[str | Sequence[dict]], **options: Any) -> list[str] | list[list[str]]:
        """How the model goes on from each prompt; with num_samples above 1 a list of so many texts for each.

        Args:
          prompts: texts, or conversations, lists of {"role": …, "content": …}, which are answered.
          options: fields of `inference.generate.Options`: max_tokens=40, temperature=0.7, say.

        Raises:
          UserError: the model continues no texts, or an option is not possible.
        """
        wanted = generating.Options(**options)
        writes = self._once("generate", wanted, lambda: generating.Generator(self._there, wanted))
        found = writes([{"prompt" if isinstance(prompt, str) else "messages": prompt} for prompt in prompts])
        texts = [[output["text"] for output in one["outputs"]] for one in found]
        return [best for [best] in texts] if wanted.num_samples == 1 else texts

    def _once(self, kind: str, options: Any, make) -> Any:
        """What `make` gives, made once for these options: what is compiled stays."""
        if (kind, options) not in self._made:
            self._made[kind, options] = make()
        return self._made[kind, options]


def load(
    path: str | os.PathLike, *, average: int | None = None, step: int | str | None = None, quantization: str = ""
) -> Model:
    """The model of a workdir, of a folder of `transformers`, of a GGUF file, or of a name on the Hugging Face hub.

    Args:
      average, step: of a workdir: so many of the newest checkpoints, or one, "best", "last" or its number; without either the
        best if it is kept.
      quantization: int8, nf4, q8_0, q4_0 or q4_1 holds the weights so; "none" as floats; "" as the file has them.

    Raises:
      UserError: there is no such model, or it cannot be read.
    """
    if gguf_model.is_file(path):
        return Model(predictor.loaded(str(path), quantization=quantization))
    folder = initialise.folder_of(str(path), key="path")
    if huggingface.is_folder(folder):
        return Model(predictor.loaded(str(path), quantization=quantization))
    run = Experiment(configuration.read(folder), folder)
    return Model(predictor.trained(run, average=average, step=step, quantization=quantization), run)


def train(config: ConfigDict | Mapping | str, workdir: str | os.PathLike) -> Model:
    """Trains in a workdir, as `experiments.pretrain` does, and returns the model; the same call again goes on or is done.

    Args:
      config: a ConfigDict, nested dicts as in a workdir's config.json, or "path/to/file.py:variant".

    Raises:
      UserError: whatever is wrong with config, data or workdir, before anything is written.
    """
    if isinstance(config, str):
        config = configuration.load(config)
    elif not isinstance(config, ConfigDict):
        config = ConfigDict(config)
    configuration.check(config)
    with jax.default_prng_impl(config.prng):
        training.pretrain(config, workdir)
    return load(workdir)


def evaluate(workdir: str | os.PathLike, split: str = "") -> dict[str, Any]:
    """All scores of a trained run on a split, by name; without one the test split, or validation where there is none.

    Raises:
      UserError: there is no such run, or it has no such split.
    """
    run = Experiment(configuration.read(workdir), workdir)
    scores, _ = evaluation.evaluate(run, split or evaluation.split_of(run))
    return scores
