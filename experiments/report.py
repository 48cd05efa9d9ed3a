"""Draws a run or a search: pictures and one page that needs nothing beside it, in DIR/report.

python -m experiments.report --workdir=DIR
"""

from absl import logging

from experiments import launch
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="workdir")


def main(args, config) -> None:
    from transformers_jax.reporting.report import make_report
    from transformers_jax.reporting.search import is_search

    print(make_report(args.workdir, attention=None if is_search(args.workdir) else attention_of(args, config)))


def attention_of(args, config):
    """The attention of a trained run, or None."""
    from transformers_jax.evaluation import attention_example
    from transformers_jax.experiment import Experiment

    try:
        return attention_example(Experiment(config, args.workdir))
    except UserError as error:
        logging.warning("the report is without attention: %s", error)
        return None


if __name__ == "__main__":
    launch.run(main, FLAGS)
