"""Optimizers and learning rate schedules, built by Optax from `config.optimizer`.

| key | default | meaning |
|---|---|---|
| name | "adam" | adam, adamw, adafactor, sgd |
| schedule | "noam" | noam, inverse_sqrt, cosine, linear, constant |
| learning_rate | 0.0 | the peak, reached at update `warmup_steps`; every schedule but noam needs it |
| factor, d_model | 1.0, 0 | noam's height: factor × d_model^-0.5; noam needs d_model |
| warmup_steps | 0 | updates over which the rate rises linearly |
| warmup_share | 0.0 | the same as a share of all updates, where warmup_steps is 0 |
| end_factor | 0.0 | cosine, linear: the share of the peak they end at, one update after the last |
| clip_norm | 0.0 | gradients are scaled down to this global norm; 0 is off |
| weight_decay | 0.0 | adamw, adafactor: an update takes rate × weight_decay × weight away; sgd: L2, into the gradient |
| decay_pattern | "(^|/)kernel$" | names of what decays (see `parameters`); by default no norm, bias or embedding |
| layer_decay | 1.0 | a layer's updates over those of the layer above it (see `layer_decay`); 1 is off |
| b1, b2, eps | by name | adam 0.9, 0.98, 1e-9 (Vaswani et al. 2017, section 5.3); adamw 0.9, 0.999, 1e-8 |
| momentum | 0.0 | sgd |
| decay_rate, min_factored | 0.8, 128 | adafactor: power of the second moment's decay; smallest axis that is factored |

A schedule counts as Optax and the state do: `schedule(state.step)` is the rate of the update that is about to be made,
so `schedule(0)` is the rate of update 1 of the papers. The first update has a rate above 0, and so has the last.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from absl import logging

from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.training.layer_decay import by_layer

Schedule = Callable[[Any], Any]

DEFAULTS: dict[str, Any] = {
    "name": "adam",
    "schedule": "noam",
    "learning_rate": 0.0,
    "factor": 1.0,
    "d_model": 0,
    "warmup_steps": 0,
    "warmup_share": 0.0,
    "end_factor": 0.0,
    "clip_norm": 0.0,
    "weight_decay": 0.0,
    "decay_pattern": "",
    "layer_decay": 1.0,
    "b1": None,
    "b2": None,
    "eps": None,
    "momentum": 0.0,
    "decay_rate": 0.8,
    "min_factored": 128,
}
KERNELS = r"(^|/)kernel$"


def make_optimizer(
    config: Mapping, total_steps: int, among: Iterable[str] | None = None
) -> tuple[optax.GradientTransformation, Schedule]:
    """The update rule and its schedule from `config.optimizer` (keys above; a missing key takes its default).

    Args:
      config: a mapping, such as a ConfigDict.
      total_steps: updates of the whole run; cosine and linear end there.
      among: names of the parameters that decay_pattern must match one of; by default those that are updated.

    Returns:
      The Optax transformation (clipping, the rule, weight decay, the rate, its decay by layers), and the schedule: updates so
      far → rate.

    Raises:
      UserError: an unknown key, optimizer or schedule (the known ones are listed), or a value out of range.
    """
    options = dict(config)
    if unknown := sorted(set(options) - set(DEFAULTS)):
        raise UserError(f"config.optimizer.{unknown[0]} is not a key; there are {', '.join(DEFAULTS)}")
    options = DEFAULTS | options | {"among": among}
    rule = _choose(OPTIMIZERS, "name", options)
    schedule = make_schedule(options, total_steps)
    clip = [optax.clip_by_global_norm(options["clip_norm"])] if options["clip_norm"] else []
    if not 0 < options["layer_decay"] <= 1:
        raise UserError(f"config.optimizer.layer_decay is {options['layer_decay']}; it must be above 0, and 1 or less")
    decay = [by_layer(options["layer_decay"])] if options["layer_decay"] != 1 else []
    return optax.chain(*clip, rule(schedule, options), *decay), schedule


def make_schedule(options: Mapping, total_steps: int) -> Schedule:
    """The schedule alone: updates made so far → rate of the next. Arguments and errors as in `make_optimizer`."""
    options = DEFAULTS | dict(options)
    curve = _choose(SCHEDULES, "schedule", options)
    if not 0 <= options["warmup_share"] < 1:
        raise UserError(f"config.optimizer.warmup_share is {options['warmup_share']}; it must be 0 or more, and below 1")
    options["warmup_steps"] = options["warmup_steps"] or round(options["warmup_share"] * total_steps)
    name, warmup = options["schedule"], options["warmup_steps"]
    if warmup < 0:
        raise UserError(f"config.optimizer.warmup_steps is {warmup}; it must be 0 or more")
    if name == "noam":
        if options["d_model"] <= 0:
            raise UserError("config.optimizer.d_model: schedule noam scales by d_model**-0.5; give the model's width")
        if options["learning_rate"]:
            logging.warning("config.optimizer.learning_rate: schedule noam ignores it; set config.optimizer.factor")
    elif options["learning_rate"] <= 0:
        peak = options["learning_rate"]
        raise UserError(f"config.optimizer.learning_rate is {peak}; schedule {name} needs a peak above 0")
    if name in ("cosine", "linear") and warmup >= total_steps:
        raise UserError(
            f"config.optimizer.warmup_steps is {warmup}, not below config.training.steps {total_steps}: "
            f"schedule {name} would never fall"
        )
    by_update = curve(options, total_steps)
    return lambda count: by_update(count + 1)


def _noam(options: Mapping, _: int) -> Schedule:
    """Vaswani et al. 2017, equation 3."""
    height, warmup = options["factor"] * options["d_model"] ** -0.5, max(options["warmup_steps"], 1)
    return lambda n: height * jnp.minimum(_real(n) ** -0.5, _real(n) * warmup**-1.5)


def _inverse_sqrt(options: Mapping, _: int) -> Schedule:
    """Noam's shape with its peak given outright, at update `warmup_steps`."""
    peak, warmup = options["learning_rate"], max(options["warmup_steps"], 1)
    return lambda n: peak * jnp.minimum(_real(n) / warmup, (warmup / _real(n)) ** 0.5)


