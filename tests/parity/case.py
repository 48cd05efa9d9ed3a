"""What a comparison with PyTorch consists of: inputs, our function of them, and PyTorch's.

Inputs and outputs are flat dicts of arrays. Names of parameters are those of `transformers_jax.parameters` after the
prefix "params/". `differentiate` and its twin for PyTorch add the gradients of all inputs that are real numbers, under
"gradient/" + the input's name; "cotangent" is what the outputs are multiplied with to make the scalar that is derived.

A module of cases never imports torch: it gets the module as an argument, so that our side of it runs without.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from transformers_jax import parameters

Arrays = dict[str, Any]
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
FIXED = "cotangent"


@dataclass(frozen=True)
class Case:
    """One comparison.

    name: of the test and of its golden file.
    draw: random generator → inputs, float32 or int32.
    ours: inputs → outputs, by this project.
    theirs: (the module torch, inputs) → the same outputs, by PyTorch.
    tolerance: absolute and relative, of each element.
    idle: inputs that no output depends on, and why: the mathematics has it so.
    needs: a package that `theirs` uses besides torch.
    """

    name: str
    draw: Callable[[np.random.Generator], Arrays]
    ours: Callable[[Arrays], Arrays]
    theirs: Callable[[Any, Arrays], Arrays]
    tolerance: float = 1e-5
    idle: tuple[str, ...] = ()
    needs: str = ""

    @property
    def path(self) -> Path:
        """The golden file: inputs under "in/", PyTorch's outputs under "out/"."""
        return GOLDEN / f"{self.name}.npz"

    def save(self, inputs: Arrays, outputs: Arrays) -> None:
        """Writes the golden file."""
        arrays = {f"in/{k}": v for k, v in inputs.items()} | {f"out/{k}": v for k, v in outputs.items()}
        np.savez_compressed(self.path, **arrays)

    def load(self) -> tuple[Arrays, Arrays]:
        """(inputs, outputs) of the golden file."""
        with np.load(self.path, allow_pickle=False) as arrays:
            kinds = {kind: {k[len(kind) :]: arrays[k] for k in arrays if k.startswith(kind)} for kind in ("in/", "out/")}
        return kinds["in/"], kinds["out/"]


def compare(got: Arrays, wanted: Arrays, tolerance: float) -> None:
    """Fails unless both have the same names, shapes and, within the tolerance, numbers."""
    assert wanted and sorted(got) == sorted(wanted)
    for name, array in wanted.items():
        assert got[name].shape == array.shape, f"{name}: {got[name].shape} and {array.shape}"
        np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


def is_real(name: str, array: np.ndarray) -> bool:
    """Whether an input gets a gradient."""
    return array.dtype.kind == "f" and not name.startswith(FIXED)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal numbers, float32."""
    return rng.standard_normal(shape).astype(np.float32)


def draw_parameters(rng: np.random.Generator, module: nn.Module, *arguments, **options) -> Arrays:
    """Random parameters of a module, each kind away from its initial zeros and ones, by name under "params/"."""
    shapes = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments, **options)))["params"]
    scales = {"scale": (1.0, 0.3), "bias": (0.0, 0.3)}
    drawn = {}
    for name, leaf in parameters.flat(shapes).items():
        middle, spread = scales.get(name.rsplit("/", 1)[-1], (0.0, 0.4))
        drawn[f"params/{name}"] = (middle + spread * normal(rng, *leaf.shape)).astype(np.float32)
    return drawn


def variables(inputs: Arrays, prefix: str = "params/") -> dict:
    """The Flax variables that inputs hold under a prefix."""
    return {"params": parameters.nest({k[len(prefix) :]: v for k, v in inputs.items() if k.startswith(prefix)})}


def differentiate(function: Callable[[Arrays], tuple[Any, Arrays]], inputs: Arrays) -> Arrays:
    """Outputs and gradients of function: inputs → (scalar, outputs)."""
    real = {k: v for k, v in inputs.items() if is_real(k, v)}
    gradients, outputs = jax.grad(lambda real: function({**inputs, **real}), has_aux=True)(real)
    return outputs | {f"gradient/{k}": v for k, v in gradients.items()}


def differentiate_torch(torch, function: Callable[[Arrays], tuple[Any, Arrays]], inputs: Arrays) -> Arrays:
    """As `differentiate`, by PyTorch; the function gets tensors, integers among them as int64."""
    tensors = {k: torch.tensor(v if v.dtype.kind == "f" else v.astype(np.int64)) for k, v in inputs.items()}
    real = {k: tensors[k].requires_grad_() for k, v in inputs.items() if is_real(k, v)}
    scalar, outputs = function(tensors)
    gradients = torch.autograd.grad(scalar, list(real.values()))
    outputs = outputs | {f"gradient/{k}": v for k, v in zip(real, gradients, strict=True)}
    return {k: v.detach().numpy() for k, v in outputs.items()}
