"""The tokenizer: text to ids of tokens and back. Our own is byte pair encoding that loses nothing; pretrained ones load
through the same class. Encoding and decoding run inside the `tokenizers` library, many lines on all cores at once.

Our vocabulary: `<pad>` 0, `<s>` 1, `</s>` 2, the 256 bytes `<0x00>` … `<0xFF>`, the alphabet (the three marks of
`words.py`, then characters by code point), the merged tokens, best first. A character outside the alphabet is written
as its UTF-8 bytes. A text never becomes a token with a role: `<pad>` in a text is five characters. Tokens that were added to a
pretrained vocabulary are one each, see `added_tokens`.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import tokenizers
from absl import logging

from transformers_jax.data.text import added_tokens, bpe, moses, token_bytes, tokenizer_files, words
from transformers_jax.data.text.pairs import Joined, place, truncated, with_marks
from transformers_jax.data.text.sentencepiece_model import SPACE
from transformers_jax.data.text.tokenizer_files import SpecialIds
from transformers_jax.errors import UserError
from transformers_jax.files import write_whole

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_FIXED = SPECIAL_TOKENS + BYTE_TOKENS + words.MARKS
LONGEST_WORD = 200
"""Characters of a word that merges are learned from in one piece."""

_PROBE = "Ein  Mädchen, 3 DOGS:\tdon't 'être' <s>[MASK] ﬁ é ß 日本語 🙂 "


class Tokenizer:
    """Text to ids of tokens and back; made by `learn_bpe`, `Tokenizer.from_merges` or `Tokenizer.load`.

    Attributes:
      pad_id, bos_id, eos_id: the tokens that fill, begin and end a sequence. BERT's `[CLS]` and `[SEP]` begin and end;
        where a pretrained vocabulary lacks one, another stands in: GPT-2's `<|endoftext|>` is all three.
      unk_id, mask_id: the token of what cannot be written, and BERT's `[MASK]`; None where the vocabulary has none.
      vocab_size: the rows an embedding needs, one more than the highest id.
      separators: ends between the two texts of a pair: one, as BERT has it, or two, as RoBERTa has it.
      chat_template: how a conversation is written, in Jinja, as `data.text.chat` reads it; None where its files have none.
    """

    chat_template: str | None = None

    def __init__(self, library: tokenizers.Tokenizer, special: SpecialIds, words_before: moses.Words | None = None):
        library.no_truncation()  # pretrained files may carry both
        library.no_padding()
        library.encode_special_tokens = True  # `<pad>` in a text is text
        added = {i for i, token in library.get_added_tokens_decoder().items() if token.special}
        self._added = frozenset(library.id_to_token(i) for i in added)
        self._dropped = frozenset(added.union(special) - {None})
        roles = tokenizer_files.USUAL_NAMES.union(library.id_to_token(i) for i in special if i is not None)
        self._library, self._named = added_tokens.without_role(library, roles)
        self._special, self._words = special, words_before
        self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id = special
        self.vocab_size = words_before.size if words_before else max(library.get_vocab().values()) + 1
        self.separators = self._separators()
        self._spaced = self._begun_by_spaces()

    def __reduce__(self):
        return _restored, (self.chat_template, added_tokens.content(self._library, self._named), self._special, self._words)

    @classmethod
    def from_merges(cls, merges: Iterable[bpe.Pair], alphabet: Iterable[str] = ()) -> "Tokenizer":
        """A tokenizer of given merges, best first, whose symbols are characters, `</w>` and what earlier merges made.

        Args:
          merges: pairs of symbols, as `bpe.merges_of` gives them.
          alphabet: characters that are tokens beside those of the merges.

        Raises:
          UserError: a merge of a symbol that no earlier merge made.
        """
        pairs = [tuple(symbol.replace(bpe.END_OF_WORD, words.END) for symbol in pair) for pair in merges]
        characters = {symbol for pair in pairs for symbol in pair if len(symbol) == 1}.union(alphabet)
        tokens = dict.fromkeys([*_FIXED, *sorted(characters.difference(words.MARKS))])
        for number, pair in enumerate(pairs, start=1):
            for symbol in pair:
                if symbol not in tokens or symbol in SPECIAL_TOKENS + BYTE_TOKENS:
                    raise UserError(f"merge {number} joins {symbol!r}, which no earlier merge makes")
            tokens["".join(pair)] = None
        return cls._of(list(tokens), pairs)

    @classmethod
    def _of(cls, tokens: Sequence[str], merges: Sequence[bpe.Pair]) -> "Tokenizer":
        """The tokenizer of a whole vocabulary, in the order of ids, with the merges spelled with END."""
        vocabulary = {token: i for i, token in enumerate(tokens)}
        library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, list(merges), byte_fallback=True))
        library.normalizer, library.pre_tokenizer = words.NORMALIZER, words.PRE_TOKENIZER
        library.decoder = words.DECODER
        return cls(library, SpecialIds(pad=0, bos=1, eos=2, unk=None, mask=None))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without beginning and end. An empty text has none."""
        return self._encoding(text).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and for each token where it stands: text[start:end], without white space around it.

        Places are in order. Where a character makes several tokens, each stands at the whole character; so does a mark
        that the tokenizer adds, at the character before it. Combining marks that the tokenizer drops, accents in an uncased
        vocabulary say, belong to the token before them. A token of white space is empty, start == end.
        """
        encoding = self._encoding(text)
        places, last = [], 0
        for start, end in encoding.offsets:
            places.append(place(text, max(start, last) if end > last else start, end))
            last = max(last, end)
        return encoding.ids, with_marks(text, places)

    def encode_marked(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text in which the names of special tokens stand for these tokens, as in what a chat template gives; and
        for each token where it stands, text[start:end], with white space that belongs to it.

        For texts of ours alone: see `special_names` for what others may spell.
        """
        encoding = self._encoding(text) if self._words else self._marking.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The `tokenizers` library's own, to be looked at."""
        return self._library

    @cached_property
    def special_names(self) -> tuple[str, ...]:
        """The names of the special tokens."""
        return tuple(name for i in sorted(self._dropped) if (name := self._library.id_to_token(i)))

    @cached_property
    def _marking(self) -> tokenizers.Tokenizer:
        """The library that takes the names of special tokens for these tokens."""
        library = tokenizers.Tokenizer.from_str(self._library.to_str())
        library.encode_special_tokens = False
        library.add_special_tokens([name for name in self.special_names if name not in self._added])
        return library

    def lowercased(self) -> "Tokenizer":
        """The same of texts that are put in lower case first; names of added tokens are looked for before, as they are."""
        content, words_before = added_tokens.content(self._library, self._named), self._words
        if words_before:
            return _restored(self.chat_template, content, self._special, words_before._replace(lowercase=True))
        described = json.loads(content)
        own = json.dumps(described["normalizer"])
        if '"Lowercase"' not in own and '"lowercase": true' not in own:
            after = [described["normalizer"]] if described["normalizer"] else []
            described["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *after]}
        return _restored(self.chat_template, json.dumps(described, ensure_ascii=False), self._special, None)

    def byte_lengths(self) -> np.ndarray:
        """[vocab_size] int32: how many bytes of UTF-8 each token stands for, see `token_bytes`; special tokens for none."""
        lengths = token_bytes.lengths(self._library, self.vocab_size)
        lengths[sorted(i for i in self._dropped if i < self.vocab_size)] = 0
        return lengths

    def encode_with_words(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text, and the number of the word that each token belongs to, 0, 1, 2 …

        Words are those that the tokenizer splits. SentencePiece's need not end at spaces: a token with `▁` in front begins
        a word too.
        """
        encoding = self._encoding(text)
        words_of, last, before = [], -1, None
        for i, word in zip(encoding.ids, encoding.word_ids, strict=True):
            last += word is None or word != before or i in self._spaced
            before = word
            words_of.append(last)
        return encoding.ids, words_of

    def joined(self, first: Sequence[int], second: Sequence[int] | None = None) -> Joined:
        """The tokens of one text or two with beginning, separators and end around them."""
        ids = [self.bos_id, *first, self.eos_id]
        if second is None:
            return Joined(ids, [0] * len(ids), (1,))
        ids += [self.eos_id] * (self.separators - 1)
        start = len(ids)
        ids += [*second, self.eos_id]
        types = [0] * start + [int(self.separators == 1)] * (len(ids) - start)
        return Joined(ids, types, (1, start))

    def begun(self, ids: Sequence[int]) -> list[int]:
        """The tokens of a text that is to be continued: behind the beginning, where the tokenizer's file puts one there."""
        around = self._library.encode("a", add_special_tokens=True).ids
        return [*([self.bos_id] if around[:1] == [self.bos_id] else []), *ids]

    def surrounding(self, pair: bool) -> int:
        """How many tokens `joined` adds."""
        return 2 + self.separators * pair

    def encode_pair(
        self, first: str, second: str | None = None, *, max_length: int = 0, truncation: str = "longest_first"
    ) -> Joined:
        """One text or two as an encoder reads them, of at most `max_length` tokens in all (0: of any length).

        Args:
          truncation: what is shortened: "longest_first" or "only_second", see `truncated`.
        """
        texts = [self.encode(first)] + ([] if second is None else [self.encode(second)])
        if max_length:
            texts = truncated(texts, max_length - self.surrounding(second is not None), truncation)
        return self.joined(*texts)

    def textual_ids(self) -> np.ndarray:
        """The ids of all tokens but the special ones, ascending."""
        ids = set(self._library.get_vocab().values()).intersection(range(self.vocab_size))
        return np.array(sorted(ids - self._dropped), np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, encoded on all cores (but for FlauBERT's, whose words are split in Python)."""
        if self._words:
            return [self.encode(text) for text in texts]
        return [encoding.ids for encoding in self._library.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens are dropped.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return self._library.decode(self._textual(ids), skip_special_tokens=False)

    def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
        """The text of each row of ids, lists or an array [B, T], decoded on all cores. Raises what `decode` does."""
        rows = rows.tolist() if hasattr(rows, "tolist") else rows
        return self._library.decode_batch([self._textual(ids) for ids in rows], skip_special_tokens=False)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as they are shown to people, `</w>` spelled out."""
        return [self.token(i) for i in self.encode(text)]

    def token(self, i: int) -> str:
        """The token of an id as it is shown to people. Raises ValueError for an id outside the vocabulary."""
        self._check(i, i)
        return (self._library.id_to_token(int(i)) or "").replace(words.END, bpe.END_OF_WORD)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, special ones too; None if the vocabulary has no such token."""
        return self._library.token_to_id(token.replace(bpe.END_OF_WORD, words.END))

    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell two tokenizers apart: of tokens, merges, special ids, and of what becomes of
        a probing line. Not of the file, which the library may write differently from version to version."""
        model = json.loads(self._library.to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", ())]
        vocabulary = sorted((i, token) for token, i in self._library.get_vocab().items())
        scores = [f"{score:.6g}" for _, score in model["vocab"]] if isinstance(model["vocab"], list) else []
        found = json.dumps([vocabulary, merges, scores, self._special, self.encode(_PROBE), *self._added_names()])
        return hashlib.sha256(found.encode()).hexdigest()[:16]

    def _added_names(self) -> list[str]:
        """The names of the added tokens that texts may have, in order."""
        tokens = self._library.get_added_tokens_decoder().values()
        return sorted(token.content for token in tokens if not token.special)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `tokenizer.json` that the `tokenizers` library loads; into the folder, if the path is one.

        Which token begins, ends and fills is read from the names of the tokens. Where the names do not tell, as in some
        pretrained vocabularies, a `tokenizer_config.json` beside it does.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, added_tokens.content(self._library, self._named))
        config = tokenizer_files.read_config(path.parent)
        before = dict(config)
        if self._words:
            config |= {"moses": self._words._asdict()}
        if tokenizer_files.special_ids(self._library, config) != self._special:
            ids = self._special._asdict().items()
            config |= {f"{role}_token": None if i is None else self._library.id_to_token(i) for role, i in ids}
        if config != before:
            write_whole(path.with_name("tokenizer_config.json"), json.dumps(config, indent=2))
        if self.chat_template is not None:
            write_whole(path.with_name(tokenizer_files.CHAT_TEMPLATE), self.chat_template)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads `tokenizer.json` (ours or any other), BERT's `vocab.txt`, a SentencePiece `.model`, or `vocab.json` and
        `merges.txt` as GPT-2 or FlauBERT has them: the file, or the folder that holds it. See `tokenizer_files`.

        Raises:
          UserError: names the file that is missing or malformed.
        """
        tokenizer = cls(*tokenizer_files.read(Path(path)))
        tokenizer.chat_template = tokenizer_files.chat_template(Path(path))
        return tokenizer

    def _encoding(self, text: str):
        """Ids, offsets and word_ids of a text, as the library gives them."""
        if self._words:
            return self._words.encode(self._library, text, self._named)
        return self._library.encode(text, add_special_tokens=False)

    def _separators(self) -> int:
        """What the file's own template puts between two texts; without one, two where a `<mask>` tells of RoBERTa."""
        if self._library.post_processor is not None:
            ids = self._library.encode("", "", add_special_tokens=True).ids
            if len(ids) in (3, 4) and set(ids) <= {self.bos_id, self.eos_id}:
                return len(ids) - 2
        return 2 if self.mask_id is not None and self._library.id_to_token(self.mask_id) == "<mask>" else 1

    def _begun_by_spaces(self) -> frozenset[int]:
        """The tokens that begin with `▁`, where that is how a space is written."""
        normalizer, splitter, text = self._library.normalizer, self._library.pre_tokenizer, "a a"
        text = normalizer.normalize_str(text) if normalizer else text
        parts = splitter.pre_tokenize_str(text) if splitter else [(text, None)]
        if not any(SPACE in part for part, _ in parts):
            return frozenset()
        return frozenset(i for token, i in self._library.get_vocab().items() if token.startswith(SPACE))

    def _textual(self, ids: Iterable[int]) -> list[int]:
        """The ids that stand for text, checked."""
        ids = ids.tolist() if hasattr(ids, "tolist") else [int(i) for i in ids]  # of an array at once
        if ids:
            self._check(min(ids), max(ids))
        return [i for i in ids if i not in self._dropped]

    def _check(self, lowest: int, highest: int) -> None:
        if lowest < 0 or highest >= self.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"id {wrong} is outside the vocabulary: ids run from 0 to {self.vocab_size - 1}")


def learn_bpe(
    lines: Iterable[str],
    vocab_size: int | None = None,
    *,
    merges: int | None = None,
    alphabet_limit: int = 1000,
    min_count: int = 1,
) -> Tokenizer:
    """Learns byte pair encoding from lines of text, of all languages together.

    Args:
      lines: the text; a line end is not part of its line.
      vocab_size: how many tokens the vocabulary shall have, specials, bytes and alphabet among them. A corpus whose
        words have all become single tokens before gives fewer, and a warning.
      merges: how many merges are learned; instead of `vocab_size`.
      alphabet_limit: at most so many characters are tokens, the most frequent ones. The others stay bytes.
      min_count: a character that occurs less often stays bytes.

    Raises:
      UserError: no text, or a vocabulary too small for specials, bytes and marks.
    """
    if (vocab_size is None) == (merges is None):
        raise ValueError("learn_bpe takes either vocab_size or merges")
    if vocab_size is not None:
        if vocab_size < len(_FIXED):
            raise UserError(f"tokenizer.vocab_size is {vocab_size}; bytes and special tokens alone are {len(_FIXED)}")
        alphabet_limit = min(alphabet_limit, vocab_size - len(_FIXED))
    counts = Counter(word for line in lines for word in words.words(line.rstrip("\n")))
    alphabet = _alphabet(counts, alphabet_limit, min_count)
    tokens, pairs = dict.fromkeys([*_FIXED, *alphabet]), []
    known = {*words.MARKS, *alphabet}.__contains__
    runs = ((part, n) for word, n in counts.items() for inside, run in groupby(word, known) if inside for part in _parts(run))
    if (longest := max(map(len, counts))) > LONGEST_WORD:
        logging.warning("a word of %d characters: words are learned from in parts of %d", longest, LONGEST_WORD)
    learned = bpe.learn(runs)
    while len(tokens) != vocab_size and len(pairs) != merges:
        if not (pair := next(learned, None)):
            wanted = f"{vocab_size} tokens" if merges is None else f"{merges} merges"
            logging.warning("the corpus is too small for %s: %d tokens, %d merges", wanted, len(tokens), len(pairs))
            break
        pairs.append(pair)
        tokens["".join(pair)] = None
    return Tokenizer._of(list(tokens), pairs)


def _parts(run: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """A run of characters in parts of at most LONGEST_WORD: a merge walks over every part that has its pair."""
    run = tuple(run)
    return (run[at : at + LONGEST_WORD] for at in range(0, len(run), LONGEST_WORD))


def _alphabet(counts: Counter[str], limit: int, min_count: int) -> list[str]:
    """The characters that are tokens, by code point: the most frequent ones, the first seen where counts tie."""
    characters = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    for mark in words.MARKS:
        del characters[mark]
    if not characters:
        raise UserError("the corpus to learn the tokenizer from has no text; check config.data")
    return sorted(character for character, count in characters.most_common(limit) if count >= min_count)


def _restored(chat_template: str | None, content: str, *rest) -> Tokenizer:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(content), *rest)
    tokenizer.chat_template = chat_template
    return tokenizer


def _serial_in_children() -> None:
    """Lets a forked process encode on one core: the library's threads do not survive a fork, and it would warn so."""
    name, ours = "TOKENIZERS_PARALLELISM", []

    def before():
        if name not in os.environ:
            os.environ[name] = "false"
            ours.append(True)

    def after_in_parent():
        if ours:
            ours.clear()
            del os.environ[name]

    os.register_at_fork(before=before, after_in_parent=after_in_parent)


if hasattr(os, "register_at_fork"):
    _serial_in_children()
