"""What both sides of `benchmarks.bert` share; imports nothing of either."""

import statistics
import time

ROWS, LENGTH = 8, 128


def seconds(function, repeats: int) -> float:
    """Of one call: the median, the first third left out."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        took.append(time.perf_counter() - began)
    return statistics.median(took[repeats // 3 :])
