"""Files that say how a model's images are prepared: what is read from them, what is refused, and sizes by hand.

tests/parity/test_image_processing.py has the numbers beside those of `transformers`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax.data.images.processing import DEFAULTS, ImageProcessing
from transformers_jax.errors import UserError

# As published beside the models' weights.
OLD_SWIN = {
    "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224,
}  # fmt: skip
OLD_SEGFORMER = OLD_SWIN | {"feature_extractor_type": "SegformerFeatureExtractor", "reduce_labels": True, "size": 512}
OLD_CONVNEXT = OLD_SWIN | {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875}


def of(**content) -> ImageProcessing:
    return ImageProcessing.from_dict({"image_processor_type": "ViTImageProcessor"} | content, "p.json")


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_old_forms():
    swin, segformer, convnext = (ImageProcessing.from_dict(c, "f") for c in (OLD_SWIN, OLD_SEGFORMER, OLD_CONVNEXT))
    assert (swin.kind, swin.size, swin.resample) == ("ViT", {"height": 224, "width": 224}, 3)
    assert swin.image_mean == (0.485, 0.456, 0.406) and swin.rescale_factor == 1 / 255
    assert segformer.do_reduce_labels and segformer.size["height"] == 512
    assert convnext.size == {"shortest_edge": 224} and convnext.crop_pct == 0.875
    assert of(size=[20, 30]).size == {"height": 20, "width": 30}
    assert of(size=20, default_to_square=False).size == {"shortest_edge": 20}
    assert of(image_mean=0.3, image_std=None).image_mean == (0.3, 0.3, 0.3)
    for name in "ViTImageProcessorFast", "ViTImageProcessorPil", "ViTImageProcessor":
        assert of(image_processor_type=name).kind == "ViT"


@pytest.mark.parametrize("kind", DEFAULTS)
def test_written_and_read(tmp_path, kind):
    first = of(image_processor_type=f"{kind}ImageProcessor")
    first.write(tmp_path)
    for path in tmp_path, tmp_path / "preprocessor_config.json":
        assert ImageProcessing.read(path) == first
    second = of(**{"image_processor_type": f"{kind}ImageProcessor", "size": 40, "image_mean": [0.1, 0.2, 0.3]})
    second.write(tmp_path)
    assert ImageProcessing.read(tmp_path) == second != first
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "P", "image_processor": content}))
    assert ImageProcessing.read(tmp_path) == second


def test_the_model_says_which_kind(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"size": 30}')
    with pytest.raises(UserError, match="_config.json has no image_processor_type; none is known for .*model_type=None"):
        ImageProcessing.read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "convnextv2"}')
    assert ImageProcessing.read(tmp_path).size == {"shortest_edge": 30}


def test_keys_that_change_nothing_are_read_over():
    more = dict(do_pad=False, pad_size=None, crop_pct=None, processor_class="X", do_thumbnail=False)
    assert of(crop_size=3, **more) == of(crop_size=3)


@pytest.mark.parametrize("key,value", [
    ("do_pad", True), ("do_flip_channel_order", True), ("crop_pct", 0.9), ("do_reduce_labels", True), ("auto_map", {"a": "b"}),
    ("size", {"longest_edge": 3}), ("size", {"max_height": 3, "max_width": 4}), ("size", 0),
    ("size", {"shortest_edge": 3, "longest_edge": 9}), ("size", {"height": 3.5, "width": 3}),
    ("size", True), ("resample", 6), ("resample", "bicubic"),
    ("do_resize", "yes"), ("image_mean", [0.5]), ("image_std", [0, 1, 1]), ("image_std", [1, 1, float("nan")]),
    ("rescale_factor", -1), ("crop_size", {"shortest_edge": 3}), ("image_processor_type", "CLIPImageProcessor"),
])  # fmt: skip
def test_what_is_not_computed_is_refused(key, value):
    more = {"do_center_crop": True} if key == "crop_size" else {}
    with pytest.raises(UserError, match=f"^p.json: .*{key}"):
        of(**{key: value}, **more)


def test_refused_by_kind():
    with pytest.raises(UserError, match="^p.json: do_center_crop needs crop_size"):
        of(do_center_crop=True)
    with pytest.raises(UserError, match="^p.json: size=.* ConvNextImageProcessor has {'shortest_edge': pixels}$"):
        of(image_processor_type="ConvNextImageProcessor", size={"height": 3, "width": 3})
    with pytest.raises(UserError, match="^p.json: do_center_crop=True is not computed here for SegformerImageProcessor"):
        of(image_processor_type="SegformerImageProcessor", do_center_crop=True)
    with pytest.raises(UserError, match="^p.json: crop_pct=0 makes no sense"):
        of(image_processor_type="ConvNextImageProcessor", crop_pct=0)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    with pytest.raises(UserError, match=f"^no file {path}, which says how images are prepared for the model$"):
        ImageProcessing.read(tmp_path)
    for content, message in ("{", f"^{path} is not JSON: "), ("[]", f"^{path} is not a JSON object$"):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            ImageProcessing.read(tmp_path)


def test_numbers_by_hand():
    image = noise(7, 9)
    plain = of(do_resize=False, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    np.testing.assert_allclose(plain(image), (image / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7], atol=1e-6)
    np.testing.assert_array_equal(of(do_resize=False, do_rescale=False, do_normalize=False)(image), image.astype(np.float32))
    assert plain(image).dtype == np.float32
    np.testing.assert_allclose(plain.normalized(jnp.asarray(image)), plain(image), atol=1e-6)
    grey = noise(7, 9, 1)
    np.testing.assert_array_equal(of()(grey), of()(np.repeat(grey, 3, 2)))


@pytest.mark.parametrize("size,kind,expected", [
    ({"height": 12, "width": 10}, "ViT", (12, 10)), ({"shortest_edge": 12}, "ViT", (12, 20)),
    (12, "ConvNext", (12, 12)), (400, "ConvNext", (400, 400)),
])  # fmt: skip
def test_sizes(size, kind, expected):
    assert of(image_processor_type=f"{kind}ImageProcessor", size=size)(noise(6, 10)).shape == (*expected, 3)


def test_masks_lie_as_images_do():
    processing = of(image_processor_type="SegformerImageProcessor", size={"height": 4, "width": 6}, do_reduce_labels=True)
    mask = np.array([[0, 1, 150], [255, 254, 2]], np.uint8)
    expected = np.array([[255, 0, 149], [255, 253, 1]]).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(processing.mask(mask), expected)
    kept = of(do_center_crop=True, size={"shortest_edge": 6}, crop_size=6)
    assert kept.mask(mask).shape == kept.pixels(noise(2, 3)).shape[:2] == (6, 6)
    np.testing.assert_array_equal(of(do_resize=False).mask(mask), mask)
    rim = of(do_resize=False, do_center_crop=True, crop_size=4).mask(mask)
    np.testing.assert_array_equal(rim[1:3, 1:4], mask)
    assert (rim == 255).sum() == 16 - 6 + 1
