"""Random crops, flips, colours and operations: what holds for any image, and what each strength means."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from real_data import shared_data

from transformers_jax.data.images import augment, geometry
from transformers_jax.data.images.augment import Augmentation
from transformers_jax.data.images.decode import decode
from transformers_jax.data.images.randaugment import OPERATIONS, apply, randaugment
from transformers_jax.errors import UserError

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
SEEDS = st.integers(0, 2**32 - 1)


def image_of(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def ramp(height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray:
    """[H, W, C] whose values tell the column."""
    return np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None] * (256 // width), (height, width, channels)).copy()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- crops and flips ---------------------------------------------------------------------------------------------------


@given(SIZES)
def test_two_flips_are_none(shape):
    image = image_of(shape)
    np.testing.assert_array_equal(augment.flip(augment.flip(image)), image)
    np.testing.assert_array_equal(augment.flip(image)[:, 0], image[:, -1])


def test_flip_has_its_probability():
    image, generator = ramp(1, 2), rng()
    flipped = sum(augment.random_flip(image, generator, 0.25)[0, 0, 0] > 0 for _ in range(2000))
    assert 420 < flipped < 580
    assert augment.random_flip(image, generator, 0.0) is image
    assert augment.random_flip(image, generator, 1.0)[0, 0, 0] > 0


@settings(deadline=None)
@given(SIZES, SEEDS)
def test_inception_box_lies_within(shape, seed):
    height, width, _ = shape
    top, left, h, w = augment.inception_box(height, width, rng(seed))
    assert 0 <= top and 0 <= left and 0 < h and 0 < w and top + h <= height and left + w <= width


def test_inception_box_has_its_area_and_ratio():
    boxes = np.array([augment.inception_box(400, 600, generator) for generator in [rng()] for _ in range(500)])
    areas, ratios = boxes[:, 2] * boxes[:, 3] / 240_000, boxes[:, 3] / boxes[:, 2]
    assert 0.079 < areas.min() < 0.12 and areas.max() > 0.8 and 0.3 < areas.mean() < 0.5  # large ones fit less often
    assert 0.74 < ratios.min() < 0.78 and 1.28 < ratios.max() < 1.35
    assert boxes[:, 0].min() < 10 and boxes[:, 1].max() > 300


def test_areas_are_uniform_where_all_boxes_fit():
    generator = rng()
    areas = [augment.inception_box(300, 300, generator, (0.2, 1), (1, 1))[2] ** 2 / 90_000 for _ in range(1000)]
    assert np.abs(np.quantile(areas, [0, 0.25, 0.5, 0.75, 1]) - [0.2, 0.4, 0.6, 0.8, 1]).max() < 0.04


@pytest.mark.parametrize("size,box", [((4, 1000), (0, 497, 4, 5)), ((1000, 4), (497, 0, 5, 4))])
def test_inception_box_of_a_strip_is_in_the_middle(size, box):
    assert augment.inception_box(*size, rng(), scale=(1, 1)) == box


def test_a_crop_has_the_images_pixels():
    image = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
    coded = np.stack([image // 256, image % 256, image * 0], 2).astype(np.uint8)  # each pixel is unique
    box = (3, 5, 8, 8)
    np.testing.assert_array_equal(geometry.crop_resized(coded, box, 8), coded[3:11, 5:13])
    # A smaller size by the nearest pixel has pixels of the box alone.
    found = geometry.crop_resized(coded, box, 5, "nearest").astype(int)
    assert set((found[:, :, 0] * 256 + found[:, :, 1]).flat) <= set(image[3:11, 5:13].flat)


@given(SIZES, st.integers(1, 40), st.integers(1, 40))
def test_center_crop(shape, height, width):
    image = image_of(shape) | 1  # no pixel is 0
    found = geometry.center_crop(image, height, width)
    assert found.shape == (height, width, shape[2])
    h, w = min(height, shape[0]), min(width, shape[1])
    assert (found > 0).sum() == h * w * shape[2]
    if (height - shape[0]) % 2 == (width - shape[1]) % 2 == 0:  # then there is a middle
        np.testing.assert_array_equal(geometry.center_crop(image[::-1, ::-1], height, width), found[::-1, ::-1])


def test_pad_and_crop():
    image = image_of((8, 8, 3)) | 1
    seen = set()
    for seed in range(200):
        found = augment.pad_and_crop(image, rng(seed), 8, padding=2)
        rows, columns = np.nonzero(found[:, :, 0])
        inside = found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        y, x = (-there.min() or 7 - there.max() for there in (rows, columns))  # where the crop begins in the image
        seen.add((y, x))
        h, w = inside.shape[:2]
        np.testing.assert_array_equal(inside, image[max(y, 0) : max(y, 0) + h, max(x, 0) : max(x, 0) + w])
    assert seen == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_shorter_edge():
    assert geometry.with_shorter_edge(30, 47, 20) == (20, 31)
    assert geometry.with_shorter_edge(47, 30, 20) == (31, 20)
    assert geometry.with_shorter_edge(5, 5, 7) == (7, 7)


# -- colours and operations --------------------------------------------------------------------------------------------


def test_jitter_of_no_strength_changes_nothing():
    image = image_of((5, 6, 3))
    np.testing.assert_array_equal(augment.colour_jitter(image, rng(), 0, 0, 0, 0), image)


def test_brightness_alone_scales():
    image = np.full((4, 4, 3), 100, np.uint8)
    values = [augment.colour_jitter(image, rng(seed), 0.4, 0, 0)[0, 0, 0] for seed in range(200)]
    assert 59 <= min(values) < 64 and 136 < max(values) <= 140


def test_saturation_keeps_grey_and_hue_keeps_brightest():
    grey = np.repeat(image_of((6, 6, 1)), 3, 2)
    np.testing.assert_array_equal(augment.colour_jitter(grey, rng(), 0, 0, 0.9), grey)
    image = image_of((6, 6, 3))
    turned = augment.colour_jitter(image, rng(3), 0, 0, 0, 0.5)
    assert np.abs(turned.max(2).astype(int) - image.max(2)).max() <= 1 and (turned != image).any()


def test_hue_turns_red_to_green():
    red = np.zeros((1, 1, 3), np.uint8)
    red[:, :, 0] = 255
    shares = [augment.colour_jitter(red, rng(seed), 0, 0, 0, 0.5)[0, 0].argmax() for seed in range(60)]
    assert set(shares) == {0, 1, 2}


def test_erasing():
    image = np.zeros((50, 50, 3), np.uint8)
    shares = []
    for seed in range(300):
        found = augment.random_erasing(image, rng(seed), 1.0)
        rows, columns = np.nonzero(found.any(2))
        box = found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        shares.append(box.shape[0] * box.shape[1] / 2500)
        assert 0.25 < box.shape[1] / box.shape[0] < 4 and box.any(2).mean() > 0.99
    assert 0.015 < min(shares) < 0.05 and 0.35 < max(shares) < 0.42
    assert not image.any()
    assert augment.random_erasing(image, rng(), 0.0) is image


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 13, 1), (16, 9, 3)])
def test_operation_keeps_shape_and_kind(name, shape):
    image = image_of(shape)
    before = image.copy()
    for magnitude in 0, 9, 10, 30:
        for direction in 1, -1:
            found = apply(name, image, magnitude, direction)
            assert found.shape == shape and found.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"auto_contrast", "equalize"}))
def test_magnitude_0_changes_nothing_and_more_change_more(name):
    image = geometry.resize(image_of((4, 4, 3)), 32, 32, "bicubic")
    changes = [np.abs(apply(name, image, magnitude).astype(int) - image).mean() for magnitude in (0, 3, 6, 10)]
    assert changes[0] == 0
    assert name == "identity" or changes[3] > changes[1] > 0


def test_strengths_at_magnitude_10():
    """AutoAugment's table 6: the end of each range."""
    image = ramp(32, 64)  # values go up by 4
    np.testing.assert_array_equal(apply("posterize", image, 10), image & 0xF0)
    np.testing.assert_array_equal(apply("solarize", image, 10), 255 - image)
    assert np.abs(apply("brightness", np.full((2, 2, 3), 100, np.uint8), 10).astype(int) - 190).max() <= 1
    assert np.abs(apply("brightness", np.full((2, 2, 3), 100, np.uint8), 10, -1).astype(int) - 10).max() <= 1
    moved = apply("translate_x", image, 10)  # by 28.8 pixels
    assert (moved[:, 36:] == 128).all() and np.abs(moved[0, :30, 0].astype(int) - image[0, 29:59, 0]).max() <= 4
    sheared = apply("shear_x", image, 10)[:, 20, 0].astype(int)  # 0.3 × 4 = 1.2 for each row
    assert np.abs(np.diff(sheared) - 1.2).max() < 1
    square = ramp(64, 64)
    turned = apply("rotate", square, 10)
    rows, columns = np.mgrid[20:44, 20:44] - 31.5
    for sign in 1, -1:
        expected = 4 * (31.5 + np.cos(np.pi / 6) * columns + sign * np.sin(np.pi / 6) * rows)
        if np.abs(turned[20:44, 20:44, 0] - expected).max() < 4:
            break
    else:
        pytest.fail("not turned by 30 degrees")


