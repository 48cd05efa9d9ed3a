"""Examples with labels, tags, answers or choices: TSV, JSONL, CoNLL columns, SQuAD's JSON, SWAG's CSV, and GLUE.

Keys of config.data that are read here:
  train, validation, test: files, "a.tsv,b.tsv", plain or gzip; or, with tfds_name, the split's name there.
  tfds_name, data_dir: a prepared data set: "glue/mnli", "conll2003", "squad/v2.0", "hellaswag".
  columns: tsv: what each column is, ("first", "second", "-", "label"), "-" for one that is not read; or, by the names in
    the first line, ("first=sentence_A", "label=entailment_judgment"). Each line has as many cells as there are columns:
    one more would be a tab inside a text, which moves what stands behind it. jsonl: fields with another key,
    ("first=sentence",). The fields are those that `sources` lists.
  header: tsv: whether the first line has names.
  tag_column: conll: which column has the tag; -1 (the default) is the last. Columns are parted by tabs, or by spaces; other
    white space, a no-break space say, may be a word.

Every mistake in a file is one line that names the file and the line.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers_jax.data.placed import Placed
from transformers_jax.data.text.lines import Lines, filled, paths_of
from transformers_jax.data.tfds import open_prepared
from transformers_jax.errors import UserError

FIELDS: dict[str, type] = {
    "text": str, "first": str, "second": str, "label": str, "score": float, "words": list, "tags": list, "id": str,
    "question": str, "context": str, "answers": list, "choices": list, "image": str,
}  # fmt: skip
TSV_FIELDS = ("first", "second", "label", "score", "id", "text")

GLUE = {
    "cola": ("sentence",), "sst2": ("sentence",), "mrpc": ("sentence1", "sentence2"), "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"), "mnli": ("premise", "hypothesis"), "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"), "wnli": ("sentence1", "sentence2"), "ax": ("premise", "hypothesis"),
    "mnli_matched": ("premise", "hypothesis"), "mnli_mismatched": ("premise", "hypothesis"),
}  # fmt: skip
"""The text features of TFDS' glue, by its part."""


class Table(Placed):
    """Examples in memory that know where they stand."""

    def __init__(self):
        self.examples: list[dict] = []
        self.places: list[tuple[str, int]] = []

    def add(self, example: dict, path: str, line: int) -> None:
        self.examples.append(example)
        self.places.append((path, line))

    def where(self, i: int) -> str:
        """File and line of an example, for messages."""
        return "{}, line {}".format(*self.places[i])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict:
        return self.examples[i]


class Prepared:
    """A prepared data set, each example made when it is asked for."""

    def __init__(self, data: Sequence[dict], make: Callable[[dict], dict]):
        self.data, self.make = data, make

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict:
        return self.make(self.data[i])


# -- lines -------------------------------------------------------------------------------------------------------------


def _tsv(config, split: str) -> Table:
    table, key = Table(), f"config.data.{split}"
    for path in paths_of(config, split, f"{split}.tsv"):
        lines = filled(path, key)
        header = config.get("header", False)
        columns = _columns(config, lines[0].split("\t") if header else None, path)
        if not header:
            _no_header(lines[0].split("\t"), columns, path)
        named = "line 1" if any("=" in column for column in config.get("columns", ())) else "config.data.columns"
        for number in range(int(header), len(lines)):
            if lines[number].strip():
                example = _tsv_example(lines[number].split("\t"), columns, f"{path}, line {number + 1}", named)
                table.add(example, path, number + 1)
    return table


def _columns(config, names: list[str] | None, path: str) -> list[str]:
    """What each column is: a field, or "-"."""
    given = tuple(config.get("columns", ()))
    if not any("=" in column for column in given):
        columns = list(given)
    else:
        if names is None:
            raise UserError(f"config.data.columns={given} names columns: set config.data.header=True if {path} has their names")
        wanted = {}
        for column in given:
            field, _, name = column.partition("=")
            if name not in names:
                raise UserError(f"config.data.columns: {path}, line 1 has the columns {', '.join(names)}, not {name!r}")
            wanted[name] = field
        columns = [wanted.get(name, "-") for name in names]
    if "first" not in columns and "text" not in columns:
        raise UserError(f"config.data.columns={given}: say which column is which, as in ('first', 'second', 'label')")
    for column in columns:
        if column not in (*TSV_FIELDS, "-"):
            raise UserError(f"config.data.columns: {column!r} is not one of {', '.join(TSV_FIELDS)} or '-'")
    return columns


