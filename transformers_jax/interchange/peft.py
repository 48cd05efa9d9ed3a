"""LoRA adapters as PEFT writes and reads them: adapter_config.json and adapter_model.safetensors, both ways.

PEFT names the modules of `transformers`; which of our kernels each is, the `NAMES` of the model files say. Where theirs is
several of ours in one, as GPT-2's query, key and value, so is the adapter. Version 5 gave modules other names: these are
written, and both are read.

Axes: A inputs, C outputs, r rank.
"""

import collections
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.finetuning.lora import LEAF
from transformers_jax.interchange import mapping
from transformers_jax.interchange.weights import Weights, refuse_pickle, save

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LINEAR = ("", "transpose", "to_heads", "from_heads", "flat_heads", "heads_flat")
"""Verbs of the kernels that are matrices there."""
AS_OURS = ("", "flat_heads", "heads_flat")
"""Those of kernels that lie as ours do, inputs first: `fan_in_fan_out`."""
TASKS = {
    "sequence": "SEQ_CLS", "tagging": "TOKEN_CLS", "span": "QUESTION_ANS", "causal_lm": "CAUSAL_LM",
    "none": "FEATURE_EXTRACTION",
}  # fmt: skip
"""PEFT's task_type by head."""
SUPPORTED = "LORA is, with use_rslora, use_dora, rank_pattern, alpha_pattern and modules_to_save"
NEUTRAL = {
    "bias": "none", "lora_bias": False, "layer_replication": None, "megatron_config": None, "trainable_token_indices": None,
    "alora_invocation_tokens": None, "use_qalora": False, "velora_config": None, "monteclora_config": None,
    "target_parameters": None, "use_bdlora": None, "arrow_config": None, "kasa_config": None,
}  # fmt: skip
"""Keys that change the numbers, and the value of each that is computed here."""


class PeftAdapter(NamedTuple):
    """What a folder of PEFT holds.

    leaves: by our names, layers apart: lora_a [A, r], lora_b [r, C], lora_scale [] and perhaps lora_magnitude [C] beside a
      kernel; and parameters that were trained whole.
    options: of config.finetuning.
    """

    leaves: dict[str, np.ndarray]
    options: dict[str, Any]


def is_adapter(folder: Path) -> bool:
    """Whether a folder is one of PEFT."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> dict:
    """adapter_config.json of a folder.

    Raises:
      UserError: it cannot be read, or is of an adapter that is not computed here; says which are.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as a JSON object: {error}") from error
    if kind != "LORA":
        raise UserError(f"{file}: peft_type {kind!r} is not supported; {SUPPORTED}")
    for key, value in NEUTRAL.items():
        if config.get(key) not in (None, value, {}):
            raise UserError(f"{file}: {key}={config[key]!r} is not supported; {SUPPORTED}")
    return config


# Reading


def read(folder: Path, plan: Sequence[mapping.Planned]) -> PeftAdapter:
    """The adapter of a folder for the model whose leaves these are, see `mapping.plan`.

    Raises:
      UserError: as `read_config`; or weights that are missing, truncated or of other shapes; names that the model lacks.
    """
    config, file = read_config(folder), folder / WEIGHTS
    arrays = _arrays(folder)
    parts, whole = collections.defaultdict(dict), {}
    for key, array in arrays.items():
        name = key.removeprefix(PREFIX)
        match = re.fullmatch(r"(.*)\.lora_(A|B|magnitude_vector)(\.weight)?", name)
        if match:
            parts[match[1]][match[2]] = array
        elif "lora_" in name:
            raise UserError(f"{file}: {key} is no part of a linear map: not supported; {SUPPORTED}")
        else:
            whole[name] = array
    by_name, found, ranks = _by_name(plan), {}, {}
    for module, own in parts.items():
        planned = by_name.get(f"{module}.weight")
        if planned is None or planned.row.verb not in LINEAR:
            raise UserError(f"{file}: {module} is no linear map of this model")
        found |= _read_parts(f"{file}: {module}", planned, own, *_rank_and_scale(module, config), bool(config.get("use_dora")))
        ranks |= {name: _rank_and_alpha(module, config) for name in planned.ours}
    for name, array in whole.items():
        if (planned := by_name.get(name)) is None:
            raise UserError(f"{file}: {name} is no parameter of this model")
        leaves = mapping.leaves(planned, f"{file}: {name}", array.shape, _part_of(array))
        found |= {own: np.asarray(leaf) for own, leaf in leaves.items()}
    if not ranks:
        raise UserError(f"{file} holds no part of low rank")
    return PeftAdapter(found, _options(config, ranks, sorted(name for name in found if not LEAF.search(name))))


def head_of(folder: Path, heads: Sequence[str], own: str) -> str:
    """The head of the model that an adapter is for: by its task_type, or else the base's own."""
    task = read_config(folder).get("task_type")
    return next((head for head, name in TASKS.items() if name == task and head in heads), own)


