"""Several adapters over one base: the base is read once, and what each run learned beside it is put in its place by name."""

from collections.abc import Sequence
from pathlib import Path

import jax
import optax

from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.finetuning import trainable
from transformers_jax.inference.predictor import Loaded
from transformers_jax.runs import initialise
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.checkpoint import Base, Checkpoints

QUANTIZED = ("quantization", "block", "double")
"""Options that make another base of the same one."""


def named(there: Loaded, given: Sequence[str]) -> dict[str, Loaded]:
    """The models of NAME=PATH …, by name, over the base of one that is there; "" is the one itself.

    Raises:
      UserError: no NAME=PATH, a name twice, or as `beside` does.
    """
    found = {"": there}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UserError(f"--adapter={text} is not NAME=PATH")
        if name in found:
            raise UserError(f"--adapter={text}: there is another adapter of the name {name}")
        found[name] = there.with_adapter(path)
    return found


def beside(there: Loaded, path: str) -> Loaded:
    """The model of a workdir that was trained beside the base that is there. The base is not read again.

    Args:
      there: a run beside a base, or a plain model that is the base itself.
      path: of the workdir.

    Raises:
      UserError: it is no such workdir, is of another base or quantised otherwise, or needs a part of the base that the run
        there has replaced by its own.
    """
    folder = initialise.folder_of(path, key="--adapter")
    if not (folder / configuration.FILE).is_file():
        raise UserError(f"--adapter={path} is no workdir; experiments.convert makes one of a folder of PEFT")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        theirs = checkpoints.saved_base()
    if theirs is None:
        raise UserError(f"--adapter={path} was not trained beside a base: its checkpoint holds a whole model")
    run = Experiment(configuration.read(folder), folder)
    base, frozen = base_of(there)
    if theirs.fingerprint != base.fingerprint:
        raise UserError(f"--adapter={path} was trained beside another base, {theirs.path}; here is {base.path}")
    if _quantized(run.config) != (_quantized(configuration.read(there.folder)) if _is_run(there) else ("",)):
        raise UserError(f"--adapter={path}: its base is quantised otherwise than that of {there.folder}")
    run.base, run.mesh = base, there.mesh  # neither is to be made again
    state = run.abstract_state(optax.identity())
    wanted, constants = parameters.flat(state.frozen), {}
    for name, leaf in wanted.items():
        if Base.has(("frozen", *name.split("/"))):
            if name not in frozen or jax.tree.map(_form, frozen[name]) != jax.tree.map(_form, leaf):
                raise UserError(f"--adapter={path} needs {name} as the base has it: give that run as --workdir instead")
            constants[name] = frozen[name]
        else:
            constants[name] = leaf
    variables = run.trained(frozen=parameters.nest(constants))
    return Loaded(run.model, variables, run.tokenizer, there.mesh, run.task, Path(folder))


def base_of(there: Loaded) -> tuple[Base, dict]:
    """What a model is beside, and the arrays of it that are there by name; of a plain model all of it."""
    leaves = parameters.flat(there.variables["params"])
    if not _is_run(there):
        return Base(str(there.folder), initialise.fingerprint_of(str(there.folder))), leaves
    with Checkpoints(there.folder / "checkpoints") as checkpoints:
        base = checkpoints.saved_base()
    learned = parameters.matching(leaves, trainable.patterns(configuration.read(there.folder)))
    return base, {name: leaf for name, leaf in leaves.items() if name not in learned}


def _is_run(there: Loaded) -> bool:
    """Whether a model is that of a run beside a base."""
    if not (there.folder / "checkpoints").is_dir():
        return False
    with Checkpoints(there.folder / "checkpoints") as checkpoints:
        return checkpoints.saved_base() is not None


def _quantized(config) -> tuple:
    options = trainable.options(config)
    return tuple(getattr(options, key) for key in QUANTIZED) if options.quantization else ("",)


def _form(x) -> tuple:
    return x.shape, x.dtype
