"""GGUF files: what is written is read back, to the bit where it is stored so; damaged files are refused in one line."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_jax.errors import DiskError, UserError
from transformers_jax.interchange import gguf, gguf_blocks
from transformers_jax.interchange.gguf import Deferred, GgufFile, Stored
from transformers_jax.interchange.gguf_values import Value

EVERY_KIND = {
    "general.architecture": Value("string", "llama"),
    "a.uint8": Value("uint8", 255),
    "a.int8": Value("int8", -128),
    "a.uint16": Value("uint16", 65535),
    "a.int16": Value("int16", -32768),
    "a.uint32": Value("uint32", 4294967295),
    "a.int32": Value("int32", -2147483648),
    "a.float32": Value("float32", 0.15625),
    "a.bool": Value("bool", True),
    "a.uint64": Value("uint64", 2**64 - 1),
    "a.int64": Value("int64", -(2**63)),
    "a.float64": Value("float64", 0.1),
    "words": Value("array", ["Ġthe", "", "日本 🙂"], "string"),
    "not utf-8": Value("string", b"\xff\x80x".decode("utf-8", "surrogateescape")),
    "numbers": Value("array", [-1, 2, 3], "int8"),
    "truths": Value("array", [True, False], "bool"),
    "halves": Value("array", [0.5, -2.5], "float64"),
    "nothing": Value("array", [], "uint16"),
    "nested": Value("array", [Value("array", [1, 2], "uint32"), Value("array", ["x"], "string")], "array"),
}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_the_formula(rows: np.ndarray, kind: str) -> np.ndarray:
    """Each number of stored rows, [n, bytes of a row] → [n, K], from the bytes one by one."""
    size = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]
    values = []
    for row in rows:
        numbers = []
        for start in range(0, len(row), size):
            block = row[start : start + size].tobytes()
            d, m = struct.unpack("<2e", block[:4])
            if kind == "Q8_0":
                numbers += [np.float32(q) * np.float32(d) for q in struct.unpack("<32b", block[2:])]
            elif kind == "Q4_0":
                codes = [byte & 15 for byte in block[2:]] + [byte >> 4 for byte in block[2:]]
                numbers += [np.float32(q - 8) * np.float32(d) for q in codes]
            else:
                codes = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
                numbers += [np.float32(q) * np.float32(d) + np.float32(m) for q in codes]
        values.append(numbers)
    return np.array(values, np.float32)


# Metadata.


def test_every_kind_of_metadata_comes_back(tmp_path):
    gguf.write(tmp_path / "a.gguf", EVERY_KIND, {})
    file = GgufFile(tmp_path / "a.gguf")
    assert file.typed_metadata() == EVERY_KIND
    assert file.metadata["words"] == ["Ġthe", "", "日本 🙂"] and file.metadata["nested"] == [[1, 2], ["x"]]
    gguf.write(tmp_path / "b.gguf", file.typed_metadata(), {})
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_plain_values_get_the_kind_that_holds_them(tmp_path):
    plain = {"n": 3, "less": -3, "more": 2**40, "truth": True, "text": "é", "real": 0.5, "list": [1, -1], "words": ["a"]}
    gguf.write(tmp_path / "a.gguf", plain | {"numpy": np.int8(-1), "array": np.arange(3, dtype=np.uint16)}, {})
    file = GgufFile(tmp_path / "a.gguf")
    assert {key: file.metadata[key] for key in plain} == plain
    kinds = {key: value.of or value.kind for key, value in file.typed_metadata().items()}
    assert kinds == {
        "n": "uint32", "less": "int32", "more": "uint64", "truth": "bool", "text": "string", "real": "float32",
        "list": "int32", "words": "string", "numpy": "int8", "array": "uint16",
    }  # fmt: skip


@pytest.mark.parametrize("value", [None, [], [1, "a"], 2**64, {"a": 1}, Value("uint8", 256), Value("float", 1.0)])
def test_metadata_that_has_no_kind_is_refused(tmp_path, value):
    with pytest.raises(UserError, match="metadata"):
        gguf.write(tmp_path / "a.gguf", {"key": value}, {})
    assert not list(tmp_path.iterdir())


# Tensors.


@pytest.mark.parametrize("kind", gguf_blocks.READ)
@pytest.mark.parametrize("shape", [(64,), (3, 96), (2, 3, 32), (0, 32), (3, 0)])
def test_a_tensor_comes_back_as_near_as_its_type_allows(tmp_path, kind, shape):
    values = random(*shape)
    gguf.write(tmp_path / "a.gguf", {}, {"first": random(5), "x": values}, {"x": kind})
    file = GgufFile(tmp_path / "a.gguf")
    assert (file.tensors["x"].shape, file.tensors["x"].type) == (shape, kind)
    back = file.tensor("x")
    assert back.dtype == np.float32 and back.shape == shape
    allowed = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 0.02, "Q4_0": 0.4, "Q4_1": 0.3}[kind]
    np.testing.assert_allclose(back, values, atol=allowed, rtol=0)
    np.testing.assert_array_equal(file.tensor("first"), random(5))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_numbers_are_those_of_the_formula(kind):
    rows = gguf_blocks.quantise(random(4, 96), kind)
    np.testing.assert_array_equal(gguf_blocks.dequantise(rows, kind), by_the_formula(rows, kind))
    codes, scale, minimum = gguf_blocks.blocks(rows, kind)
    values = codes * scale[..., None] + (0 if minimum is None else minimum[..., None])  # [4, 3, 32]
    np.testing.assert_array_equal(values.reshape(4, 96), by_the_formula(rows, kind))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_a_number_misses_by_half_a_step_at_most(kind):
    """Q4_0's far end, 7 of 8 steps, misses by a whole one. Scale and minimum are float16: 1/1,000 of the largest number."""
    values = random(50, 64, seed=1).reshape(50, 2, 32)
    rows = gguf_blocks.quantise(values.reshape(50, 64), kind)
    missed = np.abs(gguf_blocks.dequantise(rows, kind).reshape(50, 2, 32) - values)
    largest = np.abs(values).max(-1, keepdims=True)
    step = {"Q8_0": largest / 127, "Q4_0": 2 * largest / 8, "Q4_1": np.ptp(values, axis=-1, keepdims=True) / 15}[kind]
    assert np.all(missed <= step / 2 + 2e-3 * largest)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("number", [0.0, 1e-42, -3.0])