def _no_header(cells: list[str], columns: list[str], path: str) -> None:
    """Refuses a first line that has names of columns where an example is to be."""
    if any(c in ("label", "score") and cell.strip().lower() == c for c, cell in zip(columns, cells, strict=False)):
        raise UserError(f"{path}, line 1 has the names of columns: give config.data.header=True, which leaves it out")


def _tsv_example(cells: list[str], columns: list[str], where: str, named: str) -> dict:
    """The example of a line's cells; `named` says in messages what has the columns' names."""
    if len(cells) != len(columns):
        advice = "; a text has no tab inside, and '-' names a column that is not read" if len(cells) > len(columns) else ""
        raise UserError(f"{where} has {len(cells)} columns where {named} names {len(columns)}, parted by tabs{advice}")
    example = {field: cell for field, cell in zip(columns, cells, strict=True) if field != "-"}
    return {field: _typed(field, value, where) for field, value in example.items()}


def _jsonl(config, split: str) -> Table:
    table, key = Table(), f"config.data.{split}"
    keys = dict(column.partition("=")[::2] for column in config.get("columns", ()) if "=" in column)
    if unknown := sorted(set(keys) - set(FIELDS)):
        raise UserError(f"config.data.columns: {unknown[0]!r} is not one of {', '.join(FIELDS)}")
    for path in paths_of(config, split, f"{split}.jsonl"):
        lines = filled(path, key)
        for number in range(len(lines)):
            if lines[number].strip():
                table.add(json_example(lines[number], keys, f"{path}, line {number + 1}"), path, number + 1)
    return table


def json_example(line: str, keys: dict[str, str], where: str) -> dict:
    """The example of one JSON object.

    Args:
      keys: field → key, for fields whose key is not their own name.

    Raises:
      UserError: begins with `where`; not a JSON object, no field, a value of the wrong type, an answer that is not where
        it should be.
    """
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} is not a JSON object, one example a line")
    content = _with_choices(content, where)
    found = {field: content[keys.get(field, field)] for field in FIELDS if keys.get(field, field) in content}
    example = {field: _typed(field, value, where) for field, value in found.items() if value is not None}
    if not example:
        raise UserError(f"{where} has none of the keys {', '.join(keys.get(field, field) for field in FIELDS)}")
    if "tags" in example and len(example["tags"]) != len(example.get("words", ())):
        raise UserError(f"{where} has {len(example.get('words', ()))} words and {len(example['tags'])} tags")
    if "answers" in example:
        example["answers"] = [_answer(answer, example.get("context", ""), where) for answer in example["answers"]]
    return example


