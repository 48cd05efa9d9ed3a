"""The PyTorch side of `benchmarks.vision`: needs torch and transformers only, and prints one JSON object.

    python benchmarks/vision_peer.py MODEL STEPS
"""

import json
import sys
import time

import torch
import transformers as hf
from vision_timing import INFERENCES, ROWS, SIZE, TRAINED, timed

MAKE = {
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
    ),
    "swin": lambda: hf.SwinForImageClassification(hf.SwinConfig(num_labels=1000)),
    "convnext": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(num_labels=1000, drop_path_rate=0.1)),
    "segformer": lambda: hf.SegformerForImageClassification(hf.SegformerConfig(num_labels=1000)),
}


def main(name: str, steps: int) -> None:
    torch.manual_seed(0)
    model = MAKE[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    pixels, labels = torch.randn(ROWS, 3, SIZE, SIZE), torch.randint(0, 1000, (ROWS,))

    def train():
        optimizer.zero_grad(set_to_none=True)
        model(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()

    found = {"peak": peak()}
    if name in TRAINED:
        model.train()
        found |= timed({"train": train}, steps)
    model.eval()
    with torch.inference_mode():
        found |= timed({f"inference_{n}": lambda n=n: model(pixel_values=pixels[:n]) for n in INFERENCES}, steps)
    print(json.dumps(found))


def peak(seconds: float = 1.0) -> float:
    """Operations per second of a product of 1,024², as `planning.peak.matmul_peak` measures them."""
    a = torch.full((1024, 1024), 0.5)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