def test_blocks_of_one_number(kind, number):
    rows = gguf_blocks.quantise(np.full((1, 32), number, np.float32), kind)
    np.testing.assert_allclose(gguf_blocks.dequantise(rows, kind), number, rtol=1e-3, atol=1e-7)


def test_codes_of_a_known_block():
    values = np.zeros(32, np.float32)
    values[:4] = [-8, 7, 1, 0.5]  # a scale of one
    row = gguf_blocks.quantise(values, "Q4_0").tobytes()
    assert row == struct.pack("<e", 1) + bytes([0x80, 0x8F, 0x89, 0x89]) + bytes([0x88] * 12)
    values = np.full(32, 2.0, np.float32)
    values[[0, 16, 31]] = [17, 3, 2.5]  # a scale of one above a minimum of two
    row = gguf_blocks.quantise(values, "Q4_1").tobytes()
    assert row == struct.pack("<2e", 1, 2) + bytes([0x1F]) + bytes(14) + bytes([0x10])
    values = np.zeros(32, np.float32)
    values[:4] = [-127, 2.5, -2.5, 1]
    row = gguf_blocks.quantise(values, "Q8_0").tobytes()
    assert row == struct.pack("<e32b", 1, -127, 3, -3, 1, *[0] * 28)


def test_bfloat16_is_the_nearest_even():
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, np.inf, -0.0, np.nan, 3.4e38], np.float32)
    back = gguf_blocks.dequantise(gguf_blocks.quantise(values, "BF16"), "BF16")
    np.testing.assert_array_equal(back, np.array([1, 1 + 2**-6, np.inf, -0.0, np.nan, np.inf], np.float32))