def _with_choices(content: dict, where: str) -> dict:
    """An object with SWAG's keys, or HellaSwag's, as one with "context" and "choices"; another as it is."""
    endings = content.get("endings", [content[key] for key in sorted(content) if re.fullmatch(r"ending\d", key)])
    if "choices" in content or not endings:
        return content
    context, begins = next((pair for pair in (("sent1", "sent2"), ("ctx_a", "ctx_b")) if pair[0] in content), ("ctx", ""))
    texts = [content.get(context), content.get(begins, ""), *(endings if isinstance(endings, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: endings go with sent1 and sent2, or ctx_a and ctx_b, all of them texts")
    return content | {"context": texts[0], "choices": [f"{texts[1]} {ending}".strip() for ending in texts[2:]]}


def _typed(field: str, value: Any, where: str):
    kind = FIELDS[field]
    if kind is list:
        if not isinstance(value, list):
            raise UserError(f"{where}: {field} is no list")
        return [_listed(field, item, where) for item in value] if field != "answers" else value
    if kind is float:
        try:
            score = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: the score {value!r} is no number") from error
        if not math.isfinite(score):
            raise UserError(f"{where}: the score {value!r} is no finite number")
        return score
    if value is None or isinstance(value, (dict, list)) or not isinstance(value, str) and field not in ("label", "id"):
        raise UserError(f"{where}: {field} is no text but {value!r}")
    if field == "label" and isinstance(value, str):
        value = value.strip()  # a blank behind it makes no other label
        if not value:
            raise UserError(f"{where} has an empty label; in config.data.columns '-' names a column that is not read")
    return _whole(field, value, where) if isinstance(value, str) else json.dumps(value)


def _listed(field: str, item: Any, where: str) -> str:
    """One of the words, tags or choices."""
    if isinstance(item, bool) or not isinstance(item, (str, int, float)):
        raise UserError(f"{where}: {field} has {json.dumps(item)} where a text belongs")
    return _whole(field, str(item), where)


def _whole(field: str, text: str, where: str) -> str:
    """The text; half a character, which JSON's escapes may give, "\\ud83d" alone, is refused."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {field} has {text[error.start]!r}, half a character without its other half") from error
    return text


def _conll(config, split: str) -> Table | Prepared:
    if config.get("tfds_name"):
        data, features = open_prepared(config, split, "tensorflow_datasets.text", "conll2003")
        tags = features["ner"].feature
        return Prepared(
            data, lambda e: {"words": [w.decode() for w in e["tokens"]], "tags": [tags.int2str(int(t)) for t in e["ner"]]}
        )
    table, column = Table(), config.get("tag_column", -1)
    for path in paths_of(config, split, f"{split}.conll"):
        lines = filled(path, f"config.data.{split}")
        words, tags, first = [], [], 1
        for number in range(len(lines) + 1):
            line = lines[number] if number < len(lines) else ""
            if not line.strip(" \t") or line.startswith("-DOCSTART-"):
                if words:
                    table.add({"words": words, "tags": tags}, path, first)
                words, tags, first = [], [], number + 2
                continue
            cells = line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]
            if len(cells) < 2 or not cells[0]:
                raise UserError(f"{path}, line {number + 1}: one column, {line.strip()!r}; a line is a word and its tag")
            if not -len(cells) <= column < len(cells):
                raise UserError(f"{path}, line {number + 1}: no column {column} (config.data.tag_column) among {len(cells)}")
            words.append(cells[0].strip(" ") or cells[0])
            tags.append(cells[column].strip(" "))
    return table


# -- whole files -------------------------------------------------------------------------------------------------------


def _squad(config, split: str) -> Table | Prepared:
    if config.get("tfds_name"):
        data, _ = open_prepared(config, split, "tensorflow_datasets.question_answering.squad", "squad/v1.1")
        return Prepared(data, _squad_of_tfds)
    table = Table()
    for path in paths_of(config, split, f"{split}.json"):
        text = filled(path, f"config.data.{split}").data.decode("utf-8")
        try:
            content = json.loads(text)
            passages = [passage for article in content["data"] for passage in article["paragraphs"]]
            questions = [(p["context"], qa, qa["question"], qa["id"]) for p in passages for qa in p["qas"]]
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno} is not JSON: {error.msg}") from error
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is not SQuAD's JSON, data → paragraphs → context and qas: {error} is missing") from error
        escaped = text.isascii()  # how ids are written
        line, at = 1, 0  # of the question, which stand in the file in this order
        for context, qa, question, name in questions:
            there = text.find(json.dumps(name, ensure_ascii=escaped), at)
            # A miss ends the search, as it costs the rest of the file.
            line, at = (line, len(text)) if there < 0 else (line + text.count("\n", at, there), there)
            where = f"{path}, line {line}, question {name}"
            example = {"id": name, "question": question, "context": context}
            example["answers"] = [] if qa.get("is_impossible") else qa.get("answers", [])
            table.add(_squad_example(example, where), path, line)
    return table


def _squad_example(example: dict, where: str) -> dict:
    """The question of a file, its fields checked."""
    example = {field: _typed(field, value, where) for field, value in example.items()}
    return example | {"answers": [_answer(answer, example["context"], where) for answer in example["answers"]]}


def _answer(answer: Any, context: str, where: str) -> dict:
    """{"text", "start"} of an answer as SQuAD ("answer_start") or we write it."""
    try:
        text, start = answer["text"], answer["start"] if "start" in answer else answer["answer_start"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: an answer has a text and a start, not {answer!r}") from error
    if not isinstance(text, str):
        raise UserError(f"{where}: the text of an answer is {text!r}, no text")
    if not isinstance(start, int) or not 0 <= start <= len(context) - len(text):
        raise UserError(f"{where}: the answer {text!r} at {start!r} ends beyond its passage of {len(context)} characters")
    if context[start : start + len(text)] != text:
        found = context[start : start + len(text)]
        raise UserError(f"{where}: the answer {text!r} does not stand at {start}, where the passage has {found!r}")
    return {"text": text, "start": start}


def _squad_of_tfds(example: dict) -> dict:
    answers = zip(example["answers"]["text"], example["answers"]["answer_start"], strict=True)
    fields = {field: example[field].decode("utf-8") for field in ("id", "question", "context")}
    return fields | {"answers": [{"text": text.decode("utf-8"), "start": int(start)} for text, start in answers]}


def _swag(config, split: str) -> Table | Prepared:
    """SWAG (Zellers et al. 2018): a sentence, the beginning of the next one, four endings. HellaSwag from TFDS."""
    if config.get("tfds_name"):
        data, _ = open_prepared(config, split, "tensorflow_datasets.text.hellaswag", "hellaswag")
        return Prepared(data, _hellaswag)
    table = Table()
    endings = [f"ending{k}" for k in range(4)]
    for path in paths_of(config, split, f"{split}.csv"):
        rows = csv.DictReader(_plain(filled(path, f"config.data.{split}")), strict=True)
        try:
            names = rows.fieldnames or ()
            if missing := sorted({"sent1", "sent2", *endings}.difference(names)):
                raise UserError(f"{path}, line 1: SWAG's csv has a column {missing[0]!r}, this one {', '.join(names)}")
            for row in rows:
                if None in row.values() or None in row:
                    raise UserError(f"{path}, line {rows.line_num} has not {len(names)} columns")
                example = {"context": row["sent1"], "choices": [f"{row['sent2']} {row[ending]}".strip() for ending in endings]}
                if row.get("label"):
                    example["label"] = row["label"]
                table.add(example, path, rows.line_num)
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.reader.line_num} is not csv: {error}") from error
    return table


def _plain(lines: Lines):
    return (lines[i] + "\n" for i in range(len(lines)))


def _hellaswag(example: dict) -> dict:
    choices = [ending.decode("utf-8") for ending in example["endings"]]
    fields = {"context": example["context"].decode("utf-8"), "choices": choices}
    return fields | ({"label": str(int(example["label"]))} if int(example["label"]) >= 0 else {})


# -- GLUE --------------------------------------------------------------------------------------------------------------


def _glue(config, split: str) -> Prepared:
    """A part of GLUE (Wang et al. 2019) by its TFDS name. Test examples have no label there: -1."""
    data, features = open_prepared(config, split, "tensorflow_datasets.text.glue", "glue/sst2")
    part = config.tfds_name.partition("/")[2].partition(":")[0]
    if part not in GLUE:
        raise UserError(f"config.data.tfds_name={config.tfds_name} is not one of glue/{', glue/'.join(GLUE)}")
    names = GLUE[part]

    def make(example: dict) -> dict:
        fields = {field: example[name].decode("utf-8") for field, name in zip(("first", "second"), names, strict=False)}
        label = example["label"]
        if part == "stsb":
            return fields | ({"score": float(label)} if label >= 0 else {})
        return fields | ({"label": features["label"].int2str(int(label))} if label >= 0 else {})

    return Prepared(data, make)


KINDS: dict[str, Callable] = {
    "tsv": _tsv, "jsonl": _jsonl, "conll": _conll, "squad": _squad, "swag": _swag, "glue": _glue,
}  # fmt: skip
