"""Several adapters over one base: the base is read once, and what was learned beside it is put in its place by name.

An adapter is a workdir that was trained beside the base, a folder of PEFT, or a GGUF file of llama.cpp's.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from transformers_jax import config as configuration
from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.finetuning import lora, trainable
from transformers_jax.inference.predictor import Loaded
from transformers_jax.interchange import gguf_adapter, gguf_model, huggingface, mapping, peft, stacking
from transformers_jax.layers.adapter import ADAPTER
from transformers_jax.layers.quantized import QuantizedKernel
from transformers_jax.runs import initialise
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training import best
from transformers_jax.training.checkpoint import Base, Checkpoints

QUANTIZED = ("quantization", "block", "double")
"""Options that make another base of the same one."""


def named(there: Loaded, given: Sequence[str], use: str = "") -> dict[str, Loaded]:
    """The models of NAME=PATH …, by name, over the base of one that is there; "" is what answers where no name is said.

    Args:
      given: NAME=PATH, or one PATH alone, which is then what answers.
      use: the name of the one that answers; "" for the model that is there.

    Raises:
      UserError: a name twice, a name that there is not, or as `beside` does.
    """
    found = {"": there}
    for text in dict.fromkeys(given):  # arguments are parsed twice
        name, equals, path = text.partition("=")
        if not equals and found[""] is there:
            found[""] = there.with_adapter(text)
            continue
        if not (name and equals and path):
            raise UserError(f"--adapter={text} is not NAME=PATH")
        if name in found:
            raise UserError(f"--adapter={text}: there is another adapter of the name {name}")
        found[name] = there.with_adapter(path)
    if use not in found:
        raise UserError(f"--use={use} is no --adapter; there are {', '.join(filter(None, found)) or 'none'}")
    return found | {"": found[use]}


def beside(there: Loaded, path: str) -> Loaded:
    """The model of what was trained beside the base that is there. The base is not read again.

    Args:
      there: a run beside a base, or a plain model that is the base itself.
      path: of a workdir, of a folder of PEFT or of a GGUF file with an adapter.

    Raises:
      UserError: it is no such workdir, is of another base or quantised otherwise, or needs a part of the base that the run
        there has replaced by its own.
    """
    if gguf_model.is_file(path):
        return over(there, gguf_adapter.read(Path(path), _plan(there)), path)
    folder = initialise.folder_of(path, key="--adapter")
    if peft.is_adapter(folder):
        return over(there, peft.read(folder, _plan(there)).leaves, path)
    if not (folder / configuration.FILE).is_file():
        raise UserError(f"--adapter={path} is neither a workdir nor a folder of PEFT")
    chosen, number = best.place(folder)
    with Checkpoints(chosen) as checkpoints:
        theirs, state = checkpoints.saved_base(number), checkpoints.restore_params(number)
    if theirs is None:
        raise UserError(f"--adapter={path} was not trained beside a base: its checkpoint holds a whole model")
    run = Experiment(configuration.read(folder), folder)
    base, frozen = base_of(there)
    if theirs.fingerprint != base.fingerprint:
        raise UserError(f"--adapter={path} was trained beside another base, {theirs.path}; here is {base.path}")
    if _quantized(run.config) != (_quantized(configuration.read(there.folder)) if _is_run(there) else _held(there)):
        how = trainable.options(run.config).quantization or "none"
        raise UserError(f"--adapter={path}: its base is quantised otherwise than that of {there.folder}: {how} there")
    run.base, run.mesh = base, there.mesh  # neither is to be made again
    if not _is_run(there) and run.model.protocol().head == there.model.protocol().head:
        learned = stacking.separate(parameters.flat(parameters.merge(state["params"], state["frozen"])))
        own = over(there, jax.tree.map(np.asarray, learned), path)
        return own._replace(tokenizer=run.tokenizer, task=run.task, folder=Path(folder), begins=True)
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
    return Loaded(run.model, variables, run.tokenizer, there.mesh, run.task, Path(folder), begins=True)


def over(there: Loaded, leaves: Mapping[str, np.ndarray], path: str) -> Loaded:
    """The model that is there with other leaves in the place of its own, or beside them.

    Where layers are one stack so are the leaves; a layer without a part of low rank gets one of zeros, and so do smaller ranks.

    Args:
      leaves: by name, layers apart.
      path: where they are from, for messages.
    """
    own, found = parameters.flat(there.variables["params"]), {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, array in leaves.items():
        stack, number = stacking.place(name)
        if number is not None and _depth(own, stack):
            stacks.setdefault(stack, {})[number] = array
        else:
            found[name] = array
    for name, parts in stacks.items():
        found[name] = _stacked(name, parts, _depth(own, name), path)
    if new := [name for name in found if name not in own and not lora.LEAF.search(name) and not re.search(ADAPTER, name)]:
        raise UserError(f"--adapter={path}: the model has no {initialise.some(new)}, or holds it in blocks")
    copied = NamedSharding(there.mesh, PartitionSpec())
    params = own | {name: jax.device_put(array, copied) for name, array in found.items()}
    return there._replace(variables=there.variables | {"params": parameters.nest(params)})


def _depth(own: Mapping[str, Any], name: str) -> int:
    """How many layers the stack has that a leaf would be of; 0 where there is no such stack."""
    start = name[: name.index("layer/") + len("layer/")]
    return next((len(jax.tree.leaves(leaf)[0]) for other, leaf in own.items() if other.startswith(start)), 0)


def _stacked(name: str, parts: Mapping[int, np.ndarray], layers: int, path: str) -> np.ndarray:
    """Leaves of some layers as one of all."""
    low_rank = lora.LEAF.search(name) and not name.endswith("lora_magnitude")
    if max(parts) >= layers or len(parts) < layers and not low_rank:
        raise UserError(f"--adapter={path} has {name} of {len(parts)} layers, and the model has {layers}")
    shape = np.max([np.shape(part) for part in parts.values()], axis=0).astype(int)
    whole = np.zeros((layers, *shape), np.float32)
    for i, part in parts.items():
        whole[(i, *map(slice, np.shape(part)))] = part
    return whole


def _plan(there: Loaded) -> list[mapping.Planned]:
    """The leaves of the model under the names of `transformers`."""
    config, name = there.model.config, type(there.model).__module__.rpartition(".")[2]
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)} | {"name": name}
    if not huggingface.has_names(name):
        raise UserError(f"{there.folder} is of a model that transformers does not have: an adapter of it is a workdir")
    return mapping.plan(huggingface.names_of(fields), there.model.protocol().head, mapping.shapes(there.model))


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


def _held(there: Loaded) -> tuple:
    """The same of a model that no run of ours quantised; blocks of a GGUF file are the numbers of the file itself."""
    leaves = parameters.flat(there.variables["params"]).values()
    found = {(x.kind, x.block, x.nested_absmax is not None) for x in leaves if isinstance(x, QuantizedKernel)}
    return found.pop() if found else ("",)


def _form(x) -> tuple:
    return x.shape, x.dtype
