"""Instruction tuning: a causal language model that learns the answers of conversations, not what was asked (Ouyang et al. 2022,
"Training language models to follow instructions with human feedback", section 3.4; Taori et al. 2023, Alpaca).

Conversations share rows where config.data.batching is "packing", and do not see each other.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.data.placed import Placed
from transformers_jax.data.text.chat import ChatTemplate
from transformers_jax.data.text.conversations import messages_of
from transformers_jax.errors import UserError
from transformers_jax.files import read_text
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.tasks import causal_lm
from transformers_jax.tasks.task import Generate
from transformers_jax.tasks.task import Task as Base


class Task(Base):
    """Answers of conversations, see `data.text.conversations`; scored as by `causal_lm`, over the answers' tokens.

    Args:
      tokenizer: turns text into tokens.
      template: file of the chat template, in Jinja; "" for the vocabulary's own, or Alpaca's if it has none.
    """

    streams: Streams = {"": ("tokens", "targets", "weights")}

    def __init__(self, tokenizer, *, template: str = ""):
        self.tokenizer = tokenizer
        source = read_text(template, "config.task.template") if template else None
        self.template = ChatTemplate(tokenizer, source, template or "the chat template")

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "causal_lm"}

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The conversations, each knowing where it stands."""
        return _Told(source) if isinstance(source, Placed) else source

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """A conversation as 1-D int32 arrays `tokens`, `targets`, and `weights`, 1 where a token of an answer is predicted.

        Raises:
          UserError: the template refuses it, or it spells a special token; names its place if that is known.
        """
        try:
            ids, answers = self.template.encode(messages_of(example, alpaca=self.template.is_default))
        except UserError as error:
            raise UserError(f"{example['where']}: {error}" if "where" in example else str(error)) from error
        ids, weights = np.asarray(ids, np.int32), np.asarray(answers, np.int32)
        return {"tokens": ids[:-1], "targets": ids[1:], "weights": weights[1:]}

    def loss(self, output: LanguageModelOutput, batch: dict, *, train: bool):
        """Summed loss, summed weight, and sums of the metrics: all scalars."""
        return causal_lm.sums_of(output, batch, None if train else self._byte_lengths)

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        """[V] bytes that each token stands for."""
        return self.tokenizer.byte_lengths()

    def continuations(self, source: Sequence[dict], generate: Generate) -> list[dict]:
        """The last answers of the first conversations: {"prompt", "continuation", "reference"}."""
        count = min(causal_lm.SAMPLES, len(source))
        asked = [messages_of(source[i], alpaca=self.template.is_default) for i in range(count)]
        prompts = [self.template.prompt(messages[:-1]) for messages in asked]
        return [
            {
                "prompt": self.template.render(messages[:-1], add_generation_prompt=True),
                "continuation": self.tokenizer.decode(found),
                "reference": messages[-1]["content"],
            }
            for messages, found in zip(asked, generate(prompts), strict=True)
        ]


class _Told(Sequence[dict]):
    """Examples with "where" each stands."""

    def __init__(self, source: Placed):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict:
        return self.source[i] | {"where": self.source.where(i)}
