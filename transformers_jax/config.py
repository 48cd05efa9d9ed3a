"""A run's config: read from `configs/x.py:variant`, overridden from the command line, kept as JSON in the workdir.

Configs are `ml_collections.ConfigDict`s. Whatever is wrong with one ends in a `UserError` naming the key or file.
"""

import difflib
import fnmatch
import importlib.util
import json
import re
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from transformers_jax.errors import UserError
from transformers_jax.files import write_whole

FILE = "config.json"

MAY_CHANGE = (
    "training.steps", "training.*_every", "training.bleu_sentences", "training.keep_checkpoints",
    "training.average_checkpoints", "training.parallelism", "decoding.*", "mesh.*",
    "data.data_dir", "data.workers", "data.prefetch", "data.cache",
    "search.controls", "search.final_*", "search.retries",
)  # fmt: skip
"""Keys that may differ between a workdir and the command that resumes it: they do not say what was learned so far."""

LEAST = {"accumulate": 1, "keep_checkpoints": 1, "average_checkpoints": 1, "bleu_sentences": 0}
"""Numbers of config.training that must not be lower."""

GENERATORS = ("rbg", "threefry2x32", "unsafe_rbg")
"""JAX's generators of random numbers."""

DTYPES = ("bfloat16", "float16", "float32")
"""What models compute in, and keep their parameters in."""

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
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(*[variant] if variant else [])
    except AttributeError as e:
        if not hasattr(module, "get_config"):
            raise UserError(f"--config: {path} has no function get_config") from e
        raise UserError(f"--config={spec}: {e}") from e
    except SyntaxError as e:
        raise UserError(f"--config: {path}, line {e.lineno}: {e.msg}") from e
    except Exception as e:
        raise UserError(f"--config={spec}: {e}") from e
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {path} returned {type(config).__name__}, not a ConfigDict")
    return config.lock()


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
    """Checks the values that every launcher takes alike.

    Raises:
      UserError: a number below the least that there may be, an unknown type of numbers or generator of random ones.
    """
    training, model = config.get("training", {}), config.get("model", {})
    for key, least in LEAST.items():
        if training.get(key, least) < least:
            raise UserError(f"config.training.{key} is {training[key]}: give {least} or more")
    if config.get("prng", "rbg") not in GENERATORS:
        raise UserError(f"config.prng is {config.prng!r}; it is one of {', '.join(GENERATORS)}")
    for key in "dtype", "param_dtype":
        if model.get(key, "float32") not in DTYPES:
            raise UserError(f"config.model.{key} is {model[key]!r}; it is one of {', '.join(DTYPES)}")


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