def labels_of(folder: Path) -> int | None:
    """How many labels a classifier has that was trained whole; None without one."""
    found = [array for name, array in _arrays(folder).items() if re.search(r"classifier(\.out_proj)?\.weight$", name)]
    return len(found[0]) if found else None


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    if not (folder / WEIGHTS).is_file():
        for file in sorted(folder.glob("adapter_model.*")):
            refuse_pickle(file)
        raise UserError(f"{folder} has no {WEIGHTS}")
    weights = Weights(folder)
    return {name: weights.array(name) for name in weights.names()}


def _by_name(plan: Sequence[mapping.Planned]) -> dict[str, mapping.Planned]:
    """Leaves of the file by their names, old and new; by those without the body's prefix too, as a model without a head has
    them."""
    found = {name: planned for planned in plan for name in (planned.theirs, planned.module)}
    return {name.partition(".")[2]: planned for name, planned in found.items()} | found


def _part_of(array: np.ndarray):
    return lambda axis, start, stop: array[(*[slice(None)] * axis, slice(start, stop))] if array.ndim else array


def _read_parts(where: str, planned: mapping.Planned, own: dict, rank: int, scale: float, dora: bool) -> dict[str, np.ndarray]:
    """Our leaves of one module's A [r, A], B [C, r] and magnitudes [C]; each of several in one gets all of A."""
    wanted = ("A", "B", "magnitude_vector") if dora else ("A", "B")
    if missing := [name for name in wanted if name not in own]:
        raise UserError(f"{where}: lora_{missing[0]} is missing: the file is not whole")
    matrices = {name: _matrix(planned.row.verb, shape) for name, shape in planned.ours.items()}
    inputs, outputs = next(iter(matrices.values()))[0], sum(c for _, c in matrices.values())
    for name, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
        if own[name].shape != shape:
            there = own[name].shape
            raise UserError(f"{where}: lora_{name} has shape {there}; by {CONFIG} and the model it should have {shape}")
    found, start = {}, 0
    for name, (_, columns) in matrices.items():
        rows, prefix = slice(start, start + columns), name.removesuffix("kernel")
        found |= {f"{prefix}lora_a": own["A"].T, f"{prefix}lora_b": own["B"][rows].T, f"{prefix}lora_scale": np.float32(scale)}
        if dora:
            found[f"{prefix}lora_magnitude"] = own["magnitude_vector"].reshape(-1)[rows]
        start += columns
    return {name: np.ascontiguousarray(x) if x.ndim else x for name, x in found.items()}


