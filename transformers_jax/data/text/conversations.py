"""Conversations to be answered: files of JSON, an object a line, or one array of them. An object is one of

    {"messages": [{"role": "system", "user" or "assistant", "content": str}, …]}     the last one an assistant's
    {"prompt": str, "response": str}
    {"instruction": str, "input": str, "output": str}                                Alpaca's; "input" may be missing

Keys of config.data that are read here:
  train, validation, test: files, plain or gzip.
  columns: fields with another key, ("prompt=question", "response=answer") say.
"""

import json
from collections.abc import Callable, Iterator

from transformers_jax.data.text.chat import PREFACE_WITH_INPUT
from transformers_jax.data.text.labelled_sources import Table
from transformers_jax.data.text.lines import filled, paths_of
from transformers_jax.errors import UserError

FORMS = (("messages",), ("prompt", "response"), ("instruction", "output"))
"""What an object has, one of these."""

FIELDS = (*(name for form in FORMS for name in form), "input")


def messages_of(example: dict, alpaca: bool = False) -> list[dict]:
    """The messages of an object of any form.

    Args:
      alpaca: whether an input is announced in the words of Alpaca's prompt; else a blank line stands before it.
    """
    if "messages" in example:
        return example["messages"]
    if "prompt" in example:
        return [{"role": "user", "content": example["prompt"]}, {"role": "assistant", "content": example["response"]}]
    asked, given, before = example["instruction"], example.get("input", ""), []
    if given.strip():
        asked += f"\n\n### Input:\n{given}" if alpaca else f"\n\n{given}"
        before = [{"role": "system", "content": PREFACE_WITH_INPUT}] if alpaca else []
    return [*before, {"role": "user", "content": asked}, {"role": "assistant", "content": example["output"]}]


def _conversations(config, split: str) -> Table:
    """All objects of all files, checked, in memory."""
    table, key = Table(), f"config.data.{split}"
    keys = dict(column.partition("=")[::2] for column in config.get("columns", ()) if "=" in column)
    if unknown := sorted(set(keys) - set(FIELDS)):
        raise UserError(f"config.data.columns: {unknown[0]!r} is not one of {', '.join(FIELDS)}")
    for path in paths_of(config, split, f"{split}.jsonl"):
        for number, content, where in _objects(path, key):
            table.add(_checked(content, keys, where), path, number)
    return table


KINDS: dict[str, Callable] = {"conversations": _conversations}


def _objects(path: str, key: str) -> Iterator[tuple[int, object, str]]:
    """(number, value, what to call it in an error) of each line, or of each item of one array."""
    lines = filled(path, key)
    if lines.data.lstrip()[:1] == b"[":
        try:
            items = json.loads(lines.data)
        except json.JSONDecodeError as error:
            raise UserError(f"{key}: {path}, line {error.lineno} is not JSON: {error.msg}") from error
        yield from ((n, item, f"{path}, item {n}") for n, item in enumerate(items, start=1))
        return
    for number in range(1, len(lines) + 1):
        if (line := lines[number - 1]).strip():
            where = f"{path}, line {number}"
            try:
                yield number, json.loads(line), where
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error


def _checked(content: object, keys: dict[str, str], where: str) -> dict:
    """The fields of an object that asks and answers."""
    if not isinstance(content, dict):
        raise UserError(f"{where} is not a JSON object, one conversation a line")
    example = {name: content[keys.get(name, name)] for name in FIELDS if content.get(keys.get(name, name)) is not None}
    form = next((form for form in FORMS if form[0] in example), None)
    if form is None:
        raise UserError(f"{where} has none of messages, prompt, instruction; see config.data.columns")
    if form == ("messages",):
        return {"messages": _messages(example["messages"], where)}
    example = {name: value for name, value in example.items() if name in form or (name == "input" and "output" in form)}
    for name in (*form, *(("input",) if "input" in example else ())):
        if not isinstance(value := example.get(name), str) or not value.strip() and name != "input":
            what = "lacks an answer" if name == form[1] and not value else f"has no text as {name}"
            raise UserError(f"{where} {what}: give {keys.get(name, name)}")
    return example


def _messages(messages: object, where: str) -> list[dict]:
    """Messages whose last one is an answer."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages is no list of some")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"{where}: message {number} has no role")
        if not isinstance(message.get("content"), str):
            raise UserError(f"{where}: the content of message {number} is no text")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise UserError(f"{where} lacks an answer: its last message is not an assistant's, or empty")
    return messages
