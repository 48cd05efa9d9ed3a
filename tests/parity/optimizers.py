"""Five updates of each optimizer on a quadratic, and the schedules: against torch.optim.

The function is ½ |M w - t|², summed over a kernel w [3, 4] and a bias [4], each with its matrix M and its target t; only
the kernel decays.

Adafactor agrees with torch.optim.Adafactor as long as the rate stays below 1 / √updates, where PyTorch caps it, and
where matrices as small as this one are factored, as PyTorch always does (`min_factored`). AdamW is less close than the
others: Optax takes 1 - 0.999^n in float32, which leaves four digits of it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from parity.case import Case, normal

from transformers_jax.training.optimizers import make_optimizer, make_schedule

UPDATES, RATE, CLIP = 5, 0.3, 0.5
NAMES = ("kernel", "bias")
NOAM = dict(schedule="noam", d_model=64, warmup_steps=3)
CONSTANT = dict(schedule="constant", learning_rate=RATE)


def noam(update: int) -> float:
    """Vaswani et al. 2017, equation 3; `update` counts from 1."""
    return NOAM["d_model"] ** -0.5 * min(update**-0.5, update * NOAM["warmup_steps"] ** -1.5)


def draw(rng) -> dict:
    inputs = {}
    for name, shape in (("kernel", (3, 4)), ("bias", (4,))):
        inputs |= {name: normal(rng, *shape), f"{name}_target": normal(rng, *shape)}
        inputs[f"{name}_matrix"] = normal(rng, shape[0], shape[0])
    return inputs


def ours(config: dict, inputs: dict) -> dict:
    tx, _ = make_optimizer(config, UPDATES)

    def loss(params):
        return sum(0.5 * jnp.sum((inputs[f"{n}_matrix"] @ params[n] - inputs[f"{n}_target"]) ** 2) for n in NAMES)

    def update(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = {name: jnp.asarray(inputs[name]) for name in NAMES}
    return jax.lax.scan(update, (params, tx.init(params)), None, UPDATES)[1]  # each leaf [UPDATES, …]


def theirs(make, clip: float, schedule, torch, inputs: dict) -> dict:
    """make(torch.optim, the kernel's and the bias's options for weight decay) → optimizer."""
    i = {name: torch.tensor(value) for name, value in inputs.items()}
    params = {name: i[name].requires_grad_() for name in NAMES}
    optimizer = make(torch.optim, [{"params": [params["kernel"]]}, {"params": [params["bias"]], "weight_decay": 0.0}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) if schedule else None
    seen = {name: [] for name in NAMES}
    for _ in range(UPDATES):
        optimizer.zero_grad()
        sum(0.5 * ((i[f"{n}_matrix"] @ params[n] - i[f"{n}_target"]) ** 2).sum() for n in NAMES).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
        if scheduler:
            scheduler.step()
        for name in NAMES:
            seen[name].append(params[name].detach().numpy().copy())
    return {name: np.stack(values) for name, values in seen.items()}


def case(name: str, config: dict, make, *, clip: float = 0.0, schedule=None, tolerance: float = 1e-5) -> Case:
    config = config | dict(clip_norm=clip)
    our = jax.jit(functools.partial(ours, config))
    return Case(f"optimizer_{name}", draw, our, functools.partial(theirs, make, clip, schedule), tolerance)


def adam(optim, groups, rate: float = RATE):
    return optim.Adam(groups, lr=rate, betas=(0.9, 0.98), eps=1e-9)


def adamw(optim, groups):
    return optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)


def sgd(optim, groups):
    return optim.SGD(groups, lr=RATE, momentum=0.9, weight_decay=0.1)


def adafactor(optim, groups):
    return optim.Adafactor(groups, lr=RATE, weight_decay=0.1)


# Schedules ----------------------------------------------------------------------------------------------------------

TOTAL, WARMUP, PEAK, END = 12, 4, 0.3, 0.1


def draw_rates(rng) -> dict:
    return {"counts": np.arange(TOTAL, dtype=np.int32)}


def our_rates(config: dict, inputs: dict) -> dict:
    return {"rates": jax.vmap(make_schedule(config, TOTAL))(inputs["counts"])}


def their_rates(make, torch, inputs: dict) -> dict:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0 if make is noam_schedule else PEAK)
    schedule, rates = make(torch.optim.lr_scheduler, optimizer), []
    for _ in inputs["counts"]:
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return {"rates": np.array(rates, np.float32)}


def noam_schedule(schedulers, optimizer):
    return schedulers.LambdaLR(optimizer, lambda count: noam(count + 1))


def after_warmup(fall):
    """PEAK is reached at update WARMUP; from there fall(schedulers, optimizer) would reach its end one update too late."""

    def make(schedulers, optimizer):
        rise = schedulers.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1)
        return schedulers.SequentialLR(optimizer, [rise, fall(schedulers, optimizer)], [WARMUP - 1])

    return make


@after_warmup
def cosine_schedule(schedulers, optimizer):
    return schedulers.CosineAnnealingLR(optimizer, TOTAL + 1 - WARMUP, END * PEAK)


@after_warmup
def linear_schedule(schedulers, optimizer):
    return schedulers.LinearLR(optimizer, 1.0, END, TOTAL + 1 - WARMUP)


def rates(name: str, config: dict, make) -> Case:
    our = jax.jit(functools.partial(our_rates, config | dict(schedule=name)))
    return Case(f"schedule_{name}", draw_rates, our, functools.partial(their_rates, make))


FALLING = dict(learning_rate=PEAK, warmup_steps=WARMUP, end_factor=END)
CASES = [
    case("adam", dict(name="adam") | CONSTANT, adam),
    case("adam_clipped", dict(name="adam") | CONSTANT, adam, clip=CLIP),
    case("adam_noam", dict(name="adam") | NOAM, functools.partial(adam, rate=1.0), schedule=lambda count: noam(count + 1)),
    case("adamw", dict(name="adamw", weight_decay=0.1) | CONSTANT, adamw, tolerance=5e-5),
    case("sgd_clipped", dict(name="sgd", momentum=0.9, weight_decay=0.1) | CONSTANT, sgd, clip=CLIP),
    case("adafactor", dict(name="adafactor", min_factored=2, weight_decay=0.1) | CONSTANT, adafactor),
    rates("noam", NOAM, noam_schedule),
    rates("cosine", FALLING, cosine_schedule),
    rates("linear", FALLING, linear_schedule),
]