def test_stored_bytes_pass_through_untouched(tmp_path):
    """Tensors of types that are not read among them; a file written twice is the same to the byte."""
    kinds = dict(zip("abcdef", gguf_blocks.READ, strict=True))
    strange = {"k": Stored("Q4_K", (2, 256), random(2, 36).view(np.uint8))}
    made = {name: random(4, 64, seed=i) for i, name in enumerate(kinds)}
    gguf.write(tmp_path / "a.gguf", EVERY_KIND | {"general.alignment": 64}, made | strange, kinds)
    file = GgufFile(tmp_path / "a.gguf")
    assert file.alignment == 64 and all(entry.start % 64 == 0 for entry in file.tensors.values())
    gguf.write(tmp_path / "b.gguf", file.typed_metadata(), {name: file.stored(name) for name in file.tensors})
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_deferred_tensors_are_made_one_by_one(tmp_path):
    order = []

    def make(name):
        return lambda: order.append(name) or random(2, 32)

    gguf.write(tmp_path / "a.gguf", {}, {name: Deferred((2, 32), make(name)) for name in "zax"}, "Q8_0")
    assert order == ["z", "a", "x"] and list(GgufFile(tmp_path / "a.gguf").tensors) == ["z", "a", "x"]
    with pytest.raises(UserError, match="z cannot be written"):
        gguf.write(tmp_path / "a.gguf", {}, {"z": Deferred((3, 32), make("z"))})
    assert GgufFile(tmp_path / "a.gguf").tensors and len(list(tmp_path.iterdir())) == 1  # the old file stands


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (random(2, 33), "Q8_0", "blocks of 32"),
        (np.float32(1), "Q4_0", "blocks of 32"),
        (random(1, 1, 1, 1, 32), "F32", "at most 4 axes"),
        (np.full((1, 32), np.nan), "Q4_1", "not finite"),
        (np.full((1, 32), 1e8), "Q4_0", "float16"),
        (np.linspace(-3e38, 3e38, 32), "Q4_1", "float16"),
        (np.full(3, 7e4), "F16", "65,504"),
        (random(2, 256), "Q4_K", "type Q4_K is not written"),
    ],
)
def test_numbers_that_have_no_place_are_refused(tmp_path, values, kind, message):
    with pytest.raises(UserError, match=f"x.*{message}"):
        gguf.write(tmp_path / "a.gguf", {}, {"x": values}, kind)
    assert not list(tmp_path.iterdir())


def test_types_that_are_not_read_are_refused_by_name(tmp_path):
    file = tmp_path / "a.gguf"
    gguf.write(file, {}, {"good": random(32), "bad": Stored("Q6_K", (1, 256), np.zeros((1, 210), np.uint8))})
    opened = GgufFile(file)
    assert opened.tensor("good").shape == (32,)
    for ask in (lambda: opened.tensor("bad"), opened.check):
        with pytest.raises(UserError, match="a.gguf: bad is of type Q6_K, .* F32, F16, BF16, Q8_0, Q4_0 or Q4_1"):
            ask()
    with pytest.raises(UserError, match="has no tensor other"):
        opened.tensor("other")
    content = bytearray(file.read_bytes())
    at = content.index(b"bad") + 3 + 4 + 16
    for number, name in ((99, "number 99"), (31, "Q4_0_4_4"), (12, "Q4_K")):
        content[at : at + 4] = struct.pack("<I", number)
        file.write_bytes(content + bytes(1000))
        with pytest.raises(UserError, match=f"bad is of type {name}"):
            GgufFile(file).tensor("bad")


# Files that are damaged.


@pytest.fixture
def small(tmp_path) -> bytes:
    """A whole file: two entries, two tensors, of 3 × 32 float32 and of 2 × 32 in Q8_0."""
    tensors = {"one": random(3, 32), "two": random(2, 32)}
    gguf.write(tmp_path / "small.gguf", {"words": ["ab", "c"], "n": 7}, tensors, {"two": "Q8_0"})
    return (tmp_path / "small.gguf").read_bytes()


def changed(content: bytes, at: int, format: str, number: int) -> bytes:
    return content[:at] + struct.pack("<" + format, number) + content[at + struct.calcsize("<" + format) :]


