"""Floating point operations of any function, counted in its jaxpr: what will run, whatever the model.

Matrix products, convolutions and fused attention are counted, a multiply-add as two operations. Element-wise work is
not: it is bound by memory and small beside them. Recomputation under rematerialisation runs, so it counts.
"""

import math
from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(function: Callable, *args, **kwargs) -> int:
    """Operations of one call.

    Args:
      function: traceable by JAX; arguments may be `jax.ShapeDtypeStruct`s.

    Returns:
      Operations over all devices. A `while` counts one pass, since nobody knows how many there will be; of a `cond` the
      dearest branch counts.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*args, **kwargs))


def of_jaxpr(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """Operations of one evaluation of a jaxpr, with everything it calls."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def primitives(jaxpr: Jaxpr | ClosedJaxpr) -> set[str]:
    """Names of all primitives in a jaxpr and in what it calls."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    names = {equation.primitive.name for equation in jaxpr.eqns}
    return names.union(*(primitives(inner) for equation in jaxpr.eqns for inner in _jaxprs(equation.params)))


def _of_equation(equation) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name.startswith("dot_product_attention_"):
        return _attention(equation)
    inner = [of_jaxpr(jaxpr) for jaxpr in _jaxprs(equation.params)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * _repetitions(equation)


def _jaxprs(params: dict) -> list:
    """The jaxprs among an equation's parameters, one by one."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                found.append(item)
    return found


def _repetitions(equation) -> int:
    """How often an equation runs what it contains: a scan's length, a kernel's grid, the devices of a shard_map."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _dot(equation) -> int:
    """Batch × rows × columns × contracted, twice."""
    left, right = (v.aval.shape for v in equation.invars[:2])
    (_, contracted), (_, batch) = equation.params["dimension_numbers"]
    columns = [n for i, n in enumerate(right) if i not in contracted and i not in batch]
    return 2 * math.prod(left) * math.prod(columns)


def _convolution(equation) -> int:
    """Each output element reads one kernel of every input channel of its group."""
    kernel = equation.invars[1].aval.shape
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_channels


def _attention(equation) -> int:
    """cuDNN's fused attention over q [B, T, N, H] and k [B, S, N, H]: two products forward, five backward."""
    (b, t, n, h), (_, s, _, _) = (v.aval.shape for v in equation.invars[:2])
    return (5 if "bwd" in equation.primitive.name else 2) * 2 * b * t * n * h * s
