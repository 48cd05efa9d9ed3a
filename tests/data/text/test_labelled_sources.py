"""Labelled examples from files and prepared data sets, and one line for each mistake in a file."""

import csv
import io
import json
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from real_data import shared_data

from transformers_jax.data.sources import has, open_source
from transformers_jax.errors import UserError


def config(source: str, **keys) -> ConfigDict:
    empty = dict(languages=(), train="", validation="", test="", tfds_name="", data_dir="", columns=(), header=False)
    return ConfigDict({**empty, "source": source, **keys})


def opened(tmp_path, source: str, content: str, **keys) -> list[dict]:
    path = tmp_path / "data"
    path.write_text(content, encoding="utf-8")
    found = open_source(config(source, train=str(path), **keys), "train")
    return [found[i] for i in range(len(found))]


def test_tsv_by_place(tmp_path):
    found = opened(tmp_path, "tsv", "0.5\tone\ttwo\tx\n\n4\tthree\tfour\ty\n", columns=("score", "first", "second", "-"))
    assert found == [
        {"score": 0.5, "first": "one", "second": "two"},
        {"score": 4.0, "first": "three", "second": "four"},
    ]


def test_tsv_by_name(tmp_path):
    content = "id\ta\tb\tgold\n1\tone\ttwo\tYES\n"
    columns = ("first=b", "second=a", "label=gold")
    assert opened(tmp_path, "tsv", content, columns=columns, header=True) == [{"first": "two", "second": "one", "label": "YES"}]
    skipped = opened(tmp_path, "tsv", content, columns=("-", "first", "-", "-"), header=True)
    assert skipped == [{"first": "one"}]


def test_jsonl(tmp_path):
    lines = [
        {"first": "one", "label": 1},
        {"words": ["a", "b"], "tags": ["O", "B-x"], "more": 3},
        {"id": 7, "question": "who?", "context": "She did.", "answers": [{"text": "She", "answer_start": 0}]},
        {"context": "c", "choices": ["a", "b"], "label": "0"},
        {"first": "one", "second": "two", "score": "2.5"},
    ]
    found = opened(tmp_path, "jsonl", "\n".join(map(json.dumps, lines)))
    assert found == [
        {"first": "one", "label": "1"},
        {"words": ["a", "b"], "tags": ["O", "B-x"]},
        {"id": "7", "question": "who?", "context": "She did.", "answers": [{"text": "She", "start": 0}]},
        {"context": "c", "choices": ["a", "b"], "label": "0"},
        {"first": "one", "second": "two", "score": 2.5},
    ]
    renamed = opened(tmp_path, "jsonl", '{"sentence": "x", "gold": "g"}', columns=("first=sentence", "label=gold"))
    assert renamed == [{"first": "x", "label": "g"}]


