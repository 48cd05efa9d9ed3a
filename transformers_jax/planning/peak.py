"""The speed of a large matrix product on this device: what a step's speed is a share of."""

import time

import jax
import jax.numpy as jnp


def matmul_peak(dtype: str = "float32", *, seconds: float = 0.3, device=None) -> float:
    """Operations per second of square matrix products on one device, measured now: the best of several.

    Args:
      dtype: what the products are computed in.
      seconds: how long to measure, after one product to warm up.
      device: which one; the first by default.
    """
    device = device or jax.local_devices()[0]
    size = 1024 if device.platform == "cpu" else 8192
    a = jax.device_put(jnp.full((size, size), 0.5, dtype), device)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
