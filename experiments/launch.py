"""What every launcher shares: its flags, its config, a quiet start of JAX, and errors in one line.

A launcher is flags and one call::

    FLAGS = launch.flags_of(config="file")

    def main(args, config): ...

    if __name__ == "__main__":
        launch.run(main, FLAGS)

Exit codes: 0 done, 2 a mistake of the user (one line, `error: …`), 130 interrupted, 143 ended by SIGTERM.
"""

import copy
import errno
import inspect
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments import about
from transformers_jax import config as configuration
from transformers_jax.errors import UserError

BEGAN = time.monotonic()
"""When this process began, or near it."""

CACHE = {"jax_compilation_cache_max_size": 4 * 2**30, "jax_persistent_cache_min_compile_time_secs": 0.1}
"""Compiled programs kept on disk: bytes, of which the least recently used go first, and what is worth keeping."""

ENVIRONMENT = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}
"""Errors of the machine rather than of this code: a full disk, a folder without rights."""

ADVICE = {
    "RESOURCE_EXHAUSTED": "out of memory: lower --config.data.batch_size, or set --config.model.remat",
    "Unable to initialize backend": "JAX finds no such device: unset JAX_PLATFORMS, or install the extra cuda or tpu",
}
"""Errors of XLA that a user can mend, by a part of their message."""


