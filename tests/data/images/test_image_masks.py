"""Images with masks: what is found, and views of both, which move together."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from real_data import shared_data

from transformers_jax.data.images.decode import decode_mask, size_of
from transformers_jax.data.images.masks import KINDS
from transformers_jax.data.images.pillow import Image
from transformers_jax.data.images.processing import NO_CLASS
from transformers_jax.data.images.views import LEAST_VISIBLE, View, Views, area, random_view, whole, window
from transformers_jax.errors import UserError

QUICK = settings(max_examples=60, deadline=None)


def opened(split: str = "train", **keys):
    return KINDS["image_masks"](ConfigDict(dict(train="", validation="", test="") | keys), split)


@pytest.fixture
def folders(tmp_path):
    """a/1.png, b.png and their masks, of 4 × 6 pixels."""
    for folder in "photos", "masks":
        (tmp_path / folder / "a").mkdir(parents=True)
        for name in "a/1", "b":
            shape = (4, 6, 3) if folder == "photos" else (4, 6)
            Image.fromarray(np.ones(shape, np.uint8)).save(tmp_path / folder / f"{name}.png")
    return f"{tmp_path}/photos,{tmp_path}/masks"


def test_masks_are_found_by_name(folders, tmp_path):
    (tmp_path / "photos/b.png").rename(tmp_path / "photos/b.jpg")  # whatever the name says
    (tmp_path / "masks/.DS_Store").write_text("x")
    source = opened(train=folders)
    assert [source[i] for i in range(2)] == [
        {"image": f"{tmp_path}/photos/{name}", "mask": f"{tmp_path}/masks/{mask}", "size": (4, 6)}
        for name, mask in (("b.jpg", "b.png"), ("a/1.png", "a/1.png"))
    ]
    assert source.where(0) == f"{tmp_path}/photos/b.jpg"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: (p / "masks/b.png").unlink(), r"photos/b.png has no mask \S*masks/b.png$"),
        (lambda p: (p / "photos/b.png").unlink(), r"the mask \S*masks/b.png has no image"),
        (lambda p: (p / "masks/b.png").rename(p / "masks/b.jpg"), r"masks/b.jpg is none by its name"),
        (lambda p: Image.new("L", (6, 5)).save(p / "masks/b.png"), r"masks/b.png has 5×6 pixels .* has 4×6$"),
        (lambda p: (p / "photos/b.png").write_text("no image"), r"photos/b.png is no image"),
        (lambda p: Image.new("L", (6, 4)).save(p / "masks/b.tif"), r"masks/b.tif has the name of \S*b.png"),
    ],
)
def test_mistakes_are_fatal_or_counted(folders, tmp_path, caplog, change, message):
    change(tmp_path)
    with pytest.raises(UserError, match=f"^config.data.train: .*{message}"):
        opened(train=folders)
    with caplog.at_level(logging.WARNING):
        left = opened(train=folders, on_error="skip")
    found = [example["image"].rpartition("/")[2] for example in left.examples]
    assert found == (["b.png", "1.png"] if "b.tif" in message else ["1.png"])
    assert "left out (config.data.on_error=skip); the first: " in caplog.text


def test_colours_are_no_mask(folders, tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "masks/b.png")
    with pytest.raises(UserError, match="masks/b.png has RGB pixels"):
        decode_mask(opened(train=folders)[0]["mask"], where=opened(train=folders)[0]["mask"])
    assert len(opened(train=folders, on_error="skip")) == 1


def test_folders_that_are_none(tmp_path):
    for given_, says in (("", "a folder of images and one of their masks"), ("a,b", "no folder a")):
        with pytest.raises(UserError, match=says):
            opened(train=given_)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no files"):
        opened(train=f"{tmp_path}/empty,{tmp_path}/empty")


def test_a_photograph_that_lies_on_its_side_has_its_size_as_it_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert size_of(tmp_path / "a.jpg", where="a.jpg") == (6, 4)  # 6 high


# -- views -------------------------------------------------------------------------------------------------------------


def both(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask, and an image whose pixels tell their class."""
    mask = np.random.default_rng(seed).integers(0, 5, (height, width)).astype(np.uint8)
    return np.repeat(50 * mask[:, :, None], 3, axis=2), mask


sides, seeds = st.integers(3, 40), st.integers(0, 10**6)


@QUICK
@given(seeds, sides, sides, st.floats(0.4, 2.5), st.booleans())
def test_a_mask_moves_with_its_image(seed, height, width, factor, flipped):
    image, mask = both(seed, height, width)
    view = random_view(height, width, (16, 24), np.random.default_rng(seed), (factor, factor), float(flipped))
    seen, classes = view.image(image, "nearest"), view.mask(mask)
    inside = classes != NO_CLASS
    assert seen.shape == (16, 24, 3) and classes.shape == (16, 24) and view.flipped == flipped
    assert np.array_equal(seen[inside], np.repeat(50 * classes[inside][:, None], 3, axis=1))
    assert (seen[~inside] == 128).all() and inside.sum() == np.prod(view.size)
    assert set(np.unique(classes[inside])) <= set(np.unique(mask))  # classes never blend


