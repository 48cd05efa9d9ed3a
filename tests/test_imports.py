"""Who may import whom: the order of the rooms, held by parsing every import."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "transformers_jax"
LEAVES = ("batch", "config", "config_values", "errors", "files", "mesh", "outputs", "parameters")
ORDER = (
    LEAVES, ("layers",), ("genomes",), ("models", "data", "training", "decoding", "finetuning"), ("tasks", "interchange"),
    ("planning",), ("runs",), ("inference",), ("search",), ("reporting",), ("__init__",),
)  # fmt: skip
"""A room may import those before its own group."""
APART = {("models", "training"), ("models", "decoding"), ("models", "finetuning"), ("tasks", "models"), ("tasks", "training")}
"""(importer, imported) pairs that the order would allow and the plan does not."""

FILES = sorted(PACKAGE.rglob("*.py"))


def rooms_of(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = node.module == "transformers_jax"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("transformers_jax.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_stands_before_them(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    place = {name: number for number, names in enumerate(ORDER) for name in names}
    assert room in place, f"{room} is not among the rooms: add it to ORDER"
    for other in rooms_of(path) - {room}:
        beside = room in LEAVES and other in LEAVES
        assert beside or place[other] < place[room], f"{path.name} of {room} imports {other}, which stands behind it"
        assert (room, other) not in APART, f"{path.name} of {room} imports {other}"


def test_configs_import_nothing_of_the_package():
    for path in sorted((PACKAGE.parent / "configs").glob("*.py")):
        assert not rooms_of(path), path.name
