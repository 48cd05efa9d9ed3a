"""Learns a vocabulary, shows how it makes tokens of a text, counts them, and writes token files.

    python -m experiments.tokenize --learn=byte_bpe --vocab_size=8000 --files=a.txt,b.txt.gz --out=tokenizer.json
    python -m experiments.tokenize --tokenizer=tokenizer.json --files=a.txt,b.jsonl --unit=document --out=a.tokens
    python -m experiments.tokenize --tokenizer=FOLDER --files=a.txt          # counts
    python -m experiments.tokenize --tokenizer=FOLDER --trace="a text"       # merges, step by step

A token file is what config.data.source=tokens reads, with the same tokenizer as config.tokenizer.path.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from experiments import launch
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="none")
flags.DEFINE_string("learn", None, "learn a vocabulary: bpe, byte_bpe, wordpiece or unigram", flag_values=FLAGS)
flags.DEFINE_integer("vocab_size", 8000, "of --learn: tokens, special ones too", flag_values=FLAGS)
flags.DEFINE_bool("lowercase", False, "of --learn=wordpiece: capitals and accents are dropped", flag_values=FLAGS)
flags.DEFINE_string("tokenizer", None, "tokenizer.json, another vocabulary's file, its folder, or a workdir", flag_values=FLAGS)
flags.DEFINE_list("files", [], "texts, plain or gzip; of a .jsonl file the text of each line", flag_values=FLAGS)
flags.DEFINE_string("unit", "document", "a text is a line, a document (up to a blank line) or a file", flag_values=FLAGS)
flags.DEFINE_string("begins", "", "of --unit=document: a line that begins so begins one", flag_values=FLAGS)
flags.DEFINE_string("trace", None, "a text whose merges are shown", flag_values=FLAGS)
flags.DEFINE_string("out", None, "the tokenizer or token file to write", flag_values=FLAGS)


def main(args, config) -> None:
    from transformers_jax.data.text import trace

    if bool(args.learn) == bool(args.tokenizer):
        raise UserError("give either --learn=KIND, for a new vocabulary, or --tokenizer=FILE, one that is there")
    if not args.files and (args.learn or args.trace is None):
        raise UserError("--files is missing: give texts, as in --files=a.txt,b.txt.gz")
    if args.out and not Path(args.out).absolute().parent.is_dir():
        raise UserError(f"--out={args.out}: there is no folder {Path(args.out).parent}")
    tokenizer = learned(args) if args.learn else load(args.tokenizer)
    if args.files and args.tokenizer:
        count(args, tokenizer)
    for line in trace.lines(tokenizer, args.trace) if args.trace is not None else ():
        print(line)


def load(path: str):
    from transformers_jax.data.text.tokenizer import Tokenizer

    return Tokenizer.load(path)


def learned(args):
    """A new vocabulary, written to --out."""
    from transformers_jax.data.text.text_stream import texts
    from transformers_jax.data.text.tokenizer import learn_bpe
    from transformers_jax.data.text.train_tokenizer import KINDS, learn

    if not args.out or args.out.endswith(".tokens"):
        raise UserError("--out is missing: give the file of the vocabulary, as in --out=tokenizer.json")
    if args.learn not in ("bpe", *KINDS):
        raise UserError(f"--learn={args.learn} is not one of bpe, {', '.join(KINDS)}")
    lines = (line for text in texts(args.files, "document") for line in text.split("\n"))
    if args.learn == "bpe":
        tokenizer = learn_bpe(lines, args.vocab_size)
    else:
        whole = texts(args.files, "document") if args.learn == "byte_bpe" else lines  # a line's end is a token, too
        tokenizer = learn(args.learn, whole, args.vocab_size, lowercase=args.lowercase)
    tokenizer.save(args.out)
    print(f"{args.out}: {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint()}")
    return tokenizer


def count(args, tokenizer) -> None:
    """Encodes the files, into --out if it is given, and says what they are made of."""
    from transformers_jax.data.text.text_stream import texts
    from transformers_jax.data.text.token_files import encoded, write

    words, began = [0], time.monotonic()

    def counted() -> Iterator[str]:
        for text in texts(args.files, args.unit, args.begins):
            words[0] += len(text.split())
            yield text

    if args.out:
        found = write(args.out, tokenizer, counted())
    else:
        found = {"documents": 0, "tokens": 0, "bytes": 0}
        for ids, text in encoded(tokenizer, counted()):
            sizes = {"documents": 1, "tokens": len(ids), "bytes": len(text.encode())}
            found = {name: number + sizes[name] for name, number in found.items()}
    tokens, seconds = max(found["tokens"], 1), time.monotonic() - began
    print(
        f"{found['documents']:,} documents, {words[0]:,} words, {found['bytes']:,} bytes, {found['tokens']:,} tokens: "
        f"{found['tokens'] / max(words[0], 1):.3f} tokens a word, {found['bytes'] / tokens:.3f} bytes a token ({seconds:.1f} s)"
    )


if __name__ == "__main__":
    launch.run(main, FLAGS, jax=False)
