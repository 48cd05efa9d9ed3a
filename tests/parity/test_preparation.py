"""What evaluation does to an image is what `transformers` does by the preprocessor_config.json that is written for the run."""

from types import SimpleNamespace

import numpy as np
import pytest

from transformers_jax.data.images.augment import Augmentation
from transformers_jax.interchange import preparation

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["vit", "convnext"])
@pytest.mark.parametrize("keys", [dict(resize=20, crop="pad"), dict(crop="squash"), dict(crop="inception")])
def test_evaluation_is_the_same(kind, keys, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers: run `make parity`")
    image_of = pytest.importorskip("PIL.Image")
    data = dict(size=16, interpolation="bicubic") | keys
    model = SimpleNamespace(image_size=16, mean=(0.0,), std=(1.0,))
    preparation.of_run(model, SimpleNamespace(model_type=kind), data).write(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = processor(image_of.fromarray(image), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0) * 255
    ours = Augmentation.from_config(data).evaluate(image)
    np.testing.assert_allclose(theirs, ours, atol=1e-3)
    assert {key: preparation.keys(tmp_path)[key] for key in ("size", "interpolation")} == dict(size=16, interpolation="bicubic")
