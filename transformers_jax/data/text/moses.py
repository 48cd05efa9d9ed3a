"""Words as FlauBERT splits them, and the files of its byte pair encoding, whose tokens end words with `</w>`.

A text goes through Moses' rules for French (Koehn et al. 2007) in Python, by the package `sacremoses`: punctuation is
normalised and set apart. The words, with spaces between, are what the `tokenizers` library then encodes.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from transformers_jax.errors import UserError

SUFFIX = "</w>"
SPECIAL = re.compile(r"</?s>|<(pad|unk|special\d+)>")
LOOK_AHEAD = 4
"""So many characters behind one that was replaced are searched for what comes next."""


class Encoding(NamedTuple):
    """What the library's encoding has: ids, places in the text, numbers of words."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]


class Words(NamedTuple):
    """How texts become words.

    lowercase: they are lower-cased.
    size: tokens of the vocabulary. The library knows more: symbols that only merges name, to be written as unknown.
    unk: the id of unknown tokens.
    """

    lowercase: bool
    size: int
    unk: int

    def split(self, text: str) -> str:
        """The words with spaces between.

        Raises:
          UserError: there is no `sacremoses`.
        """
        normalizer, tokenizer = _moses()
        text = unicodedata.normalize("NFC", text.replace("``", '"').replace("''", '"'))
        text = "".join(filter(_prints, normalizer.normalize(text.lower() if self.lowercase else text)))
        return " ".join(tokenizer.tokenize(text, escape=False))

    def encode(self, library: tokenizers.Tokenizer, text: str, names: Sequence[str] = ()) -> Encoding:
        """The tokens of a text; each stands where the characters stood that its own came from.

        Args:
          names: of tokens that are one each wherever the text spells them.
        """
        parts = re.split("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)", text)
        found, at, word = Encoding([], [], []), 0, 0
        for number, part in enumerate(parts):
            if number:
                name = next(name for name in sorted(names, key=len, reverse=True) if text.startswith(name, at))
                found.ids.append(library.token_to_id(name))
                found.offsets.append((at, at + len(name)))
                found.word_ids.append(word)
                at, word = at + len(name), word + 1
            some = self._encode(library, part)
            found.ids.extend(some.ids)
            found.offsets.extend((start + at, end + at) for start, end in some.offsets)
            found.word_ids.extend(None if i is None else i + word for i in some.word_ids)
            at, word = at + len(part), word + 1 + max((i for i in some.word_ids if i is not None), default=-1)
        return found

    def _encode(self, library: tokenizers.Tokenizer, text: str) -> Encoding:
        """The tokens of a text without such names."""
        split = self.split(text)
        encoding = library.encode(split, add_special_tokens=False)
        places = places_of(split, text)
        offsets = [(places[start][0], places[end - 1][1]) for start, end in encoding.offsets]
        return Encoding([i if i < self.size else self.unk for i in encoding.ids], offsets, encoding.word_ids)


@functools.cache
def _moses():
    try:
        import sacremoses
    except ImportError:
        raise UserError("FlauBERT's words are split by the package sacremoses: pip install sacremoses") from None
    normalizer = sacremoses.MosesPunctNormalizer("fr", pre_replace_unicode_punct=True)
    return normalizer, sacremoses.MosesTokenizer("fr")


def _prints(character: str) -> bool:
    """Whether it is none of Unicode's "other" characters: controls, formats, private and unassigned ones."""
    return not unicodedata.category(character).startswith("C")


def places_of(split: str, text: str) -> list[tuple[int, int]]:
    """For each character of `split` where in `text` it comes from: text[start:end].

    White space and control characters of the text are passed over. A character that was replaced stands for what is found
    in its stead; what comes after it is searched a few characters on.
    """
    real = [i for i, c in enumerate(text) if _prints(c) and not c.isspace()]
    places, at = [], 0  # real[at] is the next one
    replaced = ended = False  # what stands there was replaced, and by a word that has ended
    for c in split:
        if c.isspace():
            places.append((0, 0))
            ended = replaced
            continue
        ahead = range(at, min(at + (1 + LOOK_AHEAD if replaced else 1), len(real)))
        found = next((i for i in ahead if c in (text[real[i]], text[real[i]].lower())), None)
        here = at + ended if found is None else found
        at, replaced, ended = (here, True, False) if found is None else (found + 1, False, False)
        here = real[min(here, len(real) - 1)]
        places.append((here, here + 1))
    return places


def library(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Byte pair encoding (Sennrich et al. 2016) of words with spaces between, in which `</w>` belongs to the last letter."""
    tokens = dict(vocabulary)
    for pair in merges:
        for symbol in (*pair, "".join(pair)):
            tokens.setdefault(symbol, len(tokens))
    found = tokenizers.Tokenizer(models.BPE(tokens, merges, unk_token="<unk>", end_of_word_suffix=SUFFIX))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.decoder = decoders.BPEDecoder(suffix=SUFFIX)
    found.add_special_tokens([token for token in vocabulary if SPECIAL.fullmatch(token)])
    return found
