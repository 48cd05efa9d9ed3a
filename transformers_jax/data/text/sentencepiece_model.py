"""SentencePiece `.model` files (Kudo and Richardson 2018), unigram and BPE, made to run in the `tokenizers` library.

The file is a protocol buffer, `ModelProto` of sentencepiece_model.proto. Only these fields of it matter:

    1 pieces:      1 piece, 2 score, 3 type
    2 trainer:     3 model_type, 35 byte_fallback, 40 unk_id, 41 bos_id, 42 eos_id, 43 pad_id
    3 normalizer:  2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces

Spaces become `▁`. Normalisation, the space put in front and the spaces dropped are the model's own, so not every text
comes back exactly. Piece ids are those of the file; some models (XLM-R, mBART, Camembert) number theirs otherwise.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from transformers_jax.data.text import words
from transformers_jax.errors import UserError

SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


class Piece(NamedTuple):
    """One row of the vocabulary; its id is its place."""

    text: str
    score: float
    type: int


def read(file: Path, before: Sequence[normalizers.Normalizer] = ()) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    """The tokenizer of a `.model` file, and the ids of its special pieces by role (unk, bos, eos, pad); −1 for none.

    Args:
      before: what a text goes through before the model's own normalisation.

    Raises:
      UserError: names the file that is not a SentencePiece model, or of a kind other than unigram and BPE.
    """
    try:
        return _built(file.read_bytes(), before)
    except Exception as error:  # a broken file may set off anything
        raise UserError(f"{file}: not a SentencePiece model that can be read: {error}") from error


def _built(content: bytes, before: Sequence[normalizers.Normalizer]) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    pieces, trainer, normalizer = [], {}, {}
    for number, value in fields(content):
        if number == 1:
            row = dict(fields(value))
            score = struct.unpack("<f", row.get(2, bytes(4)))[0]
            pieces.append(Piece(row[1].decode("utf-8"), score, row.get(3, _NORMAL)))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    defaults = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    ids = {role: _signed(trainer.get(number, default)) for role, (number, default) in defaults.items()}
    byte_fallback = bool(trainer.get(35, 0))
    kind = trainer.get(3, _UNIGRAM)
    if kind == _UNIGRAM:
        vocabulary = [(piece.text, piece.score) for piece in pieces]
        model = models.Unigram(vocabulary, unk_id=ids["unk"], byte_fallback=byte_fallback)
    elif kind == _BPE:
        vocabulary = {piece.text: i for i, piece in enumerate(pieces)}
        options = {"fuse_unk": True, "byte_fallback": byte_fallback, "ignore_merges": True}  # a whole piece stays whole
        model = models.BPE(vocabulary, _merges(pieces), unk_token=pieces[ids["unk"]].text, **options)
    else:
        raise ValueError(f"model_type {kind}; only unigram (1) and BPE (2) are read")
    library = tokenizers.Tokenizer(model)
    library.normalizer, library.decoder = _normalizer(normalizer, before), _decoder(normalizer)
    names = [piece.text for piece in pieces if piece.type in (_UNKNOWN, _CONTROL, _BYTE)]
    library.pre_tokenizer = pre_tokenizers.Sequence([_user_defined(pieces), words.names_apart(names)])
    library.add_special_tokens([piece.text for piece in pieces if piece.type in (_UNKNOWN, _CONTROL)])
    return library, ids


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Each way to make a piece from two others, best piece first: the file tells the pieces and not the merges."""
    rank = {piece.text: i for i, piece in enumerate(pieces) if piece.type in (_NORMAL, _USER_DEFINED, _UNUSED)}
    ways = []
    for i, piece in enumerate(pieces):
        if piece.type == _NORMAL:
            halves = ((piece.text[:k], piece.text[k:]) for k in range(1, len(piece.text)))
            pairs = [(left, right) for left, right in halves if left in rank and right in rank]
            ways += [(-piece.score, i, rank[left], rank[right], (left, right)) for left, right in pairs]
    return [way[-1] for way in sorted(ways)]


def _normalizer(spec: dict, before: Sequence[normalizers.Normalizer]) -> normalizers.Normalizer:
    """What comes before, the model's own character map, needless spaces dropped, one put in front and all shown as `▁`."""
    steps = [*before, *([normalizers.Precompiled(spec[2])] if spec.get(2) else [])]
    if spec.get(4, 1):
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.get(3, 1):
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _decoder(spec: dict) -> decoders.Decoder:
    """Pieces to text: bytes to characters, `▁` to spaces, without the one put in front."""
    steps = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE, " ")]
    if spec.get(3, 1):
        steps.append(decoders.Replace(Regex(r"\A "), ""))
    return decoders.Sequence(steps)


def _user_defined(pieces: list[Piece]) -> pre_tokenizers.PreTokenizer:
    """Splits so that a piece which the user defined stands alone; the longest where several fit."""
    texts = sorted((piece.text for piece in pieces if piece.type == _USER_DEFINED), key=len, reverse=True)
    return pre_tokenizers.Split(Regex("|".join(map(re.escape, texts)) or r"(?!)"), "isolated")


def _signed(value: int) -> int:
    """A varint of type int32: negative numbers are written as 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one protocol buffer message: integers (wire type 0), and bytes (1, 2 and 5).

    Raises:
      ValueError: the message is cut off or malformed.
    """
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(content, at)
        elif wire in (1, 2, 5):
            size, at = _varint(content, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = content[at : at + size], at + size
            if at > len(content):
                raise ValueError("it is cut off")
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        yield number, value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The integer that begins at a byte, seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("it is cut off")
        byte, at = content[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")
