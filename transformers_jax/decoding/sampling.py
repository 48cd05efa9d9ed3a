"""Choosing the next token at random: temperature, the k best, the nucleus; and what is taken from tokens that came before.

Axes: B rows, V vocabulary.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the distribution is sharpened before a token is drawn, in this order.

    temperature: logits are divided by it; below 1 likely tokens become likelier.
    top_k: only the k likeliest tokens stay (Fan et al. 2018, section 5.1); 0 keeps all.
    top_p: of these the smallest set of likeliest tokens that holds at least this much probability stays, the nucleus
      (Holtzman et al. 2020, section 3.1); 1 keeps all.
    min_p: tokens with less than this share of the likeliest token's probability go (Nguyen et al. 2025, "Turning Up the
      Heat", section 3); 0 keeps all.

    Raises:
      UserError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise UserError(f"decoding.temperature is {self.temperature}; it must be positive (or take method greedy)")
        if self.top_k < 0:
            raise UserError(f"decoding.top_k is {self.top_k}; it must be positive, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"decoding.min_p is {self.min_p}; it must be 0 … 1")


def likeliest(logits: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """The tokens that may be drawn: (logits [B, k], tokens [B, k] int32), sorted, with -inf at those that may not.

    k is `top_k`, or V where all tokens may come. Ties are broken by the smaller token, so exactly `top_k` stay.
    """
    count = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    scaled = logits.astype(jnp.float32) / sampling.temperature
    if sampling.min_p > 0:
        least = jnp.max(scaled, axis=-1, keepdims=True) + math.log(sampling.min_p)
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    if count == logits.shape[-1] and sampling.top_p == 1:  # nothing is left out: nothing needs sorting
        return scaled, jnp.broadcast_to(jnp.arange(count), scaled.shape)
    values, tokens = jax.lax.top_k(scaled, count)
    if sampling.top_p < 1:
        shares = jax.nn.softmax(values, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares  # probability of the likelier tokens
        values = jnp.where(before < sampling.top_p, values, -jnp.inf).at[:, 0].set(values[:, 0])
    return values, tokens


def sample(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws one token a row: [B] int32.

    Args:
      logits: [B, V].
      keys: [B] random keys, one a row, so that a row's draw depends on no other row.
    """
    values, tokens = likeliest(logits, sampling)
    drawn = jax.vmap(jax.random.categorical)(keys, values)
    return jnp.take_along_axis(tokens, drawn[:, None], axis=1)[:, 0].astype(jnp.int32)


def row_keys(seed: jax.Array, rows: jax.Array, step: jax.Array) -> jax.Array:
    """Keys [B] of the rows numbered `rows` [B] at a step: a function of (seed, row, step) and of nothing else."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(seed, row), step))(rows)


def output_keys(seed: jax.Array, numbers: jax.Array) -> jax.Array:
    """Keys [B] of the next draws of outputs: a function of the seed and each row's own numbers [B, n], and of nothing else."""
    return jax.vmap(lambda row: functools.reduce(jax.random.fold_in, row, seed))(numbers)


def penalised(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Logits [B, V] in which tokens that came before are less likely, if the penalty is above 1: positive ones are divided
    by it, negative ones multiplied (Keskar et al. 2019, "CTRL", section 4.1).

    Args:
      seen: [B, V] bool, the tokens that came before.
      penalty: above 0; 1 changes nothing.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
