"""Vectors of sentences: a line in, a JSON object out, in order, also for an empty line.

    python -m experiments.embed --init_from=FOLDER|WORKDIR|HUB_NAME < lines                     {"text", "vector"}
    … --adapter=NAME=PATH … --use=NAME             the vectors of one that was trained beside the model
    … --nearest=5 --corpus=FILE < questions        the most similar lines of a file             {"text", "nearest"}
    … --similarity_file=FILE        "score TAB sentence TAB sentence" a line: Spearman and Pearson
    … --summary=3 < text            its most central sentences
    … --words [--layers=-4:] < lines        a vector for each word between blanks     {"text", "words", "vectors"}

Vectors are means of the last hidden states, of length 1; where the folder says otherwise, as those of sentence-transformers
do in modules.json and the files beside it, or the run has learned otherwise, it is done so. --pooling and --normalise change
that; --prompt names another of the folder's prompts. Where there are prompts "query" and "document" (or "passage"), the lines
of --nearest are read with the one, and those of --corpus with the other.

--layers=-4: takes the states of the last four layers in place of the last one's, --layers=0 those of the embeddings, and
--combine says what is made of several: concat, sum or mean. A word's vector is that of its first token, as BERT gives features
for tagging (Devlin et al. 2019, section 5.3), in its own length, unless --pooling and --normalise say otherwise.
"""

import json
import sys

from absl import flags

from experiments import launch, lines
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="none")
flags.DEFINE_string("init_from", None, "folder of Hugging Face's, workdir, or name on the hub", flag_values=FLAGS)
launch.define_adapters(FLAGS)
flags.DEFINE_integer("nearest", 0, "how many of the lines of --corpus", 0, flag_values=FLAGS)
flags.DEFINE_string("corpus", None, "file that is searched, a text a line", flag_values=FLAGS)
flags.DEFINE_string("similarity_file", None, "TSV of score, sentence and sentence", flag_values=FLAGS)
flags.DEFINE_integer("summary", 0, "sentences of an extractive summary", 0, flag_values=FLAGS)
flags.DEFINE_string("pooling", None, "mean, first, max, mean_sqrt_len, weighted_mean or last", flag_values=FLAGS)
flags.DEFINE_string("prompt", None, "the name of a prompt of the folder; an empty one for none", flag_values=FLAGS)
flags.DEFINE_bool("normalise", None, "make vectors of length 1", flag_values=FLAGS)
flags.DEFINE_integer("max_length", None, "tokens of a text that are read", 3, flag_values=FLAGS)
launch.define_step(FLAGS)
flags.DEFINE_bool("words", False, "a vector for each word, not for the line", flag_values=FLAGS)
flags.DEFINE_string("layers", None, "whose states are taken: -4: or 1:5 or -2; 0 are the embeddings", flag_values=FLAGS)
flags.DEFINE_enum("combine", None, ("concat", "sum", "mean"), "what is made of several layers", flag_values=FLAGS)

WORDS_AT_ONCE = 64
"""Lines that are read together for the vectors of their words."""


def main(args, config) -> None:
    from transformers_jax.inference import adapters, embeddings, predictor
    from transformers_jax.inference.layers import Layers
    from transformers_jax.inference.word_vectors import WordEmbedder

    if not args.init_from:
        raise UserError("--init_from is missing: give a folder of Hugging Face's, a workdir, or a name on the hub")
    if bool(args.nearest) != bool(args.corpus):
        raise UserError("--nearest and --corpus go together: how many, and of which file's lines")
    if sum(map(bool, (args.nearest, args.similarity_file, args.summary))) > 1:
        raise UserError("--nearest, --similarity_file and --summary are three things: give one")
    changes = {n: args[n].value for n in ("pooling", "normalise", "max_length", "prompt") if args[n].value is not None}
    if args.combine and not args.layers:
        raise UserError(f"--combine={args.combine} is of several layers: give --layers, as in --layers=-4:")
    layers = Layers(args.layers, args.combine or "concat") if args.layers else None
    there = predictor.loaded(args.init_from, step=args.step)
    if args.adapter or args.use:
        there = adapters.named(there, args.adapter, args.use)[""]
    if args.words:
        if not_words := [n for n in ("nearest", "similarity_file", "summary", "prompt") if args[n].value]:
            raise UserError(f"--words gives vectors of words, and --{not_words[0]} is of sentences")
        answer = words_of(WordEmbedder.over(there, layers, **changes))
        show(answer, lines.blocks(lines.decoded(sys.stdin.buffer), 1 if sys.stdin.isatty() else WORDS_AT_ONCE))
        return
    embed = embeddings.Embedder.over(there, layers, **changes)
    if args.similarity_file:
        print(json.dumps(similarity(embed, args.similarity_file)))
    elif args.summary:
        text = "\n".join(lines.decoded(sys.stdin.buffer))
        parts = embeddings.sentences_of(text)
        print(*embeddings.summary(parts, embed(parts), args.summary) if parts else (), sep="\n")
    else:
        show(search(embed, args.corpus, args.nearest) if args.nearest else vectors_of(embed), lines.blocks_of_input())


def show(answer, blocks) -> None:
    """Prints the answers to each block of lines."""
    for block in blocks:
        for line in answer(block):
            print(json.dumps(line, ensure_ascii=False))
        sys.stdout.flush()


def words_of(embed):
    """Lines → {"text", "words", "vectors"} of each."""

    def answer(block: list[str]) -> list[dict]:
        return [{"text": text} | found for text, found in zip(block, embed(block), strict=True)]

    return answer


def vectors_of(embed):
    """Lines → {"text", "vector"} of each; an empty line has no vector."""

    def answer(block: list[str]) -> list[dict]:
        rows = embed(block).tolist()
        return [{"text": t, "vector": v if t.strip() else None} for t, v in zip(block, rows, strict=True)]

    return answer


def search(embed, corpus: str, count: int):
    """Lines → {"text", "nearest": [{"line", "text", "similarity"}, …]} of each; lines of the corpus count from 1."""
    from transformers_jax.data.text.lines import filled
    from transformers_jax.inference import embeddings

    there = filled(corpus, "--corpus")
    numbers = [i for i in range(len(there)) if there[i].strip()]
    texts = [there[i] for i in numbers]
    vectors = embed(texts, embed.named("document", "passage", "corpus"))

    def answer(block: list[str]) -> list[dict]:
        found = embeddings.nearest(embed(block, embed.named("query")), vectors, count, embed.recipe.similarity)
        shown = [
            [{"line": numbers[i] + 1, "text": texts[i], "similarity": round(s, 4)} for i, s in best] if text.strip() else []
            for text, best in zip(block, found, strict=True)
        ]
        return [{"text": text, "nearest": best} for text, best in zip(block, shown, strict=True)]

    return answer


def similarity(embed, path: str) -> dict:
    """How the similarity of two sentences follows the scores of a file."""
    from ml_collections import ConfigDict

    from transformers_jax.data import sources
    from transformers_jax.inference import embeddings
    from transformers_jax.tasks.parts.metrics import pearson, spearman

    columns = ("score", "first", "second")
    pairs = sources.open_source(ConfigDict({"source": "tsv", "test": path, "columns": columns}), "test")
    scores, first, second = ([pair[name] for pair in pairs] for name in columns)
    found = embeddings.paired(embed(first), embed(second), embed.recipe.similarity)
    return {"spearman": spearman(scores, found), "pearson": pearson(scores, found), "pairs": len(scores)}


if __name__ == "__main__":
    launch.run(main, FLAGS)
