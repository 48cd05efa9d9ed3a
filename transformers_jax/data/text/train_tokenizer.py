"""Vocabularies of the encoders, learned from text by the trainers of the `tokenizers` library.

    wordpiece   BERT, DistilBERT          [PAD] [UNK] [CLS] [SEP] [MASK], continuing tokens begin with ##
    byte_bpe    RoBERTa                   <s> <pad> </s> <unk> <mask>, byte pair encoding over bytes: loses nothing
    unigram     ALBERT, CamemBERT, XLM-R  the same, a unigram language model over ▁words (SentencePiece, Kudo 2018)

A text is read as they read it: WordPiece splits at punctuation and normalises, the others keep what is written.
"""

import re
from collections.abc import Iterable, Iterator

import tokenizers
from absl import logging
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.data.text.tokenizer_files import special_ids
from transformers_jax.errors import UserError

KINDS = ("wordpiece", "byte_bpe", "unigram")
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 1000
"""Characters without white space that are learned from in one piece."""

_LONG = re.compile(rf"\S{{{LONGEST_WORD}}}")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def learn(kind: str, lines: Iterable[str], vocab_size: int, *, lowercase: bool = False) -> Tokenizer:
    """Learns a vocabulary of at most `vocab_size` tokens.

    Args:
      kind: one of KINDS.
      lines: the text.
      lowercase: wordpiece: capitals and accents are dropped, as in BERT's uncased models.

    Raises:
      UserError: an unknown kind, no text, or a vocabulary too small for the characters of the text.
    """
    makers = {"wordpiece": _wordpiece, "byte_bpe": _byte_bpe, "unigram": _unigram}
    if kind not in makers:
        raise UserError(f"config.tokenizer.kind={kind!r} is not one of bpe, {', '.join(KINDS)}")
    library, trainer = makers[kind](vocab_size, lowercase)
    seen = [False]

    def counted():
        for line in lines:
            seen[0] = seen[0] or bool(line.strip())
            yield from parts(line)

    try:
        library.train_from_iterator(counted(), trainer)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"config.tokenizer.vocab_size={vocab_size}: {kind} cannot be learned: {error}") from error
    if not seen[0]:
        raise UserError("the corpus to learn the tokenizer from has no text; check config.data")
    if library.get_vocab_size() > vocab_size:
        raise UserError(
            f"config.tokenizer.vocab_size={vocab_size}: the characters of the text alone make {library.get_vocab_size()} tokens"
        )
    if library.get_vocab_size() < vocab_size:
        logging.warning("the corpus is too small for %d tokens: %d", vocab_size, library.get_vocab_size())
    return Tokenizer(library, special_ids(library, {}))


def parts(line: str) -> Iterator[str]:
    """A line, cut inside of words longer than LONGEST_WORD: the library's time grows with the square of a word's length."""
    if not _LONG.search(line):
        yield line
        return
    logging.log_first_n(logging.WARNING, "a word of more than %d characters is learned from in parts", 1, LONGEST_WORD)
    at = 0
    for word in _LONG.finditer(line):
        yield line[at : word.end()]
        at = word.end()
    if line[at:]:
        yield line[at:]


def placeholder(vocab_size: int) -> Tokenizer:
    """A tokenizer of so many tokens that knows no text: for plans of a run whose tokenizer is yet to be learned."""
    tokens = [*BERT_SPECIAL, *map(str, range(vocab_size - len(BERT_SPECIAL)))]
    library = tokenizers.Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    return Tokenizer(library, special_ids(library, {}))


def _wordpiece(vocab_size: int, lowercase: bool):
    library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(BERT_SPECIAL), limit_alphabet=1000, show_progress=False
    )
    return library, trainer


def _byte_bpe(vocab_size: int, lowercase: bool):
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(ROBERTA_SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    return library, trainer


def _unigram(vocab_size: int, lowercase: bool):
    library = tokenizers.Tokenizer(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(ROBERTA_SPECIAL), unk_token="<unk>", show_progress=False
    )
    return library, trainer
