"""A run's config: read from `configs/x.py:variant`, overridden from the command line, kept as JSON in the workdir.

Configs are `ml_collections.ConfigDict`s. Whatever is wrong with one ends in a `UserError` naming the key or file.
"""

import ast
import builtins
import difflib
import fnmatch
import importlib.util
import json
import linecache
import pkgutil
import re
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from transformers_jax import config_values
from transformers_jax.errors import UserError
from transformers_jax.files import write_whole

FILE = "config.json"
REPOSITORY = Path(__file__).resolve().parent.parent

MAY_CHANGE = (
    "training.steps", "training.*_every", "training.bleu_sentences", "training.keep_checkpoints",
    "training.keep_best", "training.patience", "training.average_checkpoints", "training.parallelism",
    "task.bleu_tokenize", "decoding.*", "mesh.*",
    "data.data_dir", "data.workers", "data.prefetch", "data.cache",
    "search.controls", "search.final_*", "search.retries",
)  # fmt: skip
"""Keys that may differ between a workdir and the command that resumes it: they do not say what was learned so far."""

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)")


def load(spec: str) -> ConfigDict:
    """The config that `get_config` of a file returns.

    Args:
      spec: `path/to/file.py` or `path/to/file.py:variant`; the variant is handed to `get_config`.

    Raises:
      UserError: the file is missing or broken, has no `get_config`, or does not know the variant.
    """
    path, _, variant = spec.partition(":")
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [f.name for f in file.parent.glob("*.py")], 1)
        hint = f"did you mean {file.parent / near[0]}?" if near else "give --config=path/to/file.py:variant"
        raise UserError(f"--config: no file {path}; {hint}")
    module_spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if module_spec is None:
        raise UserError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    places = list(sys.path)
    sys.path += [str(file.resolve().parent.parent), str(REPOSITORY)]  # whose configs/ may be imported, if no other is
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config: {path} has no function get_config")
        config = module.get_config(*[variant] if variant else [])
    except UserError:
        raise
    except SyntaxError as e:
        raise UserError(f"--config: {_shown(e.filename or path)}, line {e.lineno}: {e.msg}") from e
    except Exception as e:
        place, text = _mistake(e, module.__name__)
        raise UserError(f"--config: {place}: {text}" if place else f"--config={spec}: {text}") from e
    finally:
        sys.path[:] = places
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {path} returned {type(config).__name__}, not a ConfigDict")
    return config.lock()


def _mistake(error: Exception, name: str) -> tuple[str, str]:
    """The line of a config file, or of one that it builds on, at which an error came up; and what is wrong there.

    The line is "" where the error is none of the file's: it refuses a variant, or does not take one.

    Args:
      name: what the file is called as a module.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = [i for i, (f, _) in enumerate(frames) if f"{f.f_globals.get('__name__')}.".startswith((f"{name}.", "configs."))]
    if not ours:
        return "", str(error)
    frame, line = frames[ours[-1]]
    file = frame.f_code.co_filename
    if linecache.getline(file, line).strip().startswith("raise "):
        return "", str(error)
    place = f"{_shown(file)}, line {line}"
    for deeper, _ in reversed(frames[ours[-1] + 1 :]):  # in ml_collections: which key of which group
        group, key = deeper.f_locals.get("self"), deeper.f_locals.get("key", deeper.f_locals.get("attribute"))
        if isinstance(group, ConfigDict) and key:
            return place, _mistake_of_key(error, group, str(key), deeper.f_locals.get("value"), frame.f_locals)
    known, wanted = {*frame.f_locals, *frame.f_globals, *dir(builtins)}, getattr(error, "name", None)
    if isinstance(error, AttributeError):
        known = dir(error.obj)
    elif isinstance(error, ImportError) and wanted == "configs":
        known = [module.name for module in pkgutil.iter_modules(sys.modules[wanted].__path__)]
        wanted = str(error).partition("'")[2].partition("'")[0]
    near = difflib.get_close_matches(wanted or "", known, 1)
    return place, f"{error}; did you mean {near[0]}?" if near else str(error)


def _mistake_of_key(error: Exception, group: ConfigDict, key: str, value, names: dict) -> str:
    """What is wrong with a key of a group, which is one of the configs that the file has names for, or in one of them."""
    roots = [(name, root) for name, root in names.items() if isinstance(root, ConfigDict)]
    place = next(((n, root, g) for n, root in roots for g, found in _groups(root) if found is group), ("", group, ""))
    variable, root, prefix = place
    variable += "." if variable else ""
    name = f"{variable}{prefix}{key}"
    if key not in group:
        near = _nearest(prefix + key, {g + known for g, found in _groups(root) for known in found})
        return f"{name}: no such key" + (f"; did you mean {variable}{near}?" if near else "")
    if isinstance(group[key], ConfigDict):
        return f"{name} is a group of keys: it cannot be {value!r}"
    if isinstance(error, TypeError):
        return f"{name} is {group[key]!r}, of type {type(group[key]).__name__}: it cannot be {value!r}"
    return f"{name}: {error}"


def _groups(config: ConfigDict, prefix: str = "") -> list[tuple[str, ConfigDict]]:
    """A config and the groups in it, with what their keys begin with, "data.lengths." say."""
    groups = [(prefix, config)]
    for key, value in config.items():
        groups += _groups(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else []
    return groups


def _shown(file: str) -> str:
    """A file's path as it is read best: from here, if it is here."""
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def spelled(config: ConfigDict, argv: list[str]) -> list[str]:
    """The arguments, in which several texts with commas between them, `--config.task.labels=a,b`, are written as a tuple.

    Raises:
      UserError: a value that is not of its key's type; says what is wanted.
    """
    known, found, at = dict(flatten(config)), [*argv], 0
    while at < len(found):
        match, _, value = _OVERRIDE.match(found[at]), *found[at].partition("=")[1:]
        key = match[2] if match and not match[1] else ""
        if "=" not in found[at] and key in known and not isinstance(known[key], bool) and at + 1 < len(found):
            value = found.pop(at + 1)
        elif "=" not in found[at]:
            key = ""
        if key in known:
            found[at] = f"--config.{key}={_spelled(key, value, known[key])}"
        at += 1
    return found