def test_contrasts():
    image = np.full((4, 4, 3), 100, np.uint8)
    image[:2] = 150
    assert set(apply("auto_contrast", image, 0).flat) == {0, 255}
    equal = apply("equalize", geometry.resize(ramp(16, 64) // 4, 32, 64), 0)
    assert equal.min() == 0 and equal.max() > 250


def test_randaugment_takes_every_operation():
    image = geometry.resize(image_of((4, 4, 3)), 16, 16, "bicubic")
    single = {name: {apply(name, image, 9, d).tobytes() for d in (1, -1)} for name in OPERATIONS}
    found = {randaugment(image, rng(seed), 1, 9).tobytes() for seed in range(300)}
    assert found == set.union(*single.values())
    assert randaugment(image, rng(), 0, 9) is image


# -- the whole ---------------------------------------------------------------------------------------------------------

EVERYTHING = dict(size=12, resize=14, colour=(0.4, 0.4, 0.4, 0.1), randaugment_ops=2, erasing=0.5)


@settings(max_examples=40, deadline=None)
@given(SIZES, SEEDS, st.sampled_from(augment.CROPS), st.sampled_from(sorted(geometry.INTERPOLATIONS)))
def test_any_image_gets_its_size_and_the_same_from_the_same_seed(shape, seed, crop, interpolation):
    recipe = Augmentation(crop=crop, interpolation=interpolation, **EVERYTHING)
    image = image_of(shape)
    before = image.copy()
    first, second = recipe.train(image, rng(seed)), recipe.train(image, rng(seed))
    np.testing.assert_array_equal(first, second)
    for found in first, recipe.evaluate(image):
        assert found.shape == (12, 12, shape[2]) and found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(image, before)


def test_other_seeds_give_other_images():
    image = geometry.resize(image_of((4, 4, 3)), 32, 32, "bicubic")
    recipe = Augmentation(**EVERYTHING)
    assert len({recipe.train(image, rng(seed)).tobytes() for seed in range(20)}) == 20


def test_evaluation_cuts_the_middle():
    image = ramp(40, 60)
    np.testing.assert_array_equal(Augmentation(size=20, resize=40).evaluate(image), image[10:30, 20:40])
    np.testing.assert_array_equal(Augmentation(size=40).evaluate(image), image[:, 10:50])
    squashed = Augmentation(size=20, crop="squash").evaluate(image)
    assert squashed[0, 0, 0] < 10 and squashed[0, -1, 0] > 225


def test_defaults_and_what_the_file_says_of_them():
    defaults = {f.name: f.default for f in dataclasses.fields(Augmentation)}
    assert Augmentation.from_config(ConfigDict({"source": "image_folders"})) == Augmentation()
    for key, value in defaults.items():
        written = {"crop_ratio": "(3/4, 4/3)", "resize": "size", "crop": '"inception"', "interpolation": '"bicubic"'}
        assert f"{key}={written.get(key, value)}" in augment.__doc__


def test_from_config():
    config = ConfigDict(dict(source="image_folders", size=32, crop="pad", colour=0.3, randaugment_magnitude=5))
    assert Augmentation.from_config(config) == Augmentation(size=32, crop="pad", colour=0.3, randaugment_magnitude=5)


@pytest.mark.parametrize("key,value", [
    ("size", 0), ("size", 2.5), ("size", True), ("resize", 223), ("padding", -1), ("flip", 1.5), ("flip", True),
    ("flip", "half"), ("erasing", -0.1), ("erasing", float("nan")), ("randaugment_ops", -1), ("randaugment_magnitude", 31),
    ("crop", "random"), ("interpolation", "cubic"), ("crop_scale", (0, 1)), ("crop_scale", (0.5, 1.2)), ("crop_scale", 0.08),
    ("crop_ratio", (2, 1)), ("colour", -0.1), ("colour", (0.4, 0.4)), ("colour", (0.4, 0.4, 0.4, 0.6)), ("colour", "strong"),
])  # fmt: skip
def test_a_value_out_of_range_is_named(key, value):
    with pytest.raises(UserError, match=f"^config.data.{key}="):
        Augmentation.from_config(ConfigDict({key: value}))


def test_photographs():
    path = sorted(shared_data("cifar10/train/horse").iterdir())[0]
    image = decode(path, where=str(path))
    recipe = Augmentation(size=32, crop="pad", randaugment_ops=2)
    np.testing.assert_array_equal(recipe.evaluate(image), image)
    assert recipe.train(image, rng()).shape == (32, 32, 3)


def test_rotation_turns_about_the_middle_and_leaves_black_corners():
    white = np.full((21, 21, 1), 255, np.uint8)
    turned = augment.random_rotation(white, np.random.default_rng(0), 45.0)
    assert turned.shape == white.shape and turned[10, 10, 0] == 255 and turned.min() == 0
    assert augment.random_rotation(white, np.random.default_rng(0), 0.0) is white


@pytest.mark.parametrize("crop", ["inception", "pad", "center", "squash"])
def test_an_image_of_pillow_gives_what_its_array_gives(crop):
    array = np.random.default_rng(0).integers(0, 256, (41, 30, 3)).astype(np.uint8)
    how = augment.Augmentation(size=24, crop=crop, rotation=10.0 if crop == "pad" else 0.0)
    for image in range(4):
        first, second = (how.train(x, np.random.default_rng(image)) for x in (array, geometry.to_pillow(array)))
        assert isinstance(second, np.ndarray) and np.array_equal(first, second)
    assert np.array_equal(how.evaluate(array), how.evaluate(geometry.to_pillow(array)))
