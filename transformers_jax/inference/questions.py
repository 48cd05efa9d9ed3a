"""Files of questions that a language model is measured with: an object of JSON a line, plain or gzip. A line is one of

    {"query": str, "choices": [str, …], "gold": int}               which choice goes on from the query (ARC, COPA, OpenBookQA …)
    {"context_options": [str, …], "continuation": str, "gold": int}     after which beginning it goes on so (Winograd)
    {"sentence_good": str, "sentence_bad": str}                    which sentence is right (BLiMP)
    {"context": str, "continuation": str}                          the last word (LAMBADA)
    {"question": str, "answer": str}                               a worked answer that ends with "#### 42" (GSM8K)
    {"question": str, "context": str, "answers": [str, …]}         an answer out of a passage (SQuAD)

The last two are answered by writing, the others by likelihood. A file has lines of one kind. Other keys are not looked at. A
file whose name ends with .json may be one of SQuAD's own; its questions without an answer are left out.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformers_jax.data.text import labelled_sources
from transformers_jax.data.text.lines import filled
from transformers_jax.errors import UserError

CHOICES, BEGINNINGS, SENTENCES, LAST_WORD = "choices", "beginnings", "sentences", "last word"
WORKED, PASSAGE = "worked answer", "passage"
KINDS = {
    CHOICES: {"query": str, "choices": list, "gold": int},
    BEGINNINGS: {"context_options": list, "continuation": str, "gold": int},
    SENTENCES: {"sentence_good": str, "sentence_bad": str},
    PASSAGE: {"question": str, "context": str, "answers": list},
    LAST_WORD: {"context": str, "continuation": str},
    WORKED: {"question": str, "answer": str},
}
WRITTEN = (WORKED, PASSAGE)
"""Kinds that are answered by writing."""

ENDINGS = (".jsonl", ".jsonl.gz", ".json", "")
BETWEEN = "\n\n"
"""What stands between the examples in front of a question, and the question."""


class Question(NamedTuple):
    """One question.

    prompts: what each answer stands behind: of a question with choices the same for all.
    answers: what is scored, or, of kinds that are written, what is right.
    gold: number of the right answer.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    gold: int

    def shown(self) -> str:
        """The question with its right answer, as an example."""
        return self.prompts[self.gold] + self.answers[self.gold]


class Questions(NamedTuple):
    """The questions of a file; name: the file's, without ending."""

    name: str
    kind: str
    questions: list[Question]

    def before(self, i: int, shots: int, seed: int) -> str:
        """So many other questions with their answers, to stand before question i: drawn by seed and i alone."""
        if not shots:
            return ""
        others = np.random.default_rng([seed, i]).permutation(len(self.questions) - 1)[:shots]
        return "".join(self.questions[k + (k >= i)].shown() + BETWEEN for k in others.tolist())


def read(path: Path, key: str = "--tasks") -> Questions:
    """The questions of a file.

    Raises:
      UserError: names file and line of what is not a question, or of another kind than the first.
    """
    kind, questions = "", []
    for where, content in _squad(path) if _is_squad(path, key) else _objects(path, key):
        found = _kind(content, where)
        if kind and found != kind:
            raise UserError(f"{where} is of the kind {found!r}, and the lines before it of the kind {kind!r}")
        kind = found
        questions.append(_question(content, kind, where))
    name = Path(path).name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    return Questions(name, kind, questions)


def _is_squad(path: Path, key: str) -> bool:
    """Whether a file is one of SQuAD's own: one object with "data"."""
    return ".json" in path.suffixes and re.match(rb'\s*\{[^{\[]*"data"\s*:\s*\[', filled(str(path), key).data) is not None


def _squad(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, object) of each question of a file of SQuAD's that has an answer."""
    table = labelled_sources.KINDS["squad"]({"test": str(path)}, "test")
    for i in range(len(table)):
        if table[i]["answers"]:
            yield table.where(i), table[i]


def _objects(path: Path, key: str) -> Iterator[tuple[str, dict]]:
    """(place, object) of each line that is not empty."""
    lines = filled(str(path), key)
    for number in range(len(lines)):
        if lines[number].strip():
            where = f"{path}, line {number + 1}"
            yield where, _object(lines[number], where)


def paths_of(names: Sequence[str], folder: str | None) -> list[Path]:
    """The files of --tasks: paths, or names of files in --tasks_dir, whose endings may be left out.

    Raises:
      UserError: there is no such file.
    """
    found = []
    for name in names:
        tried = [Path(folder or "") / f"{name}{ending}" for ending in ENDINGS]
        path = next((path for path in tried if path.is_file()), None)
        if path is None:
            there = sorted(p.name for p in Path(folder).glob("*.jsonl*")) if folder else []
            hint = f"; {folder} has {', '.join(there) or 'no .jsonl files'}" if folder else "; or give --tasks_dir"
            raise UserError(f"--tasks={name}: no file {tried[-1]}{hint}")
        found.append(path)
    return found


def _object(line: str, where: str) -> dict:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} is not a JSON object")
    return content


def _kind(content: dict, where: str) -> str:
    for kind, keys in KINDS.items():
        if keys.keys() <= content.keys():
            for key, wanted in keys.items():
                if not isinstance(content[key], wanted) or wanted is list and not content[key]:
                    raise UserError(f"{where}: {key} is {content[key]!r}, no {wanted.__name__} with something in it")
            return kind
    known = "; ".join(", ".join(keys) for keys in KINDS.values())
    raise UserError(f"{where} is no question: it has {', '.join(content) or 'nothing'}, and not all of one of: {known}")


def _question(content: dict, kind: str, where: str) -> Question:
    if kind == SENTENCES:
        return Question(("", ""), (content["sentence_good"], content["sentence_bad"]), 0)
    if kind == LAST_WORD:
        return Question((content["context"].rstrip(),), (_after(content["continuation"]),), 0)
    if kind == WORKED:
        return Question((f"Question: {content['question']}\nAnswer:",), (_after(content["answer"]),), 0)
    if kind == PASSAGE:
        right = [answer["text"] if isinstance(answer, dict) else answer for answer in content["answers"]]
        prompt = f"{content['context'].strip()}\nQuestion: {content['question'].strip()}\nAnswer:"
        return Question((prompt,) * len(right), tuple(_after(str(answer)) for answer in right), 0)
    options = content["choices"] if kind == CHOICES else content["context_options"]
    if not all(isinstance(option, str) for option in options) or not 0 <= content["gold"] < len(options):
        raise UserError(f"{where}: gold is {content['gold']}, and the {len(options)} choices are to be texts numbered from 0")
    if kind == BEGINNINGS:
        answer = _after(content["continuation"])
        return Question(tuple(option.rstrip() for option in options), (answer,) * len(options), content["gold"])
    query = content["query"].rstrip()
    if query.startswith("Question:") and not query.endswith(":"):
        query += "\nAnswer:"
    return Question((query,) * len(options), tuple(map(_after, options)), content["gold"])


def _after(text: str) -> str:
    """A text that goes on from another."""
    return f" {text.strip()}"
