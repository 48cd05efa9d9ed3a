"""Image processors beside `transformers`' on Pillow, which need no torchvision: the same numbers from the same files."""

import numpy as np
import pytest
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from transformers_jax.data.images.processing import ImageProcessing

CASES = {
    "vit": (ViTImageProcessorPil, {}),
    "vit, small, bicubic": (ViTImageProcessorPil, dict(size={"height": 31, "width": 18}, resample=3)),
    "vit, shortest edge and crop": (
        ViTImageProcessorPil,
        dict(size={"shortest_edge": 29}, do_center_crop=True, crop_size={"height": 24, "width": 27}),
    ),
    "vit, crop with a rim": (
        ViTImageProcessorPil,
        dict(do_resize=False, do_center_crop=True, crop_size={"height": 44, "width": 51}),
    ),
    "vit, raw": (ViTImageProcessorPil, dict(do_resize=False, do_rescale=False, image_mean=[3.0, 4.0, 5.0])),
    "vit, not normalised": (ViTImageProcessorPil, dict(do_normalize=False, size={"height": 9, "width": 9}, resample=1)),
    "swin": (
        ViTImageProcessorPil,
        dict(resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], size={"height": 40, "width": 40}),
    ),
    "deit": (DeiTImageProcessorPil, dict(size={"height": 37, "width": 37}, crop_size={"height": 32, "width": 32})),
    "segformer": (SegformerImageProcessorPil, dict(size={"height": 64, "width": 48}, do_reduce_labels=True)),
    "convnext, middle": (ConvNextImageProcessorPil, dict(size={"shortest_edge": 28})),
    "convnext, middle, other share": (ConvNextImageProcessorPil, dict(size={"shortest_edge": 33}, crop_pct=0.95, resample=2)),
    "convnext, whole": (ConvNextImageProcessorPil, {}),
}
SIZES = [(33, 47), (47, 33), (50, 50), (1, 1), (5, 90)]


@pytest.mark.parametrize("name", CASES)
def test_same_numbers(tmp_path, name):
    kind, keys = CASES[name]
    theirs = kind(**keys)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ImageProcessing.read(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    ours.write(tmp_path / "ours")
    again = kind.from_pretrained(tmp_path / "ours")
    for number, (height, width) in enumerate(SIZES):
        image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        for judge in theirs, again:
            expected = judge(image, input_data_format="channels_last")["pixel_values"][0].transpose(1, 2, 0)
            np.testing.assert_allclose(ours(image), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduce", [False, True])
def test_same_masks(reduce):
    theirs = SegformerImageProcessorPil(size={"height": 21, "width": 38}, do_reduce_labels=reduce)
    ours = ImageProcessing.from_dict(theirs.to_dict(), "theirs")
    for number, size in enumerate(SIZES):
        mask = np.random.default_rng(number).integers(0, 256, size, np.uint8)
        image = np.zeros((*size, 3), np.uint8)
        found = theirs(image, segmentation_maps=mask.copy(), input_data_format="channels_last")
        np.testing.assert_array_equal(ours.mask(mask), found["labels"][0])
