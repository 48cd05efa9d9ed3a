"""Which parameters: the one matcher of parameter names. A leaf of the import graph.

A parameter's name is its path in the tree, joined by slashes: "encoder/layers/attention/query/kernel". A pattern is a
regular expression that is searched for in the name: "kernel$", "^encoder/", "attention|mlp". Weight decay, freezing,
adapters, quantisation and sharding overrides ask here which leaves they mean.
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
from flax import traverse_util
from flax.core import meta

from transformers_jax.errors import UserError

Patterns = str | Iterable[str]
"""One regular expression or several; a name matches where any of them is found. "" and () match nothing."""


def is_boxed(leaf: Any) -> bool:
    """Whether a leaf carries Flax metadata (its logical axes) around its value."""
    return isinstance(leaf, meta.AxisMetadata)


def is_packed(leaf: Any) -> bool:
    """Whether several arrays make up one parameter, as a quantised kernel's do; its class says `one_parameter = True`."""
    return getattr(type(leaf), "one_parameter", False)


def is_whole(leaf: Any) -> bool:
    """Whether a node of a tree counts as one parameter: a boxed leaf or a packed one."""
    return is_boxed(leaf) or is_packed(leaf)


def name_of(path: tuple) -> str:
    """The name of a leaf from its key path in a jax tree: "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name; a boxed leaf stays boxed, a quantised kernel whole. Empty subtrees vanish."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_whole)
    return {name_of(path): leaf for path, leaf in leaves}


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """The tree of nested dicts with these named leaves: the inverse of `flat`."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def matching(names: Iterable[str], patterns: Patterns, *, key: str = "") -> set[str]:
    """The names in which a pattern is found.

    Args:
      names: names of leaves.
      patterns: regular expressions.
      key: the config key the patterns come from. With it, a pattern that matches no name is an error of the user.

    Raises:
      UserError: a pattern is no regular expression, or (with `key`) matches nothing; lists some names there are.
    """
    names, found = list(names), set()
    for pattern in _listed(patterns):
        try:
            search = re.compile(pattern).search
        except re.error as error:
            raise UserError(f"{key or 'pattern'}: {pattern!r} is not a regular expression: {error}") from None
        hits = {name for name in names if search(name)}
        if key and not hits:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise UserError(f"{key}: {pattern!r} matches no parameter; there are {shown or 'none'}")
        found |= hits
    return found


def mask(tree: Any, patterns: Patterns, *, key: str = "") -> Any:
    """The tree with True at each leaf that a pattern matches and False elsewhere. Raises as `matching` does."""
    found = matching(flat(tree), patterns, key=key)
    return jax.tree_util.tree_map_with_path(lambda path, _: name_of(path) in found, tree, is_leaf=is_whole)


def split(tree: Any, patterns: Patterns, *, key: str = "") -> tuple[dict, dict]:
    """Two trees of nested dicts: the leaves a pattern matches, and the rest. Raises as `matching` does."""
    leaves = flat(tree)
    found = matching(leaves, patterns, key=key)
    return (
        nest({name: leaf for name, leaf in leaves.items() if name in found}),
        nest({name: leaf for name, leaf in leaves.items() if name not in found}),
    )


def merge(first: dict, second: dict) -> dict:
    """One tree from two of nested dicts that share no leaf: the inverse of `split`.

    Raises:
      ValueError: a name is a leaf of one tree and a leaf or a subtree of the other.
    """
    merged = dict(first)
    for name, value in second.items():
        if name in merged and not (isinstance(merged[name], dict) and isinstance(value, dict)):
            raise ValueError(f"both trees have {name!r}")
        merged[name] = merge(merged[name], value) if name in merged else value
    return merged


def lookup(name: str, rules: Iterable[tuple[str, Any]], default: Any = None) -> Any:
    """The value of the first rule (pattern, value) whose pattern matches the name."""
    return next((value for pattern, value in rules if matching([name], pattern)), default)


def _listed(patterns: Patterns) -> list[str]:
    return [p for p in ([patterns] if isinstance(patterns, str) else patterns) if p]
