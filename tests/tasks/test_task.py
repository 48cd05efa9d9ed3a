"""The class `Task`: what all tasks have in common, and how evaluations use it."""

import ast
import importlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from small import Scorer

from transformers_jax import tasks
from transformers_jax.data.collate import layout_of
from transformers_jax.errors import UserError
from transformers_jax.files import json_value
from transformers_jax.tasks.task import READS, SCORED_BY, Task

FOLDER = Path(tasks.__file__).parent
HOOKS = {name for name in vars(Task) if not name.startswith("_")}


def kind_of(path: Path, name: str) -> type:
    return getattr(importlib.import_module(f"{tasks.__name__}.{path.stem}"), name)


def classes_of(path: Path) -> list[str]:
    """The names of the tasks that a file defines."""
    names = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return [name for name in names if issubclass(kind_of(path, name), Task)]


KINDS = [(path, name) for path in sorted(FOLDER.glob("*.py")) if path.stem in tasks.known() for name in classes_of(path)]
every_task = pytest.mark.parametrize(("path", "name"), KINDS, ids=[f"{path.stem}.{name}" for path, name in KINDS])


def given_to(kind: type) -> set[str]:
    """The names of what a task is made with, which it may keep."""
    return set(inspect.signature(kind).parameters) | {"tokenizer"}


def kept_by(path: Path, name: str) -> set[str]:
    """The public attributes that a class's methods set, `self.x = …`."""
    (body,) = (c for c in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(c, ast.ClassDef) and c.name == name)
    nodes = [n for n in ast.walk(body) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    return {n.attr for n in nodes if isinstance(n.value, ast.Name) and n.value.id == "self" and not n.attr.startswith("_")}


def test_each_file_has_its_task():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "task"}
    assert files == set(tasks.known()) == {path.stem for path, name in KINDS if name == "Task"}
    for name in files:
        assert issubclass(tasks.named(name), Task) and tasks.named(name).__mro__[1] is Task
    with pytest.raises(UserError, match="config.task.name is 'task'; known tasks: bert_pretraining, "):
        tasks.named("task")


@every_task
def test_a_task_has_no_hook_that_is_not_declared(path, name):
    kind = kind_of(path, name)
    own = {attribute for attribute in vars(kind) if not attribute.startswith("_")}
    assert own <= HOOKS, f"{path.name}: {sorted(own - HOOKS)} is not a hook of tasks/task.py: mend its name, or begin it with _"
    strange = kept_by(path, name) - HOOKS - given_to(kind)
    assert not strange, f"{path.name}: {sorted(strange)} is neither a hook of tasks/task.py nor a key of config.task"
    assert not kind.__annotations__.keys() - HOOKS


