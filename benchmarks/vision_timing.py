"""What both sides of `benchmarks.vision` share; imports nothing of either."""

import statistics
import time

SIZE, ROWS = 224, 8
"""Height and width of the images, and those of a training step."""
INFERENCES = (1, 8)
"""Images of a batch."""
MODELS = ("vit", "swin", "convnext", "segformer")
TRAINED = MODELS[:3]


def timed(functions: dict, steps: int) -> dict[str, float]:
    """Seconds of one call of each: the median, the first third left out."""
    return {name: seconds(function, steps) for name, function in functions.items()}


def seconds(function, repeats: int) -> float:
    """Of one call: the median, the first third left out."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        took.append(time.perf_counter() - began)
    return statistics.median(took[repeats // 3 :])
