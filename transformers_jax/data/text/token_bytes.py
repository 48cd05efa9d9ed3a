"""How many bytes of text a token stands for, to tell the bits that a language model needs for a byte of text: unlike the loss
of a token, models with different vocabularies can be compared by it.

Exact for encodings over bytes (GPT-2's, Llama 3's). Where white space around a text is not kept apart, the sum over a text may
be one more than its bytes: our own byte pair encoding ends each text in a space, SentencePiece begins it with one. A
vocabulary that changes the text (capitals, accents, white space: BERT's) is counted by what it keeps, with a space before
each word.
"""

import json
import re

import numpy as np
import tokenizers

from transformers_jax.data.text import words
from transformers_jax.data.text.sentencepiece_model import SPACE

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SUFFIX = "</w>"
_PREFIX = "##"


def lengths(library: tokenizers.Tokenizer, size: int) -> np.ndarray:
    """[size] int32, by id; 0 for ids without a token."""
    content = json.loads(library.to_str())
    added = {token["content"] for token in content["added_tokens"]}
    length = _measure(content)
    found = np.zeros(size, np.int32)
    for token, i in library.get_vocab().items():
        if i < size:
            found[i] = len(token.encode()) if token in added else length(token)
    return found


def _measure(content: dict):
    """The bytes of a token by its name, by what the library's components say about names."""
    decoder = json.dumps(content["decoder"])
    if '"ByteLevel"' in decoder:
        return len  # each character is a byte
    if words.JOIN in json.dumps(content["decoder"], ensure_ascii=False):
        return _ours
    if content["model"].get("continuing_subword_prefix") == _PREFIX:
        return lambda token: len(token.removeprefix(_PREFIX).encode()) + (not token.startswith(_PREFIX))
    if content["model"].get("end_of_word_suffix") == _SUFFIX:
        return lambda token: len(token.replace(_SUFFIX, " ").encode())
    return lambda token: 1 if _BYTE.fullmatch(token) else len(token.replace(SPACE, " ").encode())


def _ours(token: str) -> int:
    """Of a token of `words`: END is a space, unless a JOIN on either side takes it back."""
    if _BYTE.fullmatch(token):
        return 1
    return len(token.replace(words.END, " ").replace(words.JOIN, "").encode()) - token.count(words.JOIN)