def _spelled(key: str, value: str, now) -> str:
    """The value of a key on the command line, which has the value `now`."""
    wanted = ""
    if isinstance(now, bool):
        wanted = "" if value.lower() in ("true", "false", "t", "f", "1", "0") else "true or false"
    elif isinstance(now, int):
        wanted = "" if re.fullmatch(r"\s*[+-]?\d+(_\d+)*\s*", value) else "a whole number (int), written with digits alone"
    elif isinstance(now, float):
        try:
            float(value)
        except ValueError:
            wanted = "a number (float)"
    elif isinstance(now, tuple) and value.strip():
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if value.strip()[0] not in "([":
                return repr(tuple(part.strip() for part in value.split(",") if part.strip()))
    if wanted:
        raise UserError(f"--config.{key}={value}: give {wanted}")
    return value


def overrides(config: ConfigDict, argv: list[str]) -> flags.FlagValues:
    """One flag for each `--config.a.b` among the arguments; parsing them writes into `config`.

    Raises:
      UserError: a key that the config does not have, or one that is a whole group.
    """
    wanted = [a for a in argv if _OVERRIDE.match(a)]
    known = dict(flatten(config))
    for argument in wanted:
        key = _OVERRIDE.match(argument)[2]
        if key in known:
            continue
        if any(k.startswith(key + ".") for k in known):
            members = sorted(k for k in known if k.startswith(key + "."))
            raise UserError(f"--config.{key} is a group; give one of its keys: {', '.join(members)}")
        near = _nearest(key, known)
        raise UserError(f"--config.{key}: no such key; " + (f"did you mean --config.{near}?" if near else "see config.json"))
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=wanted)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{wanted[0]}: {e}") from e
    delattr(values, "config")
    return values


def check(config: ConfigDict) -> None:
    """Checks every value of a config, see `config_values`: once, when a launcher starts or a run is called from Python.

    Raises:
      UserError: a value that its key cannot have; names the key, the value and what is possible.
    """
    for mistake in config_values.mistakes(flatten(config)):
        raise UserError(mistake)


def _nearest(key: str, known) -> str | None:
    """The known key most like `key`: as a whole, or by its last part."""
    near = difflib.get_close_matches(key, known, 1, 0.75)
    if near:
        return near[0]
    leaves = {k.rpartition(".")[2]: k for k in known}
    near = difflib.get_close_matches(key.rpartition(".")[2], leaves, 1, 0.6)
    return leaves[near[0]] if near else None


def flatten(config, prefix: str = "") -> list[tuple[str, object]]:
    """Leaves of a nested config as (dotted key, value), in order; tuples and lists are leaves, as tuples."""
    leaves = []
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            leaves += flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, tuple(value) if isinstance(value, list) else value))
    return leaves


def save(config: ConfigDict, workdir: str | Path) -> None:
    """Writes `config.json` into the workdir, whole or not at all."""
    write_whole(Path(workdir) / FILE, json.dumps(config.to_dict(), indent=2) + "\n")


def read(workdir: str | Path) -> ConfigDict:
    """The config that a run was launched with, from its workdir.

    Raises:
      UserError: there is no such run, or its config.json is not JSON.
    """
    path = Path(workdir) / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UserError(f"--workdir={workdir} holds no run: no {path}; train one with experiments.pretrain") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged ({e}); give the pretrain command again in a new workdir") from e
    return ConfigDict(_tuples(values)).lock()


def _tuples(value):
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def differences(saved, now) -> list[str]:
    """What keeps `now` from resuming a run of `saved`: one "key: saved value there, new value here" a differing key."""
    saved, now = dict(flatten(saved)), dict(flatten(now))
    absent = "nothing"
    return [
        f"{key} is {saved.get(key, absent)!r} there and {now.get(key, absent)!r} here"
        for key in [*saved, *(k for k in now if k not in saved)]
        if saved.get(key, absent) != now.get(key, absent) and not any(fnmatch.fnmatch(key, p) for p in MAY_CHANGE)
    ]
