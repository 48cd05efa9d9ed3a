"""Questions answered by writing: worked answers that end with a number (GSM8K), and answers out of passages (SQuAD)."""

import re

from transformers_jax.errors import UserError
from transformers_jax.inference.generate import Generator, Options
from transformers_jax.inference.predictor import Loaded
from transformers_jax.inference.questions import BETWEEN, WORKED, Questions
from transformers_jax.tasks.parts import squad

_MARKED = re.compile(r"####\s*\$?(-?[\d,]*\.?\d+)")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
MAX_TOKENS = {True: 256, False: 32}
"""Most tokens of a worked answer, and of one out of a passage."""


def measure(there: Loaded, asked: Questions, *, shots: int = 0, seed: int = 0, limit: int = 0, batch_size: int = 32) -> dict:
    """How many questions are answered rightly by greedy decoding.

    An answer ends where the next question would begin; one out of a passage with its line. Of worked answers the number behind
    "####" counts, or the last one where there is no such mark; of others SQuAD's own measure.

    Args:
      shots, seed, limit: as of `likelihood.measure`.

    Returns:
      "exact_match" and "questions", and of passages "f1".

    Raises:
      UserError: there are fewer questions than are to be shown as examples.
    """
    if shots >= len(asked.questions) > 0:
        raise UserError(f"--shots={shots}: {asked.name} has {len(asked.questions)} questions, and needs more than that")
    worked = asked.kind == WORKED
    stops = (BETWEEN, "\nQuestion:") if worked else ("\n",)
    options = Options(method="greedy", stop=stops, max_tokens=MAX_TOKENS[worked], batch_size=batch_size)
    questions = asked.questions[: limit or None]
    prompts = [{"prompt": asked.before(i, shots, seed) + question.prompts[0]} for i, question in enumerate(questions)]
    found = [answered["outputs"][0]["text"].strip() for answered in Generator(there, options)(prompts)]
    if not worked:
        scores = squad.score([[answer.strip() for answer in question.answers] for question in questions], found)
        return {name: scores[name] for name in ("exact_match", "f1", "questions")}
    right = [number_of(text) == number_of(question.answers[0]) for text, question in zip(found, questions, strict=True)]
    return {"exact_match": sum(right) / len(right), "questions": len(right)}


def number_of(text: str) -> float | None:
    """The number that a worked answer comes to: behind "####", or else its last one; None where there is none."""
    marked = _MARKED.search(text)
    numbers = [marked[1]] if marked else _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None
