"""Draws a run or a search, or a model as it came from elsewhere: pictures and one page that needs nothing beside it.

    python -m experiments.report --workdir=DIR [--word=bank [--sentences=FILE]] [--step=best|last|N]    into DIR/report
    python -m experiments.report --init_from=FOLDER|HUB_NAME [--word=bank] [--sentences=FILE] [--out=report]

--word draws an encoder's vectors of one word in different sentences: those of --sentences, a file with one a line, or of the
run's data. Of --init_from these lines are also answered, as experiments.predict does.
"""

from pathlib import Path

from absl import flags, logging

from experiments import launch
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="workdir")
flags.DEFINE_string("init_from", None, "folder of Hugging Face's, workdir, or name on the hub", flag_values=FLAGS)
flags.DEFINE_string("out", None, "--init_from: the folder to write; report if not given", flag_values=FLAGS)
flags.DEFINE_string("word", "", "an encoder: whose vectors in different sentences are drawn", flag_values=FLAGS)
flags.DEFINE_string("sentences", None, "an encoder: file with sentences of that word, one a line", flag_values=FLAGS)
launch.define_step(FLAGS)


def main(args, config) -> None:
    from transformers_jax.reporting.report import make_report
    from transformers_jax.reporting.search_pictures import is_search
    from transformers_jax.runs.initialise import was_converted

    if args.init_from and args.workdir:
        raise UserError("give one of --workdir and --init_from")
    if args.out and not args.init_from:
        raise UserError(f"--out={args.out} is for --init_from: the report of a run is in its workdir")
    if args.init_from:
        from transformers_jax.inference import predictor

        print(of_weights(args, predictor.loaded(args.init_from, step=args.step), Path(args.out or "report")))
    elif was_converted(Path(args.workdir)):
        from transformers_jax.inference import predictor
        from transformers_jax.runs.experiment import Experiment

        print(of_weights(args, predictor.trained(Experiment(config, args.workdir)), Path(args.workdir) / "report"))
    else:
        print(make_report(args.workdir, **({} if is_search(args.workdir) else pictures_of(args, config))))


def of_weights(args, there, folder: Path) -> Path:
    """The page of a model that was not trained here."""
    from transformers_jax.reporting.weights_page import make_page

    return make_page(there, folder, word=args.word, texts=sentences(args))


def sentences(args) -> list[str] | None:
    """The lines of --sentences; None where it is not given."""
    from transformers_jax.data.text.lines import filled

    return list(filled(args.sentences, "--sentences")) if args.sentences else None


def pictures_of(args, config) -> dict:
    """What a trained model can be asked for: of its own, and what finetuning made of the one that it began with."""
    from transformers_jax.reporting import updates
    from transformers_jax.runs.experiment import Experiment

    found = own_pictures(args, config)
    try:
        more = updates.pictures(Experiment(config, args.workdir, step=args.step))
    except UserError as error:
        logging.warning("the report is without what finetuning changed: %s", error)
        return found
    return found | {"more": {**found.get("more", {}), **more}}


def own_pictures(args, config) -> dict:
    """Attention, and of an encoder a word's vectors. Without a model, nothing."""
    from transformers_jax.inference import predictor
    from transformers_jax.reporting import vision_pictures, word_vectors
    from transformers_jax.reporting.attention import attention_example
    from transformers_jax.reporting.scenes import worst_scenes
    from transformers_jax.runs.experiment import Experiment

    texts, found, run = sentences(args), {}, Experiment(config, args.workdir, step=args.step)
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
        if not word_vectors.is_encoder(run.model):
            if args.word or args.sentences:
                raise UserError(f"--word and --sentences are for encoders; {args.workdir} holds none")
            return {"attention": attention_example(run)}
        found["positions"] = False  # they are learned
        there = predictor.trained(run)
        found["attention"] = word_vectors.attention_example(there, word_vectors.texts_of(run))
        found["word"] = word_vectors.word_example(there, word_vectors.texts_of(run) if texts is None else texts, args.word)
    except UserError as error:
        if args.word or args.sentences:
            raise
        part = "a word's vectors" if "attention" in found else "attention" if run.reads_text else "pictures of the model"
        logging.warning("the report is without %s: %s", part, error)
    return found


if __name__ == "__main__":
    launch.run(main, FLAGS)
