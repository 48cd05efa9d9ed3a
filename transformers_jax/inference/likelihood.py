"""Questions answered by likelihood: of all answers the one that the model finds likeliest.

Axes: B batch rows, T length, D model width, V vocabulary, n texts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from transformers_jax.errors import UserError
from transformers_jax.inference.predictor import Loaded
from transformers_jax.inference.questions import LAST_WORD, SENTENCES, Questions
from transformers_jax.layers.embeddings import token_scores
from transformers_jax.layers.losses import in_chunks
from transformers_jax.models.protocol import CONTINUES, TEXT
from transformers_jax.outputs import LanguageModelOutput
from transformers_jax.tasks.task import Task


class Continuations(Task):
    """Examples {"before": token ids, one or more, "ids": token ids that are scored}: a task to be handed to a `Predictor`."""

    one_a_row = True
    streams = {"": ("tokens", "targets", "weights")}

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """The fields of one row: weights are 1 where a scored token is predicted."""
        ids = np.array([*example["before"], *example["ids"]], np.int32)
        weights = (np.arange(1, len(ids)) >= len(example["before"])).astype(np.int32)
        return {"tokens": ids[:-1], "targets": ids[1:], "weights": weights}

    def predict(self, output: LanguageModelOutput, batch: dict) -> dict[str, jax.Array]:
        """Of each row [B]: `logprob`, of all scored tokens, and `likeliest`, whether each of them is the likeliest there."""
        table, bias = output.table, output.bias
        B, T = batch["targets"].shape

        def chunk(of):  # hidden [P, D], targets [P] → log-probability and whether it is the likeliest, [P]
            hidden, targets = of
            logits = token_scores(hidden, table)
            logits = logits if bias is None else logits + bias
            of_target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            return of_target - jax.nn.logsumexp(logits, axis=-1), of_target >= jnp.max(logits, axis=-1)

        found = jax.lax.map(chunk, tuple(in_chunks(max(table.shape), output.hidden, batch["targets"])))  # [chunks, P]
        logprobs, best = (jnp.moveaxis(x.reshape(len(x), B, -1), 0, 1).reshape(B, -1)[:, :T] for x in found)  # [B, T]
        scored = (batch["weights"] > 0) & (batch["segments"] > 0)
        return {"logprob": jnp.sum(jnp.where(scored, logprobs, 0.0), axis=1), "likeliest": jnp.all(best | ~scored, axis=1)}


class Score(NamedTuple):
    """How likely a text is: log-probability, the same by byte of the text in UTF-8, and whether greedy decoding writes it."""

    logprob: float
    by_byte: float
    greedy: bool


class Likelihood:
    """Log-probabilities of texts under a model, of like length together.

    Raises:
      UserError: the model continues no texts.
    """

    def __init__(self, there: Loaded):
        about = there.model.protocol()
        if CONTINUES not in about.does or TEXT not in about.reads or not about.predicts_tokens:
            raise UserError(f"{there.folder} holds no model that continues texts: it {' and '.join(about.does)}")
        self.there, self.longest = there, about.longest
        self._predict = there.predictor(Continuations())

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Score]:
        """The score of each answer behind its prompt.

        A prompt that is too long loses its beginning; one warning says of how many.
        """
        rows, cut = [], 0
        for prompt, answer in zip(prompts, answers, strict=True):
            before, ids = self._split(prompt, answer)
            room = self.longest + 1 - len(ids) if self.longest else len(before)  # the last token is not read
            if room < 1:
                raise UserError(f"an answer has {len(ids)} tokens and the model reads {self.longest}: {answer[:40]!r} …")
            cut += room < len(before)
            rows.append({"before": before[-room:], "ids": ids})
        if cut:
            logging.warning("%d of %d prompts are too long for the model and lose their beginnings", cut, len(rows))
        if not rows:
            return []
        found = self._predict(rows)
        return [
            Score(float(logprob), float(logprob) / max(1, len(answer.strip().encode())), bool(greedy))
            for logprob, greedy, answer in zip(found["logprob"], found["likeliest"], answers, strict=True)
        ]

    def _split(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """(tokens before, tokens that are scored). A token that spans the border is scored."""
        tokenizer = self.there.tokenizer
        whole, alone = tokenizer.encode(prompt + answer), tokenizer.encode(prompt)
        same = next((k for k, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b), len(alone))
        same = min(same, len(whole) - 1)
        begin = [tokenizer.bos_id] if self.there.begins else tokenizer.begun([])
        return (begin + whole[:same] or [tokenizer.bos_id]), whole[same:]


def measure(likelihood: Likelihood, asked: Questions, *, shots: int = 0, seed: int = 0, limit: int = 0) -> dict:
    """How many questions are answered rightly: the likeliest answer is taken.

    Args:
      shots: other questions with their answers that stand before each.
      seed: of the choice of these.
      limit: only so many questions, the file's first; 0 for all.

    Returns:
      "accuracy", "stderr", its standard error, and "questions". With choices also "accuracy_by_byte", where the likeliest
      answer by byte is taken, and "chance", the accuracy of guessing. Of last words, which are right if greedy decoding writes
      them, "perplexity" of the word.

    Raises:
      UserError: examples before questions that have none to show, or more of them than there are.
    """
    if shots and asked.kind == SENTENCES:
        raise UserError(f"--shots={shots}: {asked.name} has sentences, which nothing stands before; give --shots=0")
    if shots >= len(asked.questions) > 0:
        raise UserError(f"--shots={shots}: {asked.name} has {len(asked.questions)} questions, and needs more than that")
    questions = asked.questions[: limit or None]
    prompts, answers, owners = [], [], []
    for i, question in enumerate(questions):
        before = asked.before(i, shots, seed)
        prompts += [before + prompt for prompt in question.prompts]
        answers += question.answers
        owners += [i] * len(question.answers)
    scores, owners = likelihood(prompts, answers), np.array(owners)
    if asked.kind == LAST_WORD:
        nll = -np.mean([score.logprob for score in scores])
        return _share([score.greedy for score in scores]) | {"perplexity": float(np.exp(nll))}
    found = {}
    for name, values in (("", [s.logprob for s in scores]), ("by_byte", [s.by_byte for s in scores])):
        best = [int(np.argmax(np.array(values)[owners == i])) for i in range(len(questions))]
        found[name] = [b == question.gold for b, question in zip(best, questions, strict=True)]
    chance = float(np.mean([1 / len(question.answers) for question in questions]))
    return _share(found[""]) | {"accuracy_by_byte": float(np.mean(found["by_byte"])), "chance": chance}


def _share(right: Sequence[bool]) -> dict:
    """The share of what is right, and its standard error."""
    share = float(np.mean(right))
    return {"accuracy": share, "stderr": float(np.sqrt(share * (1 - share) / len(right))), "questions": len(right)}
