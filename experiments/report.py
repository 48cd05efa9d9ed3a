"""Draws a run: pictures and one page that needs nothing beside it, in DIR/report.

python -m experiments.report --workdir=DIR
"""

from absl import logging

from experiments import launch
from transformers_jax.errors import UserError

FLAGS = launch.flags_of(config="workdir")


def main(args, config) -> None:
    from transformers_jax.evaluation import attention_example
    from transformers_jax.experiment import Experiment
    from transformers_jax.reporting.report import make_report

    try:
        attention = attention_example(Experiment(config, args.workdir))
    except UserError as error:
        logging.warning("the report is without attention: %s", error)
        attention = None
    print(make_report(args.workdir, attention=attention))


if __name__ == "__main__":
    launch.run(main, FLAGS)