def _cosine(options: Mapping, total: int) -> Schedule:
    """Half a cosine from the peak to `end_factor` of it (Loshchilov and Hutter 2017, equation 5, without restarts)."""
    fall = total + 1 - options["warmup_steps"]
    return _after_warmup(options, optax.cosine_decay_schedule(options["learning_rate"], fall, options["end_factor"]))


def _linear(options: Mapping, total: int) -> Schedule:
    """A straight line from the peak to `end_factor` of it."""
    peak, fall = options["learning_rate"], total + 1 - options["warmup_steps"]
    return _after_warmup(options, optax.linear_schedule(peak, peak * options["end_factor"], fall))


def _constant(options: Mapping, _: int) -> Schedule:
    """The peak throughout."""
    return _after_warmup(options, optax.constant_schedule(options["learning_rate"]))


def _after_warmup(options: Mapping, curve: Schedule) -> Schedule:
    warmup = options["warmup_steps"]
    if not warmup:
        return curve
    return optax.join_schedules([optax.linear_schedule(0.0, options["learning_rate"], warmup), curve], [warmup])


def _adam(schedule: Schedule, options: Mapping) -> optax.GradientTransformation:
    """Kingma and Ba 2015, with the constants of Vaswani et al. 2017, section 5.3."""
    if options["weight_decay"]:
        raise UserError('config.optimizer.weight_decay: adam does not decay weights; set config.optimizer.name="adamw"')
    return optax.adam(schedule, **_given(options, b1=0.9, b2=0.98, eps=1e-9))


def _adamw(schedule: Schedule, options: Mapping) -> optax.GradientTransformation:
    """Loshchilov and Hutter 2019, algorithm 2."""
    betas = _given(options, b1=0.9, b2=0.999, eps=1e-8)
    return optax.adamw(schedule, **betas, weight_decay=options["weight_decay"], mask=_decays(options))


def _adafactor(schedule: Schedule, options: Mapping) -> optax.GradientTransformation:
    """Shazeer and Stern 2018, algorithms 4 and 5: no momentum, factored, updates clipped at RMS 1, rates relative to
    the parameter's size. A leaf of scanned layers counts as one parameter: its layers share those two RMS."""
    decay = options["weight_decay"]
    return optax.adafactor(
        schedule,
        min_dim_size_to_factor=options["min_factored"],
        decay_rate=options["decay_rate"],
        multiply_by_parameter_scale=True,
        clipping_threshold=1.0,
        momentum=None,
        factored=True,
        weight_decay_rate=(lambda count: decay * schedule(count)) if decay else None,
        weight_decay_mask=_decays(options),
    )


def _sgd(schedule: Schedule, options: Mapping) -> optax.GradientTransformation:
    """Plain gradient descent, with momentum if there is any."""
    decay = [optax.add_decayed_weights(options["weight_decay"], _decays(options))] if options["weight_decay"] else []
    return optax.chain(*decay, optax.sgd(schedule, momentum=options["momentum"] or None))


OPTIMIZERS = {"adam": _adam, "adamw": _adamw, "adafactor": _adafactor, "sgd": _sgd}
SCHEDULES = {"noam": _noam, "inverse_sqrt": _inverse_sqrt, "cosine": _cosine, "linear": _linear, "constant": _constant}


def _decays(options: Mapping) -> Callable[[Any], Any]:
    """Which leaves decay. A pattern that the config gives must match something; the default need not."""
    key = "config.optimizer.decay_pattern"
    if (pattern := options["decay_pattern"]) and options["among"] is None:
        return lambda params: parameters.mask(params, pattern, key=key)
    if pattern:
        parameters.matching(options["among"], pattern, key=key)
        return lambda params: parameters.mask(params, pattern)
    return lambda params: parameters.mask(params, KERNELS)


def _given(options: Mapping, **defaults: float) -> dict[str, float]:
    return {name: default if options[name] is None else options[name] for name, default in defaults.items()}


def _real(count: Any) -> Any:
    return jnp.asarray(count, jnp.float32)


def _choose(table: Mapping, key: str, options: Mapping) -> Callable:
    if options[key] not in table:
        raise UserError(f"config.optimizer.{key} is {options[key]!r}; known: {', '.join(table)}")
    return table[options[key]]
