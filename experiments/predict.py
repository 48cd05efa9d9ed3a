"""Answers of a trained model: a line in, a JSON object out, in order; an empty line gives {}.

    python -m experiments.predict --workdir=DIR [--average=N | --step=best|last|N] [--adapter=NAME=PATH … [--use=NAME]]
        < lines
    python -m experiments.predict --init_from=FOLDER|WORKDIR|HUB_NAME [--task=next_sentence] [--top=5] < lines
    python -m experiments.predict --workdir=DIR|--init_from=FOLDER [--out=FOLDER] IMAGE|FOLDER …

A line is text, by the task of the run, or by the head of a folder of Hugging Face's, whose labels are those of its config.json:

    sequence_classification, similarity   a text, or two with a TAB between them
    tagging                               words with blanks between them
    span_qa                               question TAB passage
    multiple_choice                       beginning TAB choice TAB choice …
    image_classification, segmentation,
    detection                             the path of an image
    masked_lm (fill_mask)                 a text with [MASK] for each gap: "Let's stick to [MASK] in this skit"
    next_sentence                         two texts with a TAB between them

or a JSON object with the keys of the task's examples. It comes back with labels and their probabilities, a tag for each word,
the answer and where it stands in the passage, or the best words for each gap; with --candidates=improvisation,comedy each of
these words, the likeliest first. A model that has learned which sentences follow each other beside its gaps tells so with
--task=next_sentence. --format=text takes lines that begin with { as they are; --format=brackets prints a tagger's answers as
text, "[ORG U.N.] official [PER Ekeus] heads for [LOC Baghdad] .".

Of a model of images, files and folders of them may also be arguments, instead of lines. With --out, segmentation writes each
image's mask as PNG, whose numbers are the classes, and the image with the mask laid over it; detection the image with the
boxes.

A JSON object whose key "adapter" is NAME is answered by what is at that PATH, a workdir or a folder of PEFT that was trained
beside the same base as the run in DIR; the base is read once. Others are answered by the latter, or by that of --use.
"""

import json
import sys
from collections.abc import Iterator

from absl import flags

from experiments import launch, lines
from transformers_jax.errors import Unreadable, UserError

FLAGS = launch.flags_of(config="workdir", arguments="an image, or a folder of images, in place of lines")
flags.DEFINE_string("init_from", None, "folder of Hugging Face's, workdir, or name on the hub", flag_values=FLAGS)
flags.DEFINE_enum("task", None, ("fill_mask", "next_sentence"), "what to do, if not what was trained", flag_values=FLAGS)
FORMATS = ("auto", "text", "jsonl", "brackets")
flags.DEFINE_enum("format", "auto", FORMATS, "of lines; auto looks for {; brackets: of a tagger's answers", flag_values=FLAGS)
launch.define_adapters(FLAGS, " where a line does not say it")
flags.DEFINE_integer("top", 5, "words for a gap", 1, flag_values=FLAGS)
flags.DEFINE_list("candidates", [], "words that may stand in a gap", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for masks, and for images with masks or boxes", flag_values=FLAGS)
flags.DEFINE_integer("average", None, "over how many of the newest checkpoints", 1, flag_values=FLAGS)
launch.define_step(FLAGS)


IMAGES = 256
"""Images that are read and answered together."""


def main(args, config) -> None:
    from transformers_jax.data.images.folders import images_in
    from transformers_jax.inference import adapters, answers, predictor
    from transformers_jax.runs.experiment import Experiment

    if bool(args.workdir) == bool(args.init_from):
        raise UserError("give one of --workdir and --init_from")
    if args.init_from:
        there = predictor.loaded(args.init_from, average=args.average, step=args.step)
    else:
        there = predictor.trained(Experiment(config, args.workdir), average=args.average, step=args.step)
    models = adapters.named(there, args.adapter, args.use)
    answer = answers.answerer(models[""], args.task or "", top=args.top, candidates=args.candidates)
    shown = in_brackets(answer.task) if args.format == "brackets" else in_json
    if args.out:
        answer.task.write_to(args.out)
    if args.adapter:
        own = {name: answers.answerer(other, top=args.top) for name, other in models.items() if name}
        answer = answers.ByAdapter({"": answer} | own)
    form = "auto" if args.format == "brackets" else args.format
    number, what, blocks = 0, "standard input, line", lines.blocks_of_input()
    if args.arguments:
        if answer.task.reads != "images":
            raise UserError(f"unexpected argument {args.arguments[0]!r}: the run reads text, a line of standard input each")
        paths = [path for given in args.arguments for path in images_in(given, "--arguments")]
        form, what, blocks = "text", "image", lines.blocks(paths, IMAGES)
    for block in blocks:
        for found in answered(block, answer, number, form, what):
            print(shown(found))
        number += len(block)
        sys.stdout.flush()


def in_json(found: dict) -> str:
    """An answer as an object of JSON."""
    return json.dumps(found, ensure_ascii=False)


def in_brackets(task):
    """What writes a tagger's answer as text with its entities in brackets; that to an empty line is an empty line.

    Raises:
      UserError: the task gives no tags.
    """
    from transformers_jax.data.text import brackets
    from transformers_jax.tasks.parts import entities

    if task.name != "tagging":
        raise UserError(f"--format=brackets is of tags, and {task.name} gives none")

    marks = entities.alone([task.label_names])

    def shown(found: dict) -> str:
        return brackets.written(found["words"], entities.spans(found["prediction"], marks=marks)) if found else ""

    return shown


def answered(block: list[str], answer, before: int, form: str, what: str = "standard input, line") -> Iterator[dict]:
    """The answer to each line; those before a line that cannot be read or encoded come first, then its error.

    Args:
      before: lines of the input before these.
      what: what a line is, for messages.
    """
    places, examples, failure = [], [], None
    for i, line in enumerate(block):
        if line.strip():
            try:
                examples.append(answer.example(line, form, f"{what} {before + i + 1}"))
            except UserError as error:
                block, failure = block[:i], error
                break
            places.append(i)
    where = [f"{what} {before + i + 1}" for i in places]

    def answers_to(count: int) -> dict[int, dict]:
        there = examples[:count]
        return dict(zip(places, answer(there, where.__getitem__) if there else (), strict=False))

    try:
        found = answers_to(len(examples))
    except Unreadable as error:
        block, failure = block[: places[error.number]], error
        found = answers_to(error.number)
    yield from (found.get(i, {}) for i in range(len(block)))
    if failure:
        raise failure


if __name__ == "__main__":
    launch.run(main, FLAGS)
