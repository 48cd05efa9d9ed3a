"""What a trained model answers to lines of text or JSON: its task says what a line is, and what is answered."""

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from transformers_jax.data.text.labelled_sources import json_example
from transformers_jax.errors import Unreadable, UserError
from transformers_jax.inference.candidates import Candidates
from transformers_jax.inference.predictor import Loaded
from transformers_jax.models.protocol import CONTINUES
from transformers_jax.runs import foreign_task
from transformers_jax.tasks.bert_pretraining import NextSentence
from transformers_jax.tasks.masked_lm import FillMask
from transformers_jax.tasks.task import Task


def answerer(there: Loaded, wanted: str = "", *, top: int = 5, candidates: Sequence[str] = ()) -> "Answers":
    """What answers with a model: what its task says, or what is wanted of a model that has learned several things.

    Args:
      wanted: "" for what the model was trained for, "fill_mask" or "next_sentence".
      top: answers that are given where several are possible.
      candidates: words of which it is said how well they stand in a gap, in place of the best of all.

    Raises:
      UserError: that is not what the model has learned, or its task answers no lines.
    """
    task, model = _learned(there, top)
    if wanted and (task is None or task.name != wanted):
        make, heads = ASKED[wanted]
        if (head := model.protocol().head) not in heads:
            raise UserError(f"{there.folder} {REFUSED[wanted]}: its head is {head!r}, and not {' or '.join(heads)}")
        task = make(there, top)
    if task is None:
        raise UserError(f"{there.folder} has no head that answers lines: {_advice(model)}")
    if candidates and task.name != FillMask.name:
        raise UserError(f"--candidates are words for a gap: {there.folder} answers as {task.name}")
    return Answers(there._replace(model=model), Candidates(there.tokenizer, candidates) if candidates else task)


def _fill_mask(there: Loaded, top: int) -> Task:
    return FillMask(there.tokenizer, top=top)


def _next_sentence(there: Loaded, top: int) -> Task:
    return NextSentence(there.tokenizer, max_length=there.longest())


ASKED: dict[str, tuple[Callable[[Loaded, int], Task], tuple[str, ...]]] = {
    "fill_mask": (_fill_mask, ("masked_lm", "pretraining")),
    "next_sentence": (_next_sentence, ("pretraining", "next_sentence")),
}
"""What may be wanted of a model: what makes its task, and the heads that have learned it."""

REFUSED = {"fill_mask": "fills no gaps", "next_sentence": "does not tell what follows what"}


def _learned(there: Loaded, top: int) -> tuple[Task | None, Any]:
    """The task of a model without being asked for another, and its module; None where its head answers nothing by itself."""
    about = there.model.protocol()
    task = there.task or foreign_task.of_folder(there.folder, about, there.tokenizer)
    if task is not None:
        return task.answering(there.model, top=top)
    made = next((make for make, heads in ASKED.values() if about.head in heads), None)
    return made and made(there, top), there.model


def _advice(model) -> str:
    does = model.protocol().does
    return "experiments.generate goes on from texts" if CONTINUES in does else "experiments.embed gives vectors of texts"


class Answers:
    """A model's answers to the examples of a task.

    Raises:
      UserError: the task has no answer for a line.
    """

    def __init__(self, there: Loaded, task: Task):
        if not task.line_means:
            raise UserError(f"the run in {there.folder} learned {task.name}, which has no answers to lines")
        self.task, self._predict = task, there.predictor(task)

    def example(self, line: str, form: str, where: str) -> dict:
        """See `example_of`."""
        return example_of(line, self.task, form, where)

    def __call__(self, examples: Sequence[dict], where: Callable[[int], str]) -> list[dict]:
        """Each example with what the model makes of it.

        Args:
          where: names the place of example i.

        Raises:
          Unreadable: an example that the task cannot encode; its number is that among `examples`.
        """
        expanded = self.task.examples(examples)  # windows, say
        try:
            found = self._predict(expanded, lambda i: where(expanded[i].get("example", i)))
        except Unreadable as error:
            error.number = expanded[error.number].get("example", error.number)
            raise
        return self.task.samples(examples, found)


class ByAdapter:
    """Answers by the model that each example names by its key "adapter"; by that of the name "" where it names none.

    Args:
      answers: by name; see `adapters.named` for their models.
    """

    def __init__(self, answers: dict[str, "Answers"]):
        self.answers = answers

    @property
    def task(self) -> Task:
        """That of the model which answers where no name is given."""
        return self.answers[""].task

    def example(self, line: str, form: str, where: str) -> dict:
        """See `example_of`; raises UserError also for a name that there is not."""
        name = ""
        if form == "jsonl" or form == "auto" and line.lstrip().startswith("{"):
            with contextlib.suppress(ValueError, AttributeError):  # the model's own `example` says what is wrong
                name = json.loads(line).get("adapter", "")
        if not isinstance(name, str) or name not in self.answers:
            known = ", ".join(filter(None, self.answers))
            raise UserError(f"{where} names the adapter {name!r}; there are {known}")
        return self.answers[name].example(line, form, where) | {"adapter": name}

    def __call__(self, examples: Sequence[dict], where: Callable[[int], str]) -> list[dict]:
        """See `Answers`; the examples of one model go through it together."""
        found: list[dict] = [{}] * len(examples)
        errors = []
        for name, answer in self.answers.items():
            places = [i for i, example in enumerate(examples) if example.get("adapter", "") == name]
            try:
                answered = answer([examples[i] for i in places], lambda i, places=places: where(places[i])) if places else []
            except Unreadable as error:
                error.number = places[error.number]
                errors.append(error)
                continue
            for i, entry in zip(places, answered, strict=True):
                found[i] = entry
        if errors:
            raise min(errors, key=lambda error: error.number)
        return found


def example_of(line: str, task: Task, form: str, where: str) -> dict:
    """The example of a line.

    Args:
      form: "text", "jsonl", or "auto": JSON where the line begins with {.
      where: names the line in messages.

    Raises:
      UserError: names the line; it is no JSON, or not what the task reads.
    """
    if form == "jsonl" or form == "auto" and line.lstrip().startswith("{"):
        example = json_example(line, {}, where)
        if missing := [key for key in task.line_keys if key not in example]:
            raise UserError(f"{where} has no key {missing[0]}; {task.name} reads {', '.join(task.line_keys)}")
        return example
    try:
        return task.of_line(line.split("\t"))
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(f"{where} is not what {task.name} reads: {task.line_means}") from error