def _matrix(verb: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(A, C) of one of our kernels."""
    inputs = len(shape) - 1 if verb in ("from_heads", "heads_flat") else 1
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def _rank_and_alpha(module: str, config: Mapping) -> tuple[int, float]:
    """Of a module, by the first pattern that ends its name."""

    def look(key: str, default):
        table = config.get(key) or {}
        return next((x for pattern, x in table.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)

    return int(look("rank_pattern", config.get("r", 8))), float(look("alpha_pattern", config.get("lora_alpha", 8)))


def _rank_and_scale(module: str, config: Mapping) -> tuple[int, float]:
    rank, alpha = _rank_and_alpha(module, config)
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _options(config: Mapping, ranks: Mapping[str, tuple[int, float]], whole: Sequence[str]) -> dict[str, Any]:
    """The keys of config.finetuning that make such an adapter: kernels and what else learns are named one by one."""
    (rank, alpha), _ = collections.Counter(ranks.values()).most_common(1)[0]
    return {
        "method": "lora",
        "new_head": False,
        "rank": rank,
        "alpha": alpha,
        "dropout": float(config.get("lora_dropout") or 0.0),
        "rslora": bool(config.get("use_rslora")),
        "dora": bool(config.get("use_dora")),
        "targets": tuple(_pattern(name) for name in sorted(ranks)),
        "rank_pattern": tuple((_pattern(name), r) for name, (r, _) in sorted(ranks.items()) if r != rank),
        "alpha_pattern": tuple((_pattern(name), a) for name, (_, a) in sorted(ranks.items()) if a != alpha),
        "trainable": tuple(_pattern(name) for name in whole) or ("all",),
    }


def _pattern(name: str) -> str:
    return f"^{re.escape(name)}$"


# Writing


def write(
    folder: Path,
    plan: Sequence[mapping.Planned],
    leaves: Mapping[str, np.ndarray],
    *,
    base: str,
    head: str = "",
    rslora: bool = False,
    dropout: float = 0.0,
) -> None:
    """Writes an adapter that PEFT loads on the model of `transformers`.

    Args:
      plan: of the model, see `mapping.plan`.
      leaves: what was learned by our names, layers apart, and lora_scale of each kernel.
      base: path or name of the model that it belongs to.
      head: the model's, which says the task_type; "" for none, as of models of images.
      rslora: whether PEFT is to divide by √r.

    Raises:
      UserError: something that PEFT has no place for.
    """
    arrays, ranks, used, flat = {}, {}, set(), set()
    for planned in plan:
        prefixes = [name.removesuffix("kernel") for name in planned.ours]
        if not any(f"{prefix}lora_a" in leaves for prefix in prefixes):
            continue
        module = planned.module.removesuffix(".weight")
        a, b, scale, magnitude = _fused(module, planned, prefixes, leaves)
        rank = a.shape[1]
        ranks[module] = rank, scale * (math.sqrt(rank) if rslora else rank)
        arrays |= {f"{PREFIX}{module}.lora_A.weight": a.T, f"{PREFIX}{module}.lora_B.weight": b.T}
        if magnitude is not None:
            arrays[f"{PREFIX}{module}.lora_magnitude_vector"] = magnitude
        flat.add(planned.row.verb in AS_OURS)
        used |= {name for prefix in prefixes for name in leaves if LEAF.search(name) and name.startswith(f"{prefix}lora_")}
    whole = {name: x for name, x in leaves.items() if name not in used}
    saved = _whole_modules(plan, whole)
    for planned in plan:
        if all(name in whole for name in planned.ours):
            arrays[PREFIX + planned.module] = mapping.written(planned, [whole[name] for name in planned.ours])
    (rank, alpha), _ = collections.Counter(ranks.values()).most_common(1)[0]
    config = {
        "peft_type": "LORA",
        "task_type": TASKS.get(head),
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": flat == {True},
        "use_rslora": rslora,
        "use_dora": any(name.endswith("magnitude_vector") for name in arrays),
        "target_modules": sorted(ranks),
        "rank_pattern": {re.escape(module): r for module, (r, _) in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(module): a for module, (_, a) in ranks.items() if a != alpha},
        "modules_to_save": saved or None,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in arrays.items()}
    save(contiguous, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _fused(module: str, planned: mapping.Planned, prefixes: Sequence[str], leaves: Mapping[str, np.ndarray]):
    """(A [A, r], B [r, C], scale, magnitudes [C] or None) of a module that is one kernel of ours or several side by side.

    Several that have the same A keep it; of others the factors are put together in blocks, and the ranks add up.
    """
    if planned.row.verb not in LINEAR:
        raise UserError(f"{module} is no linear map in PEFT: its part of low rank cannot be written; give --merge")
    own = [{name: leaves.get(f"{prefix}lora_{name}") for name in ("a", "b", "scale", "magnitude")} for prefix in prefixes]
    there = [part for part in own if part["a"] is not None]
    scale = float(there[0]["scale"])
    sizes = [_matrix(planned.row.verb, shape)[1] for shape in planned.ours.values()]
    magnitudes = [part["magnitude"] for part in own]
    magnitude = None if all(m is None for m in magnitudes) else magnitudes
    if magnitude is not None and any(m is None for m in magnitudes):
        names = ", ".join(planned.ours)
        raise UserError(f"{module} is one module in PEFT, and with DoRA all of it is adapted or nothing: {names}")
    shared = all(part["a"].shape == there[0]["a"].shape and np.array_equal(part["a"], there[0]["a"]) for part in there)
    ranks = [part["a"].shape[1] for part in there]
    a = there[0]["a"] if shared else np.concatenate([part["a"] for part in there], axis=1)
    rows, blocks = 0, []
    for part, size in zip(own, sizes, strict=True):
        block = np.zeros((a.shape[1], size), np.float32)
        if part["a"] is not None:
            own_rows = slice(0, ranks[0]) if shared else slice(rows, rows + part["a"].shape[1])
            block[own_rows] = np.asarray(part["b"], np.float32) * (float(part["scale"]) / scale)
            rows = own_rows.stop
        blocks.append(block)
    return a, np.concatenate(blocks, axis=1), scale, None if magnitude is None else np.concatenate(magnitude)


def _whole_modules(plan: Sequence[mapping.Planned], whole: Mapping[str, Any]) -> list[str]:
    """The modules that PEFT is to save: the largest all of whose leaves were trained whole."""
    theirs = {planned.module: all(name in whole for name in planned.ours) for planned in plan}
    left = set(whole) - {name for planned in plan if theirs[planned.module] for name in planned.ours}
    if left:
        raise UserError(f"PEFT has no place for {', '.join(sorted(left))}, which learned beside the kernels; give --merge")

    def complete(module: str) -> bool:
        return all(trained for name, trained in theirs.items() if name.startswith(module + "."))

    found = set()
    for name in (name for name, trained in theirs.items() if trained):
        parts = name.split(".")
        modules = [".".join(parts[:i]) for i in range(1, len(parts))]
        if not (able := [module for module in modules if complete(module)]):
            raise UserError(f"PEFT saves modules whole, and {name} is part of one that does not learn; give --merge")
        found.add(able[0])
    return sorted(found)
