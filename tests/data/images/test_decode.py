"""Files of every kind that image folders hold, and one line for what is none."""

import importlib
import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import shared_data

from transformers_jax.data.images import decode as module
from transformers_jax.data.images import pillow
from transformers_jax.data.images.decode import check, decode, decode_mask
from transformers_jax.data.images.pillow import Image
from transformers_jax.errors import UserError


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """[H, W, 3] that a JPEG keeps well."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = rows * 255 // height, columns * 255 // width, (rows + columns) * 127 // (height + width)
    return np.stack(channels, 2).astype(np.uint8)


def png(width: int, height: int, bits: int, color: int, rows: bytes) -> bytes:
    """A PNG by hand, for depths that Pillow does not write. Each of the `rows` begins with its filter, 0."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_path_and_bytes(tmp_path):
    pixels = noise(3, 5)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    for image in path, str(path), path.read_bytes():
        found = decode(image, where="a.png")
        assert found.dtype == np.uint8 and found.flags.writeable
        np.testing.assert_array_equal(found, pixels)


def test_one_pixel():
    np.testing.assert_array_equal(decode(saved(Image.new("RGB", (1, 1), (1, 2, 3))), where="x"), [[[1, 2, 3]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    # How a viewer shows an image that a camera has saved with this tag (EXIF 2.3, tag 0x0112).
    shown = {
        1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: lambda x: np.rot90(x, 1),
    }[orientation]  # fmt: skip
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(saved(Image.fromarray(pixels), exif=exif), where="x"), shown(pixels))


def test_broken_exif_turns_nothing():
    pixels = smooth(8, 16)
    found = decode(saved(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0nonsense"), where="x")
    assert found.shape == (8, 16, 3)


def test_grey_and_bilevel():
    grey = noise(3, 4, 1)[:, :, 0]
    np.testing.assert_array_equal(decode(saved(Image.fromarray(grey)), where="x"), np.repeat(grey[:, :, None], 3, 2))
    np.testing.assert_array_equal(decode(saved(Image.new("1", (2, 1), 1)), where="x"), np.full((1, 2, 3), 255))


def test_alpha_lies_over_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    expected = [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    np.testing.assert_array_equal(decode(saved(Image.fromarray(pixels)), where="x"), expected)
    grey = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(decode(saved(grey), where="x"), [[[7] * 3, [255] * 3]])


def test_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(saved(image), where="x"), [[[200, 0, 0], [0, 0, 200]]])
    np.testing.assert_array_equal(decode(saved(image, transparency=0), where="x"), [[[255, 255, 255], [0, 0, 200]]])
    # One colour of an RGB image may be transparent too.
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    np.testing.assert_array_equal(decode(saved(rgb, transparency=(1, 2, 3)), where="x"), [[[255] * 3, [4, 5, 6]]])


def test_cmyk():
    white, black = decode(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), where="x"), (0, 0, 0, 255)
    assert white.shape == (8, 8, 3) and white.min() > 250
    assert decode(saved(Image.new("CMYK", (8, 8), black), "JPEG"), where="x").max() < 5


def test_sixteen_bits_are_scaled():
    values = np.array([[0, 255, 256, 0x1234, 0x8000, 65535]], np.uint16)
    found = decode(saved(Image.fromarray(values)), where="x")
    np.testing.assert_array_equal(found[:, :, 0], values >> 8)
    # The same values as colours.
    rows = b"\0" + np.repeat(values[0, :, None], 3, 1).astype(">u2").tobytes()
    np.testing.assert_array_equal(decode(png(6, 1, 16, 2, rows), where="x"), found)
    # One grey value is transparent.
    np.testing.assert_array_equal(decode(saved(Image.fromarray(values), transparency=0), where="x")[0, :2, 0], [255, 0])


def test_32_bits_are_refused():
    with pytest.raises(UserError, match="^deep.tif has pixels of 32 bits"):
        decode(saved(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), where="deep.tif")


def test_draft_is_never_too_small():
    pixels = smooth(130, 260)
    file = saved(Image.fromarray(pixels), "JPEG", quality=95)
    assert decode(file, where="x").shape == (130, 260, 3)
    assert decode(file, where="x", size=131).shape == (130, 260, 3)
    assert decode(file, where="x", size=64).shape == (65, 130, 3)
    small = decode(file, where="x", size=20)
    assert min(small.shape[:2]) >= 20 and small.shape[0] < 65
    half = decode(file, where="x", size=64).astype(int)
    assert np.abs(half - pixels.reshape(65, 2, 130, 2, 3).mean((1, 3))).max() < 8


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0junk", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_no_image(tmp_path, content):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    for read in decode, decode_mask, check:
        with pytest.raises(UserError, match=rf"^{path}[: ]"):
            read(path, where=str(path))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_cut_short(tmp_path, kind):
    whole = saved(Image.fromarray(noise(64, 64)), kind)
    path = tmp_path / "cut"
    path.write_bytes(whole)
    check(path, where="here")
    path.write_bytes(whole[: len(whole) // 2])
    for read in decode, check:
        with pytest.raises(UserError, match=f"^here: {path} cannot be decoded, .*truncated"):
            read(path, where="here")


def test_missing_file():
    with pytest.raises(UserError, match="^list.csv, line 3: nowhere.png: no such file$"):
        decode("nowhere.png", where="list.csv, line 3")


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what is damaged
@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]))
def test_damage_is_the_users_or_none(data, kind):
    """Whatever bytes are changed, there are pixels or one line."""
    file = bytearray(saved(Image.fromarray(smooth(9, 7)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(file), where="x")
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    except UserError as error:
        assert str(error).startswith("x")


def test_mask_has_numbers_not_colours():
    numbers = np.array([[0, 1, 11], [255, 3, 2]], np.uint8)
    palette = Image.fromarray(numbers, "P")
    palette.putpalette(list(noise(256, 1).reshape(-1)))
    np.testing.assert_array_equal(decode_mask(saved(palette), where="x"), numbers)
    np.testing.assert_array_equal(decode_mask(saved(Image.fromarray(numbers)), where="x"), numbers)
    np.testing.assert_array_equal(decode_mask(saved(Image.fromarray(numbers.astype(np.uint16))), where="x"), numbers)
    np.testing.assert_array_equal(decode_mask(saved(Image.fromarray(numbers > 2)), where="x"), numbers > 2)


@pytest.mark.parametrize("bits,row", [(2, b"\0\x1b"), (4, b"\0\x01\x23")])
def test_mask_of_few_bits(bits, row):
    np.testing.assert_array_equal(decode_mask(png(4, 1, bits, 0, row), where="x"), [[0, 1, 2, 3]])


def test_mask_that_is_none():
    with pytest.raises(UserError, match=r"^x has RGB pixels"):
        decode_mask(saved(Image.fromarray(noise(2, 2))), where="x")
    with pytest.raises(UserError, match="^x is a JPEG"):
        decode_mask(saved(Image.fromarray(noise(2, 2, 1)[:, :, 0]), "JPEG"), where="x")
    with pytest.raises(UserError, match="^x has the class number 300; a mask has 0 to 255$"):
        decode_mask(saved(Image.fromarray(np.array([[300]], np.uint16))), where="x")


def test_street_scenes():
    folder = shared_data("camvid")
    image, mask = (sorted((folder / name).iterdir())[0] for name in ("val", "valannot"))
    assert decode(image, where=str(image)).shape[:2] == decode_mask(mask, where=str(mask)).shape
    assert set(np.unique(decode_mask(mask, where=str(mask)))) <= set(range(12))


def test_check_reads_no_more_than_it_needs(monkeypatch, tmp_path):
    """`check` of a whole JPEG does not decode it."""
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(Image.fromarray(smooth(8, 8)), "JPEG"))
    monkeypatch.setattr(module, "_rgb", lambda opened: pytest.fail("decoded"))
    check(path, where="a.jpg")


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"^reading images needs another package: pip install transformers_jax\[images\]$"):
        importlib.reload(pillow)