@QUICK
@given(seeds, sides, sides)
def test_the_mask_of_the_flipped_is_the_flipped_mask(seed, height, width):
    _, mask = both(seed, height, width)
    view = random_view(height, width, (16, 24), np.random.default_rng(seed), (0.5, 2.0), 0.0)
    turned = View(view.canvas, view.part, view.size, view.place, True)
    assert np.array_equal(turned.mask(mask), view.mask(mask)[:, ::-1])


@QUICK
@given(seeds, st.booleans())
def test_boxes_move_with_their_masks(seed, flipped):
    """The box around a rectangle of a mask that is seen is the rectangle's box that is seen."""
    random = np.random.default_rng(seed)
    (left, right), (top, bottom) = (np.sort(random.choice(30, 2, replace=False)) for _ in range(2))
    mask = np.zeros([30, 30], np.uint8)
    mask[top:bottom, left:right] = 1
    start = random.integers(0, 20, 2)
    view = View((24, 24), (*start, *(start + 10)), (10, 10), tuple(random.integers(0, 15, 2)), flipped)
    boxes, kept = view.boxes([[left, top, right, bottom]])
    rows, columns = np.nonzero(view.mask(mask) == 1)
    share = len(rows) / ((right - left) * (bottom - top))
    assert len(kept) == len(boxes) == (share >= LEAST_VISIBLE)
    if len(kept):
        assert boxes[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@QUICK
@given(seeds, st.integers(-5, 5), st.integers(-5, 5))
def test_areas_stay_where_nothing_is_cut_off(seed, down, across):
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(10, 30, (6, 2, 2)), axis=1).reshape(6, 4)
    view = View((40, 40), (0, 0, 30, 30), (30, 30), (5 + down, 5 + across))
    moved, kept = view.boxes(corners)
    assert len(kept) == 6 and np.allclose(area(moved), area(corners), rtol=1e-4, atol=1e-3)
    assert np.allclose(moved, corners + [5 + across, 5 + down] * 2, atol=1e-4)
    half = whole(30, 30, (15, 15)).boxes(corners)[0]
    assert np.allclose(area(half), area(corners) / 4, rtol=1e-4, atol=1e-3)


def test_a_view_of_a_large_image_is_a_part_of_the_resized_one():
    smooth = np.indices((60, 80)).sum(axis=0)[:, :, None].repeat(3, axis=2).astype(np.uint8)
    view = random_view(60, 80, (30, 40), np.random.default_rng(3), (1.7, 1.7), 0.0)
    resized = np.array(Image.fromarray(smooth).resize((136, 102), Image.Resampling.BILINEAR)).astype(int)
    top, left = round(view.part[1] * 1.7), round(view.part[0] * 1.7)
    difference = view.image(smooth).astype(int) - resized[top : top + 30, left : left + 40]
    assert np.abs(difference).max() <= 2  # at the border less is seen


def test_a_window_is_the_image_itself():
    image, mask = both(0, 20, 50)
    view = window(20, 50, (16, 24), 4, 26)
    assert np.array_equal(view.image(image), image[4:, 26:]) and np.array_equal(view.mask(mask), mask[4:, 26:])
    small = window(5, 6, (16, 24), 0, 0)
    assert np.array_equal(small.mask(mask[:5, :6])[:5, :6], mask[:5, :6]) and (small.mask(mask[:5, :6])[5:] == 255).all()


def test_colours_change_the_image_alone_and_one_class_does_not_fill_the_view():
    data = ConfigDict({"size": (8, 8), "scale": (1.0, 1.0), "colour": 0.5, "most_of_one": 0.6, "flip": 0.0})
    views, (image, _) = Views(data), both(0, 40, 40)
    mask = np.tile(np.arange(40) // 5 % 2, (40, 1)).astype(np.uint8)
    for seed in range(5):
        view, seen = views.draw_varied(mask, np.random.default_rng(seed))
        assert np.bincount(seen.ravel()).max() <= 0.6 * 64 and np.array_equal(seen, view.mask(mask))
        assert not np.array_equal(views.coloured(views.image(view, image), np.random.default_rng(0)), view.image(image))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"size": (8, 0)}, "config.data.size=\\(8, 0\\)"),
        ({"scale": (0.0, 1.0)}, "config.data.scale"),
        ({"most_of_one": 0.0}, "config.data.most_of_one=0.0"),
        ({"flip": 2.0}, "config.data.flip=2.0"),
        ({"interpolation": "sharp"}, "config.data.interpolation='sharp'"),
    ],
)
def test_keys_that_make_no_sense_are_named(keys, message):
    with pytest.raises(UserError, match=message):
        Views(ConfigDict(keys))


def test_camvid():
    folder = shared_data("camvid")
    train = opened(train=f"{folder}/train,{folder}/trainannot")
    assert len(train) == 367 and train[0]["size"] == (180, 240)
    assert set(np.unique(decode_mask(train[5]["mask"], where="5"))) <= set(range(12))