@pytest.mark.parametrize("separator", ["\t", " ", "   "])
def test_conll(tmp_path, separator):
    rows = ["-DOCSTART- -X- O O", "", "EU NNP B-ORG", "rejects VBZ O", "", "", "Peter NNP B-PER"]
    content = "\n".join(row.replace(" ", separator) for row in rows)
    wanted = [{"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"words": ["Peter"], "tags": ["B-PER"]}]
    assert opened(tmp_path, "conll", content) == wanted
    assert opened(tmp_path, "conll", content, tag_column=1)[0]["tags"] == ["NNP", "VBZ"]


def test_a_word_with_a_no_break_space_is_one_word(tmp_path):
    found = opened(tmp_path, "conll", "10\u00a0000  NNP B-NUM \n euros\u2009ou NN O\n")
    assert found == [{"words": ["10\u00a0000", "euros\u2009ou"], "tags": ["B-NUM", "O"]}]


@pytest.mark.parametrize("word", ["\u00a0", "\u3000", "\u0085", "\u2028"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_a_word_may_be_white_space(tmp_path, word, separator):
    content = f"Anna{separator}B-PER\r\n{word}{separator}O\r\nruns{separator}O\r\n\r\nBob{separator}B-PER"
    found = opened(tmp_path, "conll", content)
    assert found == [{"words": ["Anna", word, "runs"], "tags": ["B-PER", "O", "O"]}, {"words": ["Bob"], "tags": ["B-PER"]}]
    with pytest.raises(UserError, match="data, line 1: one column"):
        opened(tmp_path, "conll", f"{word}\n")


@pytest.mark.parametrize(
    "content, keys, line",
    [
        ("5.0\tA man.\tA man.\n4.0\tThe price:\t20 euros.\tIt costs.\n", {"columns": ("score", "first", "second")}, 2),
        ("1\tgreat film\n0\tdull\tand far too long\n", {"columns": ("label", "first")}, 2),
        ("gold\ta\tb\n4.0\tThe price:\t20 euros.\tIt costs.\n",
         {"columns": ("first=a", "second=b", "score=gold"), "header": True}, 2),
    ],
)  # fmt: skip
def test_a_tab_inside_a_text_moves_no_column(tmp_path, content, keys, line):
    with pytest.raises(UserError, match=rf"data, line {line} has \d columns where .* a text has no tab inside"):
        opened(tmp_path, "tsv", content, **keys)


def test_a_blank_makes_no_other_label_and_none_is_empty(tmp_path):
    found = opened(tmp_path, "tsv", "good\tpos \nbad\t neg\nfine\tpos\n", columns=("first", "label"))
    assert [example["label"] for example in found] == ["pos", "neg", "pos"]
    with pytest.raises(UserError, match="data, line 2 has an empty label"):
        opened(tmp_path, "tsv", "good\tpos\nbad\t \n", columns=("first", "label"))


def test_quotes_are_text(tmp_path):
    found = opened(tmp_path, "tsv", '"Unbalanced here\t1\nplain "inner"\t0\n', columns=("first", "label"))
    assert [e["first"] for e in found] == ['"Unbalanced here', 'plain "inner"']


def squad(context="It was 1899 in Łódź.", answers=((7, "1899"),), **keys) -> str:
    qa = {"id": "q1", "question": "When?", "answers": [{"text": t, "answer_start": s} for s, t in answers], **keys}
    return json.dumps({"version": "v2.0", "data": [{"paragraphs": [{"context": context, "qas": [qa]}]}]}, indent=1)


def test_squad(tmp_path):
    assert opened(tmp_path, "squad", squad()) == [
        {"id": "q1", "question": "When?", "context": "It was 1899 in Łódź.", "answers": [{"text": "1899", "start": 7}]}
    ]
    assert opened(tmp_path, "squad", squad(is_impossible=True))[0]["answers"] == []


@pytest.mark.parametrize("plain", [True, False])
def test_squad_lines_where_ids_are_not_ascii(tmp_path, plain):
    qas = [{"id": f"é{i}", "question": "When?", "answers": [{"text": "abc"[i], "answer_start": 0}]} for i in range(3)]
    content = json.dumps({"data": [{"paragraphs": [{"context": "a", "qas": qas}]}]}, indent=0, ensure_ascii=plain)
    line = content.split("\n").index(f'"id": {json.dumps("é1", ensure_ascii=plain)},') + 1
    with pytest.raises(UserError, match=f"line {line}, question é1: the answer 'b' does not stand at 0"):
        opened(tmp_path, "squad", content)


def test_squad_ids_spelled_another_way_are_searched_once(tmp_path):
    qas = "".join(f'{{"id": "a\\/{i}", "question": "q", "answers": []}},\n' for i in range(40_000)).removesuffix(",\n")
    content = f'{{"data": [{{"paragraphs": [{{"context": "c", "qas": [{qas}]}}]}}], "more": "{"x" * 4_000_000}"}}'
    found = opened(tmp_path, "squad", content)
    assert len(found) == 40_000 and found[-1]["id"] == "a/39999"
    last = '{"id": "plain", "question": "q", "answers": [{"text": "b", "answer_start": 0}]}'
    with pytest.raises(UserError, match="line 1, question plain: the answer 'b' does not stand at 0"):  # not looked for
        opened(tmp_path, "squad", content.replace(']}]}], "more"', f',\n{last}]}}]}}], "more"'))


def swag(rows) -> str:
    out = io.StringIO()
    names = ["", "sent1", "sent2", *(f"ending{k}" for k in range(4)), "label"]
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(dict(zip(names, row, strict=True)) for row in rows)
    return out.getvalue()


def test_jsonl_takes_the_keys_of_swag_and_hellaswag(tmp_path):
    endings = {f"ending{i}": text for i, text in enumerate(("runs.", "a", "b", "c"))}
    lines = [
        {"video-id": "1", "startphrase": "She sits. He", "sent1": "She sits.", "sent2": "He", **endings, "label": 2},
        {"ctx_a": "She sits.", "ctx_b": "", "ctx": "She sits.", "endings": ["x", "y"], "label": 1},
        {"ctx": "She sits.", "endings": ["x", "y"]},
    ]
    found = opened(tmp_path, "jsonl", "\n".join(map(json.dumps, lines)))
    assert found[0] == {"context": "She sits.", "choices": ["He runs.", "He a", "He b", "He c"], "label": "2"}
    assert found[1] == {"context": "She sits.", "choices": ["x", "y"], "label": "1"}
    assert found[2] == {"context": "She sits.", "choices": ["x", "y"]}


def test_swag(tmp_path):
    content = swag([(0, "She sits, tired.", "He", "runs.", 'says "no".', "a", "b", "2"), (1, "x", "y", *"abcd", "")])
    found = opened(tmp_path, "swag", content)
    assert found[0] == {
        "context": "She sits, tired.", "choices": ["He runs.", 'He says "no".', "He a", "He b"], "label": "2"
    }  # fmt: skip
    assert "label" not in found[1]


@pytest.mark.parametrize(
    "source, content, keys, message",
    [
        ("tsv", "one\t1\ntwo\n", {"columns": ("first", "label")}, "data, line 2 has 1 columns where config.data.col"),
        ("tsv", "one\tmuch\n", {"columns": ("first", "score")}, "data, line 1: the score 'much' is no number"),
        ("tsv", "one\n", {}, "config.data.columns=.*say which column is which"),
        ("tsv", "one\n", {"columns": ("first", "lable")}, "config.data.columns: 'lable' is not one of first, second, label"),
        ("tsv", "a\tb\n1\t2\n", {"columns": ("first=c",), "header": True}, "data, line 1 has the columns a, b, not 'c'"),
        ("tsv", "a\n", {"columns": ("first=c",)}, "set config.data.header=True"),
        ("jsonl", '{"first": "x"}\n\n{"first": }\n', {}, "data, line 3 is not JSON: Expecting value at column 11"),
        ("jsonl", "[1]\n", {}, "data, line 1 is not a JSON object"),
        ("jsonl", '{"sentence": "x"}\n', {}, "data, line 1 has none of the keys text, first"),
        ("jsonl", '{"first": 3}\n', {}, "data, line 1: first is no text but 3"),
        ("jsonl", '{"words": ["a"], "tags": []}\n', {}, "data, line 1 has 1 words and 0 tags"),
        ("jsonl", '{"words": "a"}\n', {}, "data, line 1: words is no list"),
        ("jsonl", '{"context": "abc", "answers": [{"text": "cd", "start": 2}]}', {}, "line 1: the answer 'cd' at 2 ends bey"),
        ("jsonl", '{"first": "a"}\n{"first": "cut \\ud83d"}', {}, r"data, line 2: first has '\\ud83d', half a character"),
        ("jsonl", '{"words": ["a", "\\udc00"]}', {}, r"data, line 1: words has '\\udc00', half a character"),
        ("jsonl", '{"words": ["a", null]}', {}, "data, line 1: words has null where a text belongs"),
        ("jsonl", '{"choices": ["a", {"b": 1}]}', {}, "data, line 1: choices has {\"b\": 1} where a text belongs"),
        ("jsonl", '{"first": "a", "score": NaN}', {}, "data, line 1: the score nan is no finite number"),
        ("jsonl", '{"first": "a", "score": 1' + "0" * 400 + "}", {}, "data, line 1: the score 10+ is no number"),
        ("jsonl", '{"context": "a", "answers": [{"text": 3, "start": 0}]}', {}, "line 1: the text of an answer is 3, no text"),
        ("tsv", "a\t1\nb\tnan\n", {"columns": ("first", "score")}, "data, line 2: the score 'nan' is no finite number"),
        ("tsv", "a\t-inf\n", {"columns": ("first", "score")}, "data, line 1: the score '-inf' is no finite number"),
        ("conll", "EU O\nrejects\n", {}, "data, line 2: one column, 'rejects'"),
        ("conll", "a O\n\n\tO\n", {}, "data, line 3: one column"),
        ("conll", "a O\n", {"tag_column": 3}, "data, line 1: no column 3"),
        ("squad", squad(answers=((19, "1899"),)), {}, "line 10, question q1: the answer '1899' at 19 ends beyond its pass"),
        ("squad", squad(answers=((8, "1899"),)), {}, "question q1: the answer '1899' does not stand at 8.* has '899 '"),
        ("squad", squad()[:-9], {}, "data, line .* is not JSON"),
        ("squad", '{"data": [{"paragraphs": [{"qas": []}]}]}x', {}, "data, line 1 is not JSON: Extra data"),
        ("squad", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}', {}, "data is not SQuAD's JSON.*'context' is missing"),
        ("squad", squad(question=None), {}, "data, line 10, question q1: question is no text but None"),
        ("squad", squad(question="\ud83d"), {}, r"question q1: question has '\\ud83d', half a character"),
        ("squad", squad(context="\ud83d", answers=()), {}, r"question q1: context has '\\ud83d', half a character"),
        ("squad", squad(id=None), {}, "question None: id is no text but None"),
        ("squad", squad(context=["x"]), {}, r"question q1: context is no text but \['x'\]"),
        ("squad", squad().replace('"answers": [', '"answers": null, "x": ['), {}, "line 10, question q1: answers is no list"),
        ("squad", squad(answers=((0, 1899),)), {}, "question q1: the text of an answer is 1899, no text"),
        ("jsonl", '{"sent1": "a", "sent2": "b", "ending0": 3}', {}, "data, line 1: endings go with sent1 and sent2"),
        ("jsonl", '{"endings": ["a"]}', {}, "data, line 1: endings go with sent1 and sent2"),
        ("tsv", "sentence\tlabel\na\tb\n", {"columns": ("first", "label")}, "line 1 has the names of columns: give conf"),
        ("swag", 'sent1,"sent"2\na,b\n', {}, "data, line 1 is not csv: "),
        ("swag", swag([]) + '1,"b"c,d\n', {}, "data, line 2 is not csv: "),
        ("swag", "sent1,sent2\na,b\n", {}, "data, line 1: SWAG's csv has a column 'ending0'"),
        ("swag", swag([(0, "a", "b", *"abcd", "1")]) + "1,2\n", {}, "data, line 3 has not 8 columns"),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_line(tmp_path, source, content, keys, message):
    with pytest.raises(UserError, match=message):
        opened(tmp_path, source, content, **keys)


@pytest.mark.parametrize("source", ["tsv", "jsonl", "conll", "squad", "swag", "text"])
def test_empty_and_missing_files_are_named(tmp_path, source):
    with pytest.raises(UserError, match="config.data.train: .*data is empty"):
        opened(tmp_path, source, " \n\n", columns=("first",))
    with pytest.raises(UserError, match="config.data.train='' names no file"):
        open_source(config(source), "train")
    with pytest.raises(UserError, match="config.data.test: no file .*gone"):
        open_source(config(source, test=str(tmp_path / "gone")), "test")


def test_which_splits_there_are():
    files = config("tsv", train="a.tsv")
    assert has(files, "train") and not has(files, "test")
    assert has(config("glue", tfds_name="glue/rte"), "test") and has(config("squad", tfds_name="squad/v1.1"), "validation")
    assert not has(config("files", tfds_name="x"), "train")


class TestRealFiles:
    def test_sst2(self):
        keys = config("tsv", train=str(shared_data("sst2/train.tsv")), columns=("first", "label"))
        source = open_source(keys, "train")
        assert len(source) == 6920 and {source[i]["label"] for i in range(len(source))} == {"0", "1"}
        assert source.where(3).endswith("train.tsv, line 4")

    def test_sick_and_sts(self):
        columns = ("first=sentence_A", "second=sentence_B", "score=relatedness_score", "label=entailment_judgment")
        keys = config("tsv", train=str(shared_data("nli/sick_train.tsv")), columns=columns, header=True)
        sick = open_source(keys, "train")
        assert len(sick) == 4500 and {e["label"] for e in sick.examples} == {"NEUTRAL", "ENTAILMENT", "CONTRADICTION"}
        assert sick[0]["score"] == 4.5
        keys = config("tsv", test=str(shared_data("sts/val.tsv")), columns=("score", "first", "second"))
        assert all(0 <= e["score"] <= 5 and e["first"] and e["second"] for e in open_source(keys, "test").examples)

    @pytest.mark.parametrize("name, tags", [("wnut17_train", 13), ("wnut17_dev", 13), ("wikigold", 5)])
    def test_named_entities(self, name, tags):
        source = open_source(config("conll", train=str(shared_data(f"ner/{name}.conll"))), "train")
        assert len({tag for e in source.examples for tag in e["tags"]}) == tags
        assert all(len(e["words"]) == len(e["tags"]) and all(e["words"]) for e in source.examples)
        assert len(source) > 900

    def test_squad(self):
        source = open_source(config("squad", train=str(shared_data("squad/train.json"))), "train")
        assert len(source) == 925 and all(e["answers"] for e in source.examples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared data sets with the names and features of GLUE, CoNLL-2003 and SQuAD."""
    import tensorflow_datasets as tfds

    def builder(name, configs, features, examples):
        def info(self):
            found = features(self.builder_config.name if self.builder_config else "")
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(found))

        def generate(self):
            yield from enumerate(examples(self.builder_config.name if self.builder_config else ""))

        body = {
            "VERSION": tfds.core.Version("1.0.0"), "BUILDER_CONFIGS": [tfds.core.BuilderConfig(name=c) for c in configs],
            "_info": info, "_split_generators": lambda self, manager: {"validation": generate(self)},
            "_generate_examples": generate, "name": name, "__module__": __name__,
        }  # fmt: skip
        return type(name.title(), (tfds.core.GeneratorBasedBuilder,), body)

    label = tfds.features.ClassLabel(names=["not_entailment", "entailment"])
    string, integer, number = tfds.features.Text(), np.int64, np.float32
    glue = {"sentence1": string, "sentence2": string, "idx": integer}
    tags = tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-PER"]))
    answers = tfds.features.Sequence({"text": string, "answer_start": np.int32})
    made = [
        builder(
            "glue", ["rte", "stsb"], lambda c: {**glue, "label": number if c == "stsb" else label},
            lambda c: [{"sentence1": "é", "sentence2": "b", "idx": i, "label": x} for i, x in enumerate([1, 0, -1])],
        ),
        builder(
            "conll2003", [], lambda c: {"tokens": tfds.features.Sequence(string), "ner": tags},
            lambda c: [{"tokens": ["Peter", "ran"], "ner": [1, 0]}],
        ),
        builder(
            "squad", ["v1.1"], lambda c: {"id": string, "question": string, "context": string, "answers": answers},
            lambda c: [{"id": "q", "question": "w", "context": "xyz", "answers": [{"text": "y", "answer_start": 1}]}],
        ),
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("tfds")
    for one in made:
        for name in [c.name for c in one.BUILDER_CONFIGS] or [None]:
            one(config=name, data_dir=folder, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return str(folder)


@pytest.mark.parametrize(
    "source, name, wanted",
    [
        ("glue", "glue/rte", [{"label": "entailment"}, {"label": "not_entailment"}, {}]),
        ("glue", "glue/stsb", [{"score": 1.0}, {"score": 0.0}, {}]),
        ("conll", "conll2003", [{"words": ["Peter", "ran"], "tags": ["B-PER", "O"]}]),
        ("squad", "squad/v1.1", [{"id": "q", "question": "w", "context": "xyz", "answers": [{"text": "y", "start": 1}]}]),
    ],
)
def test_prepared_data_sets(folder, source, name, wanted):
    found = open_source(config(source, tfds_name=name, data_dir=folder), "validation")
    if source == "glue":
        wanted = [{"first": "é", "second": "b", **rest} for rest in wanted]
    assert sorted((found[i] for i in range(len(found))), key=str) == sorted(wanted, key=str)


def test_a_data_set_that_is_not_prepared_names_the_command(folder):
    with pytest.raises(UserError, match="glue/cola is not prepared in .*tensorflow_datasets.text.glue; .*array_record"):
        open_source(config("glue", tfds_name="glue/cola", data_dir=folder), "train")
