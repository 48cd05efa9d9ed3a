"""Exact parameter counts, pinned: those that So, Liang, Le 2019 publish, with 33,288 embedding rows."""

import importlib

import jax
import numpy as np
import pytest

from transformers_jax import models


def count(fields: dict, vocab_size: int) -> int:
    model = models.build(fields, vocab_size)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), model.protocol().example()))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "width, heads, wanted",
    [(128, 4, 7_029_248), (432, 8, 45_786_816), (512, 8, 61_147_136), (768, 8, 124_750_848), (1024, 16, 210_374_656)],
)
def test_transformer(width, heads, wanted, scan):
    fields = dict(name="transformer", width=width, num_heads=heads, mlp_width=4 * width, scan_layers=scan)
    assert count(fields, 33_288) == wanted == 168 * width**2 + 124 * width + 33_288 * width


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "width, heads, wanted",
    [(128, 4, 7_242_496), (432, 8, 47_885_472), (512, 8, 64_064_512), (768, 8, 131_191_296), (1024, 16, 221_714_432)],
)
def test_evolved_transformer(width, heads, wanted, scan):
    fields = dict(name="evolved_transformer", width=width, num_heads=heads, scan_layers=scan)
    assert count(fields, 33_288) == wanted == 357 * width**2 // 2 + 446 * width + 33_288 * width


LARGE = dict(width=1024, num_heads=16, mlp_width=4096, layers=24)
ROBERTA = dict(name="bert", max_length=514, token_types=1, position_offset=2)


@pytest.mark.parametrize(
    "fields, vocab_size, wanted",
    [
        (dict(name="bert"), 30_522, 109_482_240),
        (dict(name="bert", scan_layers=True, **LARGE), 30_522, 335_141_888),
        (ROBERTA | dict(variant="roberta"), 50_265, 124_645_632),
        (ROBERTA | dict(variant="camembert"), 32_005, 110_621_952),
        (ROBERTA | dict(variant="xlm-roberta"), 250_002, 278_043_648),
        (dict(name="albert"), 30_000, 11_683_584),
        (dict(name="distilbert"), 30_522, 66_362_880),
        (dict(name="flaubert"), 68_729, 138_233_088),
    ],
    ids=lambda x: x.get("variant", x["name"]) if isinstance(x, dict) else None,
)
def test_encoders(fields, vocab_size, wanted):
    """Of the published models, with their poolers; `transformers` counts the same (tests/parity/test_huggingface_parity.py)."""
    assert count({"scan_layers": True} | fields, vocab_size) == wanted


GPT2 = dict(name="gpt", scan_layers=True)
LLAMA3 = dict(name="llama", scan_layers=True)
SMOLLM2 = LLAMA3 | dict(width=576, num_heads=9, kv_heads=3, mlp_width=1536, layers=30, tie_embeddings=True)
QWEN2 = LLAMA3 | dict(variant="qwen2", width=896, num_heads=14, kv_heads=2, mlp_width=4864, layers=24, qkv_bias=True)
QWEN3 = LLAMA3 | dict(variant="qwen3", width=1024, num_heads=16, kv_heads=8, mlp_width=3072, layers=28, qk_norm=True)


@pytest.mark.parametrize(
    "fields, vocab_size, wanted",
    [
        (GPT2, 50_257, 124_439_808),
        (GPT2 | dict(width=1024, num_heads=16, mlp_width=4096, layers=24), 50_257, 354_823_168),
        (GPT2 | dict(width=1280, num_heads=20, mlp_width=5120, layers=36), 50_257, 774_030_080),
        (GPT2 | dict(width=1600, num_heads=25, mlp_width=6400, layers=48), 50_257, 1_557_611_200),
        (GPT2 | dict(variant="openai-gpt", max_length=512), 40_478, 116_534_784),
        (LLAMA3, 128_256, 8_030_261_248),
        (LLAMA3 | dict(width=8192, num_heads=64, mlp_width=28_672, layers=80), 128_256, 70_553_706_496),
        (SMOLLM2, 49_152, 134_515_008),
        (LLAMA3 | dict(variant="mistral", window=4096), 32_000, 7_241_732_096),
        (QWEN2 | dict(tie_embeddings=True), 151_936, 494_032_768),
        (QWEN3 | dict(tie_embeddings=True, head_width=128), 151_936, 596_049_920),
    ],
    ids=["GPT-2", "medium", "large", "XL", "GPT", "Llama 3 8B", "70B", "SmolLM2", "Mistral 7B", "Qwen2 0.5B", "Qwen3 0.6B"],
)
def test_decoders(fields, vocab_size, wanted):
    """Of the published models; `transformers` counts the same (tests/parity/test_decoder_parity.py)."""
    assert count(fields, vocab_size) == wanted


IMAGES = {
    "vit": dict(
        tiny=5_717_416, small=22_050_664, base=86_567_656, large=304_326_632, huge=632_045_800, hybrid_base=98_659_112
    ),
    "convnext": dict(tiny=28_589_128, small=50_223_688, base=88_591_464, large=197_767_336, xlarge=350_196_968),
    "swin": dict(tiny=28_288_354, small=49_606_258, base=87_768_224, large=196_532_476),
    "segformer": dict(b0=3_576_392, b1=13_664_424, b2=24_709_288, b3=44_585_128, b4=61_355_688, b5=81_956_008),
}  # fmt: skip
SEGMENTATION = dict(b0=3_971_144, b1=13_934_248, b2=28_115_624, b3=47_991_464, b4=64_762_024, b5=85_362_344)
COUNTS = [(name, "classification", sizes) for name, sizes in IMAGES.items()] + [("segformer", "segmentation", SEGMENTATION)]


@pytest.mark.parametrize("name, head, counts", COUNTS)
def test_models_of_images(name, head, counts):
    """With 1,000 labels; `transformers` counts the same (tests/parity/test_vision_parity.py). It has no hybrid."""
    sizes = importlib.import_module(f"{models.__name__}.{name}").SIZES
    assert set(sizes) == set(counts)
    for size, wanted in counts.items():
        model = models.build({"name": name, "head": head, "scan_layers": True} | sizes[size], 0)
        shapes = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), model.protocol().example(B=1)))["params"]
        assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) == wanted, size
