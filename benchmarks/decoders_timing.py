"""What all sides of `benchmarks.decoders` share; imports nothing of any of them."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

ROWS, LENGTH = 2, 512  # of a training step of GPT-2
BATCHES, PROMPT, OUTPUT = (1, 8), 128, 64  # rows that are decoded together, tokens of a prompt, tokens behind the first
VOCABULARY = 49_152  # of SmolLM2


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Of one call: the median, the first third left out."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        took.append(time.perf_counter() - began)
    return statistics.median(took[repeats // 3 :])


def prompts(rows: int) -> list[list[int]]:
    """Prompts of ordinary tokens, the same for all sides."""
    return np.random.default_rng(0).integers(100, VOCABULARY, (rows, PROMPT)).tolist()


def decoding(write: Callable[[list[list[int]], int], object], repeats: int) -> dict[str, float]:
    """Tokens a second by batch size: `prefill`, tokens of the prompts until there is a first new one, and `decode`, of those
    behind it: what an output of 1 + OUTPUT tokens takes longer than one of a single token.

    Args:
      write: continues prompts by so many tokens each.
    """
    found = {}
    for rows in BATCHES:
        asked = prompts(rows)
        write(asked, 1), write(asked, 1 + OUTPUT)
        first, whole = (seconds(lambda n=n, asked=asked: write(asked, n), repeats) for n in (1, 1 + OUTPUT))
        found |= {f"prefill_{rows}": rows * PROMPT / first, f"decode_{rows}": rows * OUTPUT / (whole - first)}
    return found


def product_peak(product: Callable[[], object], size: int, lasting: float = 1.0) -> float:
    """Operations a second of a product of two matrices of so many rows and columns: the best of several."""
    product()
    best, until = float("inf"), time.perf_counter() + lasting
    while time.perf_counter() < until:
        began = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def bandwidth(threads: int, lasting: float = 1.0) -> float:
    """Bytes a second that so many threads read of memory, 256 MB each: the best of several."""
    arrays = [np.ones(2**26, np.float32) for _ in range(threads)]
    best, until = float("inf"), time.perf_counter() + lasting
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() < until:
            began = time.perf_counter()
            list(pool.map(lambda x: np.dot(x, x), arrays))
            best = min(best, time.perf_counter() - began)
    return sum(x.nbytes for x in arrays) / best
