"""What can be told of configs without running them: the variants of a file, from the table at its top, and what keys mean.

A key's meaning stands behind it in a config's file, or in a function of configs/base.py that the file calls; else in the
docstring of the model's `Config` or of the `Task`.
"""

import ast
import re
from functools import cache
from pathlib import Path

from ml_collections import ConfigDict

from transformers_jax import config as configuration
from transformers_jax.errors import UserError

CONFIGS = configuration.REPOSITORY / "configs"
GROUPS = "data|model|task|optimizer|training|tokenizer|mesh|finetuning|decoding|search"

_ROW = re.compile(r"\|((?: *`[^`]+`)+[^|]*)\|([^|]*)\|")
_KEY = re.compile(rf" *(?:\w+ = )?(?:config\.)?((?:{GROUPS})\.[\w.]+|(?<=config\.)\w+) = [^#]*(?:# (.*))?")
_MEANING = re.compile(r"(\w+(?:, \w+)*): (.+)")


def listed(spec: str | None) -> list[str]:
    """Lines of --list: the variants of a config's file with what they are; without one, the files there are.

    Raises:
      UserError: there is no such file.
    """
    if not spec:
        files = [path for path in sorted(CONFIGS.glob("[!_]*.py")) if path.stem != "base"]
        return aligned([(f"configs/{path.name}", _docstring(path).partition("\n")[0].rstrip(".")) for path in files])
    path = spec.partition(":")[0]
    rows = variants(path)
    told = {name for names, _ in rows for name in names}
    return aligned([(" ".join(names), what) for names, what in rows] + [(name, "") for name in known(path) if name not in told])


def variants(path: str | Path) -> list[tuple[list[str], str]]:
    """(names, what they are) of each row of the tables in a file's docstring."""
    rows = [_ROW.match(line) for line in _docstring(Path(path)).split("\n")]
    return [(re.findall("`([^`]+)`", row[1]), row[2].strip()) for row in rows if row]


def known(path: str | Path) -> list[str]:
    """The variants that a file's get_config says there are."""
    try:
        configuration.load(f"{path}:?")
    except UserError as error:
        said = str(error).partition("known variants: ")[2]
        if not said and "no file" in str(error):
            raise
        return [name for name in said.split(", ") if name]
    return []


def keys(spec: str, config: ConfigDict) -> list[str]:
    """Lines of --help: every key of a config with its value and what it means."""
    found = meanings(spec.partition(":")[0], config)
    leaves = configuration.flatten(config)
    return aligned([(f"--config.{key}={value}", found.get(key, "")) for key, value in leaves])


def meanings(path: str | Path, config: ConfigDict) -> dict[str, str]:
    """What the keys of a file's config mean, as far as they say it."""
    found: dict[str, str] = {}
    for group, folder in ("task", "tasks"), ("model", "models"):
        name = config.get(group, {}).get("name", "")
        found[f"{group}.name"] = f"a file of transformers_jax/{folder}"
        for file in (configuration.REPOSITORY / "transformers_jax" / folder).glob(f"{name}.py"):
            found |= {f"{group}.{key}": text for key, text in _of_docstrings(file).items()}
    files = _imported(Path(path))
    called = _reached({name for file in files for name in _names_of_base(file)})
    for lines in [*called, *(file.read_text(encoding="utf-8").split("\n") for file in files)]:
        found |= _of_comments(lines)
    return found


def aligned(rows: list[tuple[str, str]]) -> list[str]:
    """Two columns, the first as wide as most of its cells."""
    width = min(max((len(first) for first, _ in rows), default=0), 44)
    return [f"  {first:<{width}}  {second}".rstrip() for first, second in rows]


def _of_comments(lines: list[str]) -> dict[str, str]:
    """key → the comment behind it, after those that stand alone in the lines before."""
    found, before = {}, []
    for line in lines:
        if line.strip().startswith("# ") and not line.strip().startswith("# --"):
            before.append(line.strip()[2:])
            continue
        key = _KEY.match(line)
        if key and (text := " ".join([*before, *filter(None, [key[2]])])):
            found[key[1]] = text
        before = []
    return found


def _of_docstrings(path: Path) -> dict[str, str]:
    """key → its meaning, of the lines "key: meaning" in the docstrings of a file's classes."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name in ("Config", "Task"):
            text = re.sub(r"\n +(?!\w+(?:, \w+)*: )", " ", ast.get_docstring(node, clean=False) or "")
            parts = (part.strip() for line in text.split("\n") for part in line.split("  "))
            told = (match for part in parts if (match := _MEANING.fullmatch(part)))
            found |= {name: match[2].rstrip(".") for match in told for name in match[1].split(", ")}
    return found


def _imported(path: Path) -> list[Path]:
    """The config files that one builds on, and itself, the last."""
    found: list[Path] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module == "configs":
            names = [CONFIGS / f"{alias.name}.py" for alias in node.names if alias.name != "base"]
            found += [file for name in names if name.is_file() for file in _imported(name)]
    return [*found, path]


def _names_of_base(path: Path) -> set[str]:
    """The functions of configs/base.py that a file names."""
    nodes = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute))
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "base"}


def _reached(names: set[str]) -> list[list[str]]:
    """The lines of the functions of configs/base.py that these call, and they themselves, in the order of the file."""
    path = CONFIGS / "base.py"
    functions = {node.name: node for node in _tree(path).body if isinstance(node, ast.FunctionDef)}
    found, waiting = set(), {"base", *names}
    while waiting:
        name = waiting.pop()
        if name in functions and name not in found:
            found.add(name)
            waiting |= {node.id for node in ast.walk(functions[name]) if isinstance(node, ast.Name)}
    lines = path.read_text(encoding="utf-8").split("\n")
    return [lines[node.lineno : node.end_lineno] for name, node in functions.items() if name in found]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _docstring(path: Path) -> str:
    if not path.is_file():
        configuration.load(str(path))  # which says what is wrong
    return ast.get_docstring(_tree(path)) or ""