DAMAGES = {
    "empty": (lambda c: b"", "is empty"),
    "no magic": (lambda c: b"GGML" + c[4:], "does not begin with GGUF"),
    "nothing but magic": (lambda c: c[:10], "cut short"),
    "version 1": (lambda c: changed(c, 4, "I", 1), "GGUF version 1"),
    "version 4": (lambda c: changed(c, 4, "I", 4), "GGUF version 4"),
    "big endian": (lambda c: c[:4] + struct.pack(">I", 3) + c[8:], "big endian"),
    "tensors without end": (lambda c: changed(c, 8, "Q", 2**62), "claims 4611686018427387904 tensors"),
    "entries without end": (lambda c: changed(c, 16, "Q", 2**63), "metadata entries"),
    "a key without end": (lambda c: changed(c, 24, "Q", 2**64 - 1), "metadata entry 0 claims"),
    "an unknown kind": (lambda c: changed(c, c.index(b"words") + 5, "I", 13), "words is of the unknown kind 13"),
    "an array without end": (lambda c: changed(c, c.index(b"words") + 13, "Q", 2**61), "words claims"),
    "an array longer than it is": (lambda c: changed(c, c.index(b"words") + 13, "Q", 40), "words claims|unknown kind|UTF-8"),
    "numbers without end": (lambda c: c.replace(struct.pack("<IQ", 8, 2), struct.pack("<IQ", 12, 2**61)), "words claims"),
    "a string without end": (lambda c: changed(c, c.index(b"ab") - 8, "Q", 2**60), "words claims"),
    "a key that is not UTF-8": (lambda c: c.replace(b"words", b"wor\xffs"), "not UTF-8"),
    "too many axes": (lambda c: changed(c, c.index(b"one") + 3, "I", 5), "one has 5 axes"),
    "an axis without end": (lambda c: changed(c, c.index(b"one") + 7, "Q", 2**60), "cut short"),
    "no rows": (lambda c: changed(changed(c, c.index(b"one") + 7, "Q", 0), c.index(b"one") + 15, "Q", 2**63), "has the shape"),
    "rows that are no blocks": (lambda c: changed(c, c.index(b"two") + 7, "Q", 33), "rows of 33"),
    "an offset without end": (lambda c: changed(c, c.index(b"two") + 27, "Q", 2**60), "cut short"),
    "an offset between": (lambda c: changed(c, c.index(b"two") + 27, "Q", 13), "no multiple of 32"),
    "one in the other": (lambda c: changed(c, c.index(b"two") + 27, "Q", 32), "two lies in the bytes of one"),
    "twice the name": (lambda c: c.replace(b"two", b"one"), "two tensors named one"),
    "cut by a row": (lambda c: c[:-80], "is cut short: its header names 452 bytes of tensors, the file has 400: get it anew"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(small, tmp_path, damage):
    change, message = DAMAGES[damage]
    (tmp_path / "bad.gguf").write_bytes(change(small))
    with pytest.raises(UserError, match=message) as caught:
        GgufFile(tmp_path / "bad.gguf")
    assert "bad.gguf" in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_comes_twice(tmp_path):
    gguf.write(tmp_path / "a.gguf", {"key1": 1, "key2": 2}, {})
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes().replace(b"key2", b"key1"))
    with pytest.raises(UserError, match="has key1 twice"):
        GgufFile(tmp_path / "a.gguf")


@pytest.mark.parametrize("alignment", [Value("uint32", 0), Value("uint32", 24), Value("uint64", 32)])
def test_an_alignment_that_is_none(tmp_path, alignment):
    with pytest.raises(UserError, match="general.alignment"):
        gguf.write(tmp_path / "a.gguf", {"general.alignment": alignment}, {})
    gguf.write(tmp_path / "a.gguf", {"general.alignmenu": alignment}, {})
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes().replace(b"alignmenu", b"alignment"))
    with pytest.raises(UserError, match="general.alignment"):
        GgufFile(tmp_path / "a.gguf")


def test_arrays_in_arrays_without_end(tmp_path):
    """A file of nothing but array headers must not exhaust the stack."""
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    with pytest.raises(UserError, match="k has arrays in arrays"):
        GgufFile(tmp_path / "a.gguf")


def test_a_file_cut_anywhere_is_refused(small, tmp_path):
    end = len(small) - len(small[-28:])  # the last tensor ends 28 bytes before its padding does
    for length in [*range(0, 300, 7), *range(300, end, 41), end - 1]:
        (tmp_path / "cut.gguf").write_bytes(small[:length])
        with pytest.raises(UserError, match="cut.gguf"):
            GgufFile(tmp_path / "cut.gguf")
    (tmp_path / "whole.gguf").write_bytes(small[:end])
    assert GgufFile(tmp_path / "whole.gguf").tensor("two").shape == (2, 32)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 260), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path_factory, at, byte):
    """Whatever the header says, the answer is a file that can be read to its end or one line."""
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    gguf.write(path, {"words": ["ab", "c"], "n": 7}, {"one": random(3, 32), "two": random(2, 32)}, {"two": "Q8_0"})
    content = bytearray(path.read_bytes())
    content[at] = byte
    path.write_bytes(content)
    try:
        file = GgufFile(path)
        for name in file.tensors:
            file.tensor(name)
        assert dict(file.metadata) is not None
    except UserError as error:
        assert str(path) in str(error)


def test_files_that_cannot_be_opened_or_written(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        GgufFile(tmp_path / "missing.gguf")
    with pytest.raises(UserError, match="cannot be read"):
        GgufFile(tmp_path)
    with pytest.raises(DiskError, match="cannot be written"):
        gguf.write(tmp_path / "missing" / "a.gguf", {}, {})


def test_version_2_is_laid_out_alike(small, tmp_path):
    (tmp_path / "a.gguf").write_bytes(changed(small, 4, "I", 2))
    file = GgufFile(tmp_path / "a.gguf")
    assert file.version == 2 and file.metadata["words"] == ["ab", "c"]
    np.testing.assert_array_equal(file.tensor("one"), random(3, 32))