def flags_of(*, config: str, arguments: str = "") -> flags.FlagValues:
    """The flags that launchers share. They are the launcher's own, so that several launchers can live in one process.

    Args:
      arguments: what arguments that are no flags mean; they are the value of `args.arguments`. "" for a launcher without.
      config: "file" for a launcher that is given --config=FILE:VARIANT, "workdir" for one that reads the config of a
        run from its workdir; either way `--config.a.b=value` changes a key. "none" for one without.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    if config != "none":
        flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    if config == "file":
        flags.DEFINE_string("config", None, "FILE or FILE:VARIANT, as configs/transformer.py:base", flag_values=values)
        flags.DEFINE_bool("list", False, "print the variants of --config, or all configs, and exit", flag_values=values)
    if arguments:
        flags.DEFINE_multi_string("arguments", [], f"{arguments}; also without this name", flag_values=values)
    more = "; with --config its keys, too" if config == "file" else ""
    flags.DEFINE_bool("help", False, f"print this and exit{more}", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run of many processes", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many processes there are", flag_values=values)
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0", flag_values=values)
    return values


class _Step(flags.ArgumentParser):
    """The number of a step, "best" or "last"."""

    syntactic_help = "best, last, or a number"

    def parse(self, argument):
        """The value of an argument; one that is parsed stays as it is."""
        if argument in ("best", "last") or isinstance(argument, int):
            return argument
        if not argument.isdecimal():
            raise ValueError(f"give {self.syntactic_help}")
        return int(argument)


def define_step(values: flags.FlagValues) -> None:
    """Adds --step: which checkpoint of a workdir a launcher takes."""
    meaning = "one checkpoint: best, last, or its step; by default the best if it is kept"
    flags.DEFINE(_Step(), "step", None, meaning, values)


def run(main: Callable, values: flags.FlagValues, *, jax: bool = True) -> None:
    """Runs a launcher on the command line and ends the process with its exit code."""
    use_large_pages()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the training loop sets its own, which saves first
    sys.exit(call(main, values, sys.argv, jax=jax))


def use_large_pages() -> None:
    """Starts the process again with glibc's allocator on large pages (glibc 2.35), unless GLIBC_TUNABLES says otherwise.

    XLA allocates a step's buffers anew each time, on a CPU a gigabyte of them: with small pages a seventh of the step goes
    into page faults. The setting is read when a process starts.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def call(main: Callable, values: flags.FlagValues, argv: list[str], *, jax: bool = True) -> int:
    """Parses the arguments, starts JAX, calls `main(args, config)` and returns the exit code."""
    try:
        start_output()
        args, config = parse(values, argv, help_text=inspect.getmodule(main).__doc__ or "")
        if jax:
            start_jax(args, config)
        main(args, config)
        sys.stdout.flush()
        return 0
    except UserError as e:
        return _error(e)
    except flags.Error as e:
        return _error(f"{e}; --help lists the flags")
    except KeyboardInterrupt:
        print("interrupted; what was saved stays", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads on: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.errno not in ENVIRONMENT:
            raise
        return _error(f"{e.filename or 'writing'}: {e.strerror}")
    except RuntimeError as e:  # XLA's errors are RuntimeErrors
        advice = [text for part, text in ADVICE.items() if part in str(e)]
        if not advice:
            raise
        return _error(f"{advice[0]} ({str(e).strip().splitlines()[0]})")


def _error(message) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    return 2


def parse(values: flags.FlagValues, argv: list[str], help_text: str = "") -> tuple[flags.FlagValues, ConfigDict]:
    """The parsed flags, and the config with its overrides applied.

    Raises:
      UserError, absl.flags.Error: an unknown flag or key, a value of the wrong type, a missing file or workdir.
    """
    args = copy.deepcopy(values)
    args(argv, known_only=True)
    told = "config" in args and (args.config or args.list)
    if args.help:
        print(help_text, *(f"  --{name}: {args[name].help}" for name in args), sep="\n")
    if told and args.list:
        print(*about.listed(args.config), sep="\n")
    elif told and args.help:
        print(f"\nThe keys of {args.config}:", *about.keys(args.config, configuration.load(args.config)), sep="\n")
    if args.help or told and args.list:
        sys.exit(0)
    if "workdir" in args and "://" in (args.workdir or ""):
        raise UserError(f"--workdir={args.workdir} is no folder: mount the bucket, and give the folder it is mounted at")
    if "workdir" not in args or "config" not in args and "init_from" in args and args.init_from and not args.workdir:
        config = ConfigDict()
    elif "config" not in args:
        config = configuration.read(_required(args, "workdir", "the folder of a trained run"))
    else:
        config = configuration.load(_required(args, "config", "FILE:VARIANT, as configs/transformer.py:base"))
    argv = [argv[0], *configuration.spelled(config, argv[1:])]
    fields = configuration.overrides(config, argv[1:])
    for name in fields:
        args[name] = fields[name]
    rest = args(argv)[1:]
    if rest and "arguments" in args:
        args.arguments = args.arguments + rest
    elif rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags are written --name=value")
    settle_files(config, given(args, config), trains="config" in args)
    configuration.check(config)
    return args, config


def settle_files(config: ConfigDict, given: dict[str, object], *, trains: bool) -> None:
    """Changes the config to what follows where a path is given for a split: it means files. Parts of a sweep have their own.

    Args:
      trains: whether labels follow, too; those of a trained run stay.
    """
    if not config.get("sweep") and any(f"data.{split}" in given for split in ("train", "validation", "test")):
        from transformers_jax.data import forms
        from transformers_jax.runs import labels

        (labels.settle_files if trains else forms.settle)(config, given)


def model(args: flags.FlagValues, config: ConfigDict):
    """What --workdir or --init_from names, a `predictor.Loaded`, for launchers with --average, --step and --quantization.

    Raises:
      UserError: both or none are given, or it cannot be read.
    """
    from transformers_jax.inference import predictor
    from transformers_jax.runs.experiment import Experiment

    if bool(args.workdir) == bool(args.init_from):
        raise UserError("give one of --workdir and --init_from")
    how = {"average": args.average, "step": args.step, "quantization": args.quantization or ""}
    if args.init_from:
        return predictor.loaded(args.init_from, **how)
    return predictor.trained(Experiment(config, args.workdir), **how)


def define_adapters(values: flags.FlagValues, of_line: str = "") -> None:
    """The flags of adapters beside one base: --adapter and --use.

    Args:
      of_line: how a line of the input chooses its own, for the help.
    """
    what = "NAME=PATH of a workdir, folder of PEFT or GGUF file that was trained beside the model; or a PATH alone"
    flags.DEFINE_multi_string("adapter", [], what, flag_values=values)
    which = f"the NAME of the adapter that answers{of_line}; without it the model alone"
    flags.DEFINE_string("use", "", which, flag_values=values)


def use_wide_vectors() -> None:
    """Has XLA compile for vectors of 512 bits on processors that have them, which decodes blocks nearly twice as fast.

    To be called before JAX starts; a flag of the user's own stays.
    """
    name, given = "--xla_cpu_prefer_vector_width", os.environ.get("XLA_FLAGS", "")
    processor = Path("/proc/cpuinfo")
    if name not in given and processor.is_file() and "avx512f" in processor.read_text(errors="replace"):
        os.environ["XLA_FLAGS"] = f"{given} {name}=512".strip()


def given(args: flags.FlagValues, config: ConfigDict) -> dict[str, object]:
    """The keys of the config that the command line sets, "model.dropout" say, with their values."""
    values = dict(configuration.flatten(config))
    names = (name.removeprefix("config.") for name in args if name.startswith("config.") and args[name].present)
    return {name: values[name] for name in names}


def _required(args: flags.FlagValues, name: str, meaning: str) -> str:
    if not args[name].value:
        raise UserError(f"--{name} is missing: give {meaning}")
    return args[name].value


def show(*lines: str) -> None:
    """Prints results, in the first process of a run."""
    import jax

    if jax.process_index() == 0:
        print(*lines, sep="\n")


class _Ours(logging.Filter):
    """Warnings from anywhere, the rest from this project only: Orbax and JAX tell of every file they touch."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = "transformers_jax" in record.pathname or "experiments" in record.pathname
        return ours or (record.levelno >= logging.WARNING and "orbax" not in record.pathname)


def start_output() -> None:
    """Results on stdout in UTF-8, whatever the locale; the log in plain lines on stderr, a warning with `warning: `."""
    from absl import logging as absl_logging

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    handler = logging.StreamHandler()
    handler.addFilter(_Ours())
    handler.setFormatter(_Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    absl_logging.set_verbosity(absl_logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {message}"


def start_jax(args: flags.FlagValues, config: ConfigDict) -> None:
    """Compiled programs kept on disk, the generator of random numbers, and the other processes of the run.

    Programs are kept in $TRANSFORMERS_JAX_CACHE, or ~/.cache/transformers_jax/xla; an empty value turns that off.

    Raises:
      UserError: the flags do not say which process of which run this is, or the processes do not find each other.
    """
    import jax

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["launcher"])  # Grain's workers read the process-wide flags
    cache = os.environ.get("TRANSFORMERS_JAX_CACHE", str(Path.home() / ".cache" / "transformers_jax" / "xla"))
    if cache and _can_make(cache):
        jax.config.update("jax_compilation_cache_dir", cache)
        for name, value in CACHE.items():
            if name.upper() not in os.environ:
                jax.config.update(name, value)
        _date(Path(cache))
    jax.config.update("jax_default_prng_impl", config.get("prng", "rbg"))
    place = args.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), args.num_processes, args.process_id
    if None in place and any(value is not None for value in (args.coordinator, *place[1:])):
        raise UserError("--coordinator, --num_processes and --process_id go together: give all three, or none of them")
    if None not in place or _cluster():
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(*place)
        except (ValueError, IndexError, RuntimeError) as e:
            how = "give --coordinator=HOST:PORT, --num_processes and --process_id, the last another number for each"
            raise UserError(f"the processes of this run do not come together ({str(e).strip()}); {how}") from e


def _can_make(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _date(cache: Path) -> None:
    """Gives programs the time of last use that they lack, as where a process was killed: JAX would keep no more beside one."""
    for program in cache.glob("*-cache"):
        used = program.with_name(program.name.removesuffix("-cache") + "-atime")
        if not used.exists():
            used.write_bytes(bytes(8))


def _cluster() -> bool:
    """Whether the environment names several processes: Slurm's srun, Open MPI, a TPU pod, or JAX's own variables."""
    several = any(int(os.environ.get(name) or 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or "JAX_COORDINATOR_ADDRESS" in os.environ
