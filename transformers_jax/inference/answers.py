"""What a trained model answers to a line of text or JSON.

Axes: B batch rows, T length, M gaps of a text, D model width, V vocabulary.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.data.text.labelled_sources import json_example
from transformers_jax.errors import Unreadable, UserError
from transformers_jax.inference.predictor import Loaded
from transformers_jax.layers import gather as masked
from transformers_jax.models.encoder import LANGUAGE_HEADS
from transformers_jax.outputs import LanguageModelOutput, PretrainingOutput
from transformers_jax.tasks import masked_lm


class Form(NamedTuple):
    """How a task reads a line.

    meaning: of a line of text.
    parse: its parts between TABs → the example; raises ValueError, TypeError or IndexError if they are no such line.
    needs: keys that an example has.
    """

    meaning: str
    parse: Callable[[list[str]], dict]
    needs: tuple[str, ...]


def _pair(first: str, second: str | None = None) -> dict:
    return {"first": first} | ({} if second is None else {"second": second})


def _several(parts: list[str], least: int) -> list[str]:
    if len(parts) < least:
        raise ValueError(f"{len(parts)} parts")
    return parts


FORMS = {
    "sequence_classification": Form("a text, or two with a TAB between them", lambda cells: _pair(*cells), ("first",)),
    "similarity": Form(
        "two texts with a TAB between them", lambda cells: dict(zip(("first", "second"), cells, strict=True)),
        ("first", "second"),
    ),
    "tagging": Form("words with blanks between them", lambda cells: {"words": " ".join(cells).split()}, ("words",)),
    "span_qa": Form(
        "question TAB passage", lambda cells: {"question": cells[0], "context": "\t".join(_several(cells[1:], 1))},
        ("question", "context"),
    ),
    "multiple_choice": Form(
        "beginning TAB choice TAB choice …", lambda cells: {"context": cells[0], "choices": _several(cells[1:], 2)},
        ("context", "choices"),
    ),
    "fill_mask": Form("a text with [MASK] in it", lambda cells: {"text": "\t".join(cells)}, ("text",)),
}  # fmt: skip
"""By task."""


def example_of(line: str, task: str, form: str, where: str) -> dict:
    """The example of a line.

    Args:
      task: a key of FORMS.
      form: "text", "jsonl", or "auto": JSON where the line begins with {.
      where: names the line in messages.

    Raises:
      UserError: names the line; it is no JSON, or not what the task reads.
    """
    wanted = FORMS[task]
    if form == "jsonl" or form == "auto" and line.lstrip().startswith("{"):
        example = json_example(line, {}, where)
        if missing := [key for key in wanted.needs if key not in example]:
            raise UserError(f"{where} has no key {missing[0]}; {task} reads {', '.join(wanted.needs)}")
        return example
    try:
        return wanted.parse(line.split("\t"))
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(f"{where} is not what {task} reads: {wanted.meaning}") from error


def answerer(there: Loaded, name: str, *, top: int = 5) -> "Answers | Filler":
    """What answers for a model: by its task, or with a masked language model's head by filling gaps.

    Args:
      name: "fill_mask", or config.task.name of the run it is of.
      top: words a gap.

    Raises:
      UserError: see `Answers` and `Filler`.
    """
    fills = name == Filler.name or getattr(getattr(there.model, "config", None), "head", "") in LANGUAGE_HEADS
    return Filler(there, top) if fills else Answers(there, name)


class Answers:
    """A finetuned model's answers to examples.

    Args:
      there: of a run whose task predicts.
      name: config.task.name of the run.

    Raises:
      UserError: the run's task has no answer for a line.
    """

    def __init__(self, there: Loaded, name: str):
        if name not in FORMS:
            raise UserError(f"the run in {there.folder} learned {name}, which has no answers to lines; {', '.join(FORMS)} do")
        self.name, self.task, self._predict = name, there.task, there.predictor(there.task)

    def example(self, line: str, form: str, where: str) -> dict:
        """See `example_of`."""
        return example_of(line, self.name, form, where)

    def __call__(self, examples: Sequence[dict], where: Callable[[int], str]) -> list[dict]:
        """Each example with what the model makes of it.

        Args:
          where: names the place of example i.

        Raises:
          Unreadable: an example that the task cannot encode.
        """
        expanded = self.task.examples(examples) if hasattr(self.task, "examples") else examples  # windows, say
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

    def __init__(self, answers: dict[str, "Answers | Filler"]):
        self.answers = answers

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


class Filler:
    """The best words for the gaps of texts.

    Args:
      there: a model with a masked language model's head.
      top: words a gap.

    Raises:
      UserError: it has no such head, or its vocabulary no mask token.
    """

    name = "fill_mask"

    def __init__(self, there: Loaded, top: int):
        head = getattr(there.model.config, "head", "")
        if head not in LANGUAGE_HEADS:
            raise UserError(f"{there.folder} fills no gaps: its head is {head!r}, not a masked language model's")
        student = getattr(there.model, "student", there.model)  # not its teacher
        self.there, self.top, self._predictors = there._replace(model=student), top, {}
        self._task = masked_lm.Task(there.tokenizer)

    def example(self, line: str, form: str, where: str) -> dict:
        """{"text"} of a line.

        Raises:
          UserError: names the line; see `example_of`, or there is no gap in the text.
        """
        example = example_of(line, self.name, form, where)
        try:
            self._gaps(example)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return example

    def __call__(self, examples: Sequence[dict], where: Callable[[int], str]) -> list[dict]:
        """{"text", "gaps": [[{"word", "probability"}, …] best first, …]} of each text."""
        gaps = max(map(self._gaps, examples))
        if gaps not in self._predictors:
            self._predictors[gaps] = self.there.predictor(FillMask(self.there.tokenizer, self.top, gaps))
        predict = self._predictors[gaps]
        found = predict.task.answers(predict(examples, where))
        return [{"text": example["text"], "gaps": words} for example, words in zip(examples, found, strict=True)]

    def _gaps(self, example: dict) -> int:
        return int(self._task.gaps(example["text"])["weights"].sum())


class FillMask:
    """What stands best in the gaps of a text: a task to be handed to a `Predictor`.

    Args:
      top: words a gap.
      gaps: M, of the text that has most; further ones are not looked at.
    """

    one_a_row = True
    streams = {"": ("tokens", "token_types")}

    def __init__(self, tokenizer, top: int = 5, gaps: int = 1):
        self.tokenizer, self.top, self.gaps = tokenizer, top, gaps
        self._task = masked_lm.Task(tokenizer)

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """{"text": "Let's stick to [MASK] in this skit"} → `tokens`, `token_types`."""
        fields = self._task.gaps(example["text"])
        return {name: fields[name] for name in self.streams[""]}

    def predict(self, output: LanguageModelOutput | PretrainingOutput, batch: dict) -> dict[str, jax.Array]:
        """`tokens` [B, M, top], their `probabilities` [B, M, top], and `gap` [B, M]: whether there is such a gap."""
        output = output.lm if isinstance(output, PretrainingOutput) else output
        missing = batch["tokens"] == self.tokenizer.mask_id  # [B, T]
        positions = masked.masked_positions(missing, min(self.gaps, missing.shape[1]))  # [B, M]
        hidden = masked.gather(output.hidden, positions)  # [B, M, D]
        logits = jnp.einsum("bmd,vd->bmv", hidden.astype(jnp.float32), output.table.astype(jnp.float32))
        logits = logits if output.bias is None else logits + output.bias
        probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits), min(self.top, logits.shape[-1]))
        return {"tokens": tokens, "probabilities": probabilities, "gap": masked.gather(missing, positions)}

    def answers(self, predictions: dict) -> list[list[list[dict]]]:
        """[{"word", "probability"}, …] best first, of each gap of each text."""
        texts = zip(predictions["tokens"], predictions["probabilities"], predictions["gap"], strict=True)
        return [
            [self._words(ids, chances) for ids, chances, there in zip(*rows, strict=True) if there] for rows in texts
        ]

    def _words(self, ids: np.ndarray, chances: np.ndarray) -> list[dict]:
        pairs = zip(ids, chances, strict=True)
        return [{"word": word(self.tokenizer, i), "probability": round(float(p), 4)} for i, p in pairs]


def word(tokenizer, i: int) -> str:
    """A token as it would be written: "comedy", "##ing" where it goes on; a special token by its name."""
    token = tokenizer.token(int(i))
    return token if token.startswith("##") else tokenizer.decode([int(i)]).strip() or token
