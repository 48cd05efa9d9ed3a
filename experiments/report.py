"""Draws a run or a search: pictures and one page that needs nothing beside it, in DIR/report.

python -m experiments.report --workdir=DIR [--word=bank [--sentences=FILE]] [--step=best|last|N]
"""

from absl import flags, logging

from experiments import launch
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="workdir")
flags.DEFINE_string("word", "", "an encoder: whose vectors in different sentences are drawn", flag_values=FLAGS)
flags.DEFINE_string("sentences", None, "an encoder: file with sentences of that word, one a line", flag_values=FLAGS)
launch.define_step(FLAGS)


def main(args, config) -> None:
    from transformers_jax.reporting.report import make_report
    from transformers_jax.reporting.search_pictures import is_search

    print(make_report(args.workdir, **({} if is_search(args.workdir) else pictures_of(args, config))))


def pictures_of(args, config) -> dict:
    """What a trained model can be asked for: of its own, and what finetuning made of the one that it began with."""
    from transformers_jax.reporting import updates
    from transformers_jax.runs.experiment import Experiment

    found = own_pictures(args, config)
    try:
        more = updates.pictures(Experiment(config, args.workdir))
    except UserError as error:
        logging.warning("the report is without what finetuning changed: %s", error)
        return found
    return found | {"more": {**found.get("more", {}), **more}}


def own_pictures(args, config) -> dict:
    """Attention, and of an encoder a word's vectors. Without a model, nothing."""
    from transformers_jax.data.text.lines import filled
    from transformers_jax.reporting import vision_pictures, word_vectors
    from transformers_jax.reporting.attention import attention_example
    from transformers_jax.reporting.scenes import worst_scenes
    from transformers_jax.runs.experiment import Experiment

    texts = filled(args.sentences, "--sentences") if args.sentences else None
    found, run = {}, Experiment(config, args.workdir, step=args.step)
    try:
        if not run.reads_text:
            if args.word or args.sentences:
                raise UserError(f"--word and --sentences are for encoders of texts; {args.workdir} reads images")
            found["positions"] = False
            if config.task.name == "segmentation":
                found["images"] = worst_scenes(run)
            elif config.task.name in ("image_classification", "image_distillation"):
                found["more"] = vision_pictures.pictures(run)
            return found
        if not word_vectors.is_encoder(run):
            if args.word or args.sentences:
                raise UserError(f"--word and --sentences are for encoders; {args.workdir} holds none")
            return {"attention": attention_example(run)}
        found["positions"] = False  # they are learned
        found["attention"] = word_vectors.attention_example(run)
        found["word"] = word_vectors.word_example(run, args.word, texts)
    except UserError as error:
        if args.word or args.sentences:
            raise
        part = "a word's vectors" if "attention" in found else "attention" if run.reads_text else "pictures of the model"
        logging.warning("the report is without %s: %s", part, error)
    return found


if __name__ == "__main__":
    launch.run(main, FLAGS)