@every_task
def test_hooks_are_called_alike(path, name):
    kind = kind_of(path, name)
    for hook in HOOKS & vars(kind).keys():
        declared, own = vars(Task)[hook], vars(kind)[hook]
        if inspect.isfunction(declared):
            shapes = [
                [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
                for function in (declared, own)
            ]
            assert shapes[0] == shapes[1], f"{path.name}: {hook}{inspect.signature(own)} is not as tasks/task.py declares it"
        elif not isinstance(declared, property) and declared is not None:
            assert isinstance(own, (type(declared), property)), f"{path.name}: {hook} = {own!r}"
    assert kind.reads in READS and kind.scored_by in SCORED_BY


def test_a_hook_that_is_misspelt_or_called_otherwise_is_found(tmp_path, monkeypatch):
    """The checks above can fail."""
    (tmp_path / "wrong.py").write_text(
        "from transformers_jax.tasks.task import Task as Base\n\n\nclass Task(Base):\n    row_feilds = ('label',)\n\n"
        "    def __init__(self, tokenizer, *, width=1):\n        self.width, self.group = width, 2\n\n"
        "    def sums(self, output):\n        return {}\n"
    )
    monkeypatch.setattr(tasks, "__path__", [str(tmp_path)])
    path = tmp_path / "wrong.py"
    try:
        for check, says in (test_a_task_has_no_hook_that_is_not_declared, "row_feilds"), (test_hooks_are_called_alike, "sums"):
            with pytest.raises(AssertionError, match=says):
                check(path, "Task")
        assert kept_by(path, "Task") - HOOKS - given_to(kind_of(path, "Task")) == {"group"}
    finally:
        importlib.sys.modules.pop(f"{tasks.__name__}.wrong")


def test_what_a_task_does_not_say():
    task = Task()
    assert layout_of(task) == ({}, (), False, 0, {}) and task.name == "task"
    assert task.examples([1]) == [1] and task.model_fields() == {} and task.wrap("model", None) == "model"
    assert task.initial(None, None) is None and task.answering("model", top=1) == (task, "model")
    assert task.evaluate(Scorer([], {}), "test", {}) == ({"loss": 0.5}, []) and task.main_metric == "loss"
    with pytest.raises(UserError, match="config.task.name=task does not translate"):
        task.translate(["a"], None)


class Squares(Task):
    """Of images, without a tokenizer."""

    reads, row_fields, row_shapes = "images", ("image",), {"image": (8, 8)}

    def __init__(self, data=None, *, size: int = 8):
        self.data, self.size = data, size

    def answers(self, source, predictions):
        return [{"mask": mask, "area": mask.sum()} for mask in predictions["mask"]]


def test_a_task_of_images_is_made_without_a_tokenizer(monkeypatch):
    monkeypatch.setattr(tasks, "named", lambda name: Squares)
    task = tasks.build(ConfigDict({"name": "squares", "size": 9}))
    assert task.size == 9 and tasks.build({"name": "squares"}, "a tokenizer", "config.data").data == "config.data"
    with pytest.raises(UserError, match="config.task does not fit the task squares: .*tokenizer"):
        tasks.build({"name": "squares", "tokenizer": 1})


def test_samples_tell_what_arrays_are():
    images = [{"image": np.zeros([8, 8, 3], np.uint8), "label": "zero", "box": np.float32([1, 2.5])}, {"file": b"123"}]
    found = Squares().samples(images, {"mask": np.ones([2, 4, 4], np.int32)})
    assert json.loads(json.dumps(found)) == [
        {"image": "uint8 [8, 8, 3]", "label": "zero", "box": [1.0, 2.5], "mask": [[1] * 4] * 4, "area": 16},
        {"file": "3 bytes", "mask": [[1] * 4] * 4, "area": 16},
    ]


def test_json_values():
    wanted = {"a": [1, 2.0, True, None, "x"], "1": {"b": [0, 1]}, "path": "/x", "big": "float16 [33]"}
    given = {"a": (np.int64(1), np.float32(2), np.bool_(True), None, "x"), 1: {"b": np.arange(2)}, "path": Path("/x")}
    found = json_value(given | {"big": np.zeros(33, np.float16)})
    assert found == wanted and json.loads(json.dumps(found)) == wanted


def test_scores_of_sums():
    class Counted(Task):
        scored_by = "sums"

        def score_sums(self, totals):
            return {"share": totals["hits"] / totals["all"]}

    totals = {"hits": np.int64(3), "all": np.int64(4)}
    scorer = Scorer(None, totals)
    assert Counted().evaluate(scorer, "test", {"params": {}, "model_state": {}}) == ({"loss": 0.5, "share": 0.75}, [])
    assert Counted().validate(scorer, {"params": {}, "model_state": {}}) == {"loss": 0.5, "share": 0.75}


def test_translations_are_decoded_when_they_are_due():
    task = tasks.build({"name": "translation"}, None)
    asked = []
    task.translate = lambda lines, decoder, params=None, **place: asked.append((decoder, list(lines))) or [
        [(line, 0.0)] for line in lines
    ]
    source = [{"source": "a b c d", "target": "a b c d"}, {"source": "e", "target": "f"}]
    scorer = SimpleNamespace(
        source=lambda split: source, losses=lambda split, **model: {"loss": 0.5}, decoder=lambda **changes: changes
    )
    model = {"params": {}, "model_state": {}}
    assert task.validate(scorer, model) == {"loss": 0.5} and not asked
    assert task.validate(scorer, model, sentences=1) == {"loss": 0.5, "bleu": pytest.approx(100)}
    task.validate(scorer, model, sentences=0)
    scores, samples = task.evaluate(scorer, "test", model)
    assert asked == [({"method": "greedy"}, ["a b c d"]), ({"method": "greedy"}, ["a b c d", "e"]), ({}, ["a b c d", "e"])]
    assert scores["loss"] == 0.5 and scores["sentences"] == 2
    assert samples[1] == {"source": "e", "reference": "f", "translation": "e"}
